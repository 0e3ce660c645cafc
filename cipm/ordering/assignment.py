"""Linear-assignment sorting: an order of points made smooth at shrinking scales."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from cipm.compiled import compiled, side_by_side

WINDOW = 64  # units reassigned together
TOGETHER = 16 * WINDOW  # units that one thread places at a time
COLUMNS = 64  # factors that one thread smooths at a time


def assignment_sort(points: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order [units] of points [units, factors] improved by linear-assignment sorting.

    The points are smoothed along the order over a radius; within windows each unit is assigned to the place whose
    smoothed neighbourhood is nearest; the radius shrinks from an eighth of the units to one. Cost: about 5 log₂(units)
    rounds of units × factors × WINDOW multiplications, in float32, on as many threads as torch may use.

    Source: Barthel, Hezel, Jung, Schall, "Improved evaluation and generation of grid layouts using distance preservation
    quality and linear assignment sorting" (2022), in one dimension.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    radius, shift = len(order) / 8, 0
    while radius >= 1:
        order = _reassign(points[order], order, int(radius), shift)
        shift, radius = WINDOW // 2 - shift, radius * 0.8
    return order


def _reassign(points: np.ndarray, order: np.ndarray, radius: int, shift: int) -> np.ndarray:
    """Return the order after one round; `points` are in the order, windows begin `shift` places before the first unit."""
    targets = np.empty_like(points)
    side_by_side(lambda some: _smoothed_twice(points[:, some], radius, targets[:, some]), _slices(points.shape[1], COLUMNS))
    halves, result = 0.5 * np.einsum("uf,uf->u", targets, targets), order.copy()

    def place(windows: slice) -> None:
        for start in range(windows.start, windows.stop, WINDOW):
            run = slice(max(start - shift, 0), min(start - shift + WINDOW, len(order)))
            worth = points[run] @ targets[run].T
            units, places = linear_sum_assignment(worth - halves[run], maximize=True)
            result[run][places] = order[run][units]

    side_by_side(place, _slices(len(order) + shift, TOGETHER))
    return result


def _slices(count: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, count)) for start in range(0, count, width)]


def _smoothed_twice(values: np.ndarray, radius: int, into: np.ndarray) -> None:
    into[:] = smooth(smooth(np.ascontiguousarray(values), radius), radius)


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
