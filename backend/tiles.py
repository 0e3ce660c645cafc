"""Serving matrices: metadata and tiles of one (matrix, order), with pyramids built when first asked for.

Level 0 is gathered on the fly. The levels above it are built once and read as memory maps from then on. The revision
names the contents (artefact, matrix, order, layout), so nothing built here ever goes stale.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from backend.cache import FolderCache
from cipm.errors import Conflict, InputError
from cipm.views import STATS, TILE, MatrixFiles, build, level_shape, levels, open_level, scale_exponent, tile_bytes

LAYOUT = 1
MOST_TILES = 64


@dataclass(frozen=True)
class Shown:
    """One matrix in one order: files, index vectors, and what identifies the contents."""

    files: MatrixFiles
    order: str
    meta: dict[str, Any]
    index: tuple[np.ndarray, np.ndarray]
    revision: str

    @property
    def shape(self) -> tuple[int, int]:
        """Return (rows, columns)."""
        return int(self.meta["shape"][0]), int(self.meta["shape"][1])

    @property
    def exponent(self) -> int:
        """Return e: a tile's value × 2^e is the value."""
        return scale_exponent(float(self.meta["absmax"]))

    def describe(self) -> dict[str, Any]:
        """Return the matrix's metadata with levels, tile, scale, revision and both axes as shown."""
        return {**self.meta, "order": self.order, "orders": self.files.orders(), "levels": levels(self.shape),
                "tile": TILE, "scale": 2.0**self.exponent, "revision": self.revision, **self.files.axes(self.order)}


@lru_cache(maxsize=128)
def show(folder: Path, address: str, name: str, order: str) -> Shown:
    """Return a matrix of the view artefact at `address` in one order; raises NotFound for unknown names."""
    files = MatrixFiles(folder, name)
    index = files.index(order)
    text = "\0".join((str(LAYOUT), address, name, order))
    return Shown(files, order, files.meta(), index, hashlib.sha256(text.encode()).hexdigest()[:32])


@dataclass(frozen=True)
class TileRequest:
    """Which tiles: level, statistic, and (x, y) places counted in tiles."""

    level: int
    stat: str
    at: tuple[tuple[int, int], ...]

    def check(self, shape: tuple[int, int]) -> None:
        """Raise InputError saying what is beyond the matrix."""
        if self.stat not in STATS:
            raise InputError(f"stat: there is no {self.stat!r}; there are {', '.join(STATS)}.", where="stat")
        if not 0 <= self.level < levels(shape):
            raise InputError(f"level: this matrix has levels 0 to {levels(shape) - 1}.", where="level")
        rows, cols = level_shape(shape, self.level)
        across, down = -(-cols // TILE), -(-rows // TILE)
        for x, y in self.at:
            if x >= across or y >= down:
                raise InputError(f"at: {x}.{y} is beyond the {across} × {down} tiles of level {self.level}.",
                                 where="at")


def parse_places(text: str) -> tuple[tuple[int, int], ...]:
    """Return the (x, y) pairs of "x.y,x.y,…"; raises InputError where it is not one to 64 such pairs."""
    pairs = [pair.split(".") for pair in text.split(",")]
    plain = all(len(pair) == 2 and all(part.isascii() and part.isdigit() and len(part) < 7 for part in pair)
                for pair in pairs)
    if not plain or len(pairs) > MOST_TILES:
        raise InputError(f"at: give 1 to {MOST_TILES} tiles as x.y,x.y,… counted from the top left.", where="at")
    return tuple((int(x), int(y)) for x, y in pairs)


def read_tiles(cache: FolderCache, shown: Shown, request: TileRequest, revision: str | None) -> bytes:
    """Return the tiles asked for, back to back; raises Conflict where `revision` is of other contents."""
    if revision is not None and revision != shown.revision:
        raise Conflict("The matrix has changed since this page read it.", where="rev", fix="Reload the page.")
    request.check(shown.shape)
    if request.level == 0:
        return tile_bytes(shown.files.array(), shown.index, shown.exponent, request.at)
    stored = _level(cache, shown, request)
    return b"".join(stored[y, x].tobytes() for x, y in request.at)


def _level(cache: FolderCache, shown: Shown, request: TileRequest) -> np.ndarray:
    folder = cache.get(shown.revision, lambda into: build(shown.files.array(), shown.index, shown.exponent, into))
    return open_level(folder, request.level, request.stat)
