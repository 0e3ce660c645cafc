"""Fields: how the entries of a value transform, as terms laid out over its shape like label arrays.

Every position of every axis of a stored tensor has an unknown of its own, numbered from 1. A term is (power, ids): entry x[i…]
carries the unknown ids[i…] with that power; 0 is no unknown. A value that several terms act on carries their product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cipm.rules.reshape import pair_runs

ONE = Fraction(1)


@dataclass(frozen=True, eq=False)
class Term:
    """One factor of every entry: `ids` is broadcastable to the value's shape."""

    power: Fraction
    ids: np.ndarray

    @property
    def dims(self) -> frozenset[int]:
        """Return the axes along which the factor varies."""
        return frozenset(i for i, n in enumerate(self.ids.shape) if n > 1)


Field = tuple[Term, ...]


def tidy(terms: Iterable[Term]) -> Field:
    """Return the terms with equal ones merged, and without those that do nothing."""
    merged: list[Term] = []
    for term in terms:
        if not term.power or not term.ids.any():
            continue
        for number, other in enumerate(merged):
            if other.ids is term.ids or (other.ids.shape == term.ids.shape and np.array_equal(other.ids, term.ids)):
                merged[number] = Term(other.power + term.power, other.ids)
                break
        else:
            merged.append(term)
    return tuple(term for term in merged if term.power)


def raised(field: Field, power: Fraction | int) -> Field:
    """Return the field of a value raised to a power."""
    return tuple(Term(term.power * power, term.ids) for term in field)


def aligned(field: Field, ndim: int) -> Field:
    """Return the field over more leading axes, as broadcasting lays it out."""
    return tuple(Term(t.power, t.ids.reshape((1,) * (ndim - t.ids.ndim) + t.ids.shape)) for t in field)


def spread(field: Field, names: str, letters: str) -> Field:
    """Return the field of a value with these axis names laid out over all letters of an equation."""
    order = sorted(range(len(names)), key=lambda i: letters.index(names[i]))
    found = []
    for term in field:
        sizes = iter(term.ids.transpose(order).shape)
        shape = [next(sizes) if letter in names else 1 for letter in letters]
        found.append(Term(term.power, term.ids.transpose(order).reshape(shape)))
    return tuple(found)


def restricted(field: Field, letters: str, out: str) -> Field:
    """Return the field over `out`; the terms must not vary along the letters that go."""
    kept = [i for i, letter in enumerate(letters) if letter in out]
    order = [[letters[i] for i in kept].index(letter) for letter in out if letter in letters]
    found = []
    for term in field:
        ids = term.ids.squeeze(tuple(i for i in range(len(letters)) if i not in kept)).transpose(order)
        sizes = iter(ids.shape)
        found.append(Term(term.power, ids.reshape([next(sizes) if letter in letters else 1 for letter in out])))
    return tuple(found)


def reshaped(ids: np.ndarray, before: Sequence[int], after: Sequence[int]) -> tuple[np.ndarray, frozenset[int]]:
    """Return the ids of a value viewed in another shape, and the old axes along which they had to be repeated for it."""
    full, shape, repeated = list(ids.shape), [], set()
    for old, new in pair_runs(before, after):
        if any(ids.shape[axis] > 1 for axis in old):
            repeated |= {axis for axis in old if ids.shape[axis] < before[axis]}
            for axis in old:
                full[axis] = before[axis]
            shape += [after[axis] for axis in new]
        else:
            shape += [1] * len(new)
    return np.broadcast_to(ids, full).reshape(shape), frozenset(repeated)


def independent(ids: np.ndarray) -> np.ndarray:
    """Drop every axis along which the ids are all the same."""
    for dim, size in enumerate(ids.shape):
        if size > 1 and (ids == (first := ids.take([0], axis=dim))).all():
            ids = first
    return ids


def extents_reshaped(extents: Sequence[int], before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Return along which axes a reshaped value varies: 1 where it does not."""
    shape: list[int] = []
    for old, new in pair_runs(before, after):
        varies = any(extents[axis] > 1 for axis in old)
        shape += [after[axis] if varies else 1 for axis in new]
    return tuple(shape)


def settled(mine: Field, other: Field) -> tuple[Field, Field]:
    """Split the terms of one summand into those that may act and those that may not.

    A table of positions × units beside a value of units: a factor of a position could be traded for one of all units. Where
    two terms lie along different axes of one term of the other summand, only the one along which that varies most is kept.
    """
    for term in other:
        parts = [t for t in mine if t.dims < term.dims]
        if len(parts) > 1 and not parts[0].dims & parts[1].dims:
            kept = max(parts, key=lambda part: _distinct(term.ids, part.dims))
            return tuple(t for t in mine if t is kept or t not in parts), tuple(t for t in parts if t is not kept)
    return mine, ()


def _distinct(ids: np.ndarray, dims: frozenset[int]) -> int:
    return np.unique(ids[tuple(slice(None) if d in dims else 0 for d in range(ids.ndim))]).size
