"""How many dimensions a group of units uses, from its correlation and from the distances between its activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import linalg
from scipy.spatial.distance import pdist, squareform

from cipm.statistics.spectrum import denoise, isolated, spectral_edge

KEPT = 0.9  # share of the distance ratios, from the smallest, that the nearest-neighbour estimate uses
FEWEST = 20  # different rows below which no nearest-neighbour dimension is given
EXACT_UNITS = 2048  # more units than these: the spectrum's shares by quadrature
STEPS, VECTORS = 48, 24


@dataclass(frozen=True)
class Dimension:
    """How many dimensions a group of units uses, three ways.

    `participation_ratio` = (Σλ)² / Σλ² of the correlation's eigenvalues; `spectral_edge` the number of eigenvalues
    above the edge of noise; `variance_95` the number of principal components that carry 95 % of the variance.
    `halves` are, for each of the three, the smaller and the larger value of the two probe halves; None without halves.
    """

    participation_ratio: float
    spectral_edge: int
    variance_95: int
    halves: dict[str, tuple[float, float]] | None = None


def effective_dimension(correlation: np.ndarray, samples: int,
                        halves: Sequence[np.ndarray] | None = None) -> Dimension:
    """Return the dimensions of a correlation [units, units]; dead units count nowhere.

    With `halves` (the correlations of the two probe halves) each number has its two values of half the samples beside
    it: a half sees fewer factors and a lower rank, so both may lie below the number itself. Cost: units³; thrice with
    halves. Beyond 2048 units units²: `variance_95` is then estimated by stochastic Lanczos quadrature with a fixed
    seed (standard deviation about 2 % of 200, 1 % of 1,000).
    """
    whole = _dimension(correlation, samples)
    if halves is None:
        return whole
    parts = [asdict(_dimension(half, samples // 2)) for half in halves]
    names = ("participation_ratio", "spectral_edge", "variance_95")
    ranges = {name: (min(p[name] for p in parts), max(p[name] for p in parts)) for name in names}
    return Dimension(whole.participation_ratio, whole.spectral_edge, whole.variance_95, ranges)


def _dimension(correlation: np.ndarray, samples: int) -> Dimension:
    live = np.flatnonzero(~isolated(correlation))
    if live.size == 0:
        return Dimension(0.0, 0, 0)
    matrix = correlation if live.size == len(correlation) else correlation[np.ix_(live, live)]
    if live.size <= EXACT_UNITS:
        values = np.maximum(linalg.eigvalsh(matrix, check_finite=False)[::-1], 0)
        above, weights = int((values > spectral_edge(live.size, samples)).sum()), np.ones(values.size)
    else:
        values, weights = _quadrature(matrix.astype(np.float32, copy=False))
        above = denoise(matrix, samples).values.size
    participation = np.trace(matrix, dtype=np.float64) ** 2 / np.square(matrix, dtype=np.float64).sum()
    return Dimension(float(participation), above, _carrying(values, weights, 0.95))


def _carrying(values: np.ndarray, weights: np.ndarray, share: float) -> int:
    """Return how many eigenvalues, largest first, carry the share; each value stands for `weights` many."""
    carried = np.r_[0.0, np.cumsum(values * weights)] / (values * weights).sum()
    return int(np.ceil(np.interp(share, carried, np.r_[0.0, np.cumsum(weights)]) - 1e-9))


def _quadrature(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the spectrum, largest first, and how many eigenvalues each stands for.

    Source: Lin, Saad, Yang, "Approximating spectral densities of large matrices" (2016), section 3.2.
    """
    n, generator = len(matrix), np.random.default_rng(0)
    new = generator.choice(np.array([-1, 1], dtype=np.float32), size=(n, VECTORS)) / np.float32(np.sqrt(n))
    basis = np.zeros((STEPS, n, VECTORS), dtype=np.float32)
    diagonal, beside = np.zeros((STEPS, VECTORS)), np.zeros((STEPS, VECTORS))
    for step in range(STEPS):
        basis[step] = new
        image = matrix @ new
        diagonal[step] = np.einsum("nv,nv->v", image, new)
        for _ in range(2):
            image -= np.einsum("snv,sv->nv", basis[:step + 1], np.einsum("snv,nv->sv", basis[:step + 1], image))
        beside[step] = np.linalg.norm(image, axis=0)
        new = image / np.maximum(beside[step], 1e-12).astype(np.float32)
    nodes = [linalg.eigh_tridiagonal(diagonal[:, v], beside[:-1, v]) for v in range(VECTORS)]
    values = np.maximum(np.concatenate([value for value, _ in nodes]), 0)
    weights = np.concatenate([vectors[0] ** 2 for _, vectors in nodes]) * n / VECTORS
    order = np.argsort(-values)
    return values[order], weights[order]


