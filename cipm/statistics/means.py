"""Mean and variance of each unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.statistics.samples import finite_samples, need_samples


@final
@dataclass(frozen=True, eq=False)
class Means:
    """An accumulator of means: create, update, merge, finalise.

    `mean` is [units] float64 and `scatter` [units] float64 the sum of squared distances from it.

    Error: about 1e-15 · (|mean| + sd), for the mean, and 1e-14 relative, plus 1e-15 · (mean/sd)² of the last batch's
    rounding, for the variance; any sharding and order agrees to 1e-12. Cost: samples · units.

    Source: Chan, Golub, LeVeque (1979), as for the covariance.
    """

    samples: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def create(cls, units: int) -> Means:
        """Return the accumulator of no samples."""
        return cls(0, np.zeros(units), np.zeros(units))

    def update(self, batch: Any) -> Means:
        """Return the accumulator with these samples [samples, units] added."""
        x = finite_samples(batch, self.mean.size, self.samples).astype(np.float64)
        if not len(x):
            return self
        shift = x[0]
        mean = shift + (x - shift).mean(axis=0)
        return self.merge(Means(len(x), mean, np.square(x - mean).sum(axis=0)))

    def merge(self, other: Means) -> Means:
        """Return the accumulator of both shards' samples."""
        assert self.mean.size == other.mean.size
        total, delta = self.samples + other.samples, other.mean - self.mean
        if not total:
            return self
        share = other.samples / total
        return Means(total, self.mean + delta * share, self.scatter + other.scatter + delta**2 * (self.samples * share))

    def finalise(self) -> np.ndarray:
        """Return the mean [units] float64."""
        need_samples(self.samples, 1, "A mean")
        return self.mean

    def variance(self) -> np.ndarray:
        """Return the variance [units] float64, divided by samples − 1."""
        need_samples(self.samples, 2, "A variance")
        return self.scatter / (self.samples - 1)
