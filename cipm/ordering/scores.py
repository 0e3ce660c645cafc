"""Scores of an order on a correlation: do similar units stand together, near and far?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from cipm.permutation import Permutation

BLOCKS = 16  # the grid of block means


@dataclass(frozen=True)
class Scores:
    """How an order fits a correlation. On a random order the first two are about 1.

    With distances D = 1 − C between different units and n units:

    `banded_anti_robinson` = Σ over |i−j| ≤ b of (b + 1 − |i−j|) D_ij, band b = n/5, divided by the same weights times
    the mean distance; lower is better: similar units stand near each other.
    `path` = mean distance of neighbours ÷ mean distance of all; lower is better: neighbours are alike.
    `block_contrast` = share of the variance of the correlations (different units) explained by the means of a
    16 × 16 grid of blocks; higher is better: the picture shows blocks at a glance.

    Source: Earle & Hurley, "Advances in dendrogram seriation for application to visualization" (2015), for the banded
    anti-Robinson form (which does not divide).
    """

    banded_anti_robinson: float
    path: float
    block_contrast: float

    def to_json(self) -> dict[str, float]:
        """Return the scores by name."""
        return asdict(self)


def scores(correlation: np.ndarray, order: Permutation) -> Scores:
    """Return the scores of an order on a correlation [units, units].

    Give the correlation of probe rows that the order has not seen to learn whether its structure is real. Fewer than
    three units, or all distances equal, score 1, 1, 0. Cost: n².
    """
    n = correlation.shape[0]
    if n < 3:
        return Scores(1.0, 1.0, 0.0)
    c = order.apply(order.apply(np.asarray(correlation, dtype=np.float32), 0), 1)
    off = float(c.sum(dtype=np.float64) - c.trace(dtype=np.float64))
    mean = 1 - off / (n * (n - 1))
    if mean <= 0:
        return Scores(1.0, 1.0, 0.0)
    band = max(1, n // 5)
    sums = np.array([float(c.diagonal(k).sum(dtype=np.float64)) for k in range(1, band + 1)])
    counts, weights = n - np.arange(1, band + 1), band - np.arange(band)
    banded = float((weights * (counts - sums)).sum() / ((weights * counts).sum() * mean))
    return Scores(banded, float((n - 1 - sums[0]) / ((n - 1) * mean)), _block_contrast(c, off))


def _block_contrast(c: np.ndarray, off: float) -> float:
    n = c.shape[0]
    grid = min(BLOCKS, max(2, n // 2))
    starts = np.linspace(0, n, grid, endpoint=False).astype(np.int64)
    rows = np.add.reduceat(c.astype(np.float64), starts, axis=0)
    sums, sizes = np.add.reduceat(rows, starts, axis=1), np.diff(np.r_[starts, n])
    counts = np.outer(sizes, sizes).astype(np.float64)
    diagonal = c.diagonal().astype(np.float64)
    sums[np.diag_indices(grid)] -= np.add.reduceat(diagonal, starts)
    counts[np.diag_indices(grid)] -= sizes
    used, pairs = counts > 0, n * (n - 1)
    total = float(np.square(c, dtype=np.float64).sum() - np.square(diagonal).sum()) - off**2 / pairs
    between = float((sums[used] ** 2 / counts[used]).sum()) - off**2 / pairs
    return float(np.clip(between / total, 0, 1)) if total > 1e-12 * pairs else 0.0


def within_blocks(order: Callable[[np.ndarray], Permutation], correlation: np.ndarray, blocks: int) -> Permutation:
    """Return the order that orders the units of each of `blocks` equal runs by themselves.

    `order` takes the correlation of one run's units, for instance `lambda c: spectral(c, samples)`.
    """
    width = correlation.shape[0] // blocks
    assert width * blocks == correlation.shape[0]
    runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
    return Permutation(np.concatenate([run.start + order(correlation[run, run]).order for run in runs]))
