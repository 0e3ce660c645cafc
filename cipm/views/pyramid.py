"""Pyramids: each level halves both sides; a cell of level L is the mean, or the extreme, of a 2^L × 2^L block.

The mean is over the entries that are not NaN, exactly (sums and counts are carried up, not means of means). `maxabs`
is the entry of largest magnitude *with its sign* (a tie is positive), so that level 0 is the matrix itself and sparse
structure, which a mean hides, stays visible in its colour. A block of NaN alone is NaN.

Memory: one band of 512 rows per level, whatever the height. Levels are stored tile-major: one tile is one read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cipm.views.tiles import TILE, encode, gather, pad

STATS = ("mean", "maxabs")


def levels(shape: tuple[int, int]) -> int:
    """Return how many levels there are, level 0 included: until the matrix fits one tile."""
    return 1 + max(0, math.ceil(math.log2(max(*shape, 1) / TILE)))


def level_shape(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Return (rows, columns) of a level; a side of one stays one."""
    return -(-shape[0] >> level), -(-shape[1] >> level)


@dataclass(frozen=True)
class _Band:
    """Some rows of one level: sums and counts of what is not NaN, and the signed extremes (NaN where none)."""

    total: np.ndarray
    count: np.ndarray
    extreme: np.ndarray

    def halved(self) -> _Band:
        """Return the band at half the resolution."""
        return _Band(_fold(np.add, self.total, 0), _fold(np.add, self.count, 0), _extreme(self.extreme))

    def shown(self, stat: str) -> np.ndarray:
        """Return the values of one statistic."""
        if stat == "maxabs":
            return self.extreme
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.count


@dataclass(frozen=True)
class _Builder:
    matrix: np.ndarray
    index: tuple[np.ndarray, np.ndarray]
    exponent: int
    files: dict[tuple[int, str], np.ndarray]

    def band(self, level: int, y: int) -> _Band:
        """Return tile row y of a level, writing its tiles and those of every level below on the way."""
        if level == 0:
            return self._base(y)
        below = level_shape(self.matrix.shape, level - 1)[0]
        halves = [self.band(level - 1, half).halved() for half in (2 * y, 2 * y + 1) if half * TILE < below]
        band = _Band(*(np.concatenate([getattr(h, name) for h in halves]) for name in ("total", "count", "extreme")))
        for stat in STATS:
            self._write(level, y, stat, encode(band.shown(stat), self.exponent))
        return band

    def _base(self, y: int) -> _Band:
        rows, cols = self.index
        values = gather(self.matrix, rows[y * TILE:(y + 1) * TILE], cols)
        missing = np.isnan(values)
        return _Band(np.where(missing, 0, values), (~missing).astype(np.int32), values)

    def _write(self, level: int, y: int, stat: str, shown: np.ndarray) -> None:
        stored = self.files[level, stat]
        for x in range(stored.shape[1]):
            stored[y, x] = pad(shown[:, x * TILE:(x + 1) * TILE])


def build(matrix: np.ndarray, index: tuple[np.ndarray, np.ndarray], exponent: int, folder: Path) -> None:
    """Write every level ≥ 1 of the reordered matrix as `{stat}-{level}.npy` [tile rows, tile columns, 256, 256].

    Cost: one pass over the matrix; about two thirds of its float16 size on disk.
    """
    top = levels(matrix.shape) - 1
    files = {(level, stat): _create(folder, matrix.shape, level, stat)
             for level in range(1, top + 1) for stat in STATS}
    if files:
        with np.errstate(invalid="ignore", over="ignore"):
            _Builder(matrix, index, exponent, files).band(top, 0)
    for stored in files.values():
        stored.flush()


def open_level(folder: Path, level: int, stat: str) -> np.ndarray:
    """Return a built level as a read-only memory map [tile rows, tile columns, 256, 256] of float16."""
    return np.load(folder / f"{stat}-{level}.npy", mmap_mode="r", allow_pickle=False)


def _create(folder: Path, shape: tuple[int, int], level: int, stat: str) -> np.memmap:
    rows, cols = level_shape(shape, level)
    tiled = (-(-rows // TILE), -(-cols // TILE), TILE, TILE)
    return np.lib.format.open_memmap(folder / f"{stat}-{level}.npy", mode="w+", dtype="<f2", shape=tiled)


def _fold(function: np.ufunc, values: np.ndarray, fill: float) -> np.ndarray:
    """Return the 2 × 2 blocks reduced, the edge padded with `fill`; in strided sweeps, as short axes reduce slowly."""
    rows, cols = values.shape
    if rows % 2 or cols % 2:
        values = np.pad(values, ((0, rows % 2), (0, cols % 2)), constant_values=fill)
    tall = function(values[0::2], values[1::2])
    return function(tall[:, 0::2], tall[:, 1::2])


def _extreme(values: np.ndarray) -> np.ndarray:
    """Return the signed extreme of each 2 × 2 block: fmax and fmin skip NaN, the larger magnitude wins."""
    high, low = _fold(np.fmax, values, np.nan), _fold(np.fmin, values, np.nan)
    return np.where(high >= -low, high, low)
