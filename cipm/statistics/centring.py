"""Cut a stream into chunks of centred samples, ready for one matrix product each.

Every chunk is centred near its own mean before anything is multiplied, so that nothing cancels: one-pass formulas
(E[xy] − E[x]E[y]) lose everything at mean/sd = 10⁴. Subtracting is exact where it matters (Sterbenz: x − s is exact
for x within a factor 2 of s); what the shift leaves of the mean is kept beside the chunk and corrected in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cipm.compiled import compiled
from cipm.statistics.samples import refuse_nonfinite, too_large

CHUNK_ROWS, CHUNK_VALUES = 640, 2**18  # enough for the product's full rate; 1 MB of float32 where units are few
ROWS_PER_UNIT = 0.3125  # a float32 chunk is then .16 of units² float64; longer products are faster
MOST_ROWS = 4096
CACHE_LINE = 64  # bytes
SUM_ROWS = 64  # summed in float32 before float64 takes over
UNDERFLOW, OVERFLOW = 1e-30, 1e36  # sums of squares outside are not safe in float32


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some samples about a shift: `values` [rows, units] (good until the next chunk), `base` [units] float64,
    what was taken away (the same array while it stays the same), `total` and `square` [units] float64, the sums of the
    values and of their squares. `narrow` tells that products of the values stay within float32.
    """

    values: np.ndarray
    base: np.ndarray
    total: np.ndarray
    square: np.ndarray
    narrow: bool


