"""Correlation of a model or data that change: running estimates that forget, and full ones with interpolation between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.errors import InputError
from cipm.statistics.covariance import inverse_root
from cipm.statistics.samples import as_samples, need_samples
from cipm.statistics.scatter import Scatter
from cipm.statistics.triangle import add_factors, diagonal, to_square


@final
@dataclass(frozen=True, eq=False)
class Running:
    """An accumulator that forgets: create, update (one step), merge, finalise.

    At every step what came before counts `decay` times as much. Sums are divided by the weight they really have, so the
    first steps are not biased towards zero (as an average started at zero would be).

    Error: that of a correlation over `effective_samples` samples, (Σ weights)² / Σ weights², which goes to
    B (1 + decay)/(1 − decay) for steps of B samples; beside it the correlation of up to that many samples ago. Cost of
    a step: samples · units² / 2, and units² for forgetting. Merge is for shards of the same steps.
    """

    decay: float
    steps: int
    weight: float
    squared: float
    mean: np.ndarray
    triangle: np.ndarray
    varies: np.ndarray
    seen: int

    @classmethod
    def create(cls, units: int, *, decay: float) -> Running:
        """Return the accumulator of no steps; `decay` from 0 (the last step alone) to 1 (nothing is forgotten)."""
        if not 0 <= decay <= 1:
            raise InputError(f"A decay goes from 0 to 1; it is {decay}.")
        empty = Scatter.create(units, exact=False)
        return cls(decay, 0, 0.0, 0.0, empty.mean, empty.triangle, empty.varies, 0)

    @property
    def samples(self) -> int:
        """Return how many samples were seen, forgotten ones among them."""
        return self.seen

    @property
    def effective_samples(self) -> float:
        """Return how many samples of equal weight would know as much."""
        return self.weight**2 / self.squared if self.squared else 0.0

    def update(self, batch: Any) -> Running:
        """Return the accumulator one step [samples, units] on."""
        step = Scatter.create(self.mean.size, exact=False)
        step.add(as_samples(batch, self.mean.size))
        step.settle()
        old = Running(self.decay, self.steps + 1, self.weight * self.decay, self.squared * self.decay**2, self.mean,
                      self.triangle * self.decay, self.varies, self.seen)
        new = Running(self.decay, self.steps + 1, float(step.samples), float(step.samples), step.mean, step.triangle,
                      step.varies, step.samples)
        return old._with(new)

    def merge(self, other: Running) -> Running:
        """Return the accumulator of both shards of the same steps."""
        assert (self.decay, self.steps) == (other.decay, other.steps)
        return self._with(other)

    def finalise(self) -> np.ndarray:
        """Return the correlation [units, units] float64; units that do not vary get 0, and 1 on the diagonal."""
        need_samples(self.seen, 2, "A correlation")
        scale = inverse_root(np.where(self.varies, diagonal(self.triangle, self.mean.size), 0))
        full = to_square(self.triangle, self.mean.size, scale, bound=1.0)
        np.fill_diagonal(full, 1)
        return full

    def covariance(self) -> np.ndarray:
        """Return the covariance [units, units] float64, unbiased for samples of unequal weight."""
        freedom = self.weight - self.squared / self.weight if self.weight else 0.0
        need_samples(self.seen if freedom > 0 else min(self.seen, 1), 2, "A covariance")
        return to_square(self.triangle, self.mean.size, self.varies / np.sqrt(freedom))

    def _with(self, other: Running) -> Running:
        weight = self.weight + other.weight
        if not weight:
            return self
        delta, triangle = other.mean - self.mean, self.triangle + other.triangle
        add_factors(triangle, delta[None], np.array([self.weight * (other.weight / weight)]))
        apart = (delta != 0) if self.weight and other.weight else np.zeros(delta.size, bool)
        return Running(self.decay, self.steps, weight, self.squared + other.squared,
                       self.mean + delta * (other.weight / weight), triangle, self.varies | other.varies | apart,
                       self.seen + other.seen)


@final
@dataclass(frozen=True, eq=False)
class Interpolated:
    """Full correlations at some steps, and straight lines between: what a correlation was at any step.

    Between two full ones the line is itself a correlation (a weighted mean of two). After the last one it stays, and
    before the first one too. `drift` is the largest change of an entry per step between the last two: how far off the
    last one is a step later, if it goes on like that.

    Error at a step between: at most period²/8 · |second derivative of the entry by steps|, beside that of the full ones;
    after the last one `drift` · steps since, as far as the past tells. Memory: two matrices.
    """

    steps: tuple[int, ...] = ()
    matrices: tuple[np.ndarray, ...] = ()

    def add(self, step: int, correlation: np.ndarray) -> Interpolated:
        """Return the value with a full correlation [units, units] at a later step; the one before the last is dropped."""
        if self.steps and step <= self.steps[-1]:
            raise InputError(f"Steps go forward; {step} comes after {self.steps[-1]}.")
        return Interpolated((*self.steps[-1:], step), (*self.matrices[-1:], correlation))

    def at(self, step: float) -> np.ndarray:
        """Return the correlation [units, units] at a step."""
        if not self.steps:
            raise InputError("There is no full correlation yet.", fix="Add one first.")
        if len(self.steps) == 1:
            return self.matrices[0]
        first, last = self.steps
        share = min(max((step - first) / (last - first), 0.0), 1.0)
        return (1 - share) * self.matrices[0] + share * self.matrices[1]

    @property
    def drift(self) -> float | None:
        """Return the largest change of an entry per step, or None before the second full correlation."""
        if len(self.steps) < 2:
            return None
        return float(np.abs(self.matrices[1] - self.matrices[0]).max()) / (self.steps[1] - self.steps[0])

    def due(self, step: int, tolerance: float) -> bool:
        """Tell whether a full correlation is due: the last one may be off by more than `tolerance` by now."""
        return self.drift is None or self.drift * (step - self.steps[-1]) > tolerance