@dataclass(frozen=True)
class NeighbourDimension:
    """The nearest-neighbour dimension of a group's activations.

    `value` is the estimate on `rows` different rows, `halves` the smaller and the larger estimate of the even and the
    odd ones among them; all None where `how` says that none can be given.
    """

    value: float | None
    halves: tuple[float, float] | None
    rows: int
    how: str


def neighbour_dimension(activations: np.ndarray) -> NeighbourDimension:
    """Return the dimension of the set on which activations [rows, units] lie, from distances to two neighbours.

    For each row the ratio μ of the distance to its second-nearest row and to its nearest one follows the law
    P(μ > x) = x^−d, whatever the density, where that is constant up to the second neighbour. The estimate is the one of
    greatest likelihood from the smallest 90 % of the ratios (the largest are the least local). Distances are Euclidean,
    units as they are; a row that occurs twice counts once. High dimensions are underestimated from few rows (20 at
    2,000 rows: by about a tenth).

    Cost: rows² × units time, rows² memory: give a sample of 2,000 rows or fewer.
    Source: Facco, d'Errico, Rodriguez, Laio, "Estimating the intrinsic dimension of datasets by a minimal neighborhood
    information" (2017); the estimator for censored samples of an exponential law: Epstein & Sobel, "Life testing" (1953).
    """
    different = np.unique(np.asarray(activations, dtype=np.float64), axis=0, return_index=True)[1]
    rows = np.asarray(activations, dtype=np.float64)[np.sort(different)]
    if len(rows) < FEWEST:
        return NeighbourDimension(None, None, len(rows), f"{len(rows)} different rows are too few: {FEWEST} are needed")
    value = _two_neighbours(rows)
    if value is None:
        return NeighbourDimension(None, None, len(rows), "every row has two neighbours at the same distance (a grid)")
    parts = [part for part in (_two_neighbours(rows[0::2]), _two_neighbours(rows[1::2])) if part is not None]
    halves = (min(parts), max(parts)) if len(parts) == 2 else None
    return NeighbourDimension(value, halves, len(rows), "two nearest neighbours of each row (TwoNN), Euclidean distance")


def _two_neighbours(rows: np.ndarray) -> float | None:
    """Return the dimension, or None where nine in ten rows have two neighbours at the same distance."""
    squares = squareform(pdist(rows, "sqeuclidean")) if rows.shape[1] <= 16 else _squared_distances(rows)
    np.fill_diagonal(squares, np.inf)
    nearest = np.sort(np.partition(squares, 1, axis=1)[:, :2], axis=1)
    logs = np.sort(np.log(nearest[:, 1] / nearest[:, 0]) / 2)
    kept = int(KEPT * len(logs))
    total = logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1]
    return float((kept - 1) / total) if total > 1e-9 * len(logs) else None


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    squares = np.square(centred).sum(axis=1)
    return np.maximum(squares[:, None] + squares - 2 * (centred @ centred.T), np.finfo(float).tiny)
