"""A sketch of a stream of samples for very many units: as many numbers a unit as there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.statistics.means import Means
from cipm.statistics.samples import finite_samples, need_samples


@final
@dataclass(frozen=True, eq=False)
class Projection:
    """An accumulator of a random projection of the samples: create, update, merge, finalise.

    Every sample gets `width` random numbers from `generator`; shards need generators of their own. `sums` [units, width]
    float32 are those numbers times the activations about `shift`, `drawn` [width] the sum of the numbers.

    Error: a correlation read from it is off by about (1 − r²)/√width. Activations must fit in float32. Cost: samples ·
    units · width; memory units · width.

    Source: Achlioptas, "Database-friendly random projections" (2003), of the sample axis.
    """

    means: Means
    sums: np.ndarray
    drawn: np.ndarray
    shift: np.ndarray
    generator: np.random.Generator

    @classmethod
    def create(cls, units: int, *, width: int = 1024, generator: np.random.Generator) -> Projection:
        """Return the accumulator of no samples."""
        return cls(Means.create(units), np.zeros((units, width), np.float32), np.zeros(width), np.zeros(units), generator)

    @property
    def samples(self) -> int:
        return self.means.samples

    def update(self, batch: Any) -> Projection:
        """Return the accumulator with these samples [samples, units] added."""
        x = finite_samples(batch, self.shift.size, self.samples)
        if not len(x):
            return self
        shift = self.shift if self.samples else x.mean(axis=0, dtype=np.float64)
        signs = self.generator.integers(0, 2, (len(x), self.drawn.size)).astype(np.float32) * 2 - 1
        sums = self.sums + (x - shift).astype(np.float32).T @ signs
        return Projection(self.means.update(x), sums, self.drawn + signs.sum(axis=0), shift, self.generator)

    def merge(self, other: Projection) -> Projection:
        """Return the accumulator of both shards' samples."""
        moved = other.sums + np.outer(other.shift - self.shift, other.drawn).astype(np.float32)
        if not self.samples:
            return other
        return Projection(self.means.merge(other.means), self.sums + moved, self.drawn + other.drawn, self.shift,
                          self.generator)

    def finalise(self) -> np.ndarray:
        """Return factors [units, width] float32 of length one whose products estimate the correlations; dead units 0."""
        need_samples(self.samples, 2, "A correlation")
        return _unit_length(self.centred(), np.sqrt(self.means.scatter))

    def centred(self) -> np.ndarray:
        """Return the projection [units, width] of the centred activations."""
        return self.sums - np.outer(self.means.mean - self.shift, self.drawn).astype(np.float32)


def _unit_length(rows: np.ndarray, alive: np.ndarray) -> np.ndarray:
    length = np.where(alive > 0, np.linalg.norm(rows, axis=1), np.inf)[:, None]
    return (rows / np.where(length > 0, length, np.inf)).astype(np.float32)
