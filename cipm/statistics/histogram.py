"""Histograms of activations whose bins follow the data, and still merge exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.compiled import compiled
from cipm.statistics.samples import finite_samples, need_samples

SMALLEST = -1000  # no bin is narrower than 2 to this
DIGITS = 50  # nor than this many binary digits below the largest value


@final
@dataclass(frozen=True, eq=False)
class Histogram:
    """An accumulator of one histogram for each unit: create, update, merge, finalise.

    All bins of a unit are 2^exponent wide and begin at multiples of that, the narrowest for which `bins` of them cover
    the unit's values. Widening joins whole bins, so the counts depend on the values alone.

    `counts` [units, bins] int64, `start` [units] the number of the first bin, `low` and `high` [units] the extremes.

    Error: none in the counts; any sharding and order gives the same bits. A quantile read from it is right within one
    bin: at most 2/bins of the unit's range. Cost: samples · units; memory units · bins.
    """

    samples: int
    exponent: np.ndarray
    start: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def create(cls, units: int, *, bins: int = 64) -> Histogram:
        """Return the accumulator of no samples."""
        assert bins >= 2
        return cls(0, np.full(units, SMALLEST), np.zeros(units, np.int64), np.zeros((units, bins), np.int64),
                   np.full(units, np.inf), np.full(units, -np.inf))

    def update(self, batch: Any) -> Histogram:
        """Return the accumulator with these samples [samples, units] added."""
        x = np.ascontiguousarray(finite_samples(batch, self.low.size, self.samples))
        if not len(x):
            return self
        wider = self._over(np.minimum(self.low, x.min(axis=0)), np.maximum(self.high, x.max(axis=0)))
        _count(x, np.ldexp(1.0, -wider.exponent), wider.start, wider.counts)
        return Histogram(self.samples + len(x), wider.exponent, wider.start, wider.counts, wider.low, wider.high)

    def merge(self, other: Histogram) -> Histogram:
        """Return the accumulator of both shards' samples."""
        assert self.counts.shape == other.counts.shape
        if not self.samples or not other.samples:
            return self if self.samples else other
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        a, b = self._over(low, high), other._over(low, high)
        return Histogram(self.samples + other.samples, a.exponent, a.start, a.counts + b.counts, low, high)

    def finalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (edges [units, bins + 1] float64, counts [units, bins] int64)."""
        need_samples(self.samples, 1, "A histogram")
        edges = self.start[:, None] + np.arange(self.counts.shape[1] + 1)
        return np.ldexp(edges.astype(np.float64), self.exponent[:, None]), self.counts

    def quantile(self, share: float) -> np.ndarray:
        """Return the value [units] below which this share of the samples lies, even within a bin."""
        edges, counts = self.finalise()
        below = np.cumsum(counts, axis=1)
        at = np.argmax(below >= share * self.samples, axis=1)[:, None]
        inside, before = (np.take_along_axis(a, at, axis=1)[:, 0] for a in (counts, below - counts))
        left, right = (np.take_along_axis(edges, at + step, axis=1)[:, 0] for step in (0, 1))
        part = np.clip((share * self.samples - before) / np.maximum(inside, 1), 0, 1)
        return np.clip(left + (right - left) * part, self.low, self.high)

    def _over(self, low: np.ndarray, high: np.ndarray) -> Histogram:
        """Return the same histogram, with counts of its own, in the bins for a range that contains its own."""
        exponent = _exponent(low, high, self.counts.shape[1])
        start = _bin(low, exponent)
        if not self.samples:
            return Histogram(0, exponent, start, self.counts.copy(), low, high)
        moved = np.flatnonzero((exponent != self.exponent) | (start != self.start))
        counts = self.counts.copy()
        counts[moved] = 0
        filled, bins = np.nonzero(self.counts[moved])
        units = moved[filled]
        joined = np.minimum(exponent - self.exponent, 62)[units]
        np.add.at(counts, (units, ((self.start[units] + bins) >> joined) - start[units]), self.counts[units, bins])
        return Histogram(self.samples, exponent, start, counts, low, high)


@compiled
def _count(x, scale, start, counts):
    """Count each value of x [samples, units] in its bin."""
    last = counts.shape[1] - 1
    for row in range(x.shape[0]):
        for unit in range(x.shape[1]):
            place = int(np.floor(x[row, unit] * scale[unit])) - start[unit]
            counts[unit, min(max(place, 0), last)] += 1


def _exponent(low: np.ndarray, high: np.ndarray, bins: int) -> np.ndarray:
    """Return the smallest exponent for which the range takes no more than `bins` bins: it never falls as ranges grow."""
    largest = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
    width = np.where(high > low, np.frexp((high / 2 - low / 2) / bins)[1] - 1, SMALLEST)  # at most four times too narrow
    exponent = np.maximum(np.maximum(width, largest - DIGITS), SMALLEST)
    while (wide := _bin(high, exponent) - _bin(low, exponent) >= bins).any():
        exponent = exponent + wide
    return exponent


def _bin(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    return np.floor(np.ldexp(x, -exponent)).astype(np.int64)
