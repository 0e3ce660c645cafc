"""Scores of an order on a correlation: do similar units stand together, near and far?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from cipm.compiled import compiled
from cipm.permutation import Permutation

BLOCKS = 16  # the grid of block means
ROWS = 256  # rows reordered at a time
EVENT_ROWS = 512  # rows whose anti-Robinson events are counted


@dataclass(frozen=True)
class Scores:
    """How an order fits a correlation: on a random order about 1, 1, 0, 1/2 and 1.

    With distances D = 1 − C between different units and n units:

    `banded_anti_robinson` = Σ over |i−j| ≤ b of (b + 1 − |i−j|) D_ij, band b = n/5, divided by the same weights times
    the mean distance; lower is better: similar units stand near each other.
    `path` = mean distance of neighbours ÷ mean distance of all; lower is better: neighbours are alike.
    `block_contrast` = share of the variance of the correlations (different units) explained by the means of a
    16 × 16 grid of blocks; higher is better: the picture shows blocks at a glance.
    `anti_robinson` = share of the triples (unit, nearer, farther on the same side) in which the farther unit is the more
    similar one, ties counted half; lower is better: similarity falls off with distance. Beyond 512 units counted
    from 512 places at equal steps (standard error below 0.002).
    `two_sum` = Σ max(C_ij, 0) (i−j)² ÷ (Σ max(C_ij, 0) × the mean of (i−j)²); lower is better: what is positively
    correlated is not far apart.

    Source: Chen, "Generalized association plots: information visualization via iteratively generated correlation
    matrices" (2002), for anti-Robinson events; Earle & Hurley, "Advances in dendrogram seriation for application to
    visualization" (2015), for the banded form; Barnard, Pothen, Simon, "A spectral algorithm for envelope reduction of
    sparse matrices" (1995), for the 2-SUM (none of them divides).
    """

    banded_anti_robinson: float
    path: float
    block_contrast: float
    anti_robinson: float = 0.5
    two_sum: float = 1.0

    def to_json(self) -> dict[str, float]:
        """Return the scores by name."""
        return asdict(self)


@dataclass(frozen=True)
class Chance:
    """What random orders score: `mean` and `sd` (standard deviation) of each score over `draws` random permutations."""

    mean: Scores
    sd: Scores
    draws: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)


NEUTRAL = Scores(1.0, 1.0, 0.0)


def scores(correlation: np.ndarray, order: Permutation) -> Scores:
    """Return the scores of an order on a correlation [units, units].

    Give the correlation of probe rows that the order has not seen to learn whether its structure is real. Fewer than
    three units, or all distances equal, score as by chance. Cost: n², memory a strip of 256 rows.
    """
    n = correlation.shape[0]
    if n < 3:
        return NEUTRAL
    sums, picked = _Sums.empty(n), _event_rows(n)
    events = 0.0
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        strip = order.apply(np.asarray(correlation[order.order[rows]], dtype=np.float32), 1)
        sums.add(strip, rows)
        here = picked[(picked >= start) & (picked < start + ROWS)]
        events += _events(np.ascontiguousarray(strip[here - start]), here)
    return sums.finish(events / _triples(n, picked))


def chance(correlation: np.ndarray, *, generator: np.random.Generator, draws: int = 5, blocks: int = 1) -> Chance:
    """Return what random orders that keep `blocks` score on a correlation; cost `draws` times that of `scores`."""
    assert draws > 1
    found = np.array([astuple(scores(correlation, Permutation.random(len(correlation), generator=generator, blocks=blocks)))
                      for _ in range(draws)])
    return Chance(Scores(*found.mean(axis=0).tolist()), Scores(*found.std(axis=0, ddof=1).tolist()), draws)


@dataclass
class _Sums:
    """Sums over a reordered correlation, filled a strip of rows at a time; every entry off the diagonal counts."""

    n: int
    near: np.ndarray  # [band] sum of the correlations at distance 1 … band
    blocks: np.ndarray  # [grid, grid] sums of the blocks
    total: float = 0.0
    squares: float = 0.0
    positive: float = 0.0
    spread: float = 0.0  # Σ max(C, 0) (i − j)²

    @classmethod
    def empty(cls, n: int) -> _Sums:
        grid = min(BLOCKS, max(2, n // 2))
        return cls(n, np.zeros(max(1, n // 5)), np.zeros((grid, grid)))

    @property
    def _starts(self) -> np.ndarray:
        return np.linspace(0, self.n, len(self.blocks), endpoint=False).astype(np.int64)

    def add(self, strip: np.ndarray, rows: np.ndarray) -> None:
        """Count rows [rows, units] of the reordered correlation; overwrites their diagonal entries."""
        band = self.near.size
        for i, row in zip(rows, strip, strict=True):
            reached = row[i + 1:i + 1 + band]
            self.near[:reached.size] += reached
        strip[np.arange(rows.size), rows] = 0
        across = np.add.reduceat(strip, self._starts, axis=1, dtype=np.float64)
        np.add.at(self.blocks, np.searchsorted(self._starts, rows, side="right") - 1, across)
        self.total += float(across.sum())
        self.squares += float(np.einsum("ij,ij->", strip, strip, dtype=np.float64))
        kept, where = np.maximum(strip, 0), np.arange(self.n) / self.n
        mass, first, second = (kept @ np.stack([where**0, where, where**2], axis=1).astype(np.float32)).astype(np.float64).T
        at = rows / self.n
        self.positive += float(mass.sum())
        self.spread += float((at**2 * mass - 2 * at * first + second).sum()) * self.n**2

    def finish(self, anti_robinson: float) -> Scores:
        pairs = self.n * (self.n - 1)
        mean = 1 - self.total / pairs
        varies = self.squares - self.total**2 / pairs > 1e-12 * pairs
        if mean <= 0 or not varies:
            return NEUTRAL
        distances = np.arange(1, self.near.size + 1)
        counts, weights = self.n - distances, self.near.size + 1 - distances
        banded = float((weights * (counts - self.near)).sum() / ((weights * counts).sum() * mean))
        path = float((self.n - 1 - self.near[0]) / ((self.n - 1) * mean))
        far = (self.n**2 + self.n) / 6  # mean of (i − j)² over pairs of different places
        two_sum = self.spread / (self.positive * far) if self.positive > 0 else 1.0
        return Scores(banded, path, self._contrast(pairs), anti_robinson, two_sum)

    def _contrast(self, pairs: int) -> float:
        sizes = np.diff(np.r_[self._starts, self.n])
        counts = np.outer(sizes, sizes) - np.diag(sizes)
        used = counts > 0
        between = float((self.blocks[used] ** 2 / counts[used]).sum()) - self.total**2 / pairs
        return float(np.clip(between / (self.squares - self.total**2 / pairs), 0, 1))


def _event_rows(n: int) -> np.ndarray:
    return np.arange(n) if n <= EVENT_ROWS else np.linspace(0, n - 1, EVENT_ROWS).round().astype(np.int64)


def _triples(n: int, rows: np.ndarray) -> float:
    sides = np.r_[rows, n - 1 - rows].astype(np.float64)
    return float((sides * (sides - 1) / 2).sum())


@compiled
def _events(strip, rows):  # pragma: no cover  (compiled)
    """Return how many pairs on one side of the units `rows` (their correlations in `strip`) are in the wrong order.

    On each side, nearest first, a pair is an event where the farther unit correlates more; equal ones count half.
    Inversions are counted while merging runs that double in length.
    """
    n = strip.shape[1]
    run, merged = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    twice = 0
    for r in range(strip.shape[0]):
        for side in range(2):
            size = n - 1 - rows[r] if side else rows[r]
            for j in range(size):
                run[j] = strip[r, rows[r] + 1 + j] if side else strip[r, rows[r] - 1 - j]
            length = 1
            while length < size:
                for start in range(0, size, 2 * length):
                    middle, stop = min(start + length, size), min(start + 2 * length, size)
                    a, b, below, equal = start, middle, start, start  # run[start:below] < run[b] <= …, to `equal`
                    for at in range(start, stop):
                        if b == stop or (a < middle and run[a] <= run[b]):
                            merged[at] = run[a]
                            a += 1
                        else:
                            while below < middle and run[below] < run[b]:
                                below += 1
                            equal = max(equal, below)
                            while equal < middle and run[equal] <= run[b]:
                                equal += 1
                            twice += below - start + equal - start  # nearer units with less similarity, equal ones half
                            merged[at] = run[b]
                            b += 1
                for at in range(size):
                    run[at] = merged[at]
                length *= 2
    return twice / 2


def within_blocks(order: Callable[[np.ndarray], Permutation], correlation: np.ndarray, blocks: int) -> Permutation:
    """Return the order that orders the units of each of `blocks` equal runs by themselves.

    `order` takes the correlation of one run's units, for instance `lambda c: spectral(c, samples)`.
    """
    width = correlation.shape[0] // blocks
    assert width * blocks == correlation.shape[0]
    runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
    return Permutation(np.concatenate([run.start + order(correlation[run, run]).order for run in runs]))
