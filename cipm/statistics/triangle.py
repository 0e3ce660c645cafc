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


def empty_triangle(units: int) -> np.ndarray:
    """Return the zero triangle [words] float64 of a symmetric [units, units] matrix."""
    return np.zeros(sum((units - j) * min(PANEL, units - j) for j in range(0, units, PANEL)))


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
    for first, end, panel in panels(triangle, factors.shape[1]):
        blas.dgemm(1.0, factors[:, first:], factors[:, first:end] * weights[:, None], beta=1.0, c=panel, trans_a=1,
                   overwrite_c=1)


def diagonal(triangle: np.ndarray, units: int) -> np.ndarray:
    """Return the diagonal [units] of the symmetric matrix."""
    return np.concatenate([panel.diagonal() for _, _, panel in panels(triangle, units)])


def to_square(triangle: np.ndarray, units: int, scale: np.ndarray, *, offset: np.ndarray | None = None,
              bound: float = np.inf) -> np.ndarray:
    """Return the symmetric matrix (m[i, j] + offset[i] offset[j]) · scale[i] scale[j], clipped to ±bound.

    Exactly symmetric, [units, units] float64 in C order.
    """
    full = np.empty((units, units))
    for first, _, panel in panels(triangle, units):
        _write_both(panel.T, first, full, scale, np.zeros(units) if offset is None else offset, bound)
    return full


@compiled
def _write_both(columns, first, full, scale, offset, bound):
    """Write a panel to both triangles, in tiles of 8 × 8: one cache line each way, whatever the leading dimension."""
    width, height = columns.shape
    for down in range(0, height, 8):
        for across in range(0, min(width, down + 8), 8):
            for i in range(down, min(down + 8, height)):
                row = first + i
                for j in range(across, min(across + 8, width, i + 1)):
                    column = first + j
                    value = (columns[j, i] + offset[row] * offset[column]) * scale[row] * scale[column]
                    value = min(max(value, -bound), bound)
                    full[row, column] = value
                    full[column, row] = value


class Products:
    """The sum of valuesᵀ values over chunks since the last flush; only the lower triangle is computed.

    Cost: rows · units² multiply-adds of a symmetric rank-k product. Memory: units² values until the flush.
    """

    def __init__(self, units: int, dtype: np.dtype) -> None:
        self.units, self.dtype, self.rows = units, np.dtype(dtype), 0
        self._sum: np.ndarray | None = None

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
                np.add(panel, self._sum[first:, first:end], out=panel)
        self.rows = 0
        if not keep:
            self._sum = None
