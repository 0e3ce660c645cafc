"""Exact correlations of chosen pairs of units, and which pairs are significant among all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from scipy.special import log_ndtr

from cipm.compiled import compiled
from cipm.errors import InputError
from cipm.statistics.accumulator import accumulate
from cipm.statistics.covariance import inverse_root
from cipm.statistics.cross import CrossCovariance
from cipm.statistics.means import Means
from cipm.statistics.neighbours import Neighbours, keep_best, strongest
from cipm.statistics.projection import Projection
from cipm.statistics.samples import finite_samples, need_samples

Correction = Literal["bonferroni", "benjamini-hochberg", "benjamini-yekutieli"]


@final
@dataclass(frozen=True, eq=False)
class PairCorrelations:
    """An accumulator of the correlation of each unit with chosen partners: create, update, merge, finalise.

    `partners` [units, count] are indices (−1: none), `products` [units, count] float64 the sums of products about
    `shift` [units], which is the mean of the first batch (or given).

    Error: correlation within 2e-6 for float32 samples where no mean moves by more than its standard deviation from the
    first batch's, 1e-12 for float64 ones. Any sharding and order agrees to 1e-12 · the same. Cost: samples · units · count.
    """

    partners: np.ndarray
    shift: np.ndarray
    means: Means
    products: np.ndarray

    @classmethod
    def create(cls, partners: np.ndarray) -> PairCorrelations:
        """Return the accumulator of no samples."""
        units = len(partners)
        return cls(partners, np.zeros(units), Means.create(units), np.zeros(partners.shape))

    @property
    def samples(self) -> int:
        return self.means.samples

    def update(self, batch: Any) -> PairCorrelations:
        """Return the accumulator with these samples [samples, units] added."""
        x = finite_samples(batch, len(self.partners), self.samples)
        if not len(x):
            return self
        shift = self.shift if self.samples else x.mean(axis=0, dtype=np.float64)
        products = self.products.copy()
        _add_products(np.ascontiguousarray((x - shift).astype(x.dtype).T), self.partners, products)
        return PairCorrelations(self.partners, shift, self.means.update(x), products)

    def merge(self, other: PairCorrelations) -> PairCorrelations:
        """Return the accumulator of both shards' samples."""
        assert np.array_equal(self.partners, other.partners)
        if not self.samples or not other.samples:
            return self if self.samples else other
        centred = self._centred() + other._centred()
        means, delta = self.means.merge(other.means), other.means.mean - self.means.mean
        share = self.samples * (other.samples / means.samples)
        centred += share * delta[:, None] * delta[self.partners]
        apart = means.mean - self.shift
        return PairCorrelations(self.partners, self.shift, means,
                                centred + means.samples * apart[:, None] * apart[self.partners])

    def finalise(self) -> np.ndarray:
        """Return the correlations [units, count] float64; 0 for dead units and where there is no partner."""
        need_samples(self.samples, 2, "A correlation")
        scale = inverse_root(self.means.scatter)
        found = np.clip(self._centred() * scale[:, None] * scale[self.partners], -1, 1)
        return np.where(self.partners >= 0, found, 0)

    def neighbours(self, k: int) -> Neighbours:
        """Return the k strongest of each unit's partners."""
        values = self.finalise()
        order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :k]
        units, kept = (np.take_along_axis(part, order, axis=1) for part in (self.partners, values))
        return Neighbours(np.where(kept != 0, units, -1), kept.astype(np.float32))

    def _centred(self) -> np.ndarray:
        apart = self.means.mean - self.shift
        return self.products - self.samples * apart[:, None] * apart[self.partners]


@compiled
def _add_products(x, partners, products):
    """Add the products of each row of x [units, samples] with its partners' rows."""
    for unit in range(partners.shape[0]):
        mine = x[unit]
        for place in range(partners.shape[1]):
            if partners[unit, place] >= 0:
                other, total = x[partners[unit, place]], 0.0
                for start in range(0, mine.size, 1024):
                    some = x[0, 0] * 0
                    for sample in range(start, min(start + 1024, mine.size)):
                        some += mine[sample] * other[sample]
                    total += some
                products[unit, place] += total


