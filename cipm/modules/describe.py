"""What can be said of each module and of a group's redundancy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from cipm.modules.partition import Partition

REPRESENTATIVES = 3
PREDICTED = 0.9  # a unit is called redundant when the others explain this share of its variance


@dataclass(frozen=True)
class Module:
    """One module: `units` in index order, `coherence` the mean correlation between different units of it, and
    `stability` its best overlap (Jaccard: 1 same units, 0 none) with a module of each probe half, averaged; None
    where no halves were given. `representatives` are the units with the highest mean correlation to the others of it,
    the medoid first. Where anti-correlated units belong together, all correlations are taken between units turned to one
    side, and `opposed` are the units of the smaller side.
    """

    id: int
    units: tuple[int, ...]
    coherence: float
    stability: float | None
    representatives: tuple[int, ...] = ()
    opposed: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.units)


def describe_modules(correlation: np.ndarray, partition: Partition) -> list[Module]:
    """Return the modules of a partition, biggest first, measured on a correlation [units, units]."""
    return [_module(correlation, partition, number) for number in range(partition.modules)]


def _module(correlation: np.ndarray, partition: Partition, number: int) -> Module:
    units = np.flatnonzero(partition.labels == number)
    signs = np.ones(units.size) if partition.signs is None else partition.signs[units]
    block = correlation[np.ix_(units, units)] * signs * signs[:, None]
    inside = (block.sum(axis=1) - block.diagonal()) / (units.size - 1)
    nearest = units[np.argsort(-inside, kind="stable")[:REPRESENTATIVES]]
    halves = partition.half_labels
    stability = None if halves is None else float(np.mean([_best_overlap(units, half) for half in halves]))
    return Module(number, tuple(units.tolist()), float(inside.mean()), stability, tuple(nearest.tolist()),
                  tuple(units[signs < 0].tolist()))


def _best_overlap(units: np.ndarray, labels: np.ndarray) -> float:
    inside = np.bincount(labels[units][labels[units] >= 0], minlength=labels.max(initial=-1) + 1)
    if inside.size == 0:
        return 0.0
    sizes = np.bincount(labels[labels >= 0], minlength=inside.size)
    return float((inside / (sizes + units.size - inside)).max())


@dataclass(frozen=True, eq=False)
class Redundancy:
    """How much of each unit the others of its group predict linearly.

    `r2` [units] is the share of variance predicted (0 … 1; dead units count as fully predicted: 1), `share` the share
    of units with r2 ≥ 0.9, `r2_median` over the units that are not dead. `how` says how chance was kept out.
    """

    share: float
    r2_median: float
    r2: np.ndarray
    how: str


def redundancy(covariance: np.ndarray, *, samples: int,
               halves: tuple[np.ndarray, np.ndarray] | None = None) -> Redundancy:
    """Return how well each unit is predicted by all the others of its group.

    With `halves` (the covariances of the two probe halves) the prediction is fitted on one half and judged on the
    other, both ways, so that more units than samples cannot feign redundancy. Without, it is fitted and judged on the
    same samples and corrected for their number (adjusted R²); with fewer than twice as many samples as units a ridge
    of units/samples of the mean variance stands in. Cost: a few units³.
    """
    live = np.flatnonzero(covariance.diagonal() > 0)
    r2 = np.ones(covariance.shape[0])
    if halves is not None:
        parts = [half[np.ix_(live, live)] for half in halves]
        crossed = [_judge(_precision(parts[a], samples // 2), parts[b]) for a, b in ((0, 1), (1, 0))]
        r2[live], how = np.clip(np.mean(crossed, axis=0), 0, 1), "fitted on one probe half, judged on the other"
    else:
        part = covariance[np.ix_(live, live)]
        fitted = np.clip(_judge(_precision(part, samples), part), 0, 1)
        enough = samples > 2 * live.size
        correction = (samples - 1) / (samples - live.size) if enough else 1.0
        r2[live] = np.clip(1 - (1 - fitted) * correction, 0, 1)
        how = ("adjusted for the number of samples" if enough else
               f"only {samples} samples for {live.size} units: shrunk by a ridge, and optimistic")
    median = float(np.median(r2[live])) if live.size else 0.0
    return Redundancy(float((r2 >= PREDICTED).mean()) if r2.size else 0.0, median, r2, how)


def _precision(covariance: np.ndarray, samples: int) -> np.ndarray:
    """Return the inverse of a covariance, in units of each one's sd, with a ridge where samples are few."""
    n, variance = covariance.shape[0], covariance.diagonal()
    scale = np.sqrt(np.where(variance > 0, variance, np.inf))  # a unit dead on this half predicts nothing here
    ridge = n / max(samples, 1) if samples <= 2 * n else 1e-6
    scaled = covariance / scale / scale[:, None]
    scaled[np.diag_indices(n)] += ridge
    return linalg.inv(scaled, overwrite_a=True, check_finite=False) / scale / scale[:, None]


def _judge(precision: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return R² [units] of predicting each unit by weights −P_ij / P_jj, on a covariance; 0 where either is dead."""
    scale, variance = precision.diagonal(), covariance.diagonal()
    known = (scale > 0) & (variance > 0)
    weights = precision / np.where(known, scale, np.inf)
    residual = np.einsum("ij,ij->j", weights, covariance @ weights)
    return np.where(known, 1 - residual / np.where(known, variance, 1), 0)
