"""Canonical rotations and maps: of all models that differ by them, one that is the same for all, up to rounding.

* A space that may be rotated is turned to the principal axes of what writes into it, largest first.
* A space that any invertible matrix may act on is balanced: what writes into it and what reads from it have the same diagonal
  Gram matrix (the singular values of their product).

Both are so up to signs, which are chosen afterwards. Source: the balanced form is that of Moore, "Principal component analysis
in linear systems" (IEEE Transactions on Automatic Control, 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipm.symmetry.freedoms import INVERTIBLE, ORTHOGONAL, SCALE, ContinuousSymmetry, FreedomPlace
from cipm.symmetry.members import Member, absorbing, complement_of_ones

WORST_CONDITION = 1e10
"""Condition of a Gram matrix beyond which a space is not balanced: a direction is nearly unused."""


@dataclass(frozen=True)
class Maps:
    """The members that bring spaces into their canonical form, and why others stay."""

    members: tuple[Member, ...]
    notes: tuple[str, ...]


def absorptions(tensors: Mapping[str, torch.Tensor], freedoms: Sequence[ContinuousSymmetry]) -> Maps:
    """Return the members by which norms' weights become ones, for all spaces that may be rotated once they are."""
    scales = {f.name: f for f in freedoms if f.kind == SCALE}
    found: dict[str, Member] = {}
    notes = []
    for freedom in (f for f in freedoms if f.proved and f.kind == ORTHOGONAL):
        members = absorbing(scales, tensors, freedom)
        found |= {member.freedom.name: member for member in members or ()}
        if members is None:
            notes.append(_stays(freedom))
    return Maps(tuple(found.values()), tuple(notes))


def canonical_maps(tensors: Mapping[str, torch.Tensor], freedoms: Sequence[ContinuousSymmetry], kind: str) -> Maps:
    """Return the canonical member of every space of a kind (orthogonal, invertible) whose norms' weights are absorbed."""
    scales = {f.name: f for f in freedoms if f.kind == SCALE}
    found, notes = [], []
    for freedom in (f for f in freedoms if f.proved and f.kind == kind):
        if any((member.values != 1).any() for member in absorbing(scales, tensors, freedom) or ()):
            continue
        matrices = _matrices(tensors, freedom, _undisputed(freedoms, freedom))
        if matrices is None:
            notes.append(_stays(freedom))
        else:
            found.append(Member(freedom, matrices))
    return Maps(tuple(found), tuple(notes))


def _stays(freedom: ContinuousSymmetry) -> str:
    return f"{freedom.name} ({freedom.kind}) stays as it is: a direction or a weight in it is zero or nearly so"


def _undisputed(freedoms: Sequence[ContinuousSymmetry], own: ContinuousSymmetry) -> frozenset[str]:
    """Return the tensors that no other freedom changes: they decide on signs."""
    return frozenset(p.tensor for p in own.places) - {p.tensor for f in freedoms if f is not own for p in f.places}


def _matrices(tensors: Mapping[str, torch.Tensor], freedom: ContinuousSymmetry, deciding: frozenset[str]) -> np.ndarray | None:
    """Return the map of every block, up to signs; None where one has none."""
    written, read = ([_rows(tensors, p) for p in freedom.places if p.power == power] for power in (1, -1))
    decide = [p.tensor in deciding for p in freedom.places if p.power == 1]
    found = []
    for block in range(freedom.blocks):
        own = slice(block * freedom.width, (block + 1) * freedom.width)
        into = [rows[own] for rows in written]
        matrix = _balanced(into, [rows[own] for rows in read]) if freedom.kind == INVERTIBLE else \
            _principal(into, decide, ones=freedom.fixes_ones)
        if matrix is None:
            return None
        found.append(matrix)
    return np.stack(found)


def _rows(tensors: Mapping[str, torch.Tensor], place: FreedomPlace) -> np.ndarray:
    """Return [units, entries] of a place, its copies side by side."""
    tensor = tensors[place.tensor].detach().double().movedim(place.axis, 0)
    rows = tensor.reshape(len(tensor), -1).numpy()[place.index]
    return rows.reshape(len(rows), -1)


def _principal(into: Sequence[np.ndarray], decide: Sequence[bool], *, ones: bool) -> np.ndarray | None:
    """Return the rotation to the principal axes of rows [n, entries].

    Maps that keep ones act on the complement alone: its principal axes become a fixed basis of it. What turns them over is no
    sign of units, so that is decided here.
    """
    if not all(np.isfinite(part).all() for part in into):
        return None
    if not ones:
        return np.linalg.eigh(_gram(into))[1][:, ::-1].T
    n = len(into[0])
    basis = complement_of_ones(n)
    inside = [basis.T @ part for part in into]
    deciding = [part for part, chosen in zip(inside, decide, strict=True) if chosen or not any(decide)]
    turned = _positive(np.linalg.eigh(_gram(inside))[1][:, ::-1].T, deciding)
    return np.full((n, n), 1 / n) + basis @ turned @ basis.T


def _balanced(into: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return M for which M W Wᵀ Mᵀ and M⁻ᵀ R Rᵀ M⁻¹ are the same diagonal matrix; None where either is near singular.

    With W Wᵀ = L Lᵀ and Lᵀ R Rᵀ L = U Σ² Uᵀ it is M = Σ^½ Uᵀ L⁻¹.
    """
    grams = [_gram(into), _gram(out)]
    if not all(np.isfinite(gram).all() and gram.any() and np.linalg.cond(gram) < WORST_CONDITION for gram in grams):
        return None
    lower = np.linalg.cholesky(grams[0])
    squares, vectors = np.linalg.eigh(lower.T @ grams[1] @ lower)
    return squares[::-1, None] ** 0.25 * np.linalg.solve(lower.T, vectors[:, ::-1]).T


def _gram(parts: Sequence[np.ndarray]) -> np.ndarray:
    if not parts:
        return np.zeros((1, 1))
    return sum((part @ part.T for part in parts[1:]), parts[0] @ parts[0].T)


def _positive(matrix: np.ndarray, into: Sequence[np.ndarray]) -> np.ndarray:
    """Turn the signs of directions so that the largest entry of each is positive."""
    largest = np.zeros(len(matrix))
    for part in into:
        turned = matrix @ part
        own = np.take_along_axis(turned, np.abs(turned).argmax(1, keepdims=True), 1)[:, 0]
        largest = np.where(np.abs(own) > np.abs(largest), own, largest)
    return matrix * np.where(largest < 0, -1.0, 1.0)[:, None]
