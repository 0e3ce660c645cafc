"""Linear equations between unknowns → generators: what may be scaled (or flipped) together, unit by unit.

The equations fall apart into components, one or few for each unit of the model. Components that look alike (the same equations
between the same axes) are solved once; a basis of small supports makes every generator a local one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cipm.symmetry.charges import Equations
from cipm.symmetry.unknowns import Unknowns

LARGEST_COMPONENT = 4000
"""Unknowns of the largest component that is solved; beyond it, nothing in it is taken to move."""
LARGEST_BASIS = 8
"""Generators of one component up to which their supports are made small."""
Vector = dict[int, Fraction]


@dataclass(frozen=True, eq=False)
class Generator:
    """One freedom of every unit: exponents[k] on the unknowns ids[u, k] of unit u. Primitive integers, the first positive.

    Generators of one `family` act on the same units.
    """

    ids: np.ndarray
    exponents: tuple[int, ...]
    family: int


def solve(equations: Sequence[Equations], unknowns: Unknowns, *, modulo: int | None = None) -> list[Generator]:
    """Return a basis of the solutions, alike units together, in the order of their first unknowns."""
    rows, columns, powers = _entries(equations, modulo)
    live = np.ones(unknowns.count, bool)
    live[0] = False
    rows, columns, powers = _without_single(rows, columns, powers, live)
    component = _components(rows, columns, unknowns.count, live)
    order, starts = _by_component(component, live)
    alike = _signatures(rows, columns, powers, component, order, starts, unknowns)
    by_component = np.argsort(component[columns], kind="stable")
    owners = component[columns][by_component]
    found: list[Generator] = []
    for family, members in enumerate(alike):
        ids = order[starts[members][:, None] + np.arange(starts[members[0] + 1] - starts[members[0]])]
        if ids.shape[1] > LARGEST_COMPONENT:
            continue
        local = {int(v): k for k, v in enumerate(ids[0])}
        chosen = by_component[slice(*np.searchsorted(owners, component[ids[0, 0]] + np.arange(2)))]
        system = _local_rows(rows[chosen], columns[chosen], powers[chosen], local)
        for vector in null_space(system, ids.shape[1], modulo):
            support = sorted(vector)
            found.append(Generator(ids[:, support], tuple(int(vector[k]) for k in support), family))
    return sorted(found, key=lambda g: int(g.ids[0, 0]))


def null_space(system: Sequence[Vector], size: int, modulo: int | None) -> Iterator[Vector]:
    """Yield a basis of the solutions of homogeneous equations, each with integers and a small support."""
    pivots = _reduced(system, modulo)
    basis = []
    for free in (k for k in range(size) if k not in pivots):
        vector = {free: Fraction(1)} | {p: -row[free] for p, row in pivots.items() if free in row}
        basis.append(_mod(vector, modulo))
    if len(basis) <= LARGEST_BASIS:
        _shorten(basis, modulo)
    yield from (_primitive(vector) if modulo is None else vector for vector in basis)


def _entries(equations: Sequence[Equations], modulo: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all equations as (row, unknown, power), without repetitions and without what is no unknown."""
    rows, columns, powers, start = [], [], [], 0
    for power, ids in equations:
        count, width = ids.shape
        rows.append(np.repeat(np.arange(start, start + count), width))
        columns.append(ids.ravel())
        powers.append(np.tile(power, count))
        start += count
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    row, column, power = np.concatenate(rows), np.concatenate(columns), np.concatenate(powers)
    kept = column > 0
    summed = coo_matrix((power[kept], (row[kept], column[kept]))).tocsr()
    summed.sum_duplicates()
    if modulo is not None:
        summed.data %= modulo
    summed.eliminate_zeros()
    made = summed.tocoo()
    return made.row.astype(np.int64), made.col.astype(np.int64), made.data.astype(np.int64)


