"""What stands above the noise of a sampled correlation: the random-matrix edge and the factors above it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg

TRACY_WIDOM_99 = 2.0234  # 0.99 quantile of the Tracy–Widom law for real matrices
EXACT_UNITS = 1024  # up to here a dense eigensolver; beyond, a Krylov basis for the eigenvalues above the edge
CACHED = 2**18  # numbers in float64 that a processor keeps close
FIRST_ROWS = 256  # rows in which a unit that correlates with any mostly shows it
BLOCK = 32  # directions by which that basis grows
TOLERANCE = 5e-3  # residual of a converged eigenpair, relative to its eigenvalue
WEAK = 16  # factors below the edge, at most
Wanted = Callable[[np.ndarray], np.ndarray]  # of eigenvalues, largest first: the mask of those to have


@dataclass(frozen=True, eq=False)
class Factors:
    """A correlation without its noise: `loadings` [units, factors] with C ≈ loadings @ loadings.T.

    `values` [factors] are the eigenvalues, largest first; the first `strong` of them stand above the edge of noise, which
    is `edge` for units of unit variance. Rows of dead units are zero.
    """

    loadings: np.ndarray
    values: np.ndarray
    edge: float
    strong: int


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


def denoise(correlation: np.ndarray, samples: int, *, count: int | None = None, weak: bool = False) -> Factors:
    """Return the factors of a correlation [units, units] above the edge of noise for so many samples.

    Dead units (no correlation with any other) are left out of the edge and get zero loadings. Signs are fixed: the
    largest loading of each factor is positive. With `weak`, where any factor stands above the edge, those above the edge
    of what these leave unexplained are strong too (the noise has less variance than the units), and as many again are
    taken below it, at most 16: a sum over a module averages their noise out, and they hold modules that the edge hides.
    With `count` so many factors are strong, wherever the edge is; fewer where no more are positive. Cost: units³ up to
    1024 units, beyond that units² × a few times the factors.
    """
    live = np.flatnonzero(~isolated(correlation))
    edge = spectral_edge(max(live.size, 1), samples)
    if live.size < 2:
        return _no_factors(len(correlation), edge)
    matrix = correlation if live.size == len(correlation) else correlation[np.ix_(live, live)]
    wanted = _wanted(edge, live.size / max(samples - 1, 1), live.size, count, weak)
    return _factors(*leading(matrix, wanted, weak=weak), live, len(correlation), edge)


def factors_of_samples(samples: np.ndarray, *, count: int | None = None, weak: bool = False) -> Factors:
    """Return what `denoise` returns of the correlation of samples [samples, units], without forming it.

    Constant units get zero loadings. Cost: samples × units × a few times the factors; memory: the samples once more,
    in float32. Exact (samples² × units) up to 1024 samples.
    """
    z, live = _standardised(samples)
    edge = spectral_edge(max(live.size, 1), len(z))
    if live.size < 2 or len(z) < 2:
        return _no_factors(samples.shape[1], edge)
    wanted = _wanted(edge, live.size / (len(z) - 1), live.size, count, weak)
    if len(z) > EXACT_UNITS:
        found = lanczos(lambda block: (block @ z.T) @ z, live.size, wanted, weak=weak)
        return _factors(*found, live, samples.shape[1], edge)
    values, rows, strong = leading(z @ z.T, wanted, weak=weak)
    return _factors(values, z.T @ rows / np.sqrt(values), strong, live, samples.shape[1], edge)


def _standardised(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples centred and of unit length in float32 [samples, live units], and which units are live."""
    mean = samples.mean(axis=0, dtype=np.float64)
    z, squares = np.empty(samples.shape, dtype=np.float32), np.zeros(samples.shape[1])
    rows = max(CACHED // max(samples.shape[1], 1), 1)  # at a time: what they need stays in the cache
    for start in range(0, len(samples), rows):
        centred = samples[start:start + rows] - mean
        squares += np.einsum("ij,ij->j", centred, centred)
        z[start:start + rows] = centred
    live = np.flatnonzero(np.sqrt(squares) > 1e-6 * np.abs(mean) * np.sqrt(len(z)))
    z = z if live.size == len(mean) else z[:, live]
    z *= (1 / np.sqrt(squares[live])).astype(np.float32)
    return z, live


def _wanted(edge: float, ratio: float, units: int, count: int | None, weak: bool) -> Wanted:
    """Return which eigenvalues, largest first, are strong: so many, or those above the edge (of the residual)."""
    if count is not None:
        return lambda values: np.arange(values.size) < count
    if not weak:
        return lambda values: values > edge
    return lambda values: values > edge * _residual(values[values > edge], ratio, units)


def _residual(above: np.ndarray, ratio: float, units: int) -> float:
    """Return the variance per direction that the factors above the edge leave, of `ratio` = units / samples.

    Each counts with the eigenvalue l of which λ = l (1 + ratio / (l − 1)) is the sampled one.

    Source: Baik & Silverstein, "Eigenvalues of large sample covariance matrices of spiked population models" (2006).
    """
    shifted = above + 1 - ratio
    true = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * above, 0))) / 2
    return float(max(units - true.sum(), 0) / max(units - above.size, 1))


def _no_factors(units: int, edge: float) -> Factors:
    return Factors(np.zeros((units, 0)), np.zeros(0), edge, 0)


def _factors(values: np.ndarray, vectors: np.ndarray, strong: int, live: np.ndarray, units: int, edge: float) -> Factors:
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(values.size)])
    loadings = np.zeros((units, values.size))
    loadings[live] = vectors * (signs * np.sqrt(values))
    return Factors(loadings, values, edge, strong)


