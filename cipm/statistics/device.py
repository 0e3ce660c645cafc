"""The same products by torch. For samples on a CUDA device (or any other that torch knows) nothing leaves it until the
statistics are read, but the means of the chunks; on the host, torch's own threads multiply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from cipm.statistics.centring import OVERFLOW, UNDERFLOW, Chunk
from cipm.statistics.samples import refuse_nonfinite, too_large
from cipm.statistics.triangle import FLUSH_ROWS, add_columns, panels, triangle_words

CHUNK_ROWS = 8192  # long enough for the device's full rate, short enough for float32 sums


class DeviceCentring:
    """Cuts batches on a device into chunks about their own means; like `Centring`, but holds no sample back."""

    def __init__(self, units: int, kind: tuple[str, str]) -> None:
        self.units, self.kind, self.samples, self.started = units, kind, 0, False
        self.first, self.varies, self.spread = np.zeros(units), np.zeros(units, bool), np.zeros(units)

    def begin(self, samples: int) -> None:
        """Begin anew after so many samples, of which nothing is known."""
        self.samples = samples

    def resume(self, samples: int, first: np.ndarray, varies: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> None:
        """Go on with a stream of which these are the statistics."""
        self.started = True
        self.samples, self.first, self.varies, self.spread = samples, first, varies.copy(), spread.copy()

    def take(self, x: Any, *, spend: bool = False) -> Iterator[Chunk]:
        """Yield x [samples, units] in chunks, never overwritten. Raises InputError naming a value that is not finite."""
        for piece in x.split(CHUNK_ROWS):
            if len(piece):
                yield self._chunk(piece)

    def drain(self) -> Iterator[Chunk]:
        """Yield nothing: no sample is held back."""
        return iter(())

    def _chunk(self, piece: Any) -> Chunk:
        if not self.started:
            self.first, self.started = _host(piece[0]), True
        first = piece.new_tensor(self.first)
        varied = _host((piece != first).any(dim=0))
        shift = piece.mean(dim=0).where(piece.new_tensor(varied).bool(), first)
        values = piece - shift
        square = _host(values.double().square().sum(dim=0))
        if not np.isfinite(square).all():
            refuse_nonfinite(piece.cpu().numpy(), self.samples)
            raise too_large(piece.cpu().numpy())
        self.samples += len(piece)
        self.varies |= varied
        self.spread += square
        narrow = bool(square.max(initial=0) < OVERFLOW) and not (self.varies & (self.spread < UNDERFLOW)).any()
        total = _host(values.double().sum(dim=0))
        return Chunk(values, _host(shift), total, square, narrow or piece.dtype.itemsize == 8)


class TorchProducts:
    """The sum of valuesᵀ values on the host by torch's threads; only the lower triangle is computed, in panels.

    For activations of a model that torch runs beside it: the threads of a BLAS of its own would wait for the cores that
    torch's threads hold, and the other way round. Cost: 1.1 to 1.3 × a symmetric rank-k product. Memory: units² / 2 values.
    """

    def __init__(self, units: int, dtype: np.dtype) -> None:
        self.units, self.dtype, self.rows = units, np.dtype(dtype), 0
        self._torch = import_module("torch")
        self._sum: np.ndarray | None = None

    @property
    def full(self) -> bool:
        return self.rows >= FLUSH_ROWS

    def add(self, values: np.ndarray) -> None:
        """Add the products of values [rows, units]."""
        x = self._torch.from_numpy(values)
        if self._sum is None:
            self._sum = self._torch.empty(triangle_words(self.units), dtype=x.dtype).numpy()
        for first, end, panel in panels(self._sum, self.units):
            self._torch.from_numpy(panel.T).addmm_(x[:, first:end].T, x[:, first:], beta=1 if self.rows else 0)
        self.rows += len(values)

    def add_wide(self, values: np.ndarray, triangle: np.ndarray) -> None:
        """Add products that float32 cannot hold, in float64, to the triangle at once."""
        wide = TorchProducts(self.units, np.float64)
        wide.add(values.astype(np.float64))
        wide.flush(triangle)

    def flush(self, triangle: np.ndarray, *, keep: bool = True) -> None:
        """Add what was gathered to the triangle and start anew; give the memory back unless `keep`."""
        if self.rows:
            add_columns(triangle[None], self._sum[None])
        self.rows = 0
        if not keep:
            self._sum = None


class DeviceProducts:
    """Sums of valuesᵀ values on the device: float32 products, float64 sums every FLUSH_ROWS rows; TF32 is never used."""

    full = False  # flushes by itself

    def __init__(self, units: int) -> None:
        self.units, self.rows = units, 0
        self._narrow: Any = None
        self._sum: Any = None

    def add(self, values: Any) -> None:
        """Add the products of values [rows, units]."""
        if self._sum is None:
            self._sum = values.new_zeros((self.units, self.units)).double()
            self._narrow = values.new_zeros((self.units, self.units))
        with _full_precision():
            self._narrow.addmm_(values.T, values)
        self.rows += len(values)
        if self.rows >= FLUSH_ROWS:
            self._gather()

    def add_wide(self, values: Any, triangle: np.ndarray) -> None:
        """Add products that float32 cannot hold, in float64."""
        wide = values.double()
        self._to_triangle(wide.T @ wide, triangle)

    def flush(self, triangle: np.ndarray, *, keep: bool) -> None:
        """Add everything to the triangle, on the host, unless it may be kept on the device."""
        if self._sum is not None and not keep:
            self._gather()
            self._to_triangle(self._sum, triangle)
            self._sum = self._narrow = None

    def _gather(self) -> None:
        self._sum += self._narrow
        self._narrow.zero_()
        self.rows = 0

    def _to_triangle(self, square: Any, triangle: np.ndarray) -> None:
        for first, end, panel in panels(triangle, self.units):
            panel += square[first:, first:end].cpu().numpy()


@contextmanager
def _full_precision() -> Iterator[None]:
    torch = import_module("torch")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _host(x: Any) -> np.ndarray:
    x = x.cpu()
    return (x if x.dtype.is_floating_point is False else x.double()).numpy()
