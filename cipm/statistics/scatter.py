"""The working state of a covariance: mean and scatter of a stream, whatever device its samples are on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cipm.statistics.centring import Centring, Chunk
from cipm.statistics.device import DeviceCentring, DeviceProducts, TorchProducts
from cipm.statistics.samples import on_device
from cipm.statistics.triangle import Products, add_factors, diagonal, triangle_words

MOST_RUNS = 16  # then the triangle takes them in, whatever the rows


@dataclass(eq=False)
class _Run:
    """Chunks in a row about the same base: their rows and the sum of their values."""

    base: np.ndarray
    rows: int
    total: np.ndarray


@dataclass(eq=False)
class Scatter:
    """Mean [units] and centred scatter (a triangle) of `samples` samples; belongs to one accumulator.

    What came since the last flush is held in products, and in the sums of the chunks by their base. The flush takes the
    mean out of each run of chunks and adds the scatter of the means, all in float64 (Chan, Golub, LeVeque).
    """

    units: int
    exact: bool = False
    samples: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    triangle: np.ndarray = field(default_factory=lambda: np.zeros(0))
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    varies: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    memory: np.ndarray | None = None
    threads: str = "blas"
    _centring: Any = None
    _products: Any = None
    _runs: list[_Run] = field(default_factory=list)
    _cut: bool = False

    @classmethod
    def create(cls, units: int, *, exact: bool, spend: bool = False, threads: str = "blas") -> Scatter:
        """Return the state of no samples; `spend`: in one block of memory, which holds the result in the end."""
        words, memory = triangle_words(units), None
        if spend:
            memory = np.zeros(max(words + (units * units + 1) // 2, units * units))
        triangle = np.zeros(words) if memory is None else memory[:words]
        return cls(units, exact, 0, np.zeros(units), triangle, np.zeros(units), np.zeros(units, bool), memory, threads)

    def add(self, x: Any, *, spend: bool = False) -> None:
        """Add samples [samples, units], of float32 or float64, on the host or a device; `spend`: they may be overwritten."""
        x = x.astype(np.float64, copy=False) if self.exact and not on_device(x) else x
        x = x.double() if self.exact and on_device(x) else x
        self._prepare(x)
        for chunk in self._centring.take(x, spend=spend):
            self._add(chunk)

    def settle(self) -> Scatter:
        """Take in everything held back, and give working memory back; the value stays the same."""
        if self._centring is not None:
            for chunk in self._centring.drain():
                self._add(chunk)
            self._notice(self._centring.first, self._centring.varies)
        self._flush(keep=False)
        self._centring = self._products = None
        return self

    def cut(self) -> None:
        """Begin anew: what comes is rounded as if nothing had come before, and is added in float64."""
        self.settle()
        self._cut = self.samples > 0

    @property
    def seen(self) -> int:
        """Return how many samples came, those held back among them."""
        return self.samples if self._centring is None else self._centring.samples

    def merged(self, other: Scatter) -> Scatter:
        """Return a new state of both streams; both stay as they are."""
        a, b = self.settle(), other.settle()
        if not a.samples or not b.samples:
            return (a if a.samples else b).copy()
        total, delta = a.samples + b.samples, b.mean - a.mean
        triangle = a.triangle + b.triangle
        add_factors(triangle, delta[None], np.array([a.samples * (b.samples / total)]))
        return Scatter(self.units, self.exact and other.exact, total, a.mean + delta * (b.samples / total), triangle,
                       a.first, a.varies | b.varies | (a.first != b.first))

    def copy(self) -> Scatter:
        """Return a new state of the same stream."""
        self.settle()
        return Scatter(self.units, self.exact, self.samples, self.mean.copy(), self.triangle.copy(), self.first.copy(),
                       self.varies.copy())

    def _prepare(self, x: Any) -> None:
        """Have buffers for samples like x; buffers for others are settled first."""
        kind = (str(x.device), str(x.dtype)) if on_device(x) else ("cpu", np.dtype(x.dtype).name)
        if self._centring is not None and self._centring.kind == kind:
            return
        self.settle()
        if on_device(x):
            self._centring, self._products = DeviceCentring(self.units, kind), DeviceProducts(self.units)
        elif self.threads == "torch":
            self._centring, self._products = Centring(self.units, x.dtype), TorchProducts(self.units, x.dtype)
        else:
            spare = None if self.memory is None else self.memory[len(self.triangle):]
            self._centring, self._products = Centring(self.units, x.dtype), Products(self.units, x.dtype, spare)
        if self._cut:
            self._centring.begin(self.samples)
        elif self.samples:
            self._centring.resume(self.samples, self.first, self.varies, self.mean, diagonal(self.triangle, self.units))

    def _notice(self, first: np.ndarray, varies: np.ndarray) -> None:
        """Take in which units varied since the stream began, or since the cut."""
        if self._cut:
            self.varies, self._cut = self.varies | varies | (self.first != first), False
        else:
            self.first, self.varies = first, varies

    def _add(self, chunk: Chunk) -> None:
        self._products.add(chunk.values) if chunk.narrow else self._products.add_wide(chunk.values, self.triangle)
        if self._runs and self._runs[-1].base is chunk.base:
            self._runs[-1].rows += len(chunk.values)
            self._runs[-1].total += chunk.total
        else:
            self._runs.append(_Run(chunk.base, len(chunk.values), chunk.total))
        if self._products.full or len(self._runs) >= MOST_RUNS:
            self._flush(keep=True)

    def _flush(self, *, keep: bool) -> None:
        if self._products is not None:
            self._products.flush(self.triangle, keep=keep)
        if not self._runs:
            return
        rows = np.array([run.rows for run in self._runs], dtype=np.float64)
        rests = np.stack([run.total / run.rows for run in self._runs])
        means = rests + np.stack([run.base for run in self._runs])
        here, total = rows.sum(), self.samples + rows.sum()
        mean = rows @ means / here
        delta = mean - self.mean
        add_factors(self.triangle, np.concatenate([rests, means - mean, delta[None]]),
                    np.concatenate([-rows, rows, [self.samples * (here / total)]]))
        self.mean = self.mean + delta * (here / total)
        self.samples = int(total)
        self._runs.clear()
