"""Let the whole correlation decide about each unit, once the factors have found the modules."""

from __future__ import annotations

import numpy as np

ROUNDS = 5


def refined(correlation: np.ndarray, labels: np.ndarray, resolution: float, *, absolute: bool = False) -> np.ndarray:
    """Return labels [units] after moving units to the module they gain most from, all at once, while that helps.

    The gain is the constant-Potts one, Σ_{j in module} (C_ij − resolution), on the correlation itself: factors below
    the edge of noise say something too, once it is averaged over a module. Units that gain from no module leave (−1),
    those in none may join; no module is new. Cost: units² a round, at most 5 rounds.
    """
    best, worth = labels, -np.inf
    for _ in range(ROUNDS):
        if (labels < 0).all():
            return labels if worth == -np.inf else best
        labels = _dense(labels)
        gains = _gains(correlation, labels, resolution, absolute)
        own = gains[labels, np.arange(labels.size)][labels >= 0].sum()
        if own <= worth:
            return best
        best, worth = labels, own
        target = gains.argmax(axis=0)
        labels = np.where(gains[target, np.arange(labels.size)] > 0, target, -1)
        if np.array_equal(labels, best):
            return best
    return best


def _gains(correlation: np.ndarray, labels: np.ndarray, resolution: float, absolute: bool) -> np.ndarray:
    """Return [modules, units]: what each unit gains in each module, its own left out of the sums."""
    order = np.argsort(labels, kind="stable")[(labels < 0).sum():]
    sizes = np.bincount(labels[order])
    signs = module_signs(correlation, labels) if absolute else np.ones(labels.size, dtype=correlation.dtype)
    sums = np.stack([signs[units] @ correlation[units] for units in np.split(order, np.cumsum(sizes)[:-1])])
    sums[labels[order], order] -= signs[order] * correlation[order, order]
    others = np.repeat(sizes[:, None], labels.size, axis=1)
    others[labels[order], order] -= 1
    return (np.abs(sums) if absolute else sums) - resolution * others


def module_signs(correlation: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ±1 per unit: which of the two sides of its module it is on, the larger side +1; 1 for units in none.

    The sides are the signs of the leading eigenvector of the module's correlations, by power iteration.
    """
    signs = np.ones(labels.size, dtype=correlation.dtype)
    for module in range(labels.max(initial=-1) + 1):
        units = np.flatnonzero(labels == module)
        if units.size:
            signs[units] = _sides(correlation[np.ix_(units, units)])
    return signs


def _sides(block: np.ndarray) -> np.ndarray:
    start = block[:, np.abs(block).sum(axis=0).argmax()]
    for _ in range(8):
        start = block @ start
        start = start / np.abs(start).max()
    sides = np.where(start < 0, -1.0, 1.0).astype(block.dtype)
    return sides if sides.sum() >= 0 else -sides


def _dense(labels: np.ndarray) -> np.ndarray:
    result = np.full(labels.size, -1)
    result[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return result
