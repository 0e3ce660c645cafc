"""Tensors with views as plain ones: all axes that a view joins become the first axis, so that every place is on one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from cipm.load.checkpoint import LazyTensors, metas_of
from cipm.permutation import View
from cipm.symmetry.groups import Place, SymmetryGroup
from cipm.symmetry.taps import Tap


def lined_up(groups: Sequence[SymmetryGroup],
             tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[SymmetryGroup, ...], Mapping[str, torch.Tensor]]:
    """Return the same groups over tensors in which none needs a view: [positions, the other axes…].

    Orders of the one are orders of the other. Tensors without views are the same ones.
    """
    if not any(group.stacked for group in groups):
        return tuple(groups), tensors
    metas = metas_of(tensors)
    lines = {place.tensor: _line(groups, place, metas[place.tensor].ndim) for group in groups for place in group.places
             if place.view is not None}
    made = tuple(replace(group, places=tuple(_moved(place, lines) for place in group.places),
                         taps=tuple(_with_consumers(tap, lines) for tap in group.taps)) for group in groups)
    shapes = {key: lines[key].line_up(meta) if key in lines else meta for key, meta in metas.items()}
    return made, LazyTensors(shapes, lambda key: lines[key].line_up(tensors[key]) if key in lines else tensors[key])


@dataclass(frozen=True)
class Line(View):
    """A view of a tensor of `ndim` axes, of which the first may be seen as two (runs, and positions in a run)."""

    ndim: int

    def dims(self, axis: int) -> tuple[int, ...]:
        """Return the axes of the view that an axis of the tensor is seen as."""
        extra = len(self.shape) - self.ndim
        return (axis + extra,) if axis else tuple(range(extra + 1))

    def axis(self, axis: int) -> int:
        """Return the axis of the tensor, lined up, on which an axis of the tensor stands."""
        dim = self.dims(axis)[0]
        return 0 if dim in self.axes else 1 + self.rest.index(dim)

    def index(self, dims: tuple[int, ...], index: np.ndarray) -> np.ndarray:
        """Return the positions on the line [units, elements] of units at positions of some of its axes."""
        others = tuple(axis for axis in self.axes if axis not in dims)
        sizes = [self.shape[axis] for axis in self.axes]
        at = dict(zip(dims, np.unravel_index(index[:, :, None], [self.shape[dim] for dim in dims]), strict=True))
        lengths = [self.shape[axis] for axis in others]
        rest = np.unravel_index(np.arange(prod(lengths)), lengths) if others else ()
        at |= dict(zip(others, rest, strict=True))
        places = np.broadcast_arrays(*(at[axis] for axis in self.axes))
        return np.ravel_multi_index(tuple(places), sizes).reshape(len(index), -1)


def _line(groups: Sequence[SymmetryGroup], first: Place, ndim: int) -> Line:
    """Return the line of all axes of a tensor that its views join, directly or through each other's places."""
    assert first.view is not None
    line = Line(first.view.shape, (), ndim)
    places = [place for group in groups for place in group.places if place.tensor == first.tensor]
    joined = {dim for place in places if place.view is not None for dim in place.view.axes}
    while more := {dim for place in places if joined & set(_dims(line, place)) for dim in _dims(line, place)} - joined:
        joined |= more
    return replace(line, axes=tuple(sorted(joined)))


def _dims(line: Line, place: Place) -> tuple[int, ...]:
    return line.dims(place.axis) if place.view is None else place.view.axes


def _moved(place: Place, lines: Mapping[str, Line]) -> Place:
    line = lines.get(place.tensor)
    if line is None:
        return place
    dims = _dims(line, place)
    if dims[0] not in line.axes:
        return replace(place, axis=line.axis(place.axis))
    return Place(place.tensor, 0, line.length, line.index(dims, place.index))


def _with_consumers(tap: Tap, lines: Mapping[str, Line]) -> Tap:
    consumers = tuple((key, lines[key].axis(axis) if key in lines else axis) for key, axis in tap.consumers)
    return replace(tap, consumers=consumers)
