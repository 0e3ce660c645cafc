"""Seriation: an order of units in which correlated ones stand together, at every scale."""

from __future__ import annotations

from collections.abc import Callable

import fastcluster
import numpy as np

from cipm.ordering.assignment import assignment_sort
from cipm.ordering.leaves import leaf_order
from cipm.permutation import Permutation
from cipm.statistics.spectrum import Factors, denoise

LEAF_ORDER_UNITS = 4096  # beyond, the tree is left as it is flipped by the eigenvector that matters most
ROWS = 512  # rows of distances made at a time


def spectral(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the seriation of a correlation [units, units] sampled `samples` times.

    Units are points in the space of the factors above the edge of noise; Ward's tree of the points is laid out by its
    exact leaf order, then linear-assignment sorting smooths the order at shrinking scales. Units without any factor
    (dead ones, and all of them on pure noise) come last in their old order. Deterministic; of the two directions the
    one closer to the old order is taken.

    Cost: that of `denoise`, units² × factors for the distances (4 units² bytes), that of `leaf_order` up to
    LEAF_ORDER_UNITS, and that of `assignment_sort`.

    Source: the pipeline compared under "Correlation, orders" of the project's measurements; for the sorting see
    `assignment_sort`.
    """
    return Permutation(seriate_points(points_of(denoise(correlation, samples))))


def seriate(correlation: np.ndarray, samples: int) -> np.ndarray:
    """Return the seriation as an array of old indices in new order; see `spectral`."""
    return spectral(np.asarray(correlation), samples).order


def points_of(factors: Factors) -> np.ndarray:
    """Return each unit's row of the denoised correlation, in the factors' basis (same distances)."""
    return factors.loadings * np.sqrt(factors.values)


def seriate_points(points: np.ndarray) -> np.ndarray:
    """Return the order of points [units, factors] by Ward's tree and linear-assignment sorting; zero points come last."""
    return placed(points, lambda live: assignment_sort(live, _ward(live)))


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


def _ward(points: np.ndarray) -> np.ndarray:
    """Return the leaves of Ward's tree in the order with the shortest path (beyond LEAF_ORDER_UNITS: see `_hanging`)."""
    points = points.astype(np.float32)
    squares, doubled = np.square(points).sum(axis=1), -2 * points.T

    def distances(rows: slice) -> np.ndarray:
        found = points[rows] @ doubled
        found += squares
        found += squares[rows, None]
        return np.sqrt(np.maximum(found, 0, out=found), out=found)

    merges, close = linked(len(points), "ward", distances)
    return _hanging(merges, points[:, 0]) if close is None else leaf_order(merges, close)


def linked(n: int, method: str, distances: Callable[[slice], np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the linkage [n−1, 4] of n leaves and the distances [n, n], float32 (None beyond LEAF_ORDER_UNITS).

    `distances` gives the distances [rows, n] of a slice of rows; it is asked for ROWS of them at a time.
    """
    condensed, close = np.empty(n * (n - 1) // 2), np.empty((n, n), dtype=np.float32) if n <= LEAF_ORDER_UNITS else None
    at = 0
    for start in range(0, n, ROWS):
        strip = distances(slice(start, min(start + ROWS, n)))
        if close is not None:
            close[start:start + len(strip)] = strip
        for i, row in enumerate(strip, start=start):
            condensed[at:at + n - 1 - i] = row[i + 1:]
            at += n - 1 - i
    merges = np.empty((n - 1, 4))
    fastcluster.linkage_wrap(n, condensed, merges, fastcluster.mthidx[method])  # `linkage` itself first copies its input
    return merges, close


def _hanging(merges: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return the leaves with each branch flipped so that the means of the leaves' heights ascend (a fast stand-in)."""
    n = len(heights)
    height, sizes = np.r_[heights.astype(np.float64), np.zeros(n - 1)], np.r_[np.ones(n), merges[:, 3]]
    children = merges[:, :2].astype(np.int64)
    for node, (left, right) in enumerate(children, start=n):
        height[node] = (height[left] * sizes[left] + height[right] * sizes[right]) / sizes[node]
    stack, order = [2 * n - 2], []
    while stack:
        node = stack.pop()
        if node < n:
            order.append(node)
        else:
            stack.extend(sorted(children[node - n], key=lambda child: -height[child]))
    return np.array(order)
