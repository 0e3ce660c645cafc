"""The strongest correlations of every unit where the whole matrix does not fit: exact, in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cipm.compiled import compiled
from cipm.errors import InputError
from cipm.statistics.samples import need_samples, refuse_nonfinite, too_large

BLOCK_UNITS = 2048


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For every unit its strongest partners: `units` [units, k] int64 (−1 where there are fewer) and `correlations`
    [units, k] float32 (0 there), largest magnitude first, ties by index.
    """

    units: np.ndarray
    correlations: np.ndarray

    @classmethod
    def none(cls, units: int, k: int) -> Neighbours:
        return cls(np.full((units, k), -1), np.zeros((units, k), np.float32))

    def recall(self, truth: Neighbours, rows: np.ndarray | None = None) -> float:
        """Return which share of the true neighbours is found; `rows` says to which units the truth belongs."""
        found = self.units if rows is None else self.units[rows]
        hits = [np.isin(true[true >= 0], mine).sum() for true, mine in zip(truth.units, found, strict=True)]
        return float(sum(hits) / max((truth.units >= 0).sum(), 1))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each pair once: (pairs [pairs, 2] with the smaller index first, correlations [pairs])."""
        rows = np.repeat(np.arange(len(self.units)), self.units.shape[1])
        there = self.units.ravel() >= 0
        both = np.sort(np.stack([rows, self.units.ravel()], axis=1)[there], axis=1)
        once, place = np.unique(both, axis=0, return_index=True)
        return once, self.correlations.ravel()[there][place]


def exact_neighbours(samples: Any, k: int = 10) -> Neighbours:
    """Return the k strongest Pearson correlations of every unit over samples [samples, units], by magnitude.

    Dead units have no neighbours and are none. Error: 1e-6, of float32 products of standardised samples (longer streams
    in pieces of any length: `PairCorrelations`). Cost: samples · units² / 2 multiply-adds, and one comparison an entry.
    Memory: 4 bytes · samples · units, and a block. Raises InputError as every accumulator does.
    """
    return strongest(standardised(samples), k)


def strongest(factors: np.ndarray, k: int) -> Neighbours:
    """Return for every unit the k others whose factors [units, width] float32 have the largest products with its own."""
    units = len(factors)
    best = Neighbours.none(units, k)
    for first in range(0, units, BLOCK_UNITS):
        rows = slice(first, first + BLOCK_UNITS)
        for other in range(first, units, BLOCK_UNITS):
            columns = slice(other, other + BLOCK_UNITS)
            block = factors[rows] @ factors[columns].T
            if other == first:
                np.fill_diagonal(block, 0)
            else:
                keep_best(np.ascontiguousarray(block.T), first, best.units[columns], best.correlations[columns])
            keep_best(block, other, best.units[rows], best.correlations[rows])
    return best


def standardised(samples: Any) -> np.ndarray:
    """Return samples [samples, units] as units of length one [units, samples] float32; dead units are zero."""
    x = np.asarray(samples)
    if x.ndim != 2:
        raise InputError(f"Samples must have shape [samples, units]; they have {list(x.shape)}.")
    need_samples(len(x), 2, "A correlation")
    z = np.empty((x.shape[1], len(x)), np.float32)
    for first in range(0, x.shape[1], BLOCK_UNITS):
        part = x[:, first:first + BLOCK_UNITS].astype(np.float64)
        refuse_nonfinite(part, 0)
        varies = (part != part[0]).any(axis=0)
        part -= part[0]
        part -= part.mean(axis=0)
        with np.errstate(over="ignore"):
            length = np.sqrt(np.square(part).sum(axis=0))
        if not np.isfinite(length).all():
            raise too_large(x)
        z[first:first + BLOCK_UNITS] = np.where(varies & (length > 0), part / np.where(length > 0, length, 1), 0).T
    return z


@compiled
def keep_best(block, first, units, values):
    """Keep in `units`, `values` [rows, k] the largest magnitudes of block [rows, columns]; columns count from `first`."""
    k = units.shape[1]
    for row in range(block.shape[0]):
        given, index, kept = block[row], units[row], values[row]
        least = abs(kept[k - 1])
        for column in range(given.size):
            size = abs(given[column])
            if size > least:
                place = k - 1
                while place > 0 and abs(kept[place - 1]) < size:
                    kept[place], index[place] = kept[place - 1], index[place - 1]
                    place -= 1
                kept[place], index[place] = given[column], first + column
                least = abs(kept[k - 1])
