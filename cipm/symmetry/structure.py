"""Labels and facts → symmetry groups: classes of labels that play the same role may be permuted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cipm.rules import Fixed
from cipm.symmetry.walk import Walk

Key = tuple[object, ...]
Pairs = np.ndarray
"""An int64 array [2, n] of pairs."""


@dataclass(frozen=True)
class Structure:
    """Classes of tied labels: where they stand, what they move with, and what pins them.

    `places[c]` counts the stored positions of class c by axis number, `ancestors[c]` are the classes it moves with,
    `descendants[c]` those that move with it, `pins[c]` the reason why c may not move.
    """

    class_of: np.ndarray
    axes: tuple[tuple[str, int], ...]
    positions: Mapping[int, tuple[tuple[int, int], ...]]
    marks: Mapping[int, frozenset[object]]
    ancestors: Mapping[int, frozenset[int]]
    descendants: Mapping[int, frozenset[int]]
    pins: Mapping[int, Fixed]


@dataclass(frozen=True)
class Family:
    """Interchangeable classes: `units` in order, in `blocks` equal runs, carried by the classes of another family."""

    units: tuple[int, ...]
    blocks: int
    carriers: frozenset[int]


def build_structure(walk: Walk) -> Structure:
    """Resolve all facts of a walk into classes."""
    class_of, maps = _classes(walk)
    ancestors, descendants = _closure(*maps)
    axes = tuple(walk.atoms)
    positions: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, key in enumerate(axes):
        for place, label in enumerate(class_of[walk.atoms[key]].tolist()):
            positions[label].append((number, place))
    return Structure(class_of, axes, {c: tuple(p) for c, p in positions.items()}, _marks(walk, class_of), ancestors,
                     descendants, _pinned(walk, class_of, ancestors))


def find_families(structure: Structure) -> list[Family]:
    """Return the families of interchangeable classes, innermost first.

    Two classes are interchangeable when they stand on the same axes equally often, bear the same marks, move with the
    same classes, and carry alike classes. Families of equal kind inside the units of one other family become one
    family in blocks.
    """
    alike: dict[Key, list[int]] = defaultdict(list)
    candidates = set(structure.positions) | set(structure.descendants)
    for c in sorted(candidates):
        if c not in structure.pins and (c in structure.positions or structure.descendants.get(c)):
            alike[_role(structure, c)].append(c)
    families = [Family(tuple(_in_place_order(structure, units)), 1, structure.ancestors.get(units[0], frozenset()))
                for units in alike.values() if len(units) > 1]
    merged = _merge_blocks(structure, families)
    depth = {c: len(structure.ancestors.get(c, ())) for family in merged for c in family.units}
    return sorted(merged, key=lambda f: (-depth[f.units[0]], _first_place(structure, f.units[0])))


def unit_positions(structure: Structure, unit: int) -> dict[int, list[int]]:
    """Return where a unit stands with everything it carries: axis number → positions, ascending."""
    found: dict[int, list[int]] = defaultdict(list)
    for c in (unit, *structure.descendants.get(unit, ())):
        for axis, place in structure.positions.get(c, ()):
            found[axis].append(place)
    return {axis: sorted(places) for axis, places in sorted(found.items())}


def _classes(walk: Walk) -> tuple[np.ndarray, Pairs]:
    """Return the class of every label (connected by ties) and the maps between classes that count.

    Facts that follow are added until none is new: two block structures of the same labels that cut alike are one; where
    one refines the other, its blocks move with the coarser ones; maps that form a circle are ties.
    """
    book = walk.book
    ties = np.concatenate([np.zeros((2, 0), np.int64), *(np.stack(tie) for tie in book.ties)], axis=1)
    maps = np.zeros((2, 0), np.int64)
    while True:
        _, class_of = connected_components(_relation(ties, book.count), directed=False)
        events = _active_events(walk, class_of)
        pairs = np.unique(np.concatenate([class_of[maps], *(event for event in events)], axis=1), axis=1)
        pairs = pairs[:, pairs[0] != pairs[1]]
        _, circle = connected_components(_relation(pairs, book.count), directed=True, connection="strong")
        same, finer = _compare_blocks(events)
        first = np.full(class_of.max() + 1, -1)
        first[class_of[::-1]] = np.arange(book.count)[::-1]  # a label that stands for each class
        looped = np.flatnonzero(np.bincount(circle[:first.size], minlength=first.size)[circle[:first.size]] > 1)
        leader = {int(circle[c]): int(c) for c in looped[::-1]}
        same = np.concatenate([same, np.array([looped, [leader[int(circle[c])] for c in looped]], dtype=np.int64)], axis=1)
        new_ties = first[same[:, same[0] != same[1]]]
        new_maps = np.setdiff1d(first[finer][0] * book.count + first[finer][1], class_pairs(class_of[maps], first, book.count))
        if not new_ties.size and not new_maps.size:
            return class_of, pairs
        ties = np.concatenate([ties, new_ties], axis=1)
        maps = np.concatenate([maps, np.stack(np.divmod(new_maps, book.count))], axis=1)


def class_pairs(pairs: Pairs, first: np.ndarray, count: int) -> np.ndarray:
    """Return pairs of classes as single numbers of the labels that stand for them."""
    return first[pairs[0]] * count + first[pairs[1]]


def _compare_blocks(events: Sequence[Pairs]) -> tuple[Pairs, Pairs]:
    """Return (parents to tie, (finer, coarser) parents) over all pairs of block structures of the same labels."""
    by_children: dict[bytes, list[Pairs]] = defaultdict(list)
    for event in events:
        by_children[event[0].tobytes()].append(event)
    same, finer = [np.zeros((2, 0), np.int64)], [np.zeros((2, 0), np.int64)]
    for alike in by_children.values():
        for one, two in combinations(alike, 2):
            pairs = np.unique(np.stack([one[1], two[1]]), axis=1)
            single = [np.unique(side).size == side.size for side in pairs]
            if all(single):
                same.append(pairs)
            elif any(single):
                finer.append(pairs if single[0] else pairs[::-1])
    return np.concatenate(same, axis=1), np.unique(np.concatenate(finer, axis=1), axis=1)


def _relation(pairs: Pairs, count: int) -> coo_matrix:
    return coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))


def _active_events(walk: Walk, class_of: np.ndarray) -> list[Pairs]:
    """Return every map that counts as sorted (child, parent) classes: soft ones where some op uses the outer axis."""
    book = walk.book
    events = [(np.unique(np.stack([class_of[child], class_of[parent]]), axis=1), soft) for child, parent, soft in book.maps]
    hard = np.zeros(book.count, bool)
    if book.hard:
        hard[class_of[np.concatenate(book.hard)]] = True
    child, parent = np.concatenate([np.zeros((2, 0), np.int64), *(pairs for pairs, _ in events)], axis=1)
    outer = np.zeros_like(hard)
    outer[parent] = True
    while (risen := ~hard[parent] & hard[child] & outer[child]).any():  # a used outer axis makes its own blocks real
        hard[parent[risen]] = True
    return [pairs[:, hard[pairs[1]] | (not soft)] for pairs, soft in events]


def _closure(child: np.ndarray, parent: np.ndarray) -> tuple[dict[int, frozenset[int]], dict[int, frozenset[int]]]:
    direct: dict[int, set[int]] = defaultdict(set)
    for c, p in zip(child.tolist(), parent.tolist(), strict=True):
        direct[c].add(p)
    ancestors: dict[int, frozenset[int]] = {}

    def resolve(start: int) -> None:
        stack = [start]
        while stack:
            c = stack[-1]
            waiting = [p for p in direct.get(c, ()) if p not in ancestors]
            if waiting:
                stack.extend(waiting)
                continue
            ancestors[c] = frozenset().union(direct.get(c, ()), *(ancestors[p] for p in direct.get(c, ())))
            stack.pop()

    for c in list(direct):
        if c not in ancestors:
            resolve(c)
    descendants: dict[int, set[int]] = defaultdict(set)
    for c, above in ancestors.items():
        for p in above:
            descendants[p].add(c)
    return ancestors, {p: frozenset(below) for p, below in descendants.items()}


def _marks(walk: Walk, class_of: np.ndarray) -> dict[int, frozenset[object]]:
    """Return the colours and fixed partners of each class."""
    found: dict[int, set[object]] = defaultdict(set)
    for number, labels in enumerate(walk.book.colours):
        for c in np.unique(class_of[labels]).tolist():
            found[c].add(number)
    for labels, roles in walk.book.roles:
        for c, role in zip(class_of[labels].tolist(), roles.tolist(), strict=True):
            found[c].add(("role", role))
    return {c: frozenset(marks) for c, marks in found.items()}


def _pinned(walk: Walk, class_of: np.ndarray, ancestors: Mapping[int, frozenset[int]]) -> dict[int, Fixed]:
    """Return the pinned classes with their first reason; what carries a pinned class is pinned too."""
    pins: dict[int, Fixed] = {}
    for labels, why in walk.book.pins:
        for c in np.unique(class_of[labels]).tolist():
            pins.setdefault(c, why)
    for c, why in list(pins.items()):
        for above in ancestors.get(c, ()):
            pins.setdefault(above, why)
    return pins


def _role(structure: Structure, c: int) -> Key:
    below = structure.descendants.get(c, frozenset())
    carried = Counter(_standing(structure, d, frozenset({c}) | below) for d in below)
    return (_standing(structure, c, frozenset()), structure.ancestors.get(c, frozenset()), frozenset(carried.items()))


def _standing(structure: Structure, c: int, within: frozenset[int]) -> Key:
    """Return what tells class c apart: its axes, its marks, and what it moves with beyond `within`."""
    axes = Counter(axis for axis, _ in structure.positions.get(c, ()))
    above = structure.ancestors.get(c, frozenset())
    beyond = (above - within, len(above & within)) if within else ()
    return (frozenset(axes.items()), structure.marks.get(c, frozenset()), beyond)


def _merge_blocks(structure: Structure, families: list[Family]) -> list[Family]:
    """Join families of equal kind whose carriers belong to one family, outermost levels first."""
    home: dict[int, int] = {}
    done: list[Family] = []
    by_depth: dict[int, list[Family]] = defaultdict(list)
    for family in families:
        by_depth[len(family.carriers)].append(family)
    for depth in sorted(by_depth):
        kinds: dict[Key, list[Family]] = defaultdict(list)
        for number, family in enumerate(by_depth[depth]):
            kinds[_kind_of(structure, family, home, number)].append(family)
        for same in kinds.values():
            same.sort(key=lambda family: _first_place(structure, family.units[0]))
            units = tuple(unit for family in same for unit in family.units)
            home.update(dict.fromkeys(units, len(done)))
            done.append(Family(units, len(same), frozenset().union(*(family.carriers for family in same))))
    return done


def _kind_of(structure: Structure, family: Family, home: Mapping[int, int], number: int) -> Key:
    carriers = frozenset(home[c] for c in family.carriers if c in home)
    others = frozenset(c for c in family.carriers if c not in home)
    axes, marks, _ = _standing(structure, family.units[0], frozenset())
    below = len(structure.descendants.get(family.units[0], ()))
    return (len(family.units), axes, marks, below, carriers, others, number if not carriers else None)


def _in_place_order(structure: Structure, units: Iterable[int]) -> list[int]:
    return sorted(units, key=lambda unit: _first_place(structure, unit))


def _first_place(structure: Structure, unit: int) -> tuple[int, int]:
    return min((axis, places[0]) for axis, places in unit_positions(structure, unit).items()) \
        if unit_positions(structure, unit) else (len(structure.axes), unit)
