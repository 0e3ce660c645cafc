"""Means, covariance, Pearson correlation and cosine of a stream of samples, mergeable over shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

import numpy as np

from cipm.errors import InputError
from cipm.statistics.samples import as_samples, need_samples
from cipm.statistics.scatter import Scatter
from cipm.statistics.triangle import diagonal, to_square

BLOCK_SAMPLES = 4096  # samples worth adding at once where activations are small
VANISHING = 1e-300  # a scatter below is no variation: activations that differ by less than 1e-150


@final
class Covariance:
    """An accumulator of mean and scatter: create, update, merge, finalise.

    `finalise` gives the Pearson correlation; `covariance`, `cosine` and `mean` are read from the same sums. A unit that
    only ever took one value is *dead*: it correlates with nothing.

    Update hands the working memory on to the value it returns, so the value updated must not be used again (it raises
    AssertionError); after an error start anew. Merge and every reading leave values as they are.

    Error: correlation within 2e-6 of float64 for float32 samples, also at mean/sd = 10⁴; covariance within 2e-6 · the
    product of the two standard deviations. Merging in any order agrees to 1e-12. Any *sharding* agrees to 1e-12 for
    float64 samples, and for float32 ones where `exact` (products in float64, half the speed); without it other borders
    change the rounding of the float32 products (about 1e-7), unless the whole stream was `cut` at them. Never NaN.

    Cost: one symmetric rank-k product, samples · units² multiply-adds. Memory beside the samples: 1.2 units² float64
    from 2048 units on (a float64 triangle, a float32 square, a buffer), half of that between updates.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    __slots__ = ("_scatter",)

    def __init__(self, scatter: Scatter) -> None:
        self._scatter: Scatter | None = scatter

    @classmethod
    def create(cls, units: int, *, exact: bool = False, threads: Literal["blas", "torch"] = "blas") -> Covariance:
        """Return the accumulator of no samples; `exact` multiplies float32 samples in float64.

        `threads` tells whose multiply samples on the host: BLAS is the fastest alone, torch beside a model that torch runs.
        """
        return cls(Scatter.create(units, exact=exact, threads=threads))

    def update(self, batch: Any, *, spend: bool = False) -> Covariance:
        """Return the accumulator with these samples [samples, units] added; the receiver is used up.

        Takes numpy arrays and torch tensors; a CUDA tensor is multiplied on its device. `spend`: the batch may be
        overwritten, which saves a copy. Raises InputError where the
        shape does not fit or a value is not finite (naming the sample, counted from the first one, and the unit).
        """
        x = as_samples(batch, self.units)
        scatter, self._scatter = self._live, None
        scatter.add(x, spend=spend)
        return Covariance(scatter)

    def merge(self, other: Covariance) -> Covariance:
        """Return the accumulator of both shards' samples."""
        assert self.units == other.units
        return Covariance(self._live.merged(other._live))

    def cut(self) -> Covariance:
        """Return the accumulator with a cut here; the receiver is used up.

        What comes after a cut is rounded as in an accumulator of its own, and added in float64. So shards that begin at
        cuts agree to 1e-12 with the whole stream cut at the same places, for float32 samples too.
        """
        scatter, self._scatter = self._live, None
        scatter.cut()
        return Covariance(scatter)

    def finalise(self) -> np.ndarray:
        """Return the Pearson correlation [units, units] float64; dead units get 0, and 1 on the diagonal."""
        return self.correlation()

    @property
    def units(self) -> int:
        return self._live.units

    @property
    def samples(self) -> int:
        return self._live.seen

    @property
    def mean(self) -> np.ndarray:
        """Return the mean [units] float64."""
        return self._live.settle().mean

    @property
    def variance(self) -> np.ndarray:
        """Return the variance [units] float64, divided by samples − 1; exactly zero for dead units."""
        self._need_two()
        return np.where(self.dead, 0, np.maximum(self._diagonal(), 0) / (self.samples - 1))

    @property
    def varies(self) -> np.ndarray:
        """Return the mask [units] of the units that took more than one value."""
        return self._live.settle().varies

    @property
    def dead(self) -> np.ndarray:
        """Return the mask [units] of the units that never changed: they correlate with nothing."""
        return ~self.varies

    def covariance(self) -> np.ndarray:
        """Return the covariance [units, units] float64, divided by samples − 1; exact zeros for dead units."""
        self._need_two()
        return to_square(self._live.triangle, self.units, self.varies / np.sqrt(self.samples - 1))

    def correlation(self) -> np.ndarray:
        """Return the Pearson correlation [units, units] float64; dead units get 0, and 1 on the diagonal."""
        self._need_two()
        return self._scaled(np.where(self.varies, self._diagonal(), 0), np.zeros(self.units))

    def cosine(self) -> np.ndarray:
        """Return the cosine [units, units] float64 of the uncentred activations; a unit that is always zero gets 0, and
        1 on the diagonal. Error as for the correlation, or less.
        """
        need_samples(self.samples, 1, "A cosine")
        offset = np.sqrt(self.samples) * self.mean
        return self._scaled(self._diagonal() + offset**2, offset)

    def state(self) -> dict[str, np.ndarray]:
        """Return the accumulator as named arrays, for storage; `from_state` gives it back."""
        settled = self._live.settle()
        return {"samples": np.array(settled.samples, dtype=np.int64), "mean": settled.mean, "scatter": settled.triangle,
                "first": settled.first, "varies": settled.varies}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Covariance:
        """Rebuild an accumulator from `state`."""
        return cls(Scatter(len(state["mean"]), False, int(state["samples"]), np.array(state["mean"]),
                           np.array(state["scatter"]), np.array(state["first"]), np.array(state["varies"], dtype=bool)))

    @property
    def _live(self) -> Scatter:
        assert self._scatter is not None, "this accumulator was updated; use the one that update returned"
        return self._scatter

    def _need_two(self) -> None:
        need_samples(self.samples, 2, "A correlation")

    def _diagonal(self) -> np.ndarray:
        return diagonal(self._live.settle().triangle, self.units)

    def _scaled(self, energy: np.ndarray, offset: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Return (scatter + offset offsetᵀ) / √(energy energyᵀ), clipped, with ones on the diagonal."""
        full = to_square(self._live.triangle, self.units, inverse_root(energy), offset=offset, bound=1.0, into=into)
        np.fill_diagonal(full, 1)
        return full

    def _spend(self) -> np.ndarray:
        """Return the correlation in the accumulator's own memory; the receiver is used up."""
        self._need_two()
        energy, memory = np.where(self.varies, self._diagonal(), 0), self._live.memory
        full = self._scaled(energy, np.zeros(self.units), memory)
        self._scatter = None
        return full


def correlation(batches: Iterable[Any]) -> np.ndarray:
    """Return the Pearson correlation [units, units] (float64) over batches [samples, units].

    Dead (constant) units get 0, and 1 on the diagonal; never NaN. Raises InputError where there are fewer than two
    samples, the batches disagree in width, or a value is not finite.
    """
    found: Covariance | None = None
    for batch in batches:
        batch = as_samples(batch)
        found = (found or Covariance(Scatter.create(batch.shape[1], exact=False, spend=True))).update(batch)
    if found is None:
        raise InputError("A correlation needs at least two samples; there are none.", fix="Give more probe rows.")
    return found._spend()


def correlation_from_covariance(covariance: np.ndarray, dead: np.ndarray | None = None) -> np.ndarray:
    """Return the correlation of a covariance or scatter [units, units]. Exactly symmetric.

    Units of zero variance count as dead besides those given.
    """
    variance = covariance.diagonal()
    inverse = inverse_root(variance if dead is None else np.where(dead, 0, variance))
    result = covariance * inverse
    result *= inverse[:, None]
    np.clip(result, -1, 1, out=result)
    result = np.tril(result) + np.tril(result, -1).T
    np.fill_diagonal(result, 1)
    return result


def inverse_root(energy: np.ndarray) -> np.ndarray:
    """Return 1/√energy, and 0 where there is none (or so little that products of two are not float64 numbers)."""
    some = energy > VANISHING
    return np.where(some, 1 / np.sqrt(np.where(some, energy, 1)), 0)
