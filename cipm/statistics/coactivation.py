"""How often units are active together: Jaccard index of their active sets, from exact counts."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from cipm.statistics.samples import finite_samples, need_samples
from cipm.statistics.triangle import Products, diagonal, to_square, triangle_words

BLOCK_ROWS = 4096


@final
class CoActivation:
    """An accumulator of joint activity: create, update, merge, finalise.

    A unit is active on a sample where its activation is above `threshold`. `finalise` gives the Jaccard index
    [units, units]: samples on which both are active / samples on which at least one is.

    Error: none; counts are exact integers (up to 2⁵³ samples) and any sharding and order gives the same bits. Cost: one
    symmetric rank-k product, as for the covariance. Update hands the working memory on, as for Covariance.
    """

    __slots__ = ("units", "threshold", "_samples", "_triangle", "_products")

    def __init__(self, units: int, threshold: float, samples: int, triangle: np.ndarray) -> None:
        self.units, self.threshold, self._samples = units, threshold, samples
        self._triangle: np.ndarray | None = triangle
        self._products = Products(units, np.float32)

    @classmethod
    def create(cls, units: int, *, threshold: float = 0.0) -> CoActivation:
        """Return the accumulator of no samples."""
        return cls(units, float(threshold), 0, np.zeros(triangle_words(units)))

    @property
    def samples(self) -> int:
        return self._samples

    def update(self, batch: Any) -> CoActivation:
        """Return the accumulator with these samples [samples, units] added; the receiver is used up."""
        triangle = self._counts()
        x = finite_samples(batch, self.units, self._samples)
        after = CoActivation(self.units, self.threshold, self._samples + len(x), triangle)
        after._products, self._triangle = self._products, None
        for start in range(0, len(x), BLOCK_ROWS):
            after._products.add((x[start:start + BLOCK_ROWS] > self.threshold).astype(np.float32))
            if after._products.full:
                after._products.flush(triangle)
        return after

    def merge(self, other: CoActivation) -> CoActivation:
        """Return the accumulator of both shards' samples."""
        assert (self.units, self.threshold) == (other.units, other.threshold)
        return CoActivation(self.units, self.threshold, self._samples + other._samples, self._settle() + other._settle())

    def finalise(self) -> np.ndarray:
        """Return the Jaccard index [units, units] float64; a unit that is never active gets 0, and 1 on the diagonal."""
        need_samples(self._samples, 1, "Co-activation")
        active, together = self.active.astype(np.float64), to_square(self._settle(), self.units, np.ones(self.units))
        either = active[:, None] + active - together
        index = np.divide(together, either, out=np.zeros_like(together), where=either > 0)
        np.fill_diagonal(index, 1)
        return index

    def counts(self) -> np.ndarray:
        """Return on how many samples both units are active, [units, units] int64."""
        return to_square(self._settle(), self.units, np.ones(self.units)).astype(np.int64)

    @property
    def active(self) -> np.ndarray:
        """Return on how many samples each unit is active, [units] int64."""
        return diagonal(self._settle(), self.units).astype(np.int64)

    def _counts(self) -> np.ndarray:
        assert self._triangle is not None, "this accumulator was updated; use the one that update returned"
        return self._triangle

    def _settle(self) -> np.ndarray:
        triangle = self._counts()
        self._products.flush(triangle, keep=False)
        return triangle
