"""Linear-assignment sorting: an order of points made smooth at shrinking scales."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from cipm.compiled import compiled

WINDOW = 64  # units reassigned together


def assignment_sort(points: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order [units] of points [units, factors] improved by linear-assignment sorting.

    The points are smoothed along the order over a radius; within windows each unit is assigned to the place whose
    smoothed neighbourhood is nearest; the radius shrinks from an eighth of the units to one. Cost: about 5 log₂(units)
    rounds of units × factors × WINDOW multiplications, in float32.

    Source: Barthel, Hezel, Jung, Schall, "Improved evaluation and generation of grid layouts using distance preservation
    quality and linear assignment sorting" (2022), in one dimension.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    radius, shift = len(order) / 8, 0
    while radius >= 1:
        order = _reassign(points, smooth(smooth(points[order], int(radius)), int(radius)), order, shift)
        shift, radius = WINDOW // 2 - shift, radius * 0.8
    return order


def _reassign(points: np.ndarray, targets: np.ndarray, order: np.ndarray, shift: int) -> np.ndarray:
    result, halves = order.copy(), 0.5 * np.square(targets).sum(axis=1)
    for start in range(-shift, len(order), WINDOW):
        low, high = max(start, 0), min(start + WINDOW, len(order))
        if high - low < 2:
            continue
        units = order[low:high]
        taken, places = linear_sum_assignment(points[units] @ targets[low:high].T - halves[low:high], maximize=True)
        result[low + places] = units[taken]
    return result


@compiled
def smooth(values, radius):  # pragma: no cover  (compiled)
    """Return the moving average of values [places, factors] over 2 radius + 1 places, reflected at both ends.

    `radius` is at most the number of places. Running sums in float64.
    """
    places, width = values.shape
    result, total = np.empty_like(values), np.zeros(width)
    for i in range(-radius, radius + 1):
        at = min(max(i, -1 - i), 2 * places - 1 - i)
        for f in range(width):
            total[f] += values[at, f]
    for i in range(places):
        leaves, enters = max(i - radius, radius - i - 1), min(i + radius + 1, 2 * places - 2 - i - radius)
        for f in range(width):
            result[i, f] = total[f] / (2 * radius + 1)
            total[f] += np.float64(values[enters, f]) - values[leaves, f]
    return result