def isolated(correlation: np.ndarray) -> np.ndarray:
    """Return the mask [units] of units that correlate with no other unit (dead units among them)."""
    own = np.abs(correlation.diagonal())
    result = np.abs(correlation[:FIRST_ROWS]).sum(axis=0) <= own  # a few rows clear most units
    left = np.flatnonzero(result)
    result[left] = np.abs(correlation[:, left]).sum(axis=0) <= own[left]
    return result


def leading(matrix: np.ndarray, wanted: Wanted, *, weak: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the wanted eigenvalues of a matrix without negative ones, largest first, their vectors [units, values], and
    how many were wanted: with `weak` up to 16 more follow. Those that are not positive are left out.
    """
    n = len(matrix)
    if n > EXACT_UNITS:
        narrow = matrix.astype(np.float32, copy=False)
        return lanczos(lambda block: block @ narrow, n, wanted, weak=weak)
    count, strong = _how_many(linalg.eigvalsh(matrix, check_finite=False)[::-1], wanted, weak)
    if count == 0:
        return np.zeros(0), np.zeros((n, 0)), 0
    values, vectors = linalg.eigh(matrix, driver="evr", check_finite=False, subset_by_index=(n - count, n - 1))
    return values[::-1].astype(np.float64), vectors[:, ::-1].astype(np.float64), strong


def _how_many(values: np.ndarray, wanted: Wanted, weak: bool) -> tuple[int, int]:
    """Return how many of the eigenvalues, largest first, to take, and how many of them are wanted."""
    positive = values > 1e-6
    strong = int((wanted(values) & positive).sum())
    return min(strong + weak * min(strong, WEAK), int(positive.sum())), strong


def lanczos(apply: Callable[[np.ndarray], np.ndarray], units: int, wanted: Wanted, *,
            weak: bool = False) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the wanted eigenvalues, largest first, their vectors [units, values], and how many were wanted: with `weak`
    up to 16 more follow, as far as they have converged by then.

    Block Lanczos with full reorthogonalisation of a symmetric matrix without negative eigenvalues, which is given by the
    product of a float32 block [BLOCK, units] with it (rows: that product runs faster). It ends when all wanted pairs have
    converged, or at a basis of four times as many directions and 512 more: a pair so close to the bulk says little.
    Deterministic.

    Source: Golub & Underwood, "The block Lanczos method for computing eigenvalues" (1977); for the gain over repeated
    products with one block: Musco & Musco, "Randomized block Krylov methods" (2015).
    """
    width = min(BLOCK, units)
    basis = np.empty((8 * width, units), dtype=np.float32)
    basis[:width] = _orthonormal(np.random.default_rng(0).standard_normal((width, units)).astype(np.float32), basis[:0])[0]
    small, checked = np.zeros((0, 0)), 0
    while True:
        size = len(small) + width
        before = basis[max(size - 2 * width, 0):size]  # all that the image overlaps with, but for rounding
        image = apply(basis[size - width:size])
        inner = np.zeros((size, width), dtype=np.float32)
        inner[size - len(before):] = before @ image.T
        image = image - inner[size - len(before):].T @ before
        again = basis[:size] @ image.T
        image -= again.T @ basis[:size]
        small = _bordered(small, (inner + again).astype(np.float64))
        following, rest = _orthonormal(image, basis[:size])
        if size > 1.2 * checked or size + width > units:
            checked = size
            values, vectors = (part[..., ::-1] for part in linalg.eigh(small, check_finite=False))
            count, strong = _how_many(values, wanted, weak)
            judged = slice(0, max(strong, 1))  # a small basis may miss them all
            error = np.linalg.norm(rest @ vectors[-width:, judged], axis=0)
            converged = strong < size and (error <= TOLERANCE * values[judged]).all()
            full = size + width > min(units, 4 * strong + 512) or np.abs(rest).max() < 1e-5 * values[0]
            if converged or full:
                taken = (vectors[:, :count].T.astype(np.float32) @ basis[:size]).T.astype(np.float64)
                return values[:count], taken, strong
        if size + width > len(basis):
            basis = np.concatenate([basis, np.empty_like(basis)])
        basis[size:size + width] = following


def _orthonormal(block: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal rows [rows, units], orthogonal to `basis` too, and R with block = Rᵀ @ rows.

    By the eigenvectors of the Gram matrix, twice; products, which run on all cores, do nearly all of it. Directions too
    small to be told from rounding become others, orthogonal all the same.
    """
    once, first, spread = _decorrelated(block)
    if spread < 1e-4:  # the small directions are not yet orthogonal to the basis
        once = once - (once @ basis.T) @ basis
        once, turned, _ = _decorrelated(once)
        first = turned @ first
    twice, second, _ = _decorrelated(once)
    return twice, second @ first


def _decorrelated(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return rows that are nearly orthonormal, R with block = Rᵀ @ rows, and the ratio of the extreme variances."""
    values, vectors = linalg.eigh((block @ block.T).astype(np.float64), check_finite=False)
    roots = np.sqrt(np.maximum(values, max(1e-12 * values[-1], 1e-30)))
    return (vectors / roots).T.astype(np.float32) @ block, roots[:, None] * vectors.T, float(values[0] / max(values[-1], 1e-30))


def _bordered(small: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the projected matrix with one more block of columns (and, by symmetry, rows)."""
    old, size = len(small), len(columns)
    result = np.zeros((size, size))
    result[:old, :old] = small
    result[:, old:], result[old:, :old] = columns, columns[:old].T
    result[old:, old:] = (columns[old:] + columns[old:].T) / 2
    return result