def _without_single(rows: np.ndarray, columns: np.ndarray, powers: np.ndarray,
                    live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take out the unknowns that an equation of their own sets to nothing, until no equation does; `live` is updated."""
    while rows.size:
        single = np.bincount(rows)[rows] == 1
        if not single.any():
            break
        live[columns[single]] = False
        kept = live[columns]
        rows, columns, powers = rows[kept], columns[kept], powers[kept]
    return rows, columns, powers


def _components(rows: np.ndarray, columns: np.ndarray, count: int, live: np.ndarray) -> np.ndarray:
    """Return the component of every unknown; -1 where it is nothing."""
    height = int(rows.max()) + 1 if rows.size else 0
    graph = coo_matrix((np.ones(rows.size, np.int8), (columns, rows + count)), shape=(count + height, count + height))
    _, label = connected_components(graph, directed=False)
    return np.where(live, label[:count], -1)


def _by_component(component: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the unknowns sorted by component and number, and where each component starts."""
    ids = np.flatnonzero(live)
    order = ids[np.lexsort((ids, component[ids]))]
    changes = np.flatnonzero(np.diff(component[order], prepend=-2))
    return order, np.append(changes, order.size)


def _signatures(rows: np.ndarray, columns: np.ndarray, powers: np.ndarray, component: np.ndarray, order: np.ndarray,
                starts: np.ndarray, unknowns: Unknowns) -> list[np.ndarray]:
    """Return the components (as positions in `starts`) in runs that look alike: the same equations between the same places.

    A place is (axis, how many-eth of the component on it). Hashes of 64 bits are compared.
    """
    number = np.repeat(np.arange(starts.size - 1), np.diff(starts))
    source = unknowns.source_of(order)
    change = np.diff(number * (len(unknowns.sources) + 1) + source, prepend=-1) != 0
    first = np.flatnonzero(change)
    rank = np.arange(order.size) - np.repeat(first, np.diff(np.append(first, order.size)))
    place = np.zeros(component.size, np.uint64)
    place[order] = _mix(_mix(source.astype(np.uint64)) + rank.astype(np.uint64))
    position = np.zeros(component.size, np.int64)
    position[order] = number
    total = np.zeros(starts.size - 1, np.uint64)
    np.add.at(total, number, place[order])
    if rows.size:
        row_hash = np.zeros(int(rows.max()) + 1, np.uint64)
        np.add.at(row_hash, rows, _mix(place[columns] ^ _mix(powers.astype(np.uint64))))
        where = np.flatnonzero(np.diff(rows, prepend=-1))  # rows are sorted: the first entry of each
        owner, mixed = position[columns[where]], _mix(row_hash[rows[where]])
        with np.errstate(over="ignore"):
            key = _mix(mixed + owner.astype(np.uint64))  # the same equation twice in a component counts once
        sort = np.argsort(key, kind="stable")
        once = sort[np.diff(key[sort], prepend=key[sort[:1]] + np.uint64(1)) != 0]
        np.add.at(total, owner[once], mixed[once])
    run = np.lexsort((order[starts[:-1]], total))
    return [members for members in np.split(run, np.flatnonzero(np.diff(total[run])) + 1) if members.size]


def _mix(values: np.ndarray) -> np.ndarray:
    """Return well-mixed 64-bit hashes (the finaliser of splitmix64: Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _local_rows(rows: np.ndarray, columns: np.ndarray, powers: np.ndarray, local: Mapping[int, int]) -> list[Vector]:
    found: dict[int, Vector] = {}
    for row, column, power in zip(rows.tolist(), columns.tolist(), powers.tolist(), strict=True):
        found.setdefault(row, {})[local[column]] = Fraction(power)
    return [dict(items) for items in dict.fromkeys(tuple(sorted(row.items())) for row in found.values())]


def _reduced(system: Sequence[Vector], modulo: int | None) -> dict[int, Vector]:
    """Return the equations solved for their last unknowns (Gauss–Jordan): first ones, the writers, stay free."""
    pivots: dict[int, Vector] = {}
    for equation in system:
        row = _mod(dict(equation), modulo)
        for k in [k for k in row if k in pivots]:
            row = _plus(row, pivots[k], -row[k], modulo) if k in row else row
        if not row:
            continue
        last = max(row)
        row = _mod({k: v / row[last] for k, v in row.items()}, modulo)
        for k, other in pivots.items():
            if last in other:
                pivots[k] = _plus(other, row, -other[last], modulo)
        pivots[last] = row
    return pivots


def _shorten(basis: list[Vector], modulo: int | None) -> None:
    """Add multiples of vectors to others wherever fewer unknowns take part afterwards."""
    better = True
    while better:
        better = False
        for i, one in enumerate(basis):
            for j, two in enumerate(basis):
                factors = {-basis[i][k] / two[k] for k in basis[i] if k in two} if i != j else ()
                shorter = min((_plus(basis[i], two, f, modulo) for f in factors), key=len, default=one)
                if len(shorter) < len(basis[i]):
                    basis[i], better = shorter, True


def _plus(one: Vector, two: Vector, factor: Fraction, modulo: int | None) -> Vector:
    total = dict(one)
    for k, value in two.items():
        total[k] = total.get(k, Fraction(0)) + factor * value
    return _mod(total, modulo)


def _mod(vector: Vector, modulo: int | None) -> Vector:
    return {k: v % modulo if modulo else v for k, v in vector.items() if (v % modulo if modulo else v)}


def _primitive(vector: Vector) -> Vector:
    scale = Fraction(lcm(*(v.denominator for v in vector.values())), 1)
    whole = {k: v * scale for k, v in vector.items()}
    divisor = gcd(*(int(v) for v in whole.values())) * (1 if whole[min(whole)] > 0 else -1)
    return {k: v / divisor for k, v in whole.items()}
