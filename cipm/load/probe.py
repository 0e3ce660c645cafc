"""Probe files: the rows on which a model's activations are measured. npz, npy, safetensors, csv, or a zip of images.

The columns of the file are matched to the model's inputs (`cipm.load.probe_match`), evenly spaced rows are taken where
there are too many, and every conversion is said aloud in `notes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cipm.errors import ProbeError
from cipm.load.probe_convert import convert_input, convert_labels
from cipm.load.probe_files import open_table
from cipm.load.probe_match import Column, match
from cipm.trace.graph import Input


@dataclass(frozen=True)
class Probe:
    """Rows for every input of a model: `inputs[name]` is [rows, …] in the input's dtype, `labels` [rows, …] or None.

    `rows` counts the rows of the file, `used_rows` those taken. Labels are int64 (classes or tokens) or float32.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None
    rows: int
    used_rows: int
    notes: tuple[str, ...]


def open_probe(path: Path, inputs: Sequence[Input], *, max_rows: int) -> Probe:
    """Read at most `max_rows` evenly spaced rows of a probe file for a model with these inputs.

    8-bit integers that look like images (three or more dimensions, or a zip of images) are divided by 255 for a
    floating input; other integers keep their values. Nothing is normalised further: a model that expects a mean
    subtracted needs an npz with the finished values.

    Raises ProbeError where the file is not a probe, is damaged, or does not fit the model. Cost: memory for the rows
    taken; time for one pass over the file.
    """
    columns, read_notes = open_table(path, inputs)
    matched = match(columns, inputs)
    rows = _common_rows(tuple(matched.inputs.values()), matched.labels)
    used = rows if rows <= max_rows else max_rows
    taken = np.arange(used) * rows // used
    notes = [*read_notes, *matched.notes]
    if used < rows:
        notes.append(f"{used:,} of {rows:,} rows are used, evenly spaced.")
    tensors = {}
    for spec in inputs:
        tensors[spec.name], said = convert_input(matched.inputs[spec.name], spec, taken)
        notes += said
    labels = None
    if matched.labels:
        labels, said = convert_labels(matched.labels, taken)
        notes += said
    return Probe(tensors, labels, rows, used, tuple(notes))


def _common_rows(columns: Sequence[Column], labels: Column | None) -> int:
    """Return the number of rows that all columns have; raises ProbeError where they disagree or there are none."""
    counts = {column.name: column.shape[0] for column in columns}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count:,}" for name, count in counts.items())
        raise ProbeError(f"The probe's inputs have different numbers of rows: {listed}.",
                         fix="Save the same rows for every input.")
    first, rows = next(iter(counts.items()))
    if rows == 0:
        raise ProbeError("The probe has no rows.", where=first, fix="Save at least two rows.")
    if labels and labels.shape[0] != rows:
        raise ProbeError(f"The probe has {labels.shape[0]:,} labels in {labels.name!r} for {rows:,} rows in {first!r}.",
                         where=labels.name, fix="Save one label per row, or leave the labels out.")
    return rows
