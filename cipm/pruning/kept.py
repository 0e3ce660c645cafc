"""Which positions of every value of a graph stay when units are removed, from the labels that discovery puts on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.rules import Free, Value
from cipm.symmetry import Symmetry, SymmetryGroup, example_inputs
from cipm.symmetry.structure import Structure, build_structure
from cipm.symmetry.walk import Walk, walk

Keep = Mapping[str, Sequence[int]]


class Uneven(Exception):
    """Lines of an axis (the units of each head) keep different numbers of positions."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays: `gone[label]` tells which labels go with the removed units (of slices that an index chooses, how many);
    `values` hold the labels of every value by name, `tensors` those of every stored tensor by key.

    `removed` are the units that go, by group.
    """

    values: Mapping[str, Value]
    tensors: Mapping[str, Value]
    gone: np.ndarray
    removed: Mapping[str, np.ndarray]

    def mask(self, name: str, axis: int) -> np.ndarray | None:
        """Return which positions of an axis stay, laid out as its labels; None where all do."""
        return self._mask(self.values.get(name), axis)

    def stored_mask(self, key: str, axis: int) -> np.ndarray | None:
        """Return the same of a stored tensor."""
        return self._mask(self.tensors.get(key), axis)

    def share(self, name: str, axis: int | None = None) -> float:
        """Return which share of a value's positions stays, or of those along one axis."""
        value = self.values.get(name)
        axes = range(len(value.axes)) if axis is None and value is not None else () if axis is None else (axis,)
        masks = [mask for at in axes if (mask := self.mask(name, at)) is not None]
        return float(np.mean(reduce(np.logical_and, masks))) if masks else 1.0

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
        return _count(self._lines(name, axis)[:, :position])

    def line(self, name: str, axis: int) -> np.ndarray:
        """Return which positions [size] of an axis stay, the same for all others. Raises Uneven."""
        lines = self._lines(name, axis)
        if (lines != lines[:1]).any():
            raise Uneven
        return lines[0]

    def stored(self, key: str, axis: int) -> np.ndarray | None:
        """Return the positions of a stored axis that stay; None where all do. Raises Uneven where they differ along others."""
        mask = self.stored_mask(key, axis)
        if mask is None:
            return None
        lines = _lines(mask, axis, self.tensors[key].shape[axis])
        if (lines != lines[:1]).any():
            raise Uneven
        return np.flatnonzero(lines[0])

    def cut(self, tensor: torch.Tensor, key: str) -> torch.Tensor:
        """Return a stored tensor with the positions that stay, on the meta device too. Raises Uneven."""
        masks = {axis: mask for axis in range(tensor.ndim) if (mask := self.stored_mask(key, axis)) is not None}
        if all(mask.size == mask.shape[axis] for axis, mask in masks.items()):
            for axis, mask in masks.items():
                tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
            return tensor
        sizes = [_count(_lines(masks[axis], axis, size)) if axis in masks else size for axis, size in enumerate(tensor.shape)]
        if tensor.device.type == "meta":
            return tensor.new_empty(sizes)
        there = np.broadcast_to(reduce(np.logical_and, masks.values()), tuple(tensor.shape))
        return tensor[torch.from_numpy(there.copy()).to(tensor.device)].reshape(sizes)

    def zeroed(self, tensor: torch.Tensor, key: str) -> torch.Tensor:
        """Return a stored tensor with zeros at the positions that go."""
        for axis in range(tensor.ndim if tensor.device.type != "meta" else 0):
            mask = self.stored_mask(key, axis)
            if mask is not None:
                tensor = tensor.masked_fill(torch.from_numpy(~mask).to(tensor.device), 0)
        return tensor

    def _mask(self, value: Value | None, axis: int) -> np.ndarray | None:
        labels = value.axes[axis] if value is not None else None
        if not isinstance(labels, np.ndarray):
            return None
        gone = self.gone[labels]
        return ~gone if gone.any() else None

    def _lines(self, name: str, axis: int) -> np.ndarray:
        mask, size = self.mask(name, axis), self.values[name].shape[axis]
        return np.ones((1, size), bool) if mask is None else _lines(mask, axis, size)


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a walked graph, from which what stays follows: made once, asked for many sizes."""

    checkpoint: Checkpoint
    symmetry: Symmetry
    walked: Walk

    @classmethod
    def of(cls, checkpoint: Checkpoint, symmetry: Symmetry, *, seed: int = 0) -> Labels:
        """Return the labels of a checkpoint, walked as discovery did in the end."""
        inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed))
        return cls(checkpoint, symmetry, walked_as_found(checkpoint, symmetry, inputs))

    @cached_property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """Return inputs of the shapes on which the labels were walked."""
        return example_inputs(self.checkpoint, generator=torch.Generator().manual_seed(0))

    @cached_property
    def structure(self) -> Structure:
        """Return the classes of tied labels."""
        return build_structure(self.walked)

    @cached_property
    def tensors(self) -> Mapping[str, Value]:
        """Return the labels of every stored tensor by key."""
        checkpoint = self.checkpoint
        return {key: self.walked.stored(name, checkpoint.meta(key), key) for name, key in checkpoint.graph.tensors.items()
                if checkpoint.meta(key).ndim and (key, 0) in self.walked.atoms}

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Return the labels of every value by name, stored tensors among them."""
        stored = {name: self.tensors[key] for name, key in self.checkpoint.graph.tensors.items() if key in self.tensors}
        return {value.name: value for value in self.walked.values} | stored

    def what_stays(self, keep: Keep, *, locked: Collection[str] = ()) -> Kept:
        """Return what stays where these units of these groups are kept; groups that are not named stay whole.

        Of nested groups what is kept of the inner one counts over the whole model: a block that goes takes its units with it,
        kept or not, and one that stays keeps those of it that are named.

        Raises OptionError for an unknown or locked group, units that do not exist or are named twice, and where no unit of a
        group, or of one of its blocks that stay, would be left.
        """
        symmetry, structure = self.symmetry, self.structure
        removed = {name: units for name, kept in keep.items() if (units := _removed(symmetry.group(name), kept)).size}
        for name in removed:
            if name in locked:
                raise OptionError(f"Group {name} is locked: no unit of it may be removed.", where=name,
                                  fix="Unlock it, or keep all of its units.")
        gone = np.zeros(structure.pin.size, bool)
        for group in sorted((symmetry.group(name) for name in removed), key=lambda group: group.blocks):
            _check_blocks(group, removed[group.name], structure, self.walked, gone)
            gone[_classes(group, removed[group.name], structure, self.walked)] = True
            gone = _closed(structure, gone)
        return Kept(self.values, self.tensors, _with_chosen(gone[structure.class_of], self.walked), removed)


