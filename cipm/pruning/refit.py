"""Turn the predicted cost of a group into a predicted rise of the loss, through what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cipm.errors import OptionError


def calibrate(cost: np.ndarray, measured: Sequence[tuple[int, float]]) -> np.ndarray:
    """Return the predicted rise of the loss [units + 1] for every number of units kept.

    `cost` [units + 1] is the curve of elimination (cost[units] = 0), `measured` holds (units kept, rise of the loss
    over that of the whole model). Cost and loss are joined by straight lines in log–log through the measured points;
    outside them the loss is proportional to the cost. The result never falls as units go, and is never below zero; a
    point without a rise counts as a thousandth of the largest rise (all zero: the curve is zero). Raises OptionError
    where nothing was measured or a point is not on the curve.
    """
    if not measured:
        raise OptionError("A loss curve needs at least one measured point.", where="measured")
    points = np.array(sorted({(int(keep), float(rise)) for keep, rise in measured}, reverse=True))
    if not (np.isfinite(points).all() and 0 <= points[:, 0].min() and points[:, 0].max() < len(cost)):
        raise OptionError(f"Measured points must keep 0 to {len(cost) - 1} units and have a finite loss.",
                          where="measured")
    price, rise = np.asarray(cost)[points[:, 0].astype(int)], points[:, 1]
    largest = rise.max()
    monotone = np.maximum.accumulate(np.asarray(cost)[::-1])[::-1]
    if largest <= 0 or not (price > 0).any():
        return np.zeros(len(cost))
    rise = np.maximum.accumulate(np.maximum(rise, 1e-3 * largest))
    x, index = np.unique(np.log(price[price > 0]), return_index=True)
    y = np.log(rise[price > 0])[index]
    with np.errstate(divide="ignore"):
        at = np.log(monotone)
    line = np.interp(at, x, y) + np.minimum(at - x[0], 0) + np.maximum(at - x[-1], 0)
    return np.where(monotone > 0, np.exp(line), 0.0)
