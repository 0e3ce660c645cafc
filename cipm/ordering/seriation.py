"""Seriation: an order of units in which correlated ones stand together, at every scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cipm.compiled import side_by_side
from cipm.ordering.assignment import assignment_sort
from cipm.ordering.leaves import leaf_order
from cipm.ordering.tree import branches, squared_distances, ward
from cipm.permutation import Permutation
from cipm.statistics.spectrum import Factors, denoise

BRANCHES = 1024  # of the tree are laid out exactly; what is finer is sorted by assignment
TREE_UNITS = 4096  # more units are put into trees in parts


def spectral(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the seriation of a correlation [units, units] sampled `samples` times.

    Units are points in the space of the factors above the edge of noise; the top 1024 branches of Ward's tree of the
    points (made in parts beyond 4096 units) are laid out by exact leaf order, then linear-assignment sorting smooths the
    order at shrinking scales. Units without any factor (dead ones, and all of them on pure noise) come last in their old
    order. Deterministic; of the two directions the one closer to the old order is taken.

    Cost: that of `denoise`, units × min(units, 4096) × factors for the distances (64 MB a thread), and that of
    `assignment_sort`.

    Source: the pipeline compared under "Correlation, orders" of the project's measurements; for the sorting see
    `assignment_sort`.
    """
    return Permutation(seriate_points(points_of(denoise(correlation, samples))))


def seriate(correlation: np.ndarray, samples: int) -> np.ndarray:
    """Return the seriation as an array of old indices in new order; see `spectral`."""
    return spectral(np.asarray(correlation), samples).order


def points_of(factors: Factors) -> np.ndarray:
    """Return each unit's row of the denoised correlation, in the factors' basis (same distances)."""
    return (factors.loadings * np.sqrt(factors.values)).astype(np.float32)


def seriate_points(points: np.ndarray) -> np.ndarray:
    """Return the order of points [units, factors] by Ward's tree and linear-assignment sorting; zero points come last."""
    return placed(points, lambda live: assignment_sort(live, _coarse(live, np.ones(len(live), dtype=np.float32))))


def placed(points: np.ndarray, method: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the order that `method` gives to the points that are not zero, the others behind them in their old order.

    Of its two directions the one closer to the old order is taken. Fewer than three points keep their order.
    """
    live = np.flatnonzero(np.abs(points).sum(axis=1) > 0)
    rest = np.setdiff1d(np.arange(points.shape[0]), live)
    return np.concatenate([live[forward(method(points[live]))] if live.size > 2 else live, rest])


def forward(order: np.ndarray) -> np.ndarray:
    """Return the order or its reverse, whichever runs along the old indices (ties: smaller first index first)."""
    along = float(np.dot(np.arange(len(order)) - (len(order) - 1) / 2, order))
    return order if along > 0 or (along == 0 and order[0] <= order[-1]) else order[::-1]


def _coarse(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the order of points [n, factors] by Ward's tree, its top BRANCHES in the order with the shortest path.

    More points than TREE_UNITS are taken in parts, evenly spread; the branches of the parts, each one point with the weight
    of its units, are then ordered in the same way.
    """
    n = len(points)
    parts = -(-n // TREE_UNITS)
    assert 2 * BRANCHES <= TREE_UNITS  # fewer branches than points, or this would not end
    taken = side_by_side(lambda part: _branches(points, weights, np.arange(part, n, parts)), range(parts))
    runs, means, heavy = ([piece for part in taken for piece in part[at]] for at in range(3))
    order = leaf_order(taken[0][3], _distances(np.array(means))) if parts == 1 else _coarse(np.array(means), np.array(heavy))
    return np.concatenate([runs[branch] for branch in order])


def _branches(points: np.ndarray, weights: np.ndarray, units: np.ndarray) -> tuple:
    """Return the units of each branch of the tree of some units, the branches' means and weights, and their merges."""
    mine, heavy = points[units], weights[units]
    leaves, starts, merges = branches(ward(mine, heavy), BRANCHES)
    total = np.add.reduceat(heavy[leaves], starts)
    means = np.add.reduceat(mine[leaves] * heavy[leaves, None], starts, axis=0) / total[:, None]
    return np.split(units[leaves], starts[1:]), means, total, merges


def _distances(points: np.ndarray) -> np.ndarray:
    return np.sqrt(squared_distances(points))