def top_neighbours(batches: Callable[[], Iterable[Any]], units: int, k: int = 10, *, width: int = 1024, count: int = 64,
                   generator: np.random.Generator) -> Neighbours:
    """Return the k strongest correlations of each of very many units, by candidates and exact re-scoring.

    `batches()` gives the same batches [samples, units] at every call: it is read for the projection and for the exact
    correlations of the `count` best candidates. Every correlation returned is exact; that no stronger one was missed is
    not, so measure it: `measured_recall`. Where the samples fit into memory and are not many times `width`,
    `exact_neighbours` takes as long and misses none. Cost: units² · width / 2 for the candidates and samples · units ·
    (width + count); memory units · (2 · width + 2 · count) numbers and a batch.
    """
    sketch = accumulate(Projection.create(units, width=width, generator=generator), batches()).finalise()
    chosen = strongest(sketch, min(count, units)).units
    return accumulate(PairCorrelations.create(chosen), batches()).neighbours(k)


def measured_recall(batches: Callable[[], Iterable[Any]], found: Neighbours, *, units: int = 256,
                    generator: np.random.Generator) -> float:
    """Return the share of the true neighbours that were found, measured on so many units drawn at random: their exact
    correlations with all others take samples · units drawn · all units."""
    total, k = found.units.shape
    drawn = np.sort(generator.choice(total, min(units, total), replace=False))
    cross = accumulate(CrossCovariance.create(drawn.size, total), ((x[:, drawn], x) for x in batches()))
    exact = cross.finalise()
    exact[np.arange(drawn.size), drawn] = 0
    truth = Neighbours.none(drawn.size, k)
    keep_best(exact.astype(np.float32), 0, truth.units, truth.correlations)
    return found.recall(truth, drawn)


@dataclass(frozen=True, eq=False)
class SignificantPairs:
    """Pairs [pairs, 2] whose correlation is not by chance, strongest first: `correlations`, Fisher's `z` in standard
    deviations, and `adjusted` probabilities; `tests` pairs were tested, `level` and `correction` say how.
    """

    pairs: np.ndarray
    correlations: np.ndarray
    z: np.ndarray
    adjusted: np.ndarray
    tests: int
    level: float
    correction: Correction


def significant_pairs(pairs: np.ndarray, correlations: np.ndarray, *, samples: float, tests: int, level: float = 0.01,
                      correction: Correction = "benjamini-yekutieli") -> SignificantPairs:
    """Return which of these pairs [pairs, 2] are significantly correlated, among `tests` pairs tested.

    Fisher: atanh(r) · √(samples − 3) is standard normal where two normal units are independent. `samples` must be
    *independent* ones: probe rows, not positions (or `Running.effective_samples`). The correction holds over all `tests`:
    bonferroni, the chance of any false pair ≤ level; benjamini-hochberg, the expected share of false pairs ≤ level where
    tests depend positively; benjamini-yekutieli, the same whatever the dependence (the default: correlations of one
    matrix depend on each other). Pairs may be only the strongest of the tests (of `Neighbours`): what is left out can
    make the answer shorter, never wrong. Raises InputError where there are fewer than 4 samples.

    Source: Fisher (1921); Benjamini, Hochberg (1995); Benjamini, Yekutieli (2001).
    """
    if samples <= 3:
        raise InputError(f"Significance needs at least 4 independent samples; there are {samples:g}.",
                         fix="Give more probe rows.")
    order = np.argsort(-np.abs(correlations), kind="stable")
    r = np.clip(np.asarray(correlations, dtype=np.float64)[order], -1 + 1e-15, 1 - 1e-15)
    z = np.arctanh(r) * np.sqrt(samples - 3)
    chance = np.log(2) + log_ndtr(-np.abs(z))  # natural logarithm of the two-sided probability
    rank = np.arange(1, len(r) + 1)
    factor = {"bonferroni": np.full(len(r), float(tests)), "benjamini-hochberg": tests / rank,
              "benjamini-yekutieli": tests / rank * (np.log(tests) + np.euler_gamma + 0.5 / tests)}[correction]
    adjusted = np.minimum(chance + np.log(factor), 0)
    adjusted = np.exp(np.minimum.accumulate(adjusted[::-1])[::-1])
    kept = adjusted <= level
    return SignificantPairs(np.asarray(pairs)[order][kept], r[kept], z[kept], adjusted[kept], tests, level, correction)


def significant_of(correlation: np.ndarray, *, samples: float, level: float = 0.01,
                   correction: Correction = "benjamini-yekutieli") -> SignificantPairs:
    """Return the significant pairs of a correlation [units, units]; units without any correlation are not tested."""
    live = np.flatnonzero(np.abs(correlation).sum(axis=0) > np.abs(correlation.diagonal()))
    rows, columns = np.triu_indices(live.size, 1)
    pairs = np.stack([live[rows], live[columns]], axis=1)
    return significant_pairs(pairs, correlation[pairs[:, 0], pairs[:, 1]], samples=samples, tests=max(len(pairs), 1),
                             level=level, correction=correction)
