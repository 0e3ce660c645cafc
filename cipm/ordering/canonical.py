"""The exact canonical order: the same bits for every permuted copy of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from cipm.ordering.colours import Colours, Network, distinct, first_colours, mix, network, refine, slice_hashes
from cipm.permutation import Permutation
from cipm.symmetry.groups import Symmetry, SymmetryGroup

BUDGET = 256  # refinements spent on telling tied units apart


@dataclass(frozen=True)
class Canonical:
    """One order per group, and per group the number of units whose order among each other is not certain to be the
    same in every copy (empty: the bits are the same for every copy).
    """

    orders: Mapping[str, Permutation]
    unresolved: Mapping[str, int]


def canonical_orders(symmetry: Symmetry, tensors: Mapping[str, torch.Tensor]) -> Canonical:
    """Return the canonical order of every group: permuted copies of a model become equal, bit for bit.

    Units are sorted by their colour after refinement over the whole network. Equal units (duplicated, dead) are put
    in any order, which changes no bit. Other ties are broken one unit at a time: each unit of the tied class is tried
    to the end, and where all give the same bits the choice does not matter (the equal ends prove a symmetry). Where
    they differ, or trying them all would take too long, the units are reported as unresolved. The order by colour has
    no meaning of its own.

    `tensors` holds every tensor that the groups touch. Cost: some passes over the weights (784-4096-4096-10: seconds).
    """
    search = _Search(symmetry, network(symmetry, tensors))
    colours = search.resolve(first_colours(symmetry.groups))
    return Canonical({g.name: _order(g, colours[g.name]) for g in symmetry.groups}, search.unresolved)


@dataclass
class _Search:
    """Break ties, with a budget of refinements; `unresolved` counts units by group where that proved nothing."""

    symmetry: Symmetry
    net: Network
    spent: int = 0
    unresolved: dict[str, int] = field(default_factory=dict)

    def resolve(self, colours: Colours) -> Colours:
        """Return colours that tell all units apart (ties left unresolved are recorded and keep their colour)."""
        colours = self._settle(colours)
        while (target := _smallest_class(self.net.groups, colours)) is not None:
            name, units = target
            ends = [self._certificate(self._dive(_marked(colours, name, unit))) for unit in units
                    if self.spent < BUDGET]
            if len(ends) < units.size:
                self._give_up(colours)
                return colours
            if len(set(ends)) > 1:
                self.unresolved[name] = self.unresolved.get(name, 0) + units.size
            colours = self._settle(_marked(colours, name, int(units[ends.index(min(ends))])))
        return colours

    def _dive(self, colours: Colours) -> Colours:
        """Return colours with every tie broken by index, refined after each."""
        colours = self._settle(colours)
        while (target := _smallest_class(self.net.groups, colours)) is not None and self.spent < BUDGET:
            colours = self._settle(_marked(colours, target[0], int(target[1][0])))
        return colours

    def _settle(self, colours: Colours) -> Colours:
        """Refine, and tell apart units with identical slices, until neither changes anything."""
        while True:
            self.spent += 1
            colours = refine(self.net, colours)
            parted = _part_twins(self.net, colours)
            if parted is None:
                return colours
            colours = parted

    def _give_up(self, colours: Colours) -> None:
        for group in self.net.groups:
            tied = sum(units.size for units in _classes(colours[group.name]))
            if tied:
                self.unresolved[group.name] = self.unresolved.get(group.name, 0) + tied

    def _certificate(self, colours: Colours) -> bytes:
        """Return a digest of all tensors in the order of these colours."""
        plan = self.symmetry.plan({g.name: _order(g, colours[g.name]) for g in self.net.groups})
        moved = plan.apply(self.net.bits)
        digest = hashlib.sha256()
        for key in sorted(moved):
            digest.update(np.ascontiguousarray(moved[key]).tobytes())
        return digest.digest()


def _order(group: SymmetryGroup, colours: np.ndarray) -> Permutation:
    """Return the units sorted by colour, each within its block; ties by index."""
    block = np.arange(group.size) // max(1, group.size // group.blocks)
    return Permutation(np.lexsort((np.arange(group.size), colours, block)))


def _marked(colours: Colours, name: str, unit: int) -> Colours:
    marked = colours[name].copy()
    marked[unit] = mix(np.array([~marked[unit]]))[0]
    return {**colours, name: marked}


def _classes(colours: np.ndarray) -> list[np.ndarray]:
    """Return the units of each colour that several share, by colour."""
    _, inverse, counts = np.unique(colours, return_inverse=True, return_counts=True)
    return [np.flatnonzero(inverse == c) for c in np.flatnonzero(counts > 1)]


def _smallest_class(groups: tuple[SymmetryGroup, ...], colours: Colours) -> tuple[str, np.ndarray] | None:
    """Return the group and units of the smallest tied colour; ties by order of groups and by colour."""
    tied = [(units.size, place, int(colours[g.name][units[0]]), g.name, units)
            for place, g in enumerate(groups) for units in _classes(colours[g.name])]
    return min(tied, key=lambda entry: entry[:3])[3:] if tied else None


def _part_twins(net: Network, colours: Colours) -> Colours | None:
    """Give different colours to units of one colour whose slices are the same as they stand: any order will do.

    Swapping two such units changes no tensor. Returns None where there are none.
    """
    result, found = dict(colours), False
    for group in net.groups:
        if distinct(colours[group.name]) == group.size:
            continue
        twins = _raw_hashes(net, group)
        for units in _classes(colours[group.name]):
            rank = _rank_among_equals(twins[units])
            if rank.any():
                found = True
                result[group.name] = result[group.name].copy()
                result[group.name][units] = mix(result[group.name][units] + rank.astype(np.uint64))
    return result if found else None


def _rank_among_equals(values: np.ndarray) -> np.ndarray:
    """Return each entry's rank among the entries of the same value, by index."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    rank = np.empty(values.size, dtype=np.int64)
    rank[order] = np.arange(values.size) - np.maximum.accumulate(np.where(first, np.arange(values.size), 0))
    return rank


def _raw_hashes(net: Network, group: SymmetryGroup) -> np.ndarray:
    """Return a hash [units] of each unit's block and slices, with the other axes' positions as they stand."""
    total = np.arange(group.size, dtype=np.uint64) // np.uint64(max(1, group.size // group.blocks))
    for number, place in enumerate(group.places):
        bits = net.bits[place.tensor]
        labels = [np.arange(length, dtype=np.uint64) for length in bits.shape]
        labels[place.axis] = np.zeros(bits.shape[place.axis], dtype=np.uint64)
        along = slice_hashes(bits, labels, {place.axis})[place.axis]
        elements = np.arange(place.index.shape[1], dtype=np.uint64) + np.uint64(number << 32)
        total += mix(mix(along[place.index] ^ mix(elements)).sum(axis=1, dtype=np.uint64))
    return total
