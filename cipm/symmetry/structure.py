"""Labels and facts → symmetry groups: classes of labels that play the same role may be permuted.

Everything is arrays over classes: a graph of eight billion parameters has millions of labels. What a class is like (the axes it
stands on, its marks, what it moves with and what it carries) is summed up in one 64-bit number, so that alike classes are
found by sorting. Two classes that share a number by chance would fail the proof.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cipm.permutation import View
from cipm.rules import Fixed
from cipm.symmetry.routes import Routes
from cipm.symmetry.walk import Walk

Pairs = np.ndarray
"""An int64 array [2, n] of pairs."""


@dataclass(frozen=True, eq=False)
class Table:
    """For every class a run of rows: `rows[start[c]:start[c + 1]]`."""

    start: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, classes: np.ndarray, rows: np.ndarray, count: int) -> Table:
        """Return the table that lists rows [n] or [n, columns] under their classes [n], in the order given."""
        order = np.argsort(classes, kind="stable")
        return cls(np.concatenate([[0], np.cumsum(np.bincount(classes, minlength=count))]), rows[order])

    @property
    def classes(self) -> np.ndarray:
        """Return the class of every row."""
        return np.repeat(np.arange(self.start.size - 1), np.diff(self.start))

    def __getitem__(self, c: int) -> np.ndarray:
        return self.rows[self.start[c]:self.start[c + 1]]

    def size(self, classes: np.ndarray) -> np.ndarray:
        """Return how many rows each class has."""
        return self.start[classes + 1] - self.start[classes]

    def gather(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the class among `classes`, row) for all rows of these classes."""
        sizes = self.size(classes)
        owner = np.repeat(np.arange(classes.size), sizes)
        within = np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return owner, self.rows[self.start[classes][owner] + within]


