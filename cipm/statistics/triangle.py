"""Sums of symmetric products: float32 products in place, gathered into a float64 triangle every so many rows.

The triangle is stored as panels of PANEL columns, each from the diagonal down, one after the other in one array: half
the memory of a square, and every panel is a matrix that BLAS can update.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import blas

from cipm.compiled import compiled

PANEL = 128
FLUSH_ROWS = 32_768  # float32 sums over so many rows lose about 4e-7 at most


def triangle_words(units: int) -> int:
    """Return how many float64 the triangle of a symmetric [units, units] matrix takes."""
    return sum((units - j) * min(PANEL, units - j) for j in range(0, units, PANEL))


def panels(triangle: np.ndarray, units: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first column, end column, view [units − first, columns]) of each panel."""
    start = 0
    for first in range(0, units, PANEL):
        end = min(first + PANEL, units)
        size = (units - first) * (end - first)
        yield first, end, triangle[start:start + size].reshape((units - first, end - first), order="F")
        start += size


def add_factors(triangle: np.ndarray, factors: np.ndarray, weights: np.ndarray) -> None:
    """Add Σ_k weights[k] · factors[k] factors[k]ᵀ, with factors [k, units] float64."""
    some = (weights != 0) & factors.any(axis=1)
    factors, weights = factors[some], weights[some]
    for first, end, panel in panels(triangle, factors.shape[1] if some.any() else 0):
        _add_outer(panel.T, factors[:, first:], factors[:, first:end] * weights[:, None])


@compiled
def _add_outer(columns, factors, weighted):
    """Add few outer products to a panel; one thread, for a threaded product of this size waits more than it works."""
    for column in range(columns.shape[0]):
        target = columns[column]
        for k in range(factors.shape[0]):
            given, weight = factors[k], weighted[k, column]
            for i in range(target.size):
                target[i] += weight * given[i]


@compiled
def add_columns(columns, given):
    """Add columns of products to those of a panel; numpy would first copy them to the wider type, piece by piece."""
    for column in range(columns.shape[0]):
        target, source = columns[column], given[column]
        for i in range(target.size):
            target[i] += source[i]


def diagonal(triangle: np.ndarray, units: int) -> np.ndarray:
    """Return the diagonal [units] of the symmetric matrix."""
    return np.concatenate([panel.diagonal() for _, _, panel in panels(triangle, units)])


def to_square(triangle: np.ndarray, units: int, scale: np.ndarray, *, offset: np.ndarray | None = None,
              bound: float = np.inf, into: np.ndarray | None = None) -> np.ndarray:
    """Return the symmetric matrix (m[i, j] + offset[i] offset[j]) · scale[i] scale[j], clipped to ±bound.

    Exactly symmetric, [units, units] float64 in C order. `into` gives its memory, which may begin with the triangle's
    own: rows are written from the last to the first, never onto a panel still to be read.
    """
    offset = np.zeros(units) if offset is None else offset
    full = (np.zeros(units * units) if into is None else into[:units * units]).reshape(units, units)
    for first, end, panel in reversed(list(panels(triangle, units))):
        _write_rows(panel.T.copy(), full[first:end, first:], scale[first:], offset[first:], bound)
    for first in range(0, units, PANEL):
        end = first + PANEL
        _mirror(full[first:end, end:], full[end:, first:end])
        corner = full[first:end, first:end]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T
    return full


@compiled
def _write_rows(source, target, scale, offset, bound):
    """Write columns of the lower triangle as rows of the upper one: the first is the diagonal's."""
    for row in range(source.shape[0]):
        given, written = source[row], target[row]
        for i in range(given.size):
            value = (given[i] + offset[i] * offset[row]) * (scale[i] * scale[row])
            written[i] = min(max(value, -bound), bound)


@compiled
def _mirror(rows, columns):
    """Write rows as columns in tiles of 8 × 8: one cache line each way, whatever the leading dimension."""
    width, height = rows.shape
    down = 0
    while down + 8 <= height:
        for across in range(0, width - width % 8, 8):
            for i in range(8):
                written = columns[down + i]
                for j in range(8):
                    written[across + j] = rows[across + j, down + i]
        for across in range(width - width % 8, width):
            for i in range(8):
                columns[down + i, across] = rows[across, down + i]
        down += 8
    for i in range(down, height):
        for j in range(width):
            columns[i, j] = rows[j, i]


class Products:
    """The sum of valuesᵀ values over chunks since the last flush; only the lower triangle is computed.

    Cost: rows · units² multiply-adds of a symmetric rank-k product. Memory: units² values until the flush.
    """

    def __init__(self, units: int, dtype: np.dtype, memory: np.ndarray | None = None) -> None:
        """`memory`: float64 words to use where the products fit there."""
        self.units, self.dtype, self.rows = units, np.dtype(dtype), 0
        self._sum: np.ndarray | None = None
        if memory is not None and memory.nbytes >= units * units * self.dtype.itemsize:
            self._sum = memory.view(self.dtype)[:units * units].reshape((units, units), order="F")

    @property
    def full(self) -> bool:
        return self.rows >= FLUSH_ROWS

    def add(self, values: np.ndarray) -> None:
        """Add the products of values [rows, units]."""
        syrk = blas.ssyrk if self.dtype == np.float32 else blas.dsyrk
        if self._sum is None:
            self._sum = np.zeros((self.units, self.units), self.dtype, order="F")
        self._sum = syrk(1.0, values.T, beta=1.0 if self.rows else 0.0, c=self._sum, lower=1, overwrite_c=1)
        self.rows += len(values)

    def add_wide(self, values: np.ndarray, triangle: np.ndarray) -> None:
        """Add products that float32 cannot hold, in float64, to the triangle at once."""
        wide = Products(self.units, np.float64)
        wide.add(values.astype(np.float64))
        wide.flush(triangle)

    def flush(self, triangle: np.ndarray, *, keep: bool = True) -> None:
        """Add what was gathered to the triangle and start anew; give the memory back unless `keep`."""
        if self.rows:
            for first, end, panel in panels(triangle, self.units):
                add_columns(panel.T, self._sum.T[first:end, first:])
        self.rows = 0
        if not keep:
            self._sum = None
