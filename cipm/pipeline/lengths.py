"""Probe rows of other lengths than a model is traced for: it is traced anew for those of the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cipm.errors import ProbeError
from cipm.load import Checkpoint, load
from cipm.load.probe import Probe, open_probe
from cipm.load.probe_match import fits
from cipm.trace import Input


def read_with_probe(checkpoint: Checkpoint, model: str | Path | None, probe: str | Path, *,
                    max_rows: int) -> tuple[Checkpoint, Probe]:
    """Return the model and the probe's rows for it; where their lengths differ from the trace's, the model is traced anew.

    The same tensors then come with another graph. `model` is the file that the checkpoint was read from. Raises ProbeError
    where the probe does not fit, or the model takes no such lengths, or has to be traced anew and there is no file.
    """
    inputs, lengths = checkpoint.graph.inputs, checkpoint.origin.get("lengths", {})
    rows = open_probe(Path(probe), [_open(spec, lengths.get(spec.name, {})) for spec in inputs], max_rows=max_rows)
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in rows.inputs.items()}
    if all(fits(shapes[spec.name], spec.shape[1:]) for spec in inputs if spec.name in lengths):
        return checkpoint, rows
    _check_lengths(shapes, lengths)
    if model is None:
        rows_of = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ProbeError(f"The model was traced for {_spell(inputs)}, and the probe's rows are {rows_of}.",
                         fix=f"Read it for them: cipm.load(path, rows={shapes}).")
    return load(model, rows=shapes), rows


def _open(spec: Input, axes: Mapping[str, Sequence[Any]]) -> Input:
    """Return an input with names in the place of sizes that another trace may have otherwise."""
    return replace(spec, shape=tuple(axes[str(axis)][0] if str(axis) in axes else size for axis, size in enumerate(spec.shape)))


def _check_lengths(shapes: Mapping[str, Sequence[int]], lengths: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    for name, axes in lengths.items():
        for axis, (_, least, most) in axes.items():
            size = shapes[name][int(axis) - 1]
            if size < least or (most is not None and size > most):
                allowed = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
                raise ProbeError(f"Axis {axis} of the probe's {name!r} has {size:,} positions; the model takes {allowed}.",
                                 where=name, fix="Save rows of another length.")


def _spell(inputs: Sequence[Input]) -> str:
    return ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in inputs)
