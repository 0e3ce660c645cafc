"""Matrices that ops pass on: which entries a linear map may mix, and what is left of the general linear group.

The same walk as for factors, read differently: the unknowns along an axis are a basis that a matrix M acts on; power 1 means
that the value transforms by M, −1 by its inverse transpose. Facts are collected here and resolved in `blocks`:

* *tie*: two unknowns are the same direction, transforming alike or oppositely (a contraction);
* *copy*: an unknown is a repetition of another (key heads that several query heads read);
* *fibre*: only what lies within it may be mixed;
* *narrowed*: only orthogonal maps are left, or only maps that keep the vector of ones, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from cipm.rules.actions import KEEP, Action
from cipm.symmetry.charges import Operand
from cipm.symmetry.fields import Field, Term, aligned, restricted, settled, spread

Pairs = list[tuple[np.ndarray, np.ndarray]]
PLAIN = "a product with what is no weight"
STOPPED = "an op that no matrix passes"


@dataclass
class Spaces:
    """Collect what the ops say about mixing. Mutable while the graph is walked.

    `absorbable` maps unknowns of scales (a norm's weight) to the number of the freedom by which what reads them can take
    the scale over: a product with such a scale is read as one with ones, and the freedom noted.
    """

    count: int
    absorbable: dict[int, int]
    same: Pairs = field(default_factory=list)
    opposite: Pairs = field(default_factory=list)
    copies: Pairs = field(default_factory=list)
    fibres: dict[bytes, np.ndarray] = field(default_factory=dict)
    pinned: list[tuple[np.ndarray, str]] = field(default_factory=list)
    orthogonal: list[np.ndarray] = field(default_factory=list)
    ones: list[np.ndarray] = field(default_factory=list)
    absorbed: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def vanish(self, given: Field, why: str = STOPPED) -> None:
        """Say that nothing may act on this value."""
        self.pinned.extend((term.ids.ravel(), why) for term in given)

    def equal(self, one: Field, two: Field, extents: Sequence[Sequence[int]]) -> Field:
        """Say that two values are added: M x + M y. What is uniform along an axis is only kept by an M that keeps ones."""
        ndim = max(len(e) for e in extents)
        first, second = aligned(one, ndim), aligned(two, ndim)
        (first, idle), (second, still) = settled(first, second), settled(second, first)
        self.vanish((*idle, *still))
        second = list(second)
        along = [(1,) * (ndim - len(e)) + tuple(e) for e in extents]
        result: list[Term] = []
        for term in first:
            partner = next((t for t in second if t.power == term.power and t.dims & term.dims), None)
            if partner is None:
                self._beside(term, along[1])
                result.append(term)
                continue
            second.remove(partner)
            self._tie(self.same, term.ids, partner.ids)
            result.append(term if term.ids.size >= partner.ids.size else partner)
        for term in second:
            self._beside(term, along[0])
        return (*result, *second)

    def multiply(self, one: Field, two: Field, extents: Sequence[Sequence[int]]) -> Field:
        """Return the field of a product: along the axes that both vary along, nothing may be mixed."""
        ndim = max(len(e) for e in extents)
        fields = [aligned(one, ndim), aligned(two, ndim)]
        along = [(1,) * (ndim - len(e)) + tuple(e) for e in extents]
        shared = frozenset(i for i in range(ndim) if along[0][i] > 1 and along[1][i] > 1)
        for mine, other in ((0, 1), (1, 0)):
            if self._absorb(fields[mine], fields[other]):
                return fields[mine]
        why = PLAIN if not (one and two) else STOPPED
        for term in (*fields[0], *fields[1]):
            self._separate(term, shared, why)
        return (*fields[0], *fields[1])

    def contract(self, operands: Sequence[Operand], out: str, summed: str) -> Field:
        """Return the field of a sum of products: over `summed`, one operand transforms by M, the other by its inverse."""
        letters = "".join(dict.fromkeys("".join(names for _, names, _ in operands)))
        varies = [{letters.index(n) for n, size in zip(names, along, strict=True) if size > 1} for _, names, along in operands]
        gone = {letters.index(letter) for letter in letters if letter not in out}
        shared = frozenset(i for i in range(len(letters)) if i not in gone and sum(i in v for v in varies) > 1)
        kept: list[Term] = []
        read: list[tuple[int, Term]] = []
        for number, (given, names, _) in enumerate(operands):
            for term in spread(given, names, letters):
                self._separate(term, shared, STOPPED)
                (read.append((number, term)) if term.dims & gone else kept.append(term))
        self._meet(read, gone)
        return restricted(tuple(kept), letters, out)

    def act(self, given: Field, action: Action) -> Field:
        """Return the field of a function of one value: a matrix passes linear ones alone."""
        if action.matrix == KEEP:
            return given
        self.vanish(given)
        return ()

    def power(self, given: Field, power: Fraction) -> Field:
        """Return the field of a power: squares may yet be summed over a whole axis."""
        if power == 2 and all(abs(term.power) == 1 for term in given):
            return tuple(Term(Fraction(2), term.ids) for term in given)
        if power == 1:
            return given
        self.vanish(given)
        return ()

    def summed(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a sum over axes: of squares, orthogonal maps do not change it; else those that keep ones."""
        left: list[Term] = []
        for term in given:
            if not term.dims & dims:
                left.append(term)
            elif term.power == 2:
                self._narrow(term, dims, self.orthogonal)
            elif abs(term.power) == 1:
                self._narrow(term, dims, self.ones)
            else:
                self.vanish((term,))
        return tuple(left)

    def extreme(self, given: Field, dims: frozenset[int]) -> Field:
        """No matrix passes a maximum."""
        self.vanish(given)
        return ()

    def length(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a Euclidean norm over axes."""
        rest = self.summed(self.power(given, Fraction(2)), dims)
        self.vanish(rest)
        return ()

    def spread_of(self, given: Field, dims: frozenset[int]) -> Field:
        """Return the field of a variance over axes."""
        self.summed(given, dims)
        return self.length(given, dims)

    def normalised(self, given: Field, dims: frozenset[int], *, centred: bool) -> Field:
        """Return the field of a value divided by its own root mean square over axes (after its mean is taken off)."""
        for term in given:
            if term.dims & dims and abs(term.power) == 1:
                self._narrow(term, dims, self.orthogonal)
                if centred:
                    self._narrow(term, dims, self.ones)
            else:
                self.vanish((term,))
        return given

    def repeated(self, ids: np.ndarray, axes: frozenset[int]) -> np.ndarray:
        """Return new numbers for the copies of entries along `axes`, each copy a fibre by itself."""
        fresh = np.arange(self.count, self.count + ids.size, dtype=np.int64).reshape(ids.shape)
        self.count += ids.size
        fresh = np.where(ids > 0, fresh, 0)
        self._tie(self.copies, fresh, ids)
        rest = [i for i in range(ids.ndim) if i not in axes]
        self._fibre(fresh.transpose([*sorted(axes), *rest]).reshape(int(np.prod([ids.shape[a] for a in axes])), -1))
        return fresh

    def taken(self, ids: np.ndarray) -> None:
        """A part of a value is used by itself: nothing mixes it with the rest."""
        self._fibre(np.unique(ids)[None])

    def _beside(self, term: Term, other: Sequence[int]) -> None:
        """A term meets, in a sum, a value that no matrix acts on."""
        if all(other[dim] == 1 for dim in term.dims) and abs(term.power) == 1:
            self._fibre(term.ids.reshape(1, -1))
            self.ones.append(np.unique(term.ids))
        else:
            self.vanish((term,))

    def _absorb(self, mine: Field, scale: Field) -> bool:
        if len(mine) != 1 or len(scale) != 1 or not scale[0].dims <= mine[0].dims:
            return False
        freedom = self.absorbable.get(int(scale[0].ids.flat[0]))
        if freedom is None or any(self.absorbable.get(i) != freedom for i in scale[0].ids.ravel().tolist()):
            return False
        self.absorbed.append((np.unique(mine[0].ids), freedom))
        return True

    def _separate(self, term: Term, shared: frozenset[int], why: str) -> None:
        """Nothing is mixed along shared axes."""
        if not term.dims & shared:
            return
        if term.dims <= shared or abs(term.power) != 1:
            self.vanish((term,), why)
        else:
            self._rows(term, frozenset(range(term.ids.ndim)) - shared)

    def _meet(self, read: list[tuple[int, Term]], gone: set[int]) -> None:
        """Two operands meet in a contraction: their terms cancel."""
        if len(read) != 2 or read[0][0] == read[1][0] or any(abs(term.power) != 1 for _, term in read):
            self.vanish(tuple(term for _, term in read))
            return
        (_, one), (_, two) = read
        for term in (one, two):
            self._rows(term, frozenset(gone))
        self._tie(self.opposite if one.power == two.power else self.same, one.ids, two.ids)

    def _tie(self, into: Pairs, one: np.ndarray, two: np.ndarray) -> None:
        """Note pairs of unknowns; one that meets a position without any may not act."""
        a, b = np.broadcast_arrays(one, two)
        both = (a > 0) & (b > 0)
        into.append((a[both], b[both]))
        self.pinned.append((np.where(both, 0, a + b).ravel(), STOPPED))

    def _narrow(self, term: Term, dims: frozenset[int], into: list[np.ndarray]) -> None:
        self._rows(term, dims)
        into.append(np.unique(term.ids))

    def _rows(self, term: Term, within: frozenset[int]) -> None:
        """Say that only what differs along `within` alone may be mixed."""
        inner = [d for d in range(term.ids.ndim) if d in within]
        outer = [d for d in range(term.ids.ndim) if d not in within]
        width = int(np.prod([term.ids.shape[d] for d in inner]))
        self._fibre(term.ids.transpose([*outer, *inner]).reshape(-1, width))

    def _fibre(self, rows: np.ndarray) -> None:
        self.fibres.setdefault(rows.tobytes() + b"%d" % rows.shape[1], rows)

