"""Tiles of 256 × 256 float16 values: cut through the order's index vectors, scaled by a power of two, NaN-padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

TILE = 256
_TOP = 15  # |value| / scale ≤ 2¹⁵ < 65504, the largest float16: eleven bits kept over nine decimal orders


def scale_exponent(absmax: float) -> int:
    """Return e with absmax / 2^e in (2¹⁴, 2¹⁵]: dividing by a power of two loses nothing. Zero gives e = 0."""
    if not absmax or not math.isfinite(absmax):
        return 0
    mantissa, exponent = math.frexp(absmax)
    return exponent - _TOP - (mantissa == 0.5)


def encode(block: np.ndarray, exponent: int) -> np.ndarray:
    """Return float16 of block / 2^exponent, little-endian; infinities and NaN stay what they are."""
    return np.ldexp(np.asarray(block, np.float32), -exponent).astype("<f2")


def gather(matrix: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return matrix[rows][:, cols] as float32 [len(rows), len(cols)]; whole rows first, as they lie on disk."""
    if _consecutive(rows) and _consecutive(cols):
        return np.asarray(matrix[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1], np.float32)
    return np.take(np.asarray(matrix[rows], np.float32), cols, axis=1)


def tile_bytes(matrix: np.ndarray, index: tuple[np.ndarray, np.ndarray], exponent: int,
               at: Sequence[tuple[int, int]]) -> bytes:
    """Return level-0 tiles (x, y) of the reordered matrix, back to back. Tiles of one row share their reading."""
    rows, cols = index
    cut: dict[tuple[int, int], bytes] = {}
    for y in {y for _, y in at}:
        wanted = sorted({x for x, row in at if row == y})
        band = rows[y * TILE:(y + 1) * TILE]
        chosen = [cols[x * TILE:(x + 1) * TILE] for x in wanted]
        strip = encode(gather(matrix, band, np.concatenate(chosen)), exponent)
        for x, part in zip(wanted, np.split(strip, np.cumsum([c.size for c in chosen])[:-1], axis=1), strict=True):
            cut[x, y] = pad(part).tobytes()
    return b"".join(cut[x, y] for x, y in at)


def pad(part: np.ndarray) -> np.ndarray:
    """Return the part as a full float16 tile, NaN beyond its edges."""
    if part.shape == (TILE, TILE):
        return part
    tile = np.full((TILE, TILE), np.nan, dtype="<f2")
    tile[:part.shape[0], :part.shape[1]] = part
    return tile


def _consecutive(index: np.ndarray) -> bool:
    return int(index[-1]) - int(index[0]) == index.size - 1 and bool((np.diff(index) == 1).all())
