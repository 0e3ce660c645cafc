"""Finer groups: units that each slice of a stack (each expert, head, group of filters, layer) may order by itself.

A first walk gives every stored axis one order. Where all tensors of a group have one further axis of one length that nothing
sums over, a second walk gives the units labels of their own for every position of that axis; the rules say what remains
of that. What is not told apart in the end keeps its one order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import View
from cipm.symmetry.structure import Family, Structure, unit_places
from cipm.symmetry.walk import Spot, Walk

MOST_LABELS = 2**22
"""Finer labels are given to so many positions at most: 64 experts of 1,024 gated units in 21 layers."""

Moving = Mapping[Spot, np.ndarray]
"""For stored axes, which of their positions move."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Views under which a group's units might be told apart, and all positions that move with it now."""

    views: Mapping[Spot, View]
    moving: Moving

    @property
    def labels(self) -> int:
        return sum(view.length for view in self.views.values())


def find_candidates(checkpoint: Checkpoint, walked: Walk, structure: Structure, families: Sequence[Family],
                    slid: set[str]) -> tuple[list[Candidate], int]:
    """Return where units could be told apart further, and how many such places are left out because they are too many.

    `slid` are the tensors that convolutions slide.
    """
    found = []
    moves = _moves(structure, families)
    for family in families:
        places = {structure.axes[number]: index for number, index in unit_places(structure, family.units).items()}
        views = _views(checkpoint, walked, structure, places, slid)
        if views:
            slices = {(key, view.axes[0]) for (key, _), view in views.items()}
            found.append(Candidate(views, places | {
                spot: np.flatnonzero(moves[structure.class_of[walked.atoms[spot]]]) for spot in slices if spot not in places}))
    found = [candidate for candidate in found if not any(_crosses(candidate, other) for other in found)]
    owner = walked.owners() if walked.book.offers else {}
    taken = {spot for candidate in found for spot in candidate.views}
    for first, dim, blocks in dict.fromkeys(walked.book.offers):
        spot = owner.get(first)
        if spot is not None and spot not in taken:
            found.append(Candidate({spot: _offered(checkpoint, spot, dim, blocks)}, _moving(structure, spot)))
    kept, room = [], MOST_LABELS
    for candidate in found:
        if candidate.labels <= room:
            kept.append(candidate)
            room -= candidate.labels
    return kept, len(found) - len(kept)


def _crosses(candidate: Candidate, other: Candidate) -> bool:
    """Tell whether two axes would be told apart by each other; those of the later axis by the earlier one are kept."""
    return any(view.axes[0] > axis and (key, view.axes[0]) in other.views
               and other.views[key, view.axes[0]].axes[0] == axis for (key, axis), view in candidate.views.items())


def told_apart(candidate: Candidate, walked: Walk, structure: Structure, families: Sequence[Family]) -> Candidate | None:
    """Return the candidate where every slice has units of its own in the second walk, and nothing that moved moves no more.

    Where some of its axes are read alike by every slice (both directions of a layer read all units of the one below), return
    it without views of these; else None.
    """
    shown = {spot: structure.class_of[walked.atoms[spot]][..., np.unique(positions)]
             for spot, positions in candidate.moving.items()}
    alike = {spot for spot in candidate.views if (np.diff(np.sort(shown[spot], axis=0), axis=0) == 0).any()}
    if alike and alike != candidate.views.keys():
        return replace(candidate, views={spot: view for spot, view in candidate.views.items() if spot not in alike})
    moves = _moves(structure, families)
    return None if alike or not all(moves[classes].all() for classes in shown.values()) else candidate


def _moves(structure: Structure, families: Sequence[Family]) -> np.ndarray:
    """Return for every class whether it moves."""
    moves = np.zeros(structure.pin.size, bool)
    moves[np.concatenate([np.zeros(0, np.int64), *(structure.members(family.units)[1] for family in families)])] = True
    return moves


def _views(checkpoint: Checkpoint, walked: Walk, structure: Structure, places: Mapping[Spot, np.ndarray],
           slid: set[str]) -> dict[Spot, View]:
    """Return for every tensor with a batch-like axis the view over it; none where the tensors of the group do not agree."""
    options = {spot: list(_others(checkpoint, walked, spot, places, slid)) for spot in places}
    sizes = Counter(size for others in options.values() for size in {size for _, size in others})
    for size, _ in sizes.most_common():
        chosen = {spot: [axis for axis, n in others if n == size] for spot, others in options.items()}
        if all(axes or places[spot].shape[1] % size == 0 for spot, axes in chosen.items()):
            common = Counter(_signature(walked, structure, spot[0], axis) for spot, axes in chosen.items() for axis in axes)
            best = {spot: max(axes, key=lambda axis, key=spot[0]: common[_signature(walked, structure, key, axis)])
                    for spot, axes in chosen.items() if axes}
            return {spot: View(tuple(checkpoint.meta(spot[0]).shape), (axis, spot[1])) for spot, axis in best.items()}
    return {}


def _others(checkpoint: Checkpoint, walked: Walk, spot: Spot, places: Mapping[Spot, np.ndarray],
            slid: set[str]) -> Iterator[tuple[int, int]]:
    """Yield (axis, size) of the further axes of a tensor that nothing sums over alone and on which the group does not stand."""
    key, own = spot
    for axis, size in enumerate(checkpoint.meta(key).shape):
        if size > 1 and axis != own and (key, axis) not in places and key not in slid and not any(
                key == one.tensor and axis in one.axes and own in one.rest for one in walked.summed):
            yield axis, size


def _signature(walked: Walk, structure: Structure, key: str, axis: int) -> bytes:
    return structure.class_of[walked.atoms[key, axis]].tobytes()


def _offered(checkpoint: Checkpoint, spot: Spot, dim: int, blocks: int) -> View:
    shape = tuple(checkpoint.meta(spot[0]).shape)
    if shape[dim] == blocks:
        return View(shape, (dim, spot[1]))
    assert dim == 0 < spot[1]
    return View((blocks, shape[0] // blocks, *shape[1:]), (0, spot[1] + 1))


def _moving(structure: Structure, spot: Spot) -> Moving:
    number = structure.axes.index(spot)
    classes = np.zeros(structure.pin.size, bool)
    classes[structure.pin < 0] = True
    rows = structure.where.rows[structure.where.rows[:, 0] == number]
    own = np.repeat(np.arange(structure.pin.size), structure.where.size(np.arange(structure.pin.size)))
    there = own[structure.where.rows[:, 0] == number]
    return {spot: rows[classes[there], 1]}
