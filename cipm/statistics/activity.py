"""Units that do nothing: constant, never active, saturated; each said in words for the range of the activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.statistics.samples import finite_samples, need_samples

NEAR = 0.01  # of the width of a range closed on both sides: this near its end counts as at it


@dataclass(frozen=True)
class ActivationRange:
    """The values an activation can take; None where it has no end on that side."""

    lower: float | None = None
    upper: float | None = None

    @property
    def margin(self) -> float:
        """Return how near to an end counts as at it: a hundredth of a range with two ends, otherwise nothing."""
        return NEAR * (self.upper - self.lower) if self.lower is not None and self.upper is not None else 0.0


RANGES = {
    "relu": ActivationRange(0.0), "relu6": ActivationRange(0.0, 6.0), "sigmoid": ActivationRange(0.0, 1.0),
    "tanh": ActivationRange(-1.0, 1.0), "hardsigmoid": ActivationRange(0.0, 1.0), "hardtanh": ActivationRange(-1.0, 1.0),
    "softmax": ActivationRange(0.0, 1.0), "elu": ActivationRange(-1.0), "softplus": ActivationRange(0.0),
}


@dataclass(frozen=True, eq=False)
class Idle:
    """Masks [units]: `constant`, every sample is the same number; `never_active`, the range has a lower end and every
    sample is at it; `saturated`, every sample is at an end of the range, not all at the lower one. `extreme` [units] is
    the share of samples at an end.
    """

    constant: np.ndarray
    never_active: np.ndarray
    saturated: np.ndarray
    extreme: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class Activity:
    """An accumulator of what units do within their range: create, update, merge, finalise.

    Error: none; exact counts, the same for any sharding and order. Cost: samples · units.
    """

    range: ActivationRange
    samples: int
    first: np.ndarray
    varies: np.ndarray
    at_lower: np.ndarray
    at_upper: np.ndarray

    @classmethod
    def create(cls, units: int, range: ActivationRange = ActivationRange()) -> Activity:
        """Return the accumulator of no samples."""
        none = np.zeros(units, np.int64)
        return cls(range, 0, np.zeros(units), np.zeros(units, bool), none, none)

    def update(self, batch: Any) -> Activity:
        """Return the accumulator with these samples [samples, units] added."""
        x = finite_samples(batch, self.first.size, self.samples)
        if not len(x):
            return self
        none, ends, near = np.zeros(x.shape[1], np.int64), self.range, self.range.margin
        lower = none if ends.lower is None else (x <= ends.lower + near).sum(axis=0)
        upper = none if ends.upper is None else (x >= ends.upper - near).sum(axis=0)
        return self.merge(Activity(ends, len(x), x[0].astype(np.float64), (x != x[0]).any(axis=0), lower, upper))

    def merge(self, other: Activity) -> Activity:
        """Return the accumulator of both shards' samples."""
        assert self.range == other.range and self.first.size == other.first.size
        if not self.samples or not other.samples:
            return self if self.samples else other
        return Activity(self.range, self.samples + other.samples, self.first,
                        self.varies | other.varies | (self.first != other.first),
                        self.at_lower + other.at_lower, self.at_upper + other.at_upper)

    def finalise(self) -> Idle:
        """Return which units do nothing, and how."""
        need_samples(self.samples, 1, "Activity")
        never = self.at_lower == self.samples
        extreme = self.at_lower + self.at_upper
        return Idle(~self.varies, never, (extreme == self.samples) & ~never, extreme / self.samples)