@dataclass(frozen=True, eq=False)
class Structure:
    """Classes of tied labels: where they stand, what they move with, and what pins them.

    `where[c]` are the stored positions (number of the axis, place) of class c; `above[c]` the classes it moves with,
    `below[c]` those that move with it; `pin[c]` the number of the reason why it may not move, or −1; `held[c]` of the
    reason why it keeps its place within what carries it. `role[c]` tells whether its place on some fixed axis tells it
    apart. `standing[c]` sums up axes and marks. `views[n]` is the view in which the positions of axis n are counted,
    `outer[n]` the number of the axis whose positions are its slices. `routed` are (class of what an index chooses, class of
    what that can be).
    """

    class_of: np.ndarray
    axes: tuple[tuple[str, int], ...]
    where: Table
    above: Table
    below: Table
    pin: np.ndarray
    held: np.ndarray
    reasons: tuple[Fixed, ...]
    role: np.ndarray
    standing: np.ndarray
    views: tuple[View | None, ...]
    outer: tuple[int | None, ...]
    routed: Pairs

    def members(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (number of the unit, class) for every unit and all that it carries."""
        owner, carried = self.below.gather(units)
        return np.concatenate([np.arange(units.size), owner]), np.concatenate([units, carried])


@dataclass(frozen=True, eq=False)
class Family:
    """Interchangeable classes: `units` in order, in `blocks` equal runs, carried by the classes of another family."""

    units: np.ndarray
    blocks: int
    carriers: frozenset[int]


def build_structure(walk: Walk) -> Structure:
    """Resolve all facts of a walk into classes."""
    routes = Routes.of(walk.book)
    walk = replace(walk, book=routes.spread(walk.book)) if routes.labels.size else walk
    class_of, direct = _classes(walk, routes)
    count = int(class_of.max(initial=-1)) + 1
    above = _closure(direct, count)
    labels = [class_of[walk.atoms[key].ravel()] for key in walk.atoms]
    stand = np.concatenate([np.zeros((0, 2), np.int64), *(
        np.stack([np.full(c.size, number), np.arange(c.size)], axis=1) for number, c in enumerate(labels))])
    where = Table.of(np.concatenate([np.zeros(0, np.int64), *labels]), stand, count)
    child = np.repeat(np.arange(count), above.size(np.arange(count)))
    below = Table.of(above.rows, child, count)
    marks, role = _marks(walk, class_of, count)
    standing = _mix(_summed(where.classes, _hash(where.rows[:, 0], 1), count)) + marks
    pin, held, reasons = _pinned(walk, class_of, child, above.rows, count)
    views = tuple(walk.views.get(spot) for spot in walk.atoms)
    number = {spot: n for n, spot in enumerate(walk.atoms)}
    outer = tuple(view and number[spot[0], view.axes[0]] for spot, view in zip(walk.atoms, views, strict=True))
    return Structure(class_of, tuple(walk.atoms), where, above, below, pin, held, reasons, role, standing, views, outer,
                     class_of[routes.pairs()])


def find_families(structure: Structure) -> list[Family]:
    """Return the families of interchangeable classes, innermost first.

    Two classes are interchangeable when they stand on the same axes equally often, bear the same marks, move with the
    same classes, and carry alike classes. Families of equal kind inside the units of one other family become one
    family in blocks.
    """
    everything = np.arange(structure.pin.size)
    placed = (structure.where.size(everything) > 0) | (structure.below.size(everything) > 0)
    candidates = everything[placed & (structure.pin < 0)]
    alike = _roles(structure)[candidates]
    first = _first_places(structure)
    order = np.lexsort((first[candidates], alike))
    runs = np.split(candidates[order], np.flatnonzero(np.diff(alike[order])) + 1) if order.size else []
    families = [Family(units, 1, frozenset(structure.above[units[0]].tolist())) for units in runs if units.size > 1]
    families.sort(key=lambda family: family.units.min())
    merged = _merge_blocks(structure, families, first)
    stored = [family for family in merged if unit_places(structure, family.units[:1])]  # others are positions alone
    return sorted(stored, key=lambda f: (-structure.above.size(f.units[:1])[0], first[f.units[0]]))


def unit_places(structure: Structure, units: np.ndarray) -> dict[int, np.ndarray]:
    """Return where units stand with all that they carry: axis number → positions [units, elements], ascending.

    What moves whole positions of an axis moves all that views have on them: only the axis is listed.
    """
    owner, classes = structure.members(units)
    number, rows = structure.where.gather(classes)
    unit, axis, place = owner[number], rows[:, 0], rows[:, 1]
    order = np.lexsort((place, unit, axis))
    cuts = np.flatnonzero(np.diff(axis[order])) + 1
    found = {int(axis[run[0]]): place[run].reshape(units.size, -1) for run in np.split(order, cuts)} if order.size else {}
    return {n: index for n, index in found.items() if (outer := structure.outer[n]) is None or outer not in found}


# --- classes ----------------------------------------------------------------------------------------------------------

def _classes(walk: Walk, routes: Routes) -> tuple[np.ndarray, Pairs]:
    """Return the class of every label (connected by ties) and the maps between classes that count.

    Facts that follow are added until none is new: two block structures of the same labels that cut alike are one; where
    one refines the other, its blocks move with the coarser ones; maps that form a circle are ties.
    """
    book = walk.book
    ties = np.concatenate([np.zeros((2, 0), np.int64), *(np.stack(tie) for tie in book.ties)], axis=1)
    maps = np.zeros((2, 0), np.int64)
    while True:
        _, class_of = connected_components(_relation(ties, book.count), directed=False)
        class_of = class_of.astype(np.int64)
        events = _active_events(walk, class_of)
        pairs = unique_pairs(np.concatenate([class_of[maps], *events], axis=1))
        pairs = pairs[:, pairs[0] != pairs[1]]
        _, circle = connected_components(_relation(pairs, book.count), directed=True, connection="strong")
        same, finer = _compare_blocks(events)
        first = np.full(class_of.max(initial=-1) + 1, -1)
        first[class_of[::-1]] = np.arange(book.count)[::-1]  # a label that stands for each class
        looped = np.flatnonzero(np.bincount(circle[:first.size], minlength=first.size)[circle[:first.size]] > 1)
        leader = {int(circle[c]): int(c) for c in looped[::-1]}
        same = np.concatenate([same, np.array([looped, [leader[int(circle[c])] for c in looped]], dtype=np.int64)], axis=1)
        units = (_one_unit(event) for event, (*_, soft) in zip(events, book.maps, strict=True) if not soft)
        same = np.concatenate([same, *units], axis=1)
        new_ties = np.concatenate([first[same[:, same[0] != same[1]]], routes.ties(class_of)], axis=1)
        known = first[class_of[maps]]
        new_maps = np.setdiff1d(_coded(first[finer], book.count), _coded(known, book.count))
        if not new_ties.size and not new_maps.size:
            return class_of, pairs
        ties = np.concatenate([ties, new_ties], axis=1)
        maps = np.concatenate([maps, np.stack(np.divmod(new_maps, book.count))], axis=1)


def _active_events(walk: Walk, class_of: np.ndarray) -> list[Pairs]:
    """Return every map that counts as sorted (child, parent) classes: soft ones where some op uses the outer axis."""
    book = walk.book
    events = [(unique_pairs(np.stack([class_of[child], class_of[parent]])), soft) for child, parent, soft in book.maps]
    hard = np.zeros(book.count, bool)
    if book.hard:
        hard[class_of[np.concatenate(book.hard)]] = True
    child, parent = np.concatenate([np.zeros((2, 0), np.int64), *(pairs for pairs, _ in events)], axis=1)
    outer = np.zeros_like(hard)
    outer[parent] = True
    merged = np.repeat([not soft for _, soft in events], [pairs.shape[1] for pairs, _ in events]).astype(bool)
    rises = outer[child] | merged  # a used outer axis makes its own blocks real; so does a merged one (batch × heads)
    while (risen := ~hard[parent] & hard[child] & rises).any():
        hard[parent[risen]] = True
    return [pairs[:, hard[pairs[1]] | (not soft)] for pairs, soft in events]


def _compare_blocks(events: Sequence[Pairs]) -> tuple[Pairs, Pairs]:
    """Return (parents to tie, (finer, coarser) parents) over all pairs of block structures of the same labels."""
    by_children: dict[bytes, list[Pairs]] = defaultdict(list)
    for event in {event.tobytes(): event for event in events}.values():
        by_children[event[0].tobytes()].append(event)
    same, finer = [np.zeros((2, 0), np.int64)], [np.zeros((2, 0), np.int64)]
    for alike in by_children.values():
        for one, two in combinations(alike, 2):
            pairs = unique_pairs(np.stack([one[1], two[1]]))
            single = [np.unique(side).size == side.size for side in pairs]
            if all(single):
                same.append(pairs)
            elif any(single):
                finer.append(pairs if single[0] else pairs[::-1])
    return np.concatenate(same, axis=1), unique_pairs(np.concatenate(finer, axis=1))


def _one_unit(event: Pairs) -> Pairs:
    """Return (parents to tie): positions of one axis on which a unit of several elements stands for every slice of another
    axis (both halves of a rotary pair in every head) are one unit. Where that would be all of them, nothing is told apart."""
    again = event[0, 1:] == event[0, :-1]
    if not again.any():
        return event[:, :0]
    parents, place = np.unique(event[1], return_inverse=True)
    pairs = np.stack([place[:-1][again], place[1:][again]])
    count, _ = connected_components(_relation(pairs, parents.size), directed=False)
    return parents[pairs] if count > 1 else event[:, :0]


def _closure(direct: Pairs, count: int) -> Table:
    """Return for every class all classes that it moves with, through any number of steps."""
    step = Table.of(direct[0], direct[1], count)
    pairs = direct
    while True:
        number, further = step.gather(pairs[1])
        joined = unique_pairs(np.concatenate([pairs, np.stack([pairs[0][number], further])], axis=1))
        if joined.shape == pairs.shape:
            return Table.of(joined[0], joined[1], count)
        pairs = joined


def _marks(walk: Walk, class_of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what sums up the colours and fixed partners of each class, and whether it has a fixed partner."""
    none = np.zeros(0, np.int64)
    colours = unique_pairs(np.stack([
        np.concatenate([none, *(class_of[labels] for labels in walk.book.colours)]),
        np.concatenate([none, *(np.full(labels.size, number) for number, labels in enumerate(walk.book.colours))])]))
    roles = unique_pairs(np.stack([np.concatenate([none, *(class_of[labels] for labels, _ in walk.book.roles)]),
                              np.concatenate([none, *(places for _, places in walk.book.roles)])]))
    role = np.zeros(count, bool)
    role[roles[0]] = True
    return (_mix(_summed(colours[0], _hash(colours[1], 2), count)) + _mix(_summed(roles[0], _hash(roles[1], 3), count) + _ONE),
            role)


def _pinned(walk: Walk, class_of: np.ndarray, child: np.ndarray, parent: np.ndarray,
            count: int) -> tuple[np.ndarray, np.ndarray, tuple[Fixed, ...]]:
    """Return the numbers of the first reasons that pin and that hold each class (−1: none), and the reasons.

    What carries a pinned class is pinned too.
    """
    facts = [*walk.book.pins, *walk.book.held]
    none, pins = len(facts), len(walk.book.pins)
    pin, held, carried = (np.full(count, none) for _ in range(3))
    for number, (labels, _) in enumerate(facts):
        np.minimum.at(pin if number < pins else held, class_of[labels], number)
    np.minimum.at(carried, parent, pin[child])
    pin = np.where(pin < none, pin, carried)
    return np.where(pin < none, pin, -1), np.where(held < none, held, -1), tuple(why for _, why in facts)


# --- families ---------------------------------------------------------------------------------------------------------

def _roles(structure: Structure) -> np.ndarray:
    """Return for each class the number that sums up all that tells it apart from others: what it moves with by identity,
    and of what it carries the kinds alone."""
    count = structure.pin.size
    lower, upper = structure.above.classes, structure.above.rows
    above = _summed(lower, _hash(upper, 4), count)
    number, top = structure.above.gather(upper)  # chains lower[number] < upper[number] < top
    pair = np.searchsorted(_coded(np.stack([lower, upper]), count), _coded(np.stack([lower[number], top]), count))
    within = _hash(upper, 4) + _summed(pair, _hash(upper[number], 4), upper.size)  # what d < a ≤ c adds to above[d]
    steps = np.bincount(pair, minlength=upper.size).astype(np.uint64)
    kind = _mix(structure.standing[lower] + _mix(above[lower] - within) + _mix(steps + _ODD))
    return _mix(structure.standing + _mix(above + _ONE) + _mix(_summed(upper, kind, count) + _ODD))


def _first_places(structure: Structure) -> np.ndarray:
    """Return for each class its first stored position, or that of what it carries, as one number."""
    classes, rows = structure.where.classes, structure.where.rows
    far = np.iinfo(np.int64).max
    own = np.full(structure.pin.size, far)
    np.minimum.at(own, classes, rows[:, 0] << 32 | rows[:, 1])
    first = own.copy()
    np.minimum.at(first, structure.above.rows, own[structure.above.classes])
    return first


def _merge_blocks(structure: Structure, families: list[Family], first: np.ndarray) -> list[Family]:
    """Join families of equal kind whose carriers belong to one family, outermost levels first."""
    home = np.full(structure.pin.size, -1)
    done: list[Family] = []
    by_depth: dict[int, list[Family]] = defaultdict(list)
    for family in families:
        by_depth[len(family.carriers)].append(family)
    for depth in sorted(by_depth):
        kinds: dict[tuple[object, ...], list[Family]] = defaultdict(list)
        for number, family in enumerate(by_depth[depth]):
            kinds[_kind_of(structure, family, home, number)].append(family)
        for same in kinds.values():
            same.sort(key=lambda family: first[family.units[0]])
            units = np.concatenate([family.units for family in same])
            home[units] = len(done)
            done.append(Family(units, len(same), frozenset().union(*(family.carriers for family in same))))
    return done


def _kind_of(structure: Structure, family: Family, home: np.ndarray, number: int) -> tuple[object, ...]:
    carriers = frozenset(int(home[c]) for c in family.carriers if home[c] >= 0)
    others = frozenset((int(structure.standing[c]), -1) if (home[structure.above[c]] >= 0).any() else (-1, c)  # alike, or one
                       for c in family.carriers if home[c] < 0)
    unit = family.units[:1]
    return (family.units.size, int(structure.standing[unit[0]]), int(structure.below.size(unit)[0]), carriers, others,
            number if not carriers else None)


# --- arrays -----------------------------------------------------------------------------------------------------------

_ONE, _ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the 64-bit finaliser of splitmix64 (Steele, Lea, Flood 2014) of each number."""
    z = values + _ONE
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(values: np.ndarray, kind: int) -> np.ndarray:
    """Return a 64-bit number for each integer of one kind."""
    return _mix(values.astype(np.uint64) * _ODD + _mix(np.array([kind], np.uint64)))


def _summed(owner: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Return for each owner the sum (modulo 2⁶⁴) of its numbers."""
    total = np.zeros(count, np.uint64)
    np.add.at(total, owner, numbers)
    return total


def _coded(pairs: Pairs, count: int) -> np.ndarray:
    return pairs[0] * count + pairs[1]


def unique_pairs(pairs: Pairs) -> Pairs:
    """Return the distinct pairs, sorted."""
    high = int(pairs[1].max(initial=0)) + 1
    low = min(int(pairs[1].min(initial=0)), 0)
    codes = np.sort(pairs[0] * (high - low) + pairs[1] - low)  # numpy's own unique hashes, and is slower
    return np.stack(np.divmod(codes[np.diff(codes, prepend=-1) != 0], high - low)) + np.array([[0], [low]])


def _relation(pairs: Pairs, count: int) -> coo_matrix:
    return coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))
