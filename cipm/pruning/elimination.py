"""What removing units costs: backward elimination on the covariance, with the others taking over what they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cipm.errors import InputError
from cipm.pruning.factor import ElementTap, UnitTap
from cipm.pruning.ridge import ridged_factor

ENOUGH = 2  # samples per unit from which the covariance is taken as it is
BLOCK = 64  # removals between two updates of the full matrices
Matrices = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Curve:
    """The cost of every number of units kept.

    `removal_order` [units]: the unit removed first comes first; keeping k units means removing the first units − k.
    `cost` [units + 1]: cost[k] is the expected squared change of the consumers' inputs per sample when k units are
    kept and the others are replaced by their best linear prediction from those; cost[units] = 0. `ridge` is what was
    added to the covariance's diagonal, as a share of its mean. `notes` say what limits the curve.
    """

    removal_order: np.ndarray
    cost: np.ndarray
    ridge: float
    notes: tuple[str, ...]

    def kept(self, keep: int) -> np.ndarray:
        """Return the units kept, in index order."""
        return np.sort(self.removal_order[self.removal_order.size - keep:])


def default_ridge(units: int, samples: int) -> float:
    """Return the ridge, as a share of the mean variance: 1e-4 where samples suffice, up to 1e-2 where they do not."""
    return float(np.clip(1e-4 * units * ENOUGH / max(samples, 1), 1e-4, 1e-2))


def elimination_curve(covariances: Matrices, grams: Matrices, *, samples: int, ridge: float | None = None,
                      units: int | None = None, blocks: int = 1) -> Curve:
    """Return the order in which to remove units, and the cost of keeping each number of them.

    One covariance C [units, units] and one consumers' Gram G = WᵀW [units, units] (W [outputs, units] maps the units
    to what reads them) per tap of the group; costs are summed, the order is one. Removing S and keeping K costs
    tr(G_SS (C_SS − C_SK C_KK⁻¹ C_KS)). Each step removes the unit that raises this least, given what is gone. Dead
    units cost nothing and go first (ties by index).

    Where `units` is given, matrices may be [units × e, units × e] with e elements of each unit side by side (its positions
    behind a flatten, the positions of a kernel), which go together; e may differ from tap to tap. With `blocks`, units are
    removed evenly from as many equal runs (the units inside heads).

    With fewer than twice as many samples as units the ridge grows and a note says that the curve is optimistic.
    Raises InputError where a value is not finite or the shapes differ. Cost: about 2 units³ multiply-adds per tap in float64,
    in rank-64 updates of triangles (with elements 4 (units × e)³); memory 2 units² beside what is given.

    Source: the selection of Optimal Brain Surgeon (Hassibi & Stork 1993) applied to columns of W: removing unit q from
    weights W′ with P = C_KK⁻¹ costs ‖W′_q‖² / P_qq.
    """
    n, share = _prepared(covariances, grams, samples, ridge, units, blocks)
    taps = [(UnitTap if len(c) == n else ElementTap).start(c, g, n, share, BLOCK)
            for c, g in zip(covariances, grams, strict=True)]
    order, added = _eliminate(taps, n, blocks)
    return Curve(order, np.append(np.cumsum(added)[::-1], 0.0), share, _limits(covariances, samples, share))


def quick_curve(covariances: Matrices, grams: Matrices, *, samples: int, ridge: float | None = None,
                units: int | None = None, blocks: int = 1) -> Curve:
    """Return a curve as `elimination_curve` does, of a simpler order: what to show first where units are many.

    Units are kept in the order of a pivoted Cholesky factor of the covariance, each unit weighted by the norm of what reads
    it; the cost of that order is exact. Cost: one factor for the order, one factor and product per tap for the cost.
    """
    n, share = _prepared(covariances, grams, samples, ridge, units, blocks)
    total = np.zeros((n, n))
    for c, g in zip(covariances, grams, strict=True):
        root = np.sqrt(np.maximum(g.diagonal(), 0))
        total += (c * root * root[:, None]).reshape(n, len(c) // n, n, -1).sum((1, 3))
    pivots = linalg.lapack.dpstrf(total, lower=1)[1] - 1
    order = np.array(evenly(pivots[::-1], n // blocks), dtype=np.int64)
    return Curve(order, cost_of_order(covariances, grams, order, ridge=share), share, _limits(covariances, samples, share))


def cost_of_order(covariances: Matrices, grams: Matrices, removal_order: np.ndarray, *, ridge: float) -> np.ndarray:
    """Return the cost [units + 1] of keeping each number of units where they are removed in this order.

    With the units kept longest first, C = L Lᵀ and V = W L: cost[k] = Σ_{t ≥ k} ‖V_t‖². Cost: one Cholesky factor and one
    product per tap.
    """
    n = len(removal_order)
    steps = np.zeros(n)
    for c, g in zip(covariances, grams, strict=True):
        e = len(c) // n
        first = (removal_order[::-1, None] * e + np.arange(e)).ravel()
        (factor, _), _ = ridged_factor(c[np.ix_(first, first)], ridge, float(np.trace(c)) / max(len(c), 1))
        lower = np.tril(factor)
        steps += np.einsum("ij,ij->j", lower, g[np.ix_(first, first)] @ lower).reshape(n, e).sum(1)
    return np.append(np.cumsum(np.maximum(steps, 0)[::-1])[::-1], 0.0)


def evenly(order: np.ndarray, width: int) -> list[int]:
    """Return the units so that each round takes one from every run of `width`, otherwise in this order."""
    rank = np.empty(len(order), dtype=np.int64)
    for run in range(len(order) // width):
        inside = order[order // width == run]
        rank[inside] = np.arange(width)
    return sorted(order.tolist(), key=lambda unit: rank[unit])


def _prepared(covariances: Matrices, grams: Matrices, samples: int, ridge: float | None, units: int | None,
              blocks: int) -> tuple[int, float]:
    """Return (units, ridge); raises InputError where the matrices do not fit."""
    shapes = [(np.shape(c), np.shape(g)) for c, g in zip(covariances, grams, strict=False)]
    n = units or (len(covariances[0]) if len(covariances) else 0)
    square = all(c == g and len(c) == 2 and c[0] == c[1] and n and c[0] % n == 0 for c, g in shapes)
    alike = units is not None or len({c for c, _ in shapes}) == 1
    if len(covariances) != len(grams) or not shapes or not square or not alike or n % blocks:
        raise InputError("Each tap needs a covariance and a consumers' Gram of one square shape; the shapes are "
                         f"{[np.shape(c) for c in covariances]} and {[np.shape(g) for g in grams]}.")
    if not all(np.isfinite(matrix).all() for matrix in (*covariances, *grams)):
        raise InputError("A covariance or a consumers' Gram has a value that is not finite.")
    return n, default_ridge(max(len(c) for c in covariances), samples) if ridge is None else ridge


def _limits(covariances: Matrices, samples: int, share: float) -> tuple[str, ...]:
    widest = max(len(c) for c in covariances)
    return () if samples >= ENOUGH * widest else (
        f"{samples} samples for {widest} units: the prediction is optimistic, a ridge of {share:.1%} of the mean variance "
        "holds it back.",)


def _eliminate(taps: Sequence[UnitTap | ElementTap], n: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove all units one by one; return them and what each added to the cost."""
    gone, units, block = np.zeros(n, dtype=bool), np.arange(n), np.arange(n) // (n // blocks)
    left = np.full(blocks, n // blocks)
    steps, added = np.empty(n, dtype=np.int64), np.empty(n)
    for t in range(n):
        if t % BLOCK == 0 and t:
            alive = ~gone[units] if gone[units].mean() > 1 / 8 else None
            for tap in taps:
                tap.flush(alive)
            units = units if alive is None else units[alive]
        price = sum(tap.price() for tap in taps)
        shut = gone[units] if blocks == 1 else gone[units] | (left[block[units]] < left.max())
        at = int(np.argmin(np.where(shut, np.inf, price)))
        q = units[at]
        steps[t], added[t], gone[q] = q, price[at], True
        left[block[q]] -= 1
        for tap in taps:
            tap.remove(at)
    return steps, added
