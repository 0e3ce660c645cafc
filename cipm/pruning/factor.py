"""The state of backward elimination at one tap: the inverse covariance and the refitted consumers' Gram, kept up to date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.linalg import blas

from cipm.pruning.ridge import ridged_factor

TINY = np.finfo(float).tiny


@dataclass(eq=False)
class UnitTap:
    """One element a unit: P = (C + ridge)⁻¹ and G = W′ᵀW′, of which the lower triangles count.

    Between two flushes both are held as start matrix and low-rank change: P − Σ a_t a_tᵀ s_t and, with
    M = I − Σ z_t a_tᵀ, MᵀGM. `d` and `g` are their current diagonals.
    """

    precision: np.ndarray
    gram: np.ndarray
    a: np.ndarray
    z: np.ndarray
    gz: np.ndarray
    scale: np.ndarray
    d: np.ndarray
    g: np.ndarray
    count: int = 0

    @classmethod
    def start(cls, covariance: np.ndarray, gram: np.ndarray, units: int, ridge: float, block: int) -> UnitTap:
        """Return the state with all units there; `block` is the most removals between two flushes."""
        precision = _inverse(covariance, ridge)
        gram = np.array(gram, dtype=np.float64, order="F")
        a, z, gz = (np.zeros((block, units)) for _ in range(3))
        return cls(precision, gram, a, z, gz, np.zeros(block), precision.diagonal().copy(), gram.diagonal().copy())

    def price(self) -> np.ndarray:
        """Return what removing each unit would add to the cost."""
        return np.maximum(self.g, 0) / np.maximum(self.d, TINY)

    def remove(self, q: int) -> None:
        """Take unit q out and let the others take over: rank-one changes of both, diagonals kept current."""
        t = self.count
        a, z, gz = self.a[:t], self.z[:t], self.gz[:t]
        column = _row(self.precision, q) - (self.scale[:t] * a[:, q]) @ a
        pivot = max(column[q], TINY)
        weights = -(a[:, q] @ z)
        weights[q] += 1
        transfer = _row(self.gram, q) - a[:, q] @ gz
        shared = transfer - (z @ transfer) @ a
        self.a[t], self.z[t], self.gz[t], self.scale[t] = column / pivot, weights, transfer, pivot
        self.g += self.a[t] * (shared[q] * self.a[t] - 2 * shared)
        self.d -= column * self.a[t]
        self.count += 1

    def flush(self, alive: np.ndarray | None) -> None:
        """Apply the changes to the matrices; where `alive` is given, drop the other units."""
        a, z, gz = self.a[:self.count], self.z[:self.count], self.gz[:self.count]
        scaled = np.sqrt(self.scale[:self.count])[:, None] * a
        self.precision = blas.dsyrk(-1.0, scaled.T, 1.0, self.precision, lower=1, overwrite_c=1)
        crossed = gz - 0.5 * (z @ gz.T) @ a
        self.gram = blas.dsyr2k(-1.0, crossed.T, a.T, 1.0, self.gram, lower=1, overwrite_c=1)
        self.count = 0
        if alive is not None:
            at = np.flatnonzero(alive)
            self.precision, self.gram = (_taken(matrix, at) for matrix in (self.precision, self.gram))
            self.a, self.z, self.gz = (part[:, at] for part in (self.a, self.z, self.gz))
            self.d, self.g = self.precision.diagonal().copy(), self.gram.diagonal().copy()


@dataclass(eq=False)
class ElementTap:
    """Several elements a unit, side by side, removed together: P and G are updated at every removal."""

    precision: np.ndarray
    gram: np.ndarray
    elements: int

    @classmethod
    def start(cls, covariance: np.ndarray, gram: np.ndarray, units: int, ridge: float, block: int) -> ElementTap:
        """Return the state with all units there."""
        lower = _inverse(covariance, ridge)
        return cls(np.tril(lower) + np.tril(lower, -1).T, np.array(gram, dtype=np.float64), len(covariance) // units)

    def price(self) -> np.ndarray:
        """Return what removing each unit would add to the cost: tr(G_uu P_uu⁻¹); of one that is gone zero."""
        p, g = self._blocks(self.precision), self._blocks(self.gram)
        level = np.trace(p, axis1=1, axis2=2)[:, None, None] / self.elements
        p = p + np.where(level > 0, 1e-12 * level, 1) * np.eye(self.elements)
        return np.maximum(np.trace(np.linalg.solve(p, g), axis1=1, axis2=2), 0)

    def remove(self, q: int) -> None:
        """Take all elements of unit q out and let the others take over."""
        at = slice(q * self.elements, (q + 1) * self.elements)
        rows = self.precision[at].copy()
        level = max(float(np.trace(rows[:, at])), TINY) / self.elements
        share = np.linalg.solve(rows[:, at] + 1e-12 * level * np.eye(self.elements), rows)  # B = P_RR⁻¹ P_R
        crossed = self.gram[at].T - 0.5 * share.T @ self.gram[at, at]
        change = crossed @ share
        self.gram -= change + change.T
        self.precision -= rows.T @ share
        for matrix in (self.precision, self.gram):
            matrix[at] = matrix[:, at] = 0

    def flush(self, alive: np.ndarray | None) -> None:
        """Drop the units that are gone, where `alive` is given."""
        if alive is not None:
            at = np.flatnonzero(np.repeat(alive, self.elements))
            self.precision, self.gram = self.precision[np.ix_(at, at)], self.gram[np.ix_(at, at)]

    def _blocks(self, matrix: np.ndarray) -> np.ndarray:
        e, n = self.elements, len(matrix) // self.elements
        return matrix.reshape(n, e, n, e)[np.arange(n), :, np.arange(n)]


def _inverse(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return (C + ridge)⁻¹, its lower triangle."""
    (factor, _), _ = ridged_factor(covariance, ridge, float(np.trace(covariance)) / max(len(covariance), 1))
    inverse, failed = linalg.lapack.dpotri(np.asfortranarray(factor), lower=1, overwrite_c=1)
    assert failed == 0
    return inverse


def _row(lower: np.ndarray, q: int) -> np.ndarray:
    """Return row q of a symmetric matrix of which the lower triangle is kept."""
    return np.concatenate([lower[q, :q], lower[q:, q]])


def _taken(lower: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the rows and columns `at` of a matrix in column order."""
    return lower.T.take(at, axis=0).take(at, axis=1).T
