"""Candidates for the strongest correlations of very many units, from a few numbers a unit.

Two sketches, each one pass over the samples: a random projection, unbiased, off by about 1/√width; and, with its help,
the range of the correlation (Nyström), which carries what many units share much more exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from scipy import linalg

from cipm.statistics.means import Means
from cipm.statistics.neighbours import BLOCK_UNITS, Neighbours, keep_best
from cipm.statistics.samples import finite_samples, need_samples

FEW = 512  # units of a block of scores: what a cache holds


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
    def create(cls, units: int, *, width: int = 128, generator: np.random.Generator) -> Projection:
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


@final
@dataclass(frozen=True, eq=False)
class Range:
    """An accumulator of the correlation's range: create (from a projection of the same samples), update, merge, finalise.

    A second pass. `basis` [units, width] spans the projection, and `image` [width, units] is basisᵀ · correlation.

    Error: of the correlation's part outside the `width` leading directions; where few factors are shared by many units
    4 to 8 times less than that of a projection of the same width. Cost: 2 · samples · units · width.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness" (2011), section 5.5 (Nyström).
    """

    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    image: np.ndarray
    samples: int

    @classmethod
    def create(cls, projection: Projection) -> Range:
        """Return the accumulator of no samples in the range that the projection found."""
        need_samples(projection.samples, 2, "A correlation")
        length = np.sqrt(projection.means.scatter)
        scale = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
        basis = linalg.qr((projection.centred() * scale[:, None]).astype(np.float32), mode="economic")[0]
        return cls(projection.means.mean, scale, basis, np.zeros(basis.T.shape, np.float32), 0)

    def update(self, batch: Any) -> Range:
        """Return the accumulator with these samples [samples, units] added."""
        x = finite_samples(batch, self.mean.size, self.samples)
        z = ((x - self.mean) * self.scale).astype(np.float32)
        return Range(self.mean, self.scale, self.basis, self.image + (z @ self.basis).T @ z, self.samples + len(x))

    def merge(self, other: Range) -> Range:
        """Return the accumulator of both shards' samples, which must have been created from the same projection."""
        assert np.array_equal(self.basis, other.basis)
        return Range(self.mean, self.scale, self.basis, self.image + other.image, self.samples + other.samples)

    def finalise(self) -> np.ndarray:
        """Return factors [units, width] float32 whose products estimate the correlations."""
        core = (self.image @ self.basis).astype(np.float64)
        values, vectors = linalg.eigh((core + core.T) / 2)
        kept = values > 1e-6 * max(values[-1], 1e-300)
        return self.image.T @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)


def candidates(factors: np.ndarray, count: int) -> Neighbours:
    """Return for every unit the `count` others whose factors [units, width] have the largest products with its own."""
    best = Neighbours.none(len(factors), count)
    for first in range(0, len(factors), FEW):
        rows = slice(first, first + FEW)
        for other in range(0, len(factors), BLOCK_UNITS):
            block = factors[rows] @ factors[other:other + BLOCK_UNITS].T
            own = np.arange(max(first, other), min(first + len(block), other + block.shape[1]))
            block[own - first, own - other] = 0
            keep_best(block, other, best.units[rows], best.correlations[rows])
    return best


def _unit_length(rows: np.ndarray, alive: np.ndarray) -> np.ndarray:
    length = np.where(alive > 0, np.linalg.norm(rows, axis=1), np.inf)[:, None]
    return (rows / np.where(length > 0, length, np.inf)).astype(np.float32)
