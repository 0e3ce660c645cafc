"""The probe samples on which each module is most active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cipm.errors import ProbeError


@dataclass(frozen=True)
class TopSample:
    """A probe sample and how active a module is on it: the mean of its units' activations in standard deviations."""

    sample: int
    activation: float


@dataclass(frozen=True, eq=False)
class TopSamples:
    """The samples on which each module of a group is most active; a mergeable accumulator over batches of activations.

    A module's activation on a row is the mean over its units of (h − mean) / sd, units of the opposed side negated; on a
    sample of several rows (positions of an image or a sequence) the largest of them. Dead units are left out.
    Memory: modules × `kept`; cost: rows × units × modules.
    """

    weights: np.ndarray  # [units, modules]
    offset: np.ndarray  # [modules]
    kept: int
    best: np.ndarray  # [modules, ≤ kept], descending; −inf where there is none
    which: np.ndarray  # [modules, ≤ kept] samples, −1 where there is none
    samples: int = 0

    @classmethod
    def create(cls, labels: np.ndarray, mean: np.ndarray, variance: np.ndarray, *, signs: np.ndarray | None = None,
               kept: int = 8) -> TopSamples:
        """Start for the modules `labels` [units] (−1: none) of units with this mean and variance over the probe set."""
        modules = int(labels.max(initial=-1)) + 1
        alive = (labels >= 0) & (variance > 0)
        weights = np.zeros((labels.size, modules))
        turned = np.ones(labels.size) if signs is None else signs
        weights[alive, labels[alive]] = turned[alive] / np.sqrt(variance[alive])
        weights /= np.maximum(np.bincount(labels[alive], minlength=modules), 1)
        return cls(weights, mean @ weights, kept, np.zeros((modules, 0)), np.zeros((modules, 0), dtype=np.int64))

    def update(self, activations: np.ndarray, samples: Sequence[int] | np.ndarray | None = None) -> TopSamples:
        """Return the accumulator with a batch [rows, units] added; `samples` [rows] names the probe sample of each row
        (default: each row is the next one). Raises ProbeError for activations that are not finite.
        """
        names = self.samples + np.arange(len(activations)) if samples is None else np.asarray(samples, dtype=np.int64)
        values = activations @ self.weights - self.offset
        if not np.isfinite(values).all():
            raise ProbeError("An activation is not finite, so no sample can be called the one with the most.",
                             where=f"row {int(names[~np.isfinite(values).all(axis=1)][0])}")
        return self._with(values.T, np.broadcast_to(names, values.T.shape), self.samples + len(activations))

    def merge(self, other: TopSamples) -> TopSamples:
        """Return the accumulator of both shards' samples, which must have names of their own."""
        return self._with(other.best, other.which, self.samples + other.samples)

    def finalise(self) -> list[list[TopSample]]:
        """Return for each module its samples, the most active first; of equal ones the earlier first."""
        return [[TopSample(int(s), float(v)) for v, s in zip(values, which, strict=True) if s >= 0]
                for values, which in zip(self.best, self.which, strict=True)]

    def _with(self, values: np.ndarray, names: np.ndarray, samples: int) -> TopSamples:
        both = np.concatenate([self.best, values], axis=1), np.concatenate([self.which, names], axis=1)
        found = [_largest(v, n, self.kept) for v, n in zip(*both, strict=True)]
        width = max((len(v) for v, _ in found), default=0)
        best, which = np.full((len(found), width), -np.inf), np.full((len(found), width), -1)
        for row, (v, n) in enumerate(found):
            best[row, :len(v)], which[row, :len(n)] = v, n
        return TopSamples(self.weights, self.offset, self.kept, best, which, samples)


def _largest(values: np.ndarray, names: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `kept` largest values of different names, descending, and their names."""
    order = np.lexsort((names, -values))
    order = order[names[order] >= 0]
    _, first = np.unique(names[order], return_index=True)
    taken = order[np.sort(first)[:kept]]
    return values[taken], names[taken]