class Centring:
    """The buffer that a stream of samples fills, chunk by chunk. Belongs to one accumulator."""

    def __init__(self, units: int, dtype: np.dtype, rows: int | None = None) -> None:
        self.units, self.dtype, self.rows = units, np.dtype(dtype), rows or chunk_rows(units)
        self.kind = ("cpu", self.dtype.name)
        self.buffer: np.ndarray | None = None
        self.fill = self.samples = 0
        self.started = False
        self.first = np.zeros(units)
        self.varies = np.zeros(units, bool)
        self.spread = np.zeros(units)  # sum of squares about the shifts, so far
        self._move(np.zeros(units, self.dtype))
        self._restart()

    def begin(self, samples: int) -> None:
        """Begin anew after so many samples, of which nothing is known."""
        self.samples = samples

    def resume(self, samples: int, first: np.ndarray, varies: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> None:
        """Go on with a stream of which these are the statistics."""
        self.started = True
        self.samples, self.first, self.varies, self.spread = samples, first, varies.copy(), spread.copy()
        self._move(np.where(varies, mean, first).astype(self.dtype))

    def take(self, x: np.ndarray, *, spend: bool = False) -> Iterator[Chunk]:
        """Yield the chunks that x [samples, units] completes. Raises InputError naming a value that is not finite.

        `spend`: x may be overwritten, so that enough of it for a chunk is centred where it is, without a buffer.
        """
        if not self.started and len(x):
            self.started = True
            self.first = x[0].astype(np.float64)
            self._move(x[0].astype(self.dtype))
            refuse_nonfinite(x[:1], self.samples)
        spend = spend and x.dtype == self.dtype and x.flags.c_contiguous and x.flags.writeable
        start = 0
        while start < len(x):
            whole = spend and not self.fill and len(x) - start >= CHUNK_ROWS
            piece = x[start:start + (MOST_ROWS if whole else self.rows - self.fill)]
            self._absorb(piece, piece if whole else self._room(len(piece)))
            start += len(piece)
            if whole or self.fill == self.rows:
                yield self._chunk(piece if whole else self.buffer)

    def drain(self) -> Iterator[Chunk]:
        """Yield the samples held back, if any."""
        if self.fill:
            yield self._chunk(self.buffer[:self.fill])

    def _room(self, rows: int) -> np.ndarray:
        if self.buffer is None:
            self.buffer = _aligned(self.rows, self.units, self.dtype)
        return self.buffer[self.fill:self.fill + rows]

    def _absorb(self, piece: np.ndarray, into: np.ndarray) -> None:
        if into is not piece:
            np.copyto(into, piece)
        _shift(into, self.shift, self.total, self.square)
        if not np.isfinite(self.total).all():
            refuse_nonfinite(piece, self.samples)
        self.fill, self.samples = self.fill + len(piece), self.samples + len(piece)

    def _chunk(self, values: np.ndarray) -> Chunk:
        with np.errstate(over="ignore", invalid="ignore"):
            rest = self.total / len(values)
            far = (5 * rest**2 > self.square / len(values)).any()  # more than half a standard deviation
        if far:
            self._shift_again(values, rest)
        if not np.isfinite(self.square).all():
            self._in_float64(values)
        self._notice(values)
        narrow = self.dtype == np.float64 or (self.square.max(initial=0) < OVERFLOW
                                              and not (self.varies & (self.spread < UNDERFLOW)).any())
        chunk = Chunk(values, self.base, self.total, self.square, bool(narrow))
        self._restart()
        if far:
            self._move(self.base.astype(self.dtype))
        return chunk

    def _shift_again(self, values: np.ndarray, rest: np.ndarray) -> None:
        """Centre a chunk whose mean is far from its shift by its own mean."""
        more = np.where(np.isfinite(rest), rest, 0).astype(self.dtype)
        self._restart()
        _shift(values, more, self.total, self.square)
        self.base = self.base + more

    def _move(self, shift: np.ndarray) -> None:
        """Take this shift from now on."""
        self.shift, self.base = shift, shift.astype(np.float64)

    def _in_float64(self, values: np.ndarray) -> None:
        """Sum again in float64 what is too large for float32."""
        wide = values.astype(np.float64)
        with np.errstate(over="ignore"):
            self.total, self.square = wide.sum(axis=0), np.square(wide).sum(axis=0)
        if not np.isfinite(self.square).all():
            raise too_large(values)

    def _notice(self, values: np.ndarray) -> None:
        """Tell exactly which units took another value than their first: until then their shift is that value."""
        self.spread += self.square
        self.varies |= self.square > 0
        quiet = np.flatnonzero(~self.varies)
        if quiet.size:  # squares of tiny values may have vanished
            self.varies[quiet] = _nonzero(values, quiet)

    def _restart(self) -> None:
        self.total, self.square = np.zeros(self.units), np.zeros(self.units)
        self.fill = 0


def chunk_rows(units: int) -> int:
    """Return how many samples make a chunk."""
    return min(max(CHUNK_VALUES // max(units, 1), CHUNK_ROWS, int(ROWS_PER_UNIT * units)), MOST_ROWS)


def _aligned(rows: int, units: int, dtype: np.dtype) -> np.ndarray:
    """Return memory that begins at a cache line: elsewhere a product of the same numbers may be rounded in another way."""
    size = rows * units * dtype.itemsize
    memory = np.empty(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start:start + size].view(dtype).reshape(rows, units)


@compiled
def _shift(values, shift, total, square):
    """Take the shift from the values, and add their sums and sums of squares: a few rows in their precision, then in float64.

    In place, one array read and written: beside a second one that may be the same, the loop is not vectorised.
    """
    some, squares = np.empty_like(shift), np.empty_like(shift)
    for start in range(0, values.shape[0], SUM_ROWS):
        some[:], squares[:] = 0, 0
        for row in range(start, min(start + SUM_ROWS, values.shape[0])):
            sample = values[row]
            for unit in range(sample.size):
                value = sample[unit] - shift[unit]
                sample[unit] = value
                some[unit] += value
                squares[unit] += value * value
        for unit in range(shift.size):
            total[unit] += some[unit]
            square[unit] += squares[unit]


@compiled
def _nonzero(values, columns):
    found = np.zeros(columns.size, np.bool_)
    for row in range(values.shape[0]):
        for i in range(columns.size):
            if values[row, columns[i]] != 0:
                found[i] = True
    return found
