"""Units that are equal as they stand: exchanging two of them changes no bit, so any order of theirs will do."""

from __future__ import annotations

import numpy as np

from cipm.ordering.colours import Colours, Network, classes, mix, slice_hashes
from cipm.symmetry.groups import Place, SymmetryGroup


class Twins:
    """Finds twins in one network, and remembers what no colour changes."""

    def __init__(self, net: Network):
        self.net = net
        self.parents = {group.name: group.parent for group in net.groups}
        self.known: dict[str, np.ndarray] = {}

    def part(self, colours: Colours) -> Colours | None:
        """Return colours in which twins of one colour have different ones, by index; None where there are no twins.

        Two units of a group are twins when every slice of one equals that of the other, entry by entry. Units that carry
        others (heads) are compared with those they carry in the order of their colours, once that is an order.
        """
        result, found = dict(colours), False
        for group in self.net.groups:
            tied = classes(colours[group.name])
            if not tied:
                continue
            hashes = self._hashes(group, colours)
            for units in tied:
                rank = _rank_among_equals(hashes[units])
                if rank.any():
                    found = True
                    result[group.name] = result[group.name].copy()
                    result[group.name][units] = mix(result[group.name][units] + rank.astype(np.uint64))
        return result if found else None

    def _hashes(self, group: SymmetryGroup, colours: Colours) -> np.ndarray:
        """Return a hash [units], equal for twins in one block; a unit that cannot be compared yet is its own."""
        if group.name in self.known:
            return self.known[group.name]
        total = np.arange(group.size, dtype=np.uint64) // np.uint64(max(1, group.size // group.blocks))
        clear = np.ones(group.size, dtype=bool)
        for number, place in enumerate(group.places):
            labels = self._labels(group, place, colours)[place.index]
            ordered = np.sort(labels, axis=1)
            clear &= (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
            along = _slices(self.net.bits[place.tensor], place.axis)[place.index]
            total += mix(mix(along ^ mix(labels + np.uint64(number))).sum(axis=1, dtype=np.uint64))
        hashes = np.where(clear, total, mix(np.arange(group.size, dtype=np.uint64)))
        if group.name not in self.parents.values():
            self.known[group.name] = hashes
        return hashes

    def _labels(self, group: SymmetryGroup, place: Place, colours: Colours) -> np.ndarray:
        """Return what tells the positions of one unit apart [length]: their orbit, the colours of carried units, and the
        numbers of units of other groups as they stand.
        """
        axis = self.net.axes[place.tensor][place.axis]
        labels = axis.fixed.copy()
        for name, unit, positions in axis.cover:
            if name != group.name:
                mark = colours[name][unit] if self._carried(name, group.name) else unit.astype(np.uint64)
                labels[positions] = mix(labels[positions] ^ mix(mark))
        return labels

    def _carried(self, name: str, by: str) -> bool:
        parent = self.parents.get(name)
        return parent is not None and (parent == by or self._carried(parent, by))


def _slices(bits: np.ndarray, axis: int) -> np.ndarray:
    """Return a hash [length] of the slice at each position of an axis, entries by where they stand."""
    labels = [np.arange(length, dtype=np.uint64) for length in bits.shape]
    labels[axis] = np.zeros(bits.shape[axis], dtype=np.uint64)
    return slice_hashes(bits, labels, {axis})[axis]


def _rank_among_equals(values: np.ndarray) -> np.ndarray:
    """Return each entry's rank among the entries of the same value, by index."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    rank = np.empty(values.size, dtype=np.int64)
    rank[order] = np.arange(values.size) - np.maximum.accumulate(np.where(first, np.arange(values.size), 0))
    return rank