def walked_as_found(checkpoint: Checkpoint, symmetry: Symmetry, inputs: Mapping[str, torch.Tensor]) -> Walk:
    """Return the walk of a graph with labels as fine as the groups' places need them (units of every expert of a stack)."""
    return walk(checkpoint, inputs, views={(place.tensor, place.axis): place.view for group in symmetry.groups
                                           for place in group.places if place.view is not None})


def what_stays(checkpoint: Checkpoint, symmetry: Symmetry, keep: Keep, walked: Walk, *,
               locked: Collection[str] = ()) -> Kept:
    """Return what stays where these units of these groups are kept: `Labels.what_stays`, asked once."""
    return Labels(checkpoint, symmetry, walked).what_stays(keep, locked=locked)


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
    labels = [walked.atoms[place.tensor, place.axis].ravel()[place.index[units].ravel()] for place in group.places]
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


def _with_chosen(gone: np.ndarray, walked: Walk) -> np.ndarray:
    """Return which labels go, with those of what an index chooses: as many as of each slice that stays. Which, differs from
    slice to slice; they are here those of the first."""
    gone = gone.copy()
    for made, options in walked.book.routes.values():
        lost = gone[options]
        first = int(np.argmin(lost.all(0)))
        gone[made] = lost[:, first]
    return gone


def _lines(mask: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Return the lines [lines, size] along an axis of which anything stays."""
    lines = np.moveaxis(mask, axis, -1).reshape(-1, size)
    return lines[lines.any(1)]


def _count(lines: np.ndarray) -> int:
    """Return how many positions stay on every line. Raises Uneven where lines differ."""
    counts = np.unique(lines.sum(1))
    if counts.size != 1:
        raise Uneven
    return int(counts[0])
