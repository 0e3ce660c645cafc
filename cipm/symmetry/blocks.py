"""Facts about mixing → blocks: sets of directions on which a whole group of matrices may act."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cipm.symmetry.spaces import PLAIN, Pairs, Spaces
from cipm.symmetry.unknowns import Source, Unknowns


@dataclass(frozen=True, eq=False)
class BlockPlace:
    """Where a block stands on a stored axis: `index` [directions, copies]; power 1: by M, −1: by its inverse transpose."""

    source: Source
    power: int
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Block:
    """Directions that an invertible (or orthogonal) matrix may mix; `ones`: it has to keep the vector of ones.

    `absorbed` are the freedoms by which norms' weights have to be taken over by their readers first.
    """

    size: int
    orthogonal: bool
    ones: bool
    places: tuple[BlockPlace, ...]
    absorbed: frozenset[int]


@dataclass(frozen=True, eq=False)
class Resolved:
    """The blocks, and the unknowns that something else stops than products with values that no unknown acts on."""

    blocks: tuple[Block, ...]
    class_of: np.ndarray
    stopped: np.ndarray


def resolve(spaces: Spaces, unknowns: Unknowns) -> Resolved:
    """Return the blocks that the facts leave, in the order of their first directions."""
    axes = [np.arange(s.start, s.start + s.size) for s in unknowns.sources]
    fibres = [*spaces.fibres.values(), *(axis.reshape(1, -1) for axis in axes)]
    fine, _, _ = _classes(spaces.count, spaces.same, spaces.opposite)
    coarse, parity, clash = _classes(spaces.count, [*spaces.same, *spaces.copies], spaces.opposite)
    stopped = _flagged(coarse, [ids for ids, _ in spaces.pinned])
    hard = _flagged(coarse, [ids for ids, why in spaces.pinned if why != PLAIN])
    pinned_fibre = np.flatnonzero(stopped[coarse]).reshape(1, -1)
    fibres.append(pinned_fibre[:, pinned_fibre[0] > 0])
    signature, finer = _signatures(fibres, coarse), _signatures(fibres, fine)
    flags = [clash | _flagged(coarse, spaces.orthogonal), _flagged(coarse, spaces.ones)]
    absorbed = [(frozenset(np.unique(coarse[ids]).tolist()), number) for ids, number in spaces.absorbed]
    free = np.flatnonzero(np.bincount(coarse[1:unknowns.count]))
    by_class = _Positions(coarse[:unknowns.count])
    blocks = []
    for classes in _alike(free[~stopped[free]], signature):
        places = _places(classes, by_class, fine, finer, parity, unknowns)
        if places is not None and (len(places) > 1 or clash[classes].any()):
            orthogonal, ones = (bool(flag[classes].any()) for flag in flags)
            taken = frozenset(number for members, number in absorbed if not members.isdisjoint(classes.tolist()))
            if orthogonal or not ones:
                blocks.append(Block(len(classes), orthogonal, ones, places, taken))
    blocks.sort(key=lambda b: (b.places[0].source.start, int(b.places[0].index[0, 0])))
    return Resolved(tuple(blocks), coarse, hard)


def _classes(count: int, same: Pairs, opposite: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (class of every id, whether it transforms opposite to its class, whether the class is its own opposite).

    Every id is two nodes, M and its inverse transpose; an id tied to both sides of itself only allows orthogonal maps.
    """
    ends = [np.concatenate([np.zeros((2, 0), np.int64), *(np.stack(pair) for pair in pairs)], axis=1)
            for pairs in (same, opposite)]
    one = np.concatenate([ends[0][0], ends[0][0] + count, ends[1][0], ends[1][0] + count])
    two = np.concatenate([ends[0][1], ends[0][1] + count, ends[1][1] + count, ends[1][1]])
    graph = coo_matrix((np.ones(one.size, np.int8), (one, two)), shape=(2 * count, 2 * count))
    _, label = connected_components(graph, directed=False)
    up, down = label[:count], label[count:]
    name = np.minimum(up, down)
    clash = np.zeros(int(name.max()) + 1, bool)
    clash[name[up == down]] = True
    return name, up != name, clash


