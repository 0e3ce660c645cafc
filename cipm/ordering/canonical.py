"""The exact canonical order: the same bits for every permuted copy of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cipm.ordering.colours import Colours, Network, classes, first_colours, mix, network, refine
from cipm.ordering.twins import Twins
from cipm.permutation import Permutation
from cipm.symmetry import lined_up
from cipm.symmetry.groups import Symmetry, SymmetryGroup

REFINEMENTS, ENTRIES = 1024, 4_000_000_000
"""What telling tied units apart may cost: refinements, and entries of tensors hashed in them."""


@dataclass(frozen=True)
class Canonical:
    """One order per group, and per group the number of units whose order among each other is not certain to be the
    same in every copy (empty: the bits are the same for every copy).
    """

    orders: Mapping[str, Permutation]
    unresolved: Mapping[str, int]


def canonical_orders(symmetry: Symmetry, tensors: Mapping[str, torch.Tensor], *, refinements: int = REFINEMENTS) -> Canonical:
    """Return the canonical order of every group: permuted copies of a model become equal, bit for bit.

    Units are sorted by their colour after refinement over the whole network. Equal units (duplicated, dead) are put
    in any order, which changes no bit. Other ties are broken one unit at a time, trying each unit of the tied class, and of
    all the ways to break them that with the least digest of the resulting bits is taken. Ways that a symmetry of the weights
    maps to one another are tried once: two ways with the same bits are such a symmetry. Where the search does not end within
    `refinements`, or after ENTRIES entries, the tied units are reported as unresolved. The order by colour has no meaning of
    its own.

    `tensors` holds every tensor that the groups touch. Cost: some passes over the weights (784-4096-4096-10: seconds).
    Memory: the tensors, and one more copy of the moved ones only where units stay tied.
    Source: individualisation and refinement with pruning by automorphisms, McKay, Piperno, "Practical graph isomorphism, II"
    (2014), sections 2 and 3.
    """
    groups, tensors = lined_up(symmetry.groups, tensors)
    symmetry = replace(symmetry, groups=groups)
    net = network(symmetry, tensors)
    search = _Search(symmetry, net, Twins(net))
    colours = search.settle(first_colours(symmetry.groups))
    tied = {g.name: count for g in symmetry.groups if (count := sum(units.size for units in classes(colours[g.name])))}
    if tied:
        search.begin(set(tied), refinements)
        colours = search.least(colours).colours
    return Canonical({g.name: _order(g, colours[g.name]) for g in symmetry.groups}, tied if search.exhausted else {})


@dataclass
class _Found:
    """What lies below a node of the search: the end of least digest, all ends by digest, the symmetries met."""

    digest: bytes
    colours: Colours
    ends: dict[bytes, Colours]
    symmetries: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, other: _Found) -> None:
        """Take in what lies below another child of the same node."""
        if other.digest < self.digest:
            self.digest, self.colours = other.digest, other.colours
        self.ends = other.ends | self.ends
        self.symmetries += other.symmetries


@dataclass
class _Search:
    """Break ties within a budget; `exhausted` tells that it did not suffice. `watched` are the tensors that ties change."""

    symmetry: Symmetry
    net: Network
    twins: Twins
    refinements: int = 0
    entries: int = 0
    watched: list[str] = field(default_factory=list)

    def begin(self, tied: set[str], refinements: int) -> None:
        """Start the search between units of these groups with a full budget."""
        self.refinements, self.entries, self.watched = refinements, ENTRIES, self.net.touching(tied)

    @property
    def exhausted(self) -> bool:
        """Tell whether the budget is spent."""
        return self.refinements < 0 or self.entries < 0

    def settle(self, colours: Colours) -> Colours:
        """Refine, and tell apart units with identical slices, until neither changes anything."""
        while True:
            colours, cost = refine(self.net, colours)
            self.refinements, self.entries = self.refinements - 1, self.entries - cost
            parted = self.twins.part(colours)
            if parted is None:
                return colours
            colours = parted

    def least(self, colours: Colours) -> _Found:
        """Return the end of least digest below settled colours, and what was learnt on the way."""
        target = _smallest_class(self.net.groups, colours)
        if target is None or self.exhausted:
            return self._end(colours)
        name, units = target
        found: _Found | None = None
        for unit, child in self._children(colours, name, units):
            if found is None:
                found, explored = self.least(child), [unit]
            elif not self.exhausted and not np.isin(explored, _orbit(unit, [s[name] for s in found.symmetries])).any():
                self._explore(found, child)
                explored.append(unit)
        assert found is not None
        return found

    def _explore(self, found: _Found, child: Colours) -> None:
        """Add a child's ends, or the symmetry that maps it to a child explored before."""
        end = self._end(self._dive(child))
        if end.digest not in found.ends:
            end = self.least(child)
        if end.digest in found.ends:
            found.symmetries.append(self._between(found.ends[end.digest], end.ends[end.digest]))
        found.add(end)

    def _children(self, colours: Colours, name: str, units: np.ndarray) -> list[tuple[int, Colours]]:
        """Return the units with the colours they lead to when marked: those of the least signature alone."""
        signed = []
        for unit in units.tolist():
            if self.exhausted and signed:
                break
            child = self.settle(_marked(colours, name, unit))
            signed.append((_signature(self.net.groups, child), unit, child))
        least = min(signature for signature, _, _ in signed)
        return [(unit, child) for signature, unit, child in signed if signature == least]

    def _dive(self, colours: Colours) -> Colours:
        """Return colours with every tie broken by index, settled after each."""
        while (target := _smallest_class(self.net.groups, colours)) is not None and not self.exhausted:
            colours = self.settle(_marked(colours, target[0], int(target[1][0])))
        return colours

    def _end(self, colours: Colours) -> _Found:
        """Return the end at these colours, with a digest of the watched tensors in their order."""
        plan = self.symmetry.plan({g.name: _order(g, colours[g.name]) for g in self.net.groups})
        digest = hashlib.sha256()
        for key in self.watched:
            digest.update(np.ascontiguousarray(plan.move(key, self.net.bits[key])))
        return _Found(digest.digest(), colours, {digest.digest(): colours})

    def _between(self, one: Colours, other: Colours) -> dict[str, np.ndarray]:
        """Return by group the image of each unit under the symmetry between two ends of the same bits."""
        return {g.name: _order(g, other[g.name]).order[_order(g, one[g.name]).coinverse.order] for g in self.net.groups}


