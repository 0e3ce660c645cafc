"""What stands above the noise of a sampled correlation: the random-matrix edge, the factors above it, dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

TRACY_WIDOM_99 = 2.0234  # 0.99 quantile of the Tracy–Widom law for real matrices
EXACT_UNITS = 1024  # up to here all eigenvalues; beyond, block iteration for those above the edge


@dataclass(frozen=True, eq=False)
class Factors:
    """A correlation without its noise: `loadings` [units, factors] with C ≈ loadings @ loadings.T.

    `values` [factors] are the eigenvalues above `edge`, largest first. Rows of dead units are zero.
    """

    loadings: np.ndarray
    values: np.ndarray
    edge: float


def spectral_edge(units: int, samples: int) -> float:
    """Return the eigenvalue that the correlation of `units` independent units exceeds in 1 % of draws of `samples`.

    The Marchenko–Pastur edge (1 + √(units/samples))² with the finite-size spread of the largest eigenvalue; without
    that spread one noise matrix in six shows a false factor. Assumes independent samples: for convolutions and
    sequences give the number of probe rows to stay on the safe side.

    Source: Johnstone, "On the distribution of the largest eigenvalue in principal components analysis" (2001), eq. 1.4.
    """
    free = max(samples - 1, 1)
    root = np.sqrt(free - 1 if free > 1 else 1) + np.sqrt(units)
    centre = root**2 / free
    spread = root * (1 / np.sqrt(max(free - 1, 1)) + 1 / np.sqrt(units)) ** (1 / 3) / free
    return float(centre + TRACY_WIDOM_99 * spread)


def denoise(correlation: np.ndarray, samples: int) -> Factors:
    """Return the factors of a correlation [units, units] above the edge of noise for so many samples.

    Dead units (no correlation with any other) are left out of the edge and get zero loadings. Signs are fixed: the
    largest loading of each factor is positive. Cost: units³ up to 1024 units, beyond that units² × factors.
    """
    n = correlation.shape[0]
    live = np.flatnonzero(~isolated(correlation))
    edge = spectral_edge(max(live.size, 1), samples)
    loadings = np.zeros((n, 0))
    if live.size < 2:
        return Factors(loadings, np.zeros(0), edge)
    values, vectors = _above(correlation if live.size == n else correlation[np.ix_(live, live)], edge)
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(values.size)])
    loadings = np.zeros((n, values.size))
    loadings[live] = vectors * (signs * np.sqrt(values))
    return Factors(loadings, values, edge)


def isolated(correlation: np.ndarray) -> np.ndarray:
    """Return the mask [units] of units that correlate with no other unit (dead units among them)."""
    return np.abs(correlation).sum(axis=0) <= np.abs(correlation.diagonal())


def _above(matrix: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues above the edge, largest first, and their vectors."""
    if matrix.shape[0] <= EXACT_UNITS:
        values, vectors = linalg.eigh(matrix, subset_by_value=(edge, np.inf), driver="evr", check_finite=False)
    else:
        values, vectors = _block_iteration(matrix.astype(np.float32), edge)
    return values[::-1], vectors[:, ::-1]


def _block_iteration(matrix: np.ndarray, edge: float, rounds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenpairs above the edge by subspace iteration, in a block widened until a quarter is below it.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness" (2011), algorithm 4.4.
    """
    n, width = matrix.shape[0], min(256, matrix.shape[0] // 16)
    while True:
        basis = np.random.default_rng(0).standard_normal((n, width)).astype(matrix.dtype)
        for _ in range(rounds):
            basis = _orthonormal(matrix @ basis)
        values, vectors = linalg.eigh((basis.T @ (matrix @ basis)).astype(np.float64), check_finite=False)
        above = values > edge
        if above.sum() <= 0.75 * width or 4 * width > n:
            return values[above], basis.astype(np.float64) @ vectors[:, above]
        width *= 2


def _orthonormal(block: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns, by a float64 Cholesky factor: much faster than a QR."""
    wide = block.astype(np.float64)
    gram = wide.T @ wide
    gram[np.diag_indices(len(gram))] += 1e-14 * np.trace(gram)
    factor = linalg.cholesky(gram, lower=True, check_finite=False)
    return linalg.solve_triangular(factor, wide.T, lower=True, check_finite=False).T.astype(block.dtype)


@dataclass(frozen=True)
class Dimension:
    """How many dimensions a group of units uses, three ways.

    `participation_ratio` = (Σλ)² / Σλ² of the correlation's eigenvalues; `spectral_edge` the number of eigenvalues
    above the edge of noise; `variance_95` the number of principal components that carry 95 % of the variance.
    """

    participation_ratio: float
    spectral_edge: int
    variance_95: int


def effective_dimension(correlation: np.ndarray, samples: int) -> Dimension:
    """Return the dimensions of a correlation [units, units]; dead units count nowhere. Cost: units³."""
    live = np.flatnonzero(~isolated(correlation))
    if live.size == 0:
        return Dimension(0.0, 0, 0)
    values = np.maximum(linalg.eigvalsh(correlation[np.ix_(live, live)], check_finite=False)[::-1], 0)
    share = np.cumsum(values) / values.sum()
    return Dimension(participation_ratio=float(values.sum() ** 2 / (values**2).sum()),
                     spectral_edge=int((values > spectral_edge(live.size, samples)).sum()),
                     variance_95=int(np.searchsorted(share, 0.95) + 1))
