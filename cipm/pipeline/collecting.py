"""Stage `collect`: one pass over the probe set gathers the statistics of every tap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from cipm.pipeline.context import Context, batches
from cipm.statistics import HalfSplit
from cipm.statistics.collect import collect
from cipm.symmetry import SymmetryGroup, Tap
from cipm.trace import run

Statistics = Mapping[str, HalfSplit]


def collect_statistics(context: Context, folder: Path) -> None:
    """Run the probe set once and accumulate the statistics of every tap."""
    options, checkpoint, probe = context.options, context.checkpoint, context.probe
    taps = _collected(context)
    report = context.progress("collect", probe.used_rows, "rows")
    constants = {key: tensor.to(context.device) for key, tensor in checkpoint.constants.items()}

    def forward(inputs: Mapping[str, Any], observe: Mapping[str, Any]) -> Any:
        return run(checkpoint.graph, context.tensors, constants, inputs, observe=observe)

    found = collect(forward, taps, batches(probe, checkpoint, options.batch_rows), positions=options.positions,
                    progress=report) if taps else {}
    arrays = {f"{tap.key}/{name}": np.array(array, order="C")
              for tap, half in found.items() for name, array in half.state().items()}
    save_file(arrays, folder / "statistics.safetensors")
    facts = {"taps": [{"value": tap.value, "axis": tap.axis, "samples": half.samples, "rows": half.rows}
                      for tap, half in found.items()]}
    (folder / "statistics.json").write_text(json.dumps(facts))


def read_statistics(context: Context) -> Statistics:
    """Return the statistics of every collected tap by its key."""
    arrays = load_file(context.folders["collect"] / "statistics.safetensors")
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        key, part = name.split("/", 1)
        found.setdefault(key, {})[part] = array
    return {key: HalfSplit.from_state(state) for key, state in found.items()}


def carried_by(groups: tuple[SymmetryGroup, ...], group: SymmetryGroup) -> SymmetryGroup | None:
    """Return the group of smaller units that the units of this group carry where it is read, or None."""
    if not group.taps:
        return None
    place = (group.taps[-1].value, group.taps[-1].axis)
    inner = [g for g in groups if g.parent == group.name and any((t.value, t.axis) == place for t in g.taps)]
    return inner[0] if inner else None


def _collected(context: Context) -> list[Tap]:
    """Return the taps to collect: those of proved groups that fit, one for each place."""
    groups = context.symmetry.groups
    chosen: dict[str, Tap] = {}
    for group in groups:
        if group.proved and group.size <= context.options.max_width and not carried_by(groups, group):
            for tap in group.taps:
                chosen.setdefault(tap.key, tap)
    return list(chosen.values())
