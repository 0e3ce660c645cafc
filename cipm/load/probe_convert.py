"""Turn a column of a probe file into the tensor a model takes, saying every conversion aloud."""

from __future__ import annotations

import numpy as np
import torch

from cipm.errors import ProbeError
from cipm.load.probe_match import Column, fits, moves_channels
from cipm.trace.graph import Input

NUMBERS = "fiub"  # numpy kinds: floating, signed, unsigned, boolean
KINDS = {"U": "text", "S": "text", "O": "Python objects", "c": "complex numbers", "M": "dates", "m": "durations",
         "V": "records"}


def convert_input(column: Column, spec: Input, rows: np.ndarray) -> tuple[torch.Tensor, list[str]]:
    """Return these rows of a column in the shape and dtype of an input, and what was done to them.

    Raises ProbeError for values that are not numbers, not finite, or not whole where the model takes integers.
    """
    values, notes = _read_numbers(column, rows), []
    _check_finite(values, column.name, rows)
    values, said = _reshape(values, spec)
    notes += said
    values, said = _convert(values, column, spec, rows)
    return torch.from_numpy(values).to(spec.dtype), [f"{column.name!r}: {note}." for note in notes + said]


def convert_labels(column: Column, rows: np.ndarray) -> tuple[torch.Tensor, list[str]]:
    """Return the labels of these rows: whole numbers as int64, others as float32, words as classes in sorted order."""
    if column.dtype.kind in "US":
        return _classes(column, rows)
    values = _read_numbers(column, rows)
    _check_finite(values, column.name, rows)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "f" and (values.ndim > 1 or not np.array_equal(values, np.round(values))):
        return torch.from_numpy(values.astype(np.float32)), [f"Labels {column.name!r} are numbers, not classes."]
    said = [f"Labels {column.name!r}: {values.dtype.name} with whole values taken as classes."]
    return torch.from_numpy(values.astype(np.int64)), said if values.dtype.kind == "f" else []


def _classes(column: Column, rows: np.ndarray) -> tuple[torch.Tensor, list[str]]:
    names, labels = np.unique(column.read(rows).astype(str), return_inverse=True)
    listed = ", ".join(f"{i} = {name}" for i, name in enumerate(names[:10])) + (", …" if len(names) > 10 else "")
    note = f"Labels {column.name!r} are words, numbered in alphabetical order: {listed}."
    return torch.from_numpy(labels.astype(np.int64)), [note]


def _read_numbers(column: Column, rows: np.ndarray) -> np.ndarray:
    if column.dtype.kind not in NUMBERS or column.dtype.itemsize > 8:
        kind = KINDS.get(column.dtype.kind, "numbers wider than 64 bits")
        raise ProbeError(f"The probe's {column.name!r} holds {kind} ({column.dtype}), not numbers a model takes.",
                         where=column.name, fix="Save it as float32, or as int64 for token ids.")
    values = column.read(rows)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _check_finite(values: np.ndarray, name: str, rows: np.ndarray) -> None:
    """Raise ProbeError naming the first value that is NaN or infinite, by its row in the file."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    row, *rest = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
    count, value = int((~np.isfinite(values)).sum()), values[(row, *rest)]
    column = f", column {', '.join(map(str, rest))}" if rest else ""
    raise ProbeError(f"The probe's {name!r} is {value} in row {rows[row]}{column} (counted from 0); {count:,} of its "
                     "values are not finite.", where=f"{name}, row {rows[row]}{column}",
                     fix="Remove these rows or fill in the values.")


def _reshape(values: np.ndarray, spec: Input) -> tuple[np.ndarray, list[str]]:
    shape, wanted = values.shape[1:], spec.shape[1:]
    if fits(shape, wanted):
        return values, []
    if moves_channels(shape, wanted):
        return np.ascontiguousarray(np.moveaxis(values, 3, 1)), [f"channels moved from last to first, {_row(shape)} to "
                                                                f"{_row(np.moveaxis(values, 3, 1).shape[1:])}"]
    return values.reshape(len(values), *wanted), [f"rows reshaped from {_row(shape)} to {_row(wanted)}"]


def _convert(values: np.ndarray, column: Column, spec: Input, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    wanted = str(spec.dtype).removeprefix("torch.")
    if column.dtype.name == wanted:
        return values, []
    if not spec.dtype.is_floating_point:
        return _to_integers(values, column, spec, rows), [f"{column.dtype.name} converted to {wanted}"]
    if values.dtype == np.uint8 and (column.pixels or len(column.shape) >= 3 or len(spec.shape) >= 3):
        return values.astype(np.float32) / np.float32(255), [f"uint8 converted to {wanted} and divided by 255"]
    if values.dtype.kind == "f":
        return _to_floats(values, column, spec, rows), [f"{column.dtype.name} converted to {wanted}"]
    return values.astype(np.float64), [f"{column.dtype.name} converted to {wanted} without scaling"]


def _to_floats(values: np.ndarray, column: Column, spec: Input, rows: np.ndarray) -> np.ndarray:
    most = torch.finfo(spec.dtype).max
    if most < float(np.finfo(values.dtype).max) and (beyond := np.abs(values) > most).any():
        row = int(np.argwhere(beyond)[0][0])
        raise ProbeError(f"The probe's {column.name!r} has a value beyond {most:.3g} in row {rows[row]}, the most that "
                         f"the model's {str(spec.dtype).removeprefix('torch.')} holds.", where=column.name)
    return values


def _to_integers(values: np.ndarray, column: Column, spec: Input, rows: np.ndarray) -> np.ndarray:
    wanted = str(spec.dtype).removeprefix("torch.")
    if values.dtype.kind == "f" and (broken := values != np.round(values)).any():
        row = int(np.argwhere(broken)[0][0])
        raise ProbeError(f"The model's input {spec.name!r} takes whole numbers ({wanted}), but the probe's "
                         f"{column.name!r} holds fractions, the first in row {rows[row]}.", where=column.name,
                         fix="Save token ids or indices, not features.")
    least, most = (0, 1) if spec.dtype == torch.bool else (torch.iinfo(spec.dtype).min, torch.iinfo(spec.dtype).max)
    if values.size and (values.max() > most or values.min() < least):
        raise ProbeError(f"The probe's {column.name!r} holds {values.min()} to {values.max()}; the model's {wanted} "
                         f"holds {least} to {most}.", where=column.name)
    return values.astype(np.int64)


def _row(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
