"""What notebooks and benchmarks call, beside the names that other packages give as they are. Not jailed: for your own files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cipm import modules, pruning
from cipm.load import Checkpoint
from cipm.options import parse_options
from cipm.pipeline import RUN
from cipm.pipeline.context import Context, write_checkpoint
from cipm.stages import CHAINS
from cipm.symmetry import Symmetry, discover_groups, prove, with_continuous


def discover(checkpoint: Checkpoint, *, seed: int = 0, draws: int = 2) -> Symmetry:
    """Return the proved symmetry of a checkpoint: groups, pins with reasons, certificate, symmetries beside permutations."""
    groups = prove(checkpoint, discover_groups(checkpoint, seed=seed), draws=draws, seed=seed)
    return with_continuous(checkpoint, groups, seed=seed)


def partition(correlation: np.ndarray, *, samples: int) -> np.ndarray:
    """Return the module of each unit (int, −1: in none) of a correlation [units, units]."""
    return modules.partition(correlation, samples=samples).labels


def elimination_curve(covariance: np.ndarray, weights: np.ndarray, *,
                      samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, cost): units by removal, first removed first, and cost[k] of keeping k of n units.

    `covariance` [units, units] at the consumer's input, `weights` [outputs, units] of the consumer. `samples` (default:
    many) sets the ridge.
    """
    rows = samples if samples is not None else 1000 * len(covariance)
    curve = pruning.elimination_curve([covariance], [weights.T @ weights], samples=rows)
    return curve.removal_order, curve.cost


def analyze(checkpoint: Checkpoint, probe: str | Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the report (docs/design.md) of a checkpoint on a probe file; every stage runs in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        context = Context({"probe": str(probe)}, parse_options(dict(options or {})), {},
                          lambda event: None, {"checkpoint": checkpoint, "timings": {}})
        for stage in CHAINS["analyze"]:
            folder = Path(scratch) / stage
            folder.mkdir()
            write_checkpoint(checkpoint, folder) if stage == "open" else RUN[stage](context, folder)
            context.folders[stage] = folder
        return json.loads((context.folders["view"] / "report.json").read_text())
