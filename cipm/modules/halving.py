"""Two halves of a probe set that is not at hand: drawn from its correlation, as if its samples were Gaussian."""

from __future__ import annotations

import numpy as np
from scipy import linalg

MANY = 4  # with more samples a half than so many times the units, a Wishart matrix is drawn by Bartlett's way


def drawn_halves(correlation: np.ndarray, samples: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlations [units, units] of two independent halves of the samples, which together give the whole.

    A scatter S = RᵀR of Gaussian samples splits into S₁ = Rᵀ B R and S − S₁ with B of a matrix beta law, independent of
    S; both are Wishart with half the degrees of freedom. What is not Gaussian in the samples (rare values that fell
    together once) both halves share, so they cannot tell it from structure. Cost: a few units³.

    Source: Muirhead, "Aspects of multivariate statistical theory" (1982), theorem 3.3.1, read backwards; Dharamshi et al.,
    "Generalized data thinning using sufficient statistics" (2024).
    """
    root = _root(correlation.astype(np.float64))
    first, second = samples // 2, samples - 1 - samples // 2
    one, other = (_wishart(len(root), degrees, generator) for degrees in (first, second))
    whole = one + other
    whole[np.diag_indices(len(whole))] *= 1 + 1e-12
    lower = linalg.cholesky(whole, lower=True, overwrite_a=True, check_finite=False)
    turned = linalg.solve_triangular(lower, root, lower=True, trans="T", check_finite=False) if len(root) else root
    return _normalised(turned.T @ one @ turned), _normalised(turned.T @ other @ turned)


def _root(matrix: np.ndarray) -> np.ndarray:
    """Return R [rank, units] with RᵀR the matrix, by Cholesky with pivots (fewer samples than units leave a lower rank)."""
    factor, pivots, rank, _ = linalg.lapack.dpstrf(matrix, lower=0, tol=1e-9 * max(matrix.diagonal().max(initial=0), 1))
    root = np.zeros((rank, len(matrix)))
    root[:, pivots - 1] = np.triu(factor)[:rank]
    return root


def _wishart(size: int, degrees: int, generator: np.random.Generator) -> np.ndarray:
    """Return one Wishart matrix [size, size] of the identity; below `size` degrees of freedom it is singular."""
    if degrees <= MANY * size:
        draws = generator.standard_normal((degrees, size))
        return draws.T @ draws
    lower = np.tril(generator.standard_normal((size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(generator.chisquare(degrees - np.arange(size)))
    return lower @ lower.T


def _normalised(scatter: np.ndarray) -> np.ndarray:
    variance = scatter.diagonal()
    alive = variance > 1e-9 * variance.max(initial=0)
    scale = np.where(alive, 1 / np.sqrt(np.where(alive, variance, 1)), 0)
    return scatter * scale * scale[:, None]