def _order(group: SymmetryGroup, colours: np.ndarray) -> Permutation:
    """Return the units sorted by colour, each within its block; ties by index."""
    block = np.arange(group.size) // max(1, group.size // group.blocks)
    return Permutation(np.lexsort((np.arange(group.size), colours, block)))


def _marked(colours: Colours, name: str, unit: int) -> Colours:
    marked = colours[name].copy()
    marked[unit] = mix(np.array([~marked[unit]]))[0]
    return {**colours, name: marked}


def _signature(groups: tuple[SymmetryGroup, ...], colours: Colours) -> bytes:
    """Return a digest of the colours without regard to which unit has which."""
    return hashlib.sha256(b"".join(np.sort(colours[g.name]).tobytes() for g in groups)).digest()


def _orbit(unit: int, maps: list[np.ndarray]) -> np.ndarray:
    """Return the units that these permutations, applied any number of times, bring a unit to."""
    reached = np.array([unit])
    while True:
        wider = np.unique(np.concatenate([reached, *(image[reached] for image in maps)]))
        if wider.size == reached.size:
            return reached
        reached = wider


def _smallest_class(groups: tuple[SymmetryGroup, ...], colours: Colours) -> tuple[str, np.ndarray] | None:
    """Return the group and units of the smallest tied colour; ties by order of groups and by colour."""
    tied = [(units.size, place, int(colours[g.name][units[0]]), g.name, units)
            for place, g in enumerate(groups) for units in classes(colours[g.name])]
    return min(tied, key=lambda entry: entry[:3])[3:] if tied else None
