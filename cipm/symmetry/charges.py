"""Factors that ops pass on: the linear equations for the exponents of positive factors, or for signs (modulo two)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

import numpy as np

from cipm.rules.actions import DROP, KEEP, Action
from cipm.symmetry.fields import Field, Term, aligned, raised, restricted, settled, spread, tidy

Operand = tuple[Field, str, Sequence[int]]
"""A field, the letters of its axes, and how far it varies along each (1: not at all)."""
Equations = tuple[np.ndarray, np.ndarray]
"""Integer powers [terms] and ids [equations, terms]: the powers' sum over each row of unknowns is zero."""


@dataclass
class Charges:
    """Collect what the ops demand of the factors on every entry. Mutable while the graph is walked."""

    sign: bool
    equations: list[Equations] = field(default_factory=list)

    def vanish(self, given: Field) -> None:
        """Say that nothing may act on this value: the factors of every entry multiply to one."""
        groups: list[list[Term]] = []
        for term in sorted(given, key=lambda t: -len(t.dims)):
            home = next((group for group in groups if term.dims <= group[0].dims), None)
            groups.append([term]) if home is None else home.append(term)
        for group in groups:
            shape = np.broadcast_shapes(*(term.ids.shape for term in group))
            denominator = lcm(*(term.power.denominator for term in group))
            rows = np.stack([np.broadcast_to(term.ids, shape).ravel() for term in group], axis=1)
            self.equations.append((np.array([int(term.power * denominator) for term in group]), rows))

    def equal(self, one: Field, two: Field, extents: Sequence[Sequence[int]]) -> Field:
        """Say that two values are added: both transform alike. Returns the field of the sum."""
        ndim = max(len(e) for e in extents)
        first, second = aligned(one, ndim), aligned(two, ndim)
        (first, idle), (second, still) = settled(first, second), settled(second, first)
        for term in (*idle, *still):
            self.vanish((term,))
        self.vanish(tidy((*first, *raised(second, -1))))
        return first if len(first) else second

    def multiply(self, one: Field, two: Field, extents: Sequence[Sequence[int]]) -> Field:
        """Return the field of a product."""
        ndim = max(len(e) for e in extents)
        return self._mod(tidy((*aligned(one, ndim), *aligned(two, ndim))))

    def contract(self, operands: Sequence[Operand], out: str, summed: str) -> Field:
        """Return the field of a sum of products over the letters `summed`, along which the factors have to cancel."""
        letters = "".join(dict.fromkeys("".join(names for _, names, _ in operands)))
        terms = tidy(term for given, names, _ in operands for term in spread(given, names, letters))
        gone = {letters.index(letter) for letter in letters if letter not in out}
        self.vanish(tuple(term for term in terms if term.dims & gone))
        return self._mod(restricted(tuple(term for term in terms if not term.dims & gone), letters, out))

    def act(self, given: Field, action: Action) -> Field:
        """Return the field of a function of one value."""
        what = action.sign if self.sign else action.scale
        if what == KEEP:
            return given
        if what != DROP:
            self.vanish(given)
        return ()

    def power(self, given: Field, power: Fraction) -> Field:
        """Return the field of a power of a value."""
        if not self.sign:
            return raised(given, power)
        if power.denominator > 1:
            self.vanish(given)
        return given if power.denominator == 1 and power % 2 else ()

    def summed(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a sum over axes, which are kept with size 1."""
        self.vanish(tuple(term for term in given if term.dims & dims))
        return tuple(term for term in given if not term.dims & dims)

    def extreme(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a maximum over axes."""
        if self.sign:
            self.vanish(given)
            return ()
        return self.summed(given, dims)

    def length(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a Euclidean norm over axes."""
        return () if self.sign else self.summed(given, dims)

    def spread_of(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a variance over axes."""
        return self.power(self.summed(given, dims), Fraction(2))

    def normalised(self, given: Field, dims: frozenset[int], *, centred: bool) -> Field:
        """Return the field of a value divided by its own root mean square over axes; ε keeps its scale where it is."""
        if not self.sign:
            self.vanish(given)
            return ()
        return self.summed(given, dims) if centred else given

    def repeated(self, ids: np.ndarray, axes: frozenset[int]) -> np.ndarray:
        """Copies of an entry carry the same factor."""
        return ids

    def taken(self, ids: np.ndarray) -> None:
        """Part of a value is used by itself: factors do not mind."""

    def _mod(self, given: Field) -> Field:
        return tuple(term for term in given if term.power % 2) if self.sign else given