def _flagged(class_of: np.ndarray, lists: Sequence[np.ndarray]) -> np.ndarray:
    """Return per class whether one of its ids is listed."""
    flags = np.zeros(int(class_of.max()) + 1, bool)
    for ids in lists:
        flags[class_of[ids[ids > 0]]] = True
    return flags


def _signatures(fibres: Sequence[np.ndarray], class_of: np.ndarray) -> np.ndarray:
    """Return for every class a hash of the fibres that hold it: equal ones are always together."""
    generator = np.random.default_rng(0)
    total = np.zeros(int(class_of.max()) + 1, np.uint64)
    size = np.int64(total.size)
    for rows in fibres:
        keys = generator.integers(1, 2**63, size=len(rows), dtype=np.uint64)
        number = np.repeat(np.arange(len(rows)), rows.shape[1])
        flat = rows.ravel()
        assert len(rows) * size < 2**62
        pairs = np.sort(class_of[flat[flat > 0]] * np.int64(len(rows)) + number[flat > 0])
        members, fibre = np.divmod(pairs[np.diff(pairs, prepend=-1) != 0], len(rows))
        np.add.at(total, members, keys[fibre])
    return total


def _alike(classes: np.ndarray, signature: np.ndarray) -> list[np.ndarray]:
    """Return the runs of two and more classes that are always together, in the order of their first."""
    order = np.argsort(signature[classes], kind="stable")
    ends = np.flatnonzero(np.diff(signature[classes[order]])) + 1
    bounds = zip([0, *ends.tolist()], [*ends.tolist(), len(order)], strict=True)
    return [classes[order[first:last]] for first, last in bounds if last - first > 1]


class _Positions:
    """The ids of every class, in order."""

    def __init__(self, class_of: np.ndarray):
        self.order = np.argsort(class_of, kind="stable")
        self.sorted = class_of[self.order]

    def of(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, which of the classes each is in)."""
        first, last = (np.searchsorted(self.sorted, classes, side=side) for side in ("left", "right"))
        number = np.repeat(np.arange(len(classes)), last - first)
        within = np.arange(number.size) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        return self.order[first[number] + within], number


def _places(classes: np.ndarray, by_class: _Positions, fine: np.ndarray, finer: np.ndarray,
            parity: np.ndarray, unknowns: Unknowns) -> tuple[BlockPlace, ...] | None:
    """Return where all directions stand, copy by copy; None where the copies on an axis cannot be told apart."""
    ids, direction = by_class.of(classes)
    source = unknowns.source_of(ids)
    places = []
    for number, opposite in sorted(set(zip(source.tolist(), parity[ids].tolist(), strict=True))):
        own = (source == number) & (parity[ids] == opposite)
        columns = list(_copies(ids[own], direction[own], finer[fine[ids[own]]], len(classes)))
        if not all(column is not None for column in columns) or unknowns.sources[number].blocks > 1:
            return None
        index = np.stack(sorted(columns, key=lambda column: int(column[0])), axis=1)
        places.append(BlockPlace(unknowns.sources[number], -1 if opposite else 1, index - unknowns.sources[number].start))
    return _from_writer(places)


def _copies(ids: np.ndarray, direction: np.ndarray, signature: np.ndarray, size: int) -> Iterator[np.ndarray | None]:
    for key in np.unique(signature):
        own = signature == key
        order = np.argsort(direction[own], kind="stable")
        complete = np.array_equal(direction[own][order], np.arange(size))
        yield ids[own][order] if complete else None


def _from_writer(places: list[BlockPlace]) -> tuple[BlockPlace, ...]:
    """Order the directions as they stand on the first axis, and let that one transform by M."""
    order = np.argsort(places[0].index[:, 0])
    return tuple(BlockPlace(p.source, p.power * places[0].power, p.index[order]) for p in places)
