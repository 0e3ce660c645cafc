"""Seriation: an order of units in which correlated ones stand together, at every scale."""

from __future__ import annotations

import fastcluster
import numpy as np
from scipy.optimize import linear_sum_assignment

from cipm.ordering.leaves import leaf_order
from cipm.permutation import Permutation
from cipm.statistics.spectrum import denoise

LEAF_ORDER_UNITS = 4096  # beyond, the tree is left as it is flipped by the eigenvector that matters most
WINDOW = 64  # units reassigned together in linear-assignment sorting


def spectral(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the seriation of a correlation [units, units] sampled `samples` times.

    Units are points in the space of the factors above the edge of noise; Ward's tree of the points is laid out by its
    exact leaf order, then linear-assignment sorting smooths the order at shrinking scales. Units without any factor
    (dead ones, and all of them on pure noise) come last in their old order. Deterministic; of the two directions the
    one closer to the old order is taken.

    Source: the pipeline compared under "Correlation, orders" of the project's measurements; linear-assignment sorting
    after Barthel, Hezel, Jung, Schall, "Improved evaluation and generation of grid layouts using distance
    preservation quality and linear assignment sorting" (2022), in one dimension.
    """
    return Permutation(seriate_points(_points(correlation, samples)))


def seriate(correlation: np.ndarray, samples: int) -> np.ndarray:
    """Return the seriation as an array of old indices in new order; see `spectral`."""
    return spectral(np.asarray(correlation), samples).order


def _points(correlation: np.ndarray, samples: int) -> np.ndarray:
    """Return each unit's row of the denoised correlation, in the factors' basis (same distances)."""
    factors = denoise(correlation, samples)
    return factors.loadings * np.sqrt(factors.values)


def seriate_points(points: np.ndarray) -> np.ndarray:
    """Return the order of points [units, factors]; zero points come last."""
    placed = np.flatnonzero(np.abs(points).sum(axis=1) > 0)
    rest = np.setdiff1d(np.arange(points.shape[0]), placed)
    order = placed[_forward(_seriate(points[placed]))] if placed.size > 1 else placed
    return np.concatenate([order, rest])


def _seriate(points: np.ndarray) -> np.ndarray:
    if len(points) < 3:
        return np.arange(len(points))
    if len(points) > LEAF_ORDER_UNITS:
        return assignment_sort(points, _hanging(fastcluster.linkage_vector(points, method="ward"), points))
    distances = _distances(points)
    merges = fastcluster.linkage(distances[np.triu_indices(len(points), 1)].astype(np.float64), method="ward",
                                 preserve_input=False)
    return assignment_sort(points, leaf_order(merges, distances))


def assignment_sort(points: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order improved by linear-assignment sorting.

    The points are smoothed along the order over a radius; within windows each unit is assigned to the place whose
    smoothed neighbourhood is nearest; the radius shrinks from a quarter of the units to one.
    """
    n, radius, shift = len(order), len(order) / 8, 0
    while radius >= 1:
        targets = _smooth(points[order], max(1, int(radius)))
        order = _reassign(points, targets, order, shift)
        shift, radius = WINDOW // 2 - shift, radius * 0.8
    assert n == len(order)
    return order


def _reassign(points: np.ndarray, targets: np.ndarray, order: np.ndarray, shift: int) -> np.ndarray:
    result = order.copy()
    for start in range(-shift, len(order), WINDOW):
        low, high = max(start, 0), min(start + WINDOW, len(order))
        if high - low < 2:
            continue
        units = order[low:high]
        gain = points[units] @ targets[low:high].T - 0.5 * np.square(targets[low:high]).sum(axis=1)
        taken, places = linear_sum_assignment(gain, maximize=True)
        result[low + places] = units[taken]
    return result


def _smooth(values: np.ndarray, radius: int) -> np.ndarray:
    """Return the triangular moving average along axis 0 (two box averages), edges reflected."""
    for _ in range(2):
        padded = np.pad(values, ((radius, radius), (0, 0)), mode="symmetric" if radius <= len(values) else "edge")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
        values = (sums[2 * radius + 1:] - sums[:-2 * radius - 1]) / (2 * radius + 1)
    return values


def _distances(points: np.ndarray) -> np.ndarray:
    points = points.astype(np.float32)
    squares = np.square(points).sum(axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))


def _hanging(merges: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the leaves with each branch flipped so that means along the first factor ascend (a fast stand-in)."""
    n = len(points)
    height, sizes = np.r_[points[:, 0], np.zeros(n - 1)], np.r_[np.ones(n), merges[:, 3]]
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


def _forward(order: np.ndarray) -> np.ndarray:
    """Return the order or its reverse, whichever runs along the old indices (ties: smaller first index first)."""
    along = float(np.dot(np.arange(len(order)) - (len(order) - 1) / 2, order))
    return order if along > 0 or (along == 0 and order[0] <= order[-1]) else order[::-1]
