"""Stages `open`, `discover` and `probe`: the files of the user become values, and the symmetry is proved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cipm.errors import ProbeError
from cipm.load import load
from cipm.load.probe import Probe
from cipm.pipeline.context import SYMMETRY, Context, batches, write_checkpoint, write_probe, write_traced
from cipm.pipeline.lengths import read_with_probe
from cipm.symmetry import Symmetry, discover_groups, index_limits, prove, with_continuous
from cipm.trace import run
from cipm.views.structure import write_structure


def open_model(context: Context, folder: Path) -> None:
    """Read the model file into the one graph."""
    checkpoint = load(Path(context.request["model"]))
    write_checkpoint(checkpoint, folder)
    context.kept["checkpoint"] = checkpoint


def discover(context: Context, folder: Path) -> None:
    """Find the symmetry groups, and the symmetries beside permutations, and prove them in float64."""
    payload = _write_symmetry(context, folder)
    checkpoint = context.checkpoint
    shapes = {key: tuple(checkpoint.meta(key).shape) for key in checkpoint.tensors}
    write_structure(folder, checkpoint.graph, payload, shapes, checkpoint.parameter_keys)


def _write_symmetry(context: Context, folder: Path) -> dict[str, Any]:
    symmetry = with_continuous(context.checkpoint, proved_groups(context), seed=context.options.seed)
    context.symmetry = context.kept["symmetry"] = symmetry
    payload = symmetry.to_json()
    (folder / SYMMETRY).write_text(json.dumps(payload))
    return payload


def proved_groups(context: Context) -> Symmetry:
    """Return the symmetry groups of the checkpoint, proved in float64."""
    options = context.options
    found = discover_groups(context.checkpoint, seed=options.seed)
    return prove(context.checkpoint, found, draws=options.proof_draws, seed=options.seed)


def read_probe_file(context: Context, folder: Path) -> None:
    """Read the probe file, fit it to the model's inputs (or the model's lengths to the probe), and try one batch."""
    options, request = context.options, context.request
    checkpoint, probe = read_with_probe(context.checkpoint, request.get("model"), request["probe"], max_rows=options.max_rows)
    _check_indices(probe, index_limits(checkpoint))
    first = next(batches(probe, checkpoint, min(options.batch_rows, 8)), None)
    if first is None:
        size = checkpoint.graph.inputs[0].shape[0]
        raise ProbeError(f"The model takes batches of exactly {size} rows, and the probe has {probe.used_rows}.",
                         fix="Give more rows, or export the model with a dynamic batch dimension.")
    run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, first)
    write_probe(probe, folder)
    if checkpoint is not context.checkpoint:
        context.checkpoint = context.kept["checkpoint"] = checkpoint
        write_traced(checkpoint, folder)
        _write_symmetry(context, folder)
    context.kept["probe"] = probe


def _check_indices(probe: Probe, limits: dict[str, int]) -> None:
    for name, rows in limits.items():
        values = probe.inputs[name]
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < rows:
            raise ProbeError(f"Input {name!r} holds indices from {int(values.min())} to {int(values.max())}, and the model "
                             f"knows only 0 to {rows - 1}.", where=name)
