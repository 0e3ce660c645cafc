"""Which positions of every value of a graph stay when units are removed, from the labels that discovery puts on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.rules import Free, Value
from cipm.symmetry import Symmetry, SymmetryGroup
from cipm.symmetry.structure import Structure, build_structure
from cipm.symmetry.walk import Walk

Keep = Mapping[str, Sequence[int]]


class Uneven(Exception):
    """Lines of an axis (the units of each head) keep different numbers of positions."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays: `gone[label]` tells which labels go with the removed units; `values` hold the labels of every value.

    `removed` are the units that go, by group.
    """

    values: Mapping[str, Value]
    atoms: Mapping[tuple[str, int], np.ndarray]
    gone: np.ndarray
    removed: Mapping[str, np.ndarray]

    def mask(self, name: str, axis: int) -> np.ndarray | None:
        """Return which positions of an axis stay, laid out as its labels; None where all do."""
        value = self.values.get(name)
        labels = value.axes[axis] if value is not None else None
        if not isinstance(labels, np.ndarray):
            return None
        gone = self.gone[labels]
        return ~gone if gone.any() else None

    def touches(self, name: str) -> bool:
        """Tell whether a removed unit stands on this value, or is named by its numbers."""
        value = self.values.get(name)
        if value is None:
            return False
        named = value.codes is not None and bool(self.gone[value.codes].any())
        return named or any(self.mask(name, axis) is not None for axis in range(len(value.axes)))

    def uniform(self, name: str, axis: int) -> bool:
        """Tell whether a value is the same all along an axis."""
        value = self.values.get(name)
        return value is not None and isinstance(value.axes[axis], Free)

    def size(self, name: str, axis: int) -> int | None:
        """Return the size of an axis afterwards; None where nothing of it goes. Raises Uneven."""
        return None if self.mask(name, axis) is None else self.before(name, axis, self.values[name].shape[axis])

    def before(self, name: str, axis: int, position: int) -> int:
        """Return how many positions before this one stay on an axis. Raises Uneven where lines differ."""
        counts = np.unique(self._lines(name, axis)[:, :position].sum(1))
        if counts.size != 1:
            raise Uneven
        return int(counts[0])

    def line(self, name: str, axis: int) -> np.ndarray:
        """Return which positions [size] of an axis stay, the same for all others. Raises Uneven."""
        lines = self._lines(name, axis)
        if (lines != lines[:1]).any():
            raise Uneven
        return lines[0]

    def stored(self, key: str, axis: int) -> np.ndarray | None:
        """Return the positions of a stored axis that stay; None where all do."""
        labels = self.atoms.get((key, axis))
        gone = self.gone[labels] if labels is not None else np.zeros(0, bool)
        return np.flatnonzero(~gone) if gone.any() else None

    def _lines(self, name: str, axis: int) -> np.ndarray:
        mask = self.mask(name, axis)
        size = self.values[name].shape[axis]
        if mask is None:
            return np.ones((1, size), bool)
        lines = np.moveaxis(mask, axis, -1).reshape(-1, size)
        return lines[lines.any(1)]


def what_stays(checkpoint: Checkpoint, symmetry: Symmetry, keep: Keep, walked: Walk, *,
               locked: Collection[str] = ()) -> Kept:
    """Return what stays where these units of these groups are kept; groups that are not named stay whole.

    Raises OptionError for an unknown or locked group, units that do not exist or are named twice, and where no unit of a
    group, or of one of its blocks, would be left.
    """
    removed = {name: units for name, kept in keep.items() if (units := _removed(symmetry.group(name), kept)).size}
    for name in removed:
        if name in locked:
            raise OptionError(f"Group {name} is locked: no unit of it may be removed.", where=name,
                              fix="Unlock it, or keep all of its units.")
    structure = build_structure(walked)
    groups = sorted((symmetry.group(name) for name in removed), key=lambda group: group.blocks)
    gone = np.zeros(structure.pin.size, bool)
    for group in groups:
        _check_blocks(group, removed[group.name], structure, walked, gone)
        gone[_classes(group, removed[group.name], structure, walked)] = True
        gone = _closed(structure, gone)
    return Kept(_values(checkpoint, walked), walked.atoms, gone[structure.class_of], removed)


def _removed(group: SymmetryGroup, kept: Sequence[int]) -> np.ndarray:
    units = np.sort(np.asarray(kept).ravel())
    if units.size == 0:
        raise OptionError(f"Group {group.name} would keep none of its {group.size} units: at least one must stay.",
                          where=group.name, fix="Keep one unit, or remove the layer from the model where you trust it.")
    whole = units.dtype.kind in "iu" and units[0] >= 0 and units[-1] < group.size and bool((np.diff(units) > 0).all())
    if not whole:
        raise OptionError(f"The units kept of {group.name} must be distinct numbers from 0 to {group.size - 1}.",
                          where=group.name)
    return np.setdiff1d(np.arange(group.size), units)


def _check_blocks(group: SymmetryGroup, removed: np.ndarray, structure: Structure, walked: Walk, gone: np.ndarray) -> None:
    """Raise OptionError where a block that stays would have no unit left."""
    if group.blocks == 1:
        return
    for number, units in enumerate(np.split(np.arange(group.size), group.blocks)):
        lost = np.isin(units, removed).all()
        if lost and not gone[_classes(group, units, structure, walked)].all():
            raise OptionError(f"Group {group.name} would keep none of the {units.size} units of block {number}: at least one "
                              "must stay in each.", where=group.name,
                              fix=f"Remove the whole block in {group.parent}." if group.parent else None)


def _classes(group: SymmetryGroup, units: np.ndarray, structure: Structure, walked: Walk) -> np.ndarray:
    labels = [walked.atoms[place.tensor, place.axis][place.index[units].ravel()] for place in group.places]
    return np.unique(structure.class_of[np.concatenate(labels)])


def _closed(structure: Structure, gone: np.ndarray) -> np.ndarray:
    """Return what goes with all that moves with it, and what carries nothing any more (a head without its units)."""
    gone = gone.copy()
    everything = np.arange(gone.size)
    child = np.repeat(everything, structure.above.size(everything))
    parent = structure.above.rows
    gone[child[gone[parent]]] = True
    placed = structure.where.size(everything) > 0
    counts = np.bincount(parent[placed[child]], minlength=gone.size)
    lost = np.bincount(parent[placed[child] & gone[child]], minlength=gone.size)
    gone |= ~placed & (counts > 0) & (counts == lost)
    gone[child[gone[parent]]] = True
    return gone


def _values(checkpoint: Checkpoint, walked: Walk) -> dict[str, Value]:
    """Return the labels of every value by name, stored tensors among them."""
    found = {value.name: value for value in walked.values}
    for name, key in checkpoint.graph.tensors.items():
        shape = tuple(checkpoint.meta(key).shape)
        if shape and (key, 0) in walked.atoms:
            axes = tuple(walked.atoms[key, axis].reshape([-1 if i == axis else 1 for i in range(len(shape))])
                         for axis in range(len(shape)))
            found[name] = Value(name, shape, axes)
    return found

