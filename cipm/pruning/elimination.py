"""What removing units costs: backward elimination on the covariance, with the others taking over what they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cipm.errors import InputError
from cipm.pruning.ridge import ridged_factor

BLOCK = 64  # removals between two updates of the full matrices
ENOUGH = 2  # samples per unit from which the covariance is taken as it is


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


def elimination_curve(covariances: Sequence[np.ndarray], grams: Sequence[np.ndarray], *, samples: int,
                      ridge: float | None = None) -> Curve:
    """Return the order in which to remove units, and the cost of keeping each number of them.

    One covariance C [units, units] and one consumers' Gram G = WᵀW [units, units] (W [outputs, units] maps the units
    to what reads them) per tap of the group; costs are summed, the order is one. Removing S and keeping K costs
    tr(G_SS (C_SS − C_SK C_KK⁻¹ C_KS)). Each step removes the unit that raises this least, given what is gone. Dead
    units cost nothing and go first (ties by index).

    With fewer than twice as many samples as units the ridge grows and a note says that the curve is optimistic.
    Raises InputError where a value is not finite or the shapes differ. Cost: about 3 units³ per tap in float64, in
    rank-64 updates; memory 4 units².

    Source: the selection of Optimal Brain Surgeon (Hassibi & Stork 1993) applied to columns of W: removing unit q from
    weights W′ with P = C_KK⁻¹ costs ‖W′_q‖² / P_qq.
    """
    n = _checked(covariances, grams)
    share = default_ridge(n, samples) if ridge is None else ridge
    taps = [_Tap.start(c, g, share) for c, g in zip(covariances, grams, strict=True)]
    alive = np.arange(n)
    order, costs = [], [0.0]
    while alive.size:
        steps, added = _eliminate(taps, min(BLOCK, alive.size))
        order.extend(alive[steps])
        costs.extend(costs[-1] + np.cumsum(added))
        keep = np.setdiff1d(np.arange(alive.size), steps)
        taps, alive = [tap.compressed(keep) for tap in taps], alive[keep]
    notes = () if samples >= ENOUGH * n else (
        f"{samples} samples for {n} units: the prediction is optimistic, a ridge of {share:.1%} of the mean variance "
        "holds it back.",)
    return Curve(np.array(order, dtype=np.int64), np.array(costs[::-1]), share, notes)


def _checked(covariances: Sequence[np.ndarray], grams: Sequence[np.ndarray]) -> int:
    shapes = {np.shape(matrix) for matrix in (*covariances, *grams)}
    if len(covariances) != len(grams) or len(shapes) != 1 or len(set(*shapes)) != 1:
        raise InputError("Each tap needs a covariance and a consumers' Gram of one square shape; the shapes are "
                         f"{[np.shape(c) for c in covariances]} and {[np.shape(g) for g in grams]}.")
    if not all(np.isfinite(matrix).all() for matrix in (*covariances, *grams)):
        raise InputError("A covariance or a consumers' Gram has a value that is not finite.")
    return int(next(iter(shapes))[0])


@dataclass(eq=False)
class _Tap:
    """The state of one tap over the units still kept: P = (C + ridge)⁻¹ and G = W′ᵀW′ of the refitted consumers.

    Within a block both are held as start matrix and low-rank change: P − Σ a_t a_tᵀ d_t and, with
    M = I − Σ z_t a_tᵀ, MᵀGM. `d` and `g` are their current diagonals.
    """

    precision: np.ndarray
    gram: np.ndarray
    a: np.ndarray
    z: np.ndarray
    gz: np.ndarray
    scale: np.ndarray
    d: np.ndarray
    g: np.ndarray
    count: int = 0

    @classmethod
    def start(cls, covariance: np.ndarray, gram: np.ndarray, ridge: float) -> _Tap:
        n = len(covariance)
        factor, _ = ridged_factor(covariance, ridge, float(np.trace(covariance)) / max(n, 1))
        precision = linalg.cho_solve(factor, np.eye(n), overwrite_b=True, check_finite=False)
        return cls.of(precision, np.array(gram, dtype=np.float64))

    @classmethod
    def of(cls, precision: np.ndarray, gram: np.ndarray) -> _Tap:
        n = len(precision)
        a, z, gz = (np.zeros((BLOCK, n)) for _ in range(3))
        return cls(precision, gram, a, z, gz, np.zeros(BLOCK), precision.diagonal().copy(), gram.diagonal().copy())

    def remove(self, q: int) -> None:
        """Take unit q out and let the others take over: rank-one changes of both, diagonals kept current."""
        t = self.count
        a, z, gz = self.a[:t], self.z[:t], self.gz[:t]
        column = self.precision[q] - (self.scale[:t] * a[:, q]) @ a
        pivot = column[q]
        weights = -(a[:, q] @ z)
        weights[q] += 1
        transfer = self.gram[q] - a[:, q] @ gz
        shared = transfer - (z @ transfer) @ a
        self.a[t], self.z[t], self.gz[t], self.scale[t] = column / pivot, weights, transfer, pivot
        self.g += self.a[t] * (shared[q] * self.a[t] - 2 * shared)
        self.d -= column * self.a[t]
        self.count += 1

    def compressed(self, keep: np.ndarray) -> _Tap:
        """Return the tap over the units kept, with the block's changes applied."""
        a, z, gz = self.a[:self.count], self.z[:self.count], self.gz[:self.count]
        ak = np.ascontiguousarray(a[:, keep])
        precision = self.precision[np.ix_(keep, keep)] - (ak.T * self.scale[:self.count]) @ ak
        crossed = gz[:, keep].T - 0.5 * ak.T @ (gz @ z.T)
        change = crossed @ ak
        return _Tap.of(precision, self.gram[np.ix_(keep, keep)] - change - change.T)


def _eliminate(taps: list[_Tap], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove `count` units one by one; return their positions and what each added to the cost."""
    gone = np.zeros(len(taps[0].d), dtype=bool)
    steps, added = np.empty(count, dtype=np.int64), np.empty(count)
    for t in range(count):
        with np.errstate(divide="ignore", invalid="ignore"):
            price = sum(np.maximum(tap.g, 0) / np.maximum(tap.d, np.finfo(float).tiny) for tap in taps)
        q = int(np.argmin(np.where(gone, np.inf, price)))
        steps[t], added[t], gone[q] = q, price[q], True
        for tap in taps:
            tap.remove(q)
    return steps, added
