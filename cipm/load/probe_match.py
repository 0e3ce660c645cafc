"""Match the columns of a probe file to a model's inputs: by name, then by a known alias, then by shape and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cipm.errors import ProbeError
from cipm.trace.graph import Input

INPUT_ALIASES = ("x", "X", "data", "inputs", "input", "images", "image", "features", "pixel_values", "input_ids",
                 "x_test", "X_test", "test_images", "x_val", "X_val", "x_train", "X_train", "train_images", "columns")
LABEL_ALIASES = ("y", "labels", "label", "targets", "target", "classes", "class", "Y")
SPLITS, SPLIT_LABELS = ("test", "val", "train"), ("y_{}", "Y_{}", "{}_labels")
LABEL_NAMES = frozenset((*LABEL_ALIASES, *(form.format(split) for split in SPLITS for form in SPLIT_LABELS)))


@dataclass(frozen=True)
class Column:
    """One named array of a probe file, not read yet: `read(rows)` returns those rows (int64 indices, ascending).

    `pixels` says that the values are 8-bit image brightness whatever the shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[np.ndarray], np.ndarray]
    pixels: bool = False

    def __str__(self) -> str:
        return f"{self.name!r} [{', '.join(map(str, self.shape))}] {self.dtype.name}"


@dataclass(frozen=True)
class Match:
    """Which column feeds which input (by input name), which holds the labels, and what is said about the choice."""

    inputs: Mapping[str, Column]
    labels: Column | None
    notes: tuple[str, ...]


def match(columns: Sequence[Column], inputs: Sequence[Input]) -> Match:
    """Match every input to a column; raises ProbeError listing both sides where one cannot be."""
    by_name = {column.name: column for column in columns}
    found = {spec.name: by_name[spec.name] for spec in inputs if spec.name in by_name}
    for spec in inputs:
        if spec.name in found:
            _check_shape(found[spec.name], spec)
    free = [c for c in columns if c not in found.values() and c.name not in LABEL_NAMES]
    for spec in inputs:
        if spec.name not in found:
            found[spec.name] = _choose(free, spec, [s for s in inputs if s.name not in found], columns, inputs)
            free.remove(found[spec.name])
    _check_sizes(found, inputs)
    labels = _labels(by_name, found)
    return Match(found, labels, tuple(_notes(columns, found, labels)))


def fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Tell whether rows of this shape are rows of the wanted shape, in which names stand for any size."""
    return len(shape) == len(wanted) and all(isinstance(w, str) or s == w for s, w in zip(shape, wanted, strict=True))


def moves_channels(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Tell whether rows [height, width, channels] fit once their channels (3 or 4) stand first."""
    return len(shape) == 3 and shape[2] in (3, 4) and shape[0] != shape[2] and fits((shape[2], *shape[:2]), wanted)


def reshapes(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Tell whether rows fit by a reshape that has one meaning only.

    That is where only axes of length 1 come or go, or where a flat row and one plane stand for each other. A flat row
    for several planes is refused: its channels could come first or last.
    """
    if any(isinstance(w, str) for w in wanted) or math.prod(shape) != math.prod(wanted):
        return False
    ours, theirs = ([n for n in dims if n != 1] for dims in (shape, wanted))
    return ours == theirs or (min(len(ours), len(theirs)) <= 1 and max(len(ours), len(theirs)) <= 2)


def describe_input(spec: Input) -> str:
    """Return an input in words: 'x' [rows, 1, 28, 28] float32."""
    return f"{spec.name!r} [{', '.join(map(str, ('rows', *spec.shape[1:])))}] {str(spec.dtype).removeprefix('torch.')}"


def _fits_somehow(column: Column, spec: Input) -> bool:
    shape, wanted = column.shape[1:], spec.shape[1:]
    return bool(column.shape) and (fits(shape, wanted) or moves_channels(shape, wanted) or reshapes(shape, wanted))


def _kind_fits(column: Column, spec: Input) -> bool:
    return column.dtype.kind in ("fiub" if spec.dtype.is_floating_point else "iub")


def _choose(free: Sequence[Column], spec: Input, open_inputs: Sequence[Input], columns: Sequence[Column],
            inputs: Sequence[Input]) -> Column:
    """Return the column for an input that no column is named after."""
    fitting = [column for column in free if _fits_somehow(column, spec)]
    if len(open_inputs) == 1:
        for alias in INPUT_ALIASES:
            if named := [column for column in fitting if column.name == alias]:
                return named[0]
    exact = [column for column in fitting if fits(column.shape[1:], spec.shape[1:]) and _kind_fits(column, spec)]
    for candidates in (exact, fitting):
        if len(candidates) == 1:
            return candidates[0]
    why = "More than one column" if len(fitting) > 1 else "No column"
    raise ProbeError(
        f"{why} of the probe fits the model's input {spec.name!r}. The model takes "
        f"{', '.join(map(describe_input, inputs))}; the probe has {', '.join(map(str, columns)) or 'no arrays'}.",
        where=spec.name, fix="Name the arrays after the model's inputs and give them these shapes.")


def _check_shape(column: Column, spec: Input) -> None:
    if not _fits_somehow(column, spec):
        raise ProbeError(f"The probe's {column} does not fit the model's input {describe_input(spec)}.",
                         where=column.name, fix="Save it in the shape the model takes.")


def _check_sizes(found: Mapping[str, Column], inputs: Sequence[Input]) -> None:
    """Raise ProbeError where one named size of the model would have two values."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        for size, wanted in zip(found[spec.name].shape[1:], spec.shape[1:], strict=False):
            if isinstance(wanted, str):
                before, name = sizes.setdefault(wanted, (size, spec.name))
                if before != size:
                    raise ProbeError(f"The size {wanted!r} is {before} in the probe's {name!r} and {size} in "
                                     f"{spec.name!r}.", where=spec.name, fix="Save both with one size.")


def _labels(by_name: Mapping[str, Column], found: Mapping[str, Column]) -> Column | None:
    """Return the column of labels: of the same split as the first input's column, else of a name without a split."""
    used = {column.name for column in found.values()}
    first = next(iter(found.values())).name
    splits = [split for split in SPLITS if split in first] or SPLITS
    names = (*(form.format(split) for split in splits for form in SPLIT_LABELS), *LABEL_ALIASES)
    return next((by_name[name] for name in names if name in by_name and name not in used and by_name[name].shape), None)


def _notes(columns: Sequence[Column], found: Mapping[str, Column], labels: Column | None) -> list[str]:
    notes = [f"{column.name!r} is used as the model's input {name!r}."
             for name, column in found.items() if column.name != name]
    used = [*found.values(), *([labels] if labels else [])]
    if unused := [str(column) for column in columns if column not in used]:
        notes.append(f"Left out: {', '.join(unused)}.")
    return notes
