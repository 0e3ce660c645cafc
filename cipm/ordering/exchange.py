"""Orders made clearer by exchanging pairs of units, for as long as what they are judged by rises."""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled
from cipm.ordering.scores import BLOCKS, Scores

WEIGHTS = (0.5, 1.0, 0.2)  # of block contrast, banded anti-Robinson and path in the clearness
LEAST_CONTRAST = 1e-9
SWEEPS = 3
TRIED = 2**28  # pairs in a sweep × units: more units than 645 exchange with near ones alone


def clearness(scores: Scores) -> float:
    """Return ½ log(block contrast) − log(banded anti-Robinson) − 0.2 log(path): what a clear picture has more of."""
    contrast, near, path = WEIGHTS
    return float(contrast * np.log(max(scores.block_contrast, LEAST_CONTRAST))
                 - near * np.log(max(scores.banded_anti_robinson, LEAST_CONTRAST))
                 - path * np.log(max(scores.path, LEAST_CONTRAST)))


def exchanged(correlation: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the order [units] of a correlation [units, units] after exchanging pairs of units that make it clearer.

    Pairs are tried in turn, near ones first, and exchanged where the `clearness` on this correlation rises, in three
    sweeps. Beyond 645 units only pairs at most 2²⁸ / units² places apart are tried. Fewer than four units, and a correlation
    without structure, keep their order; units that correlate with no other come last. Deterministic. Cost: units³ operations
    a sweep, at most 2²⁸.
    """
    c = np.array(correlation, dtype=np.float32)
    np.fill_diagonal(c, 0)
    related = np.abs(c).sum(axis=1)[order] > 0
    order = np.concatenate([order[related], order[~related]])
    n, c = len(order), np.ascontiguousarray(c[np.ix_(order, order)])
    total, squares = float(c.sum(dtype=np.float64)), float(np.square(c, dtype=np.float64).sum())
    pairs = n * (n - 1)
    if n < 4 or squares - total**2 / pairs < 1e-12 * pairs or total > pairs * (1 - 1e-9):
        return order
    grid = min(BLOCKS, n // 2)
    starts = np.linspace(0, n, grid, endpoint=False).astype(np.int64)
    block = np.searchsorted(starts, np.arange(n), side="right") - 1
    sizes = np.bincount(block)
    counts = (np.outer(sizes, sizes) - np.diag(sizes)).astype(np.float64)
    kernel = np.maximum(max(1, n // 5) + 1 - np.arange(n), 0).astype(np.float32)
    kernel[0] = 0
    place = _exchange(c, block, 1 / np.maximum(counts, 1), kernel, total, squares, np.array(WEIGHTS), SWEEPS,
                      TRIED // n**2, int(related.sum()))
    return order[place]


@compiled
def _exchange(c, block, share, kernel, total, squares, weights, sweeps, reach, moving):  # pragma: no cover  (compiled)
    """Return the rows of c [n, n], which is rearranged, in their new order; only the first `moving` ones move.

    `share` is one over the number of entries of each block, `kernel` the weight of a distance in banded anti-Robinson. For
    every pair the changes of the sums behind the three scores are found: `here` of the near pairs, `beside` of the
    neighbours, `first` and `second` of the two rows of blocks. One function with others inside, because compiled ones of this
    package do not call each other.
    """
    n, grid = c.shape[0], share.shape[0]
    order, sums = np.arange(n), np.zeros((grid, grid))
    first, second = np.empty(grid), np.empty(grid)

    def nearer(p, q):
        here = np.float32(0)
        for k in range(p):
            here += (c[q, k] - c[p, k]) * (kernel[p - k] - kernel[q - k])
        for k in range(p + 1, q):
            here += (c[q, k] - c[p, k]) * (kernel[k - p] - kernel[q - k])
        for k in range(q + 1, n):
            here += (c[q, k] - c[p, k]) * (kernel[k - p] - kernel[k - q])
        return here

    def neighbours(p, q):
        beside = np.float32(0)
        for side in (-1, 1):
            if 0 <= p + side < n and p + side != q:
                beside += c[q, p + side] - c[p, p + side]
            if 0 <= q + side < n and q + side != p:
                beside += c[p, q + side] - c[q, q + side]
        return beside

    def row_sums(p, q, bp, bq):
        at = 0
        for b in range(grid):
            moved = np.float32(0)
            start = at
            while at < n and block[at] == b:
                at += 1
            for k in range(start, at):
                moved += c[q, k] - c[p, k]
            if b == bp:
                moved -= c[q, p]
            if b == bq:
                moved += c[p, q]
            first[b] = sums[bp, b] + moved
            second[b] = sums[bq, b] - moved
        own, other = first[bp] - sums[bp, bp], second[bq] - sums[bq, bq]
        first[bp], second[bq] = sums[bp, bp] + 2 * own, sums[bq, bq] + 2 * other
        first[bq] = second[bp] = sums[bp, bq] + (first[bq] - sums[bp, bq]) - own

    def explains(bp, bq):
        gained = 0.0
        for b in range(grid):
            twice = 1.0 if b == bp or b == bq else 2.0
            gained += twice * (share[bp, b] * (first[b] * first[b] - sums[bp, b] * sums[bp, b])
                               + share[bq, b] * (second[b] * second[b] - sums[bq, b] * sums[bq, b]))
        return gained

    def swap(p, q):
        for k in range(n):
            c[p, k], c[q, k] = c[q, k], c[p, k]
        for k in range(n):
            c[k, p], c[k, q] = c[k, q], c[k, p]
        order[p], order[q] = order[q], order[p]

    near, path, widest = 0.0, 0.0, 0.0
    for i in range(n):
        for j in range(n):
            sums[block[i], block[j]] += c[i, j]
            near += kernel[abs(i - j)] * c[i, j]
            widest += kernel[abs(i - j)]
        if i:
            path += c[i, i - 1]
    pairs = n * (n - 1)
    flat, spread = total * total / pairs, squares - total * total / pairs
    explained = 0.0
    for a in range(grid):
        for b in range(grid):
            explained += sums[a, b] * sums[a, b] * share[a, b]
    now = (weights[0] * np.log(max((explained - flat) / spread, 1e-9)) - weights[1] * np.log(max(widest - near, 1e-9))
           - weights[2] * np.log(max(n - 1 - path, 1e-9)))
    for _ in range(sweeps):
        changes = 0
        for apart in range(1, min(reach + 1, moving)):
            for p in range(moving - apart):
                q = p + apart
                bp, bq = block[p], block[q]
                here, beside, gained = nearer(p, q), neighbours(p, q), 0.0
                if bp != bq:
                    row_sums(p, q, bp, bq)
                    gained = explains(bp, bq)
                new = (weights[0] * np.log(max((explained + gained - flat) / spread, 1e-9))
                       - weights[1] * np.log(max(widest - near - 2 * here, 1e-9))
                       - weights[2] * np.log(max(n - 1 - path - beside, 1e-9)))
                if new > now + 1e-6:
                    changes += 1
                    now = new
                    near += 2 * here
                    path += beside
                    if bp != bq:
                        explained += gained
                        for b in range(grid):
                            sums[bp, b] = sums[b, bp] = first[b]
                            sums[bq, b] = sums[b, bq] = second[b]
                    swap(p, q)
        if changes == 0:
            break
    return order
