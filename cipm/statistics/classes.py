"""Statistics by class, where samples have labels: class means, and how units vary together within a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.compiled import compiled
from cipm.errors import InputError
from cipm.statistics.covariance import correlation_from_covariance
from cipm.statistics.samples import finite_samples, need_samples


@final
@dataclass(frozen=True, eq=False)
class ClassConditional:
    """An accumulator of the mean and the covariance of every class: create, update, merge, finalise.

    `counts` [classes] int64, `means` [classes, units] float64 (zero for a class without samples), `scatter` [classes, units,
    units] float64, the sums of products about the class means. Update uses the receiver up, as for Covariance.

    Error: about 1e-15 · (|mean| + sd) for the means and 1e-12 for correlations, products being float64; any sharding and
    order agrees to 1e-12. Cost: samples · units² multiply-adds on the host; memory classes · units² float64.

    Source: Chan, Golub, LeVeque (1979), class by class.
    """

    counts: np.ndarray
    means: np.ndarray
    scatter: np.ndarray

    @classmethod
    def create(cls, units: int, classes: int) -> ClassConditional:
        """Return the accumulator of no samples."""
        return cls(np.zeros(classes, np.int64), np.zeros((classes, units)), np.zeros((classes, units, units)))

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    def update(self, batch: Any, labels: Any) -> ClassConditional:
        """Return the accumulator with samples [samples, units] of classes labels [samples] added.

        Raises InputError where the labels are not integers from 0 to classes − 1, one for each sample, or a value is not
        finite.
        """
        labels = checked_labels(labels, len(batch), self.counts.size, self.samples)
        x = finite_samples(batch, self.means.shape[1], self.samples)
        counts, order = np.bincount(labels, minlength=self.counts.size), np.argsort(labels, kind="stable")
        ends, means = np.cumsum(counts), self.means.copy()
        for label in np.flatnonzero(counts):
            mine = x[order[ends[label] - counts[label]:ends[label]]].astype(np.float64)
            means[label] = self._add(label, mine)
        return ClassConditional(self.counts + counts, means, self.scatter)

    def _add(self, label: int, x: np.ndarray) -> np.ndarray:
        """Add the samples [samples, units] of one class to its scatter; return its mean [units] with them."""
        centred = x - x[0]  # exactly zero for a constant unit, as is all that follows
        rest = centred.mean(axis=0)
        centred -= rest
        delta, share = x[0] + rest - self.means[label], len(x) / (self.counts[label] + len(x))
        self.scatter[label] += centred.T @ centred
        self.scatter[label] += np.outer(delta, delta * (self.counts[label] * share))
        return self.means[label] + delta * share if self.counts[label] else x[0] + rest

    def merge(self, other: ClassConditional) -> ClassConditional:
        """Return the accumulator of both shards' samples."""
        assert self.scatter.shape == other.scatter.shape
        counts, means = _join(self.counts, self.means, other.counts, other.means)
        delta, weight = other.means - self.means, _between(self.counts, other.counts)
        apart = np.einsum("ki,kj->kij", delta * weight[:, None], delta)
        return ClassConditional(counts, means, self.scatter + other.scatter + apart)

    def finalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (means [classes, units], correlation within classes [units, units])."""
        return self.means, self.within_correlation()

    def within_correlation(self) -> np.ndarray:
        """Return the correlation [units, units] of what is left when the class is known; units that only tell the class
        get 0, and 1 on the diagonal. Raises InputError where no class has two samples."""
        need_samples(int(self.counts.max(initial=0)), 2, "A correlation within classes")
        return correlation_from_covariance(self.scatter.sum(axis=0))

    def correlation_of(self, label: int) -> np.ndarray:
        """Return the correlation [units, units] over the samples of one class; units constant in it get 0, and 1 on the
        diagonal. Raises InputError where the class has fewer than two samples."""
        need_samples(int(self.counts[label]), 2, f"The correlation of class {label}")
        return correlation_from_covariance(self.scatter[label])


@final
@dataclass(frozen=True, eq=False)
class ClassMeans:
    """An accumulator of class means alone, and of the scatter of each unit about them: create, update, merge, finalise.

    `counts` [classes] int64, `means` [classes, units] float64, `within` [units] float64 the sum of squares about the
    class means.

    Error: about 1e-15 · (|mean| + sd) for the means and 1e-13 relative for the scatter; any sharding and order agrees to
    1e-12. Cost: samples · units, without the units² of `ClassConditional`.
    """

    counts: np.ndarray
    means: np.ndarray
    within: np.ndarray

    @classmethod
    def create(cls, units: int, classes: int) -> ClassMeans:
        """Return the accumulator of no samples."""
        return cls(np.zeros(classes, np.int64), np.zeros((classes, units)), np.zeros(units))

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    def update(self, batch: Any, labels: Any) -> ClassMeans:
        """Return the accumulator with samples [samples, units] of classes labels [samples] added.

        Raises InputError as `ClassConditional.update` does.
        """
        labels = checked_labels(labels, len(batch), self.counts.size, self.samples)
        x = finite_samples(batch, self.within.size, self.samples)
        counts, means = np.bincount(labels, minlength=self.counts.size), np.zeros_like(self.means)
        within = np.zeros_like(self.within)
        _by_class(np.ascontiguousarray(x), labels, counts, means, within)
        return self.merge(ClassMeans(counts, means, within))

    def merge(self, other: ClassMeans) -> ClassMeans:
        """Return the accumulator of both shards' samples."""
        assert self.means.shape == other.means.shape
        counts, means = _join(self.counts, self.means, other.counts, other.means)
        apart = _between(self.counts, other.counts) @ np.square(other.means - self.means)
        return ClassMeans(counts, means, self.within + other.within + apart)

    def finalise(self) -> np.ndarray:
        """Return the class means [classes, units]; zero for a class without samples."""
        need_samples(self.samples, 1, "A class mean")
        return self.means

    def selectivity(self) -> np.ndarray:
        """Return the share [units] of each unit's variance that the class explains (η², 0 to 1; 0 for constant units).

        By chance it is about (classes − 1) / (samples − 1).
        """
        need_samples(self.samples, 1, "Selectivity")
        mean = self.counts @ self.means / self.samples
        between = self.counts @ np.square(self.means - mean)
        total = between + self.within
        return np.divide(between, total, out=np.zeros_like(total), where=total > 1e-20 * np.square(mean) * self.samples)

    def preferred(self) -> np.ndarray:
        """Return the class [units] in which each unit is most active on average; the first of several."""
        need_samples(self.samples, 1, "Selectivity")
        return np.argmax(np.where(self.counts[:, None] > 0, self.means, -np.inf), axis=0)


@compiled
def _by_class(x, labels, counts, means, within):
    """Write the means of the classes, each summed about its first sample, and add the squares about them."""
    first = np.full(counts.size, -1)
    for row in range(x.shape[0]):
        label = labels[row]
        if first[label] < 0:
            first[label] = row
        for unit in range(x.shape[1]):
            means[label, unit] += np.float64(x[row, unit]) - np.float64(x[first[label], unit])
    for label in range(counts.size):
        for unit in range(x.shape[1] if counts[label] else 0):
            means[label, unit] = x[first[label], unit] + means[label, unit] / counts[label]
    for row in range(x.shape[0]):
        for unit in range(x.shape[1]):
            apart = np.float64(x[row, unit]) - means[labels[row], unit]
            within[unit] += apart * apart


def checked_labels(labels: Any, rows: int, classes: int, seen: int) -> np.ndarray:
    """Return labels [rows] as int64; raises InputError where they are not integers from 0 to classes − 1, one a sample."""
    labels = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if labels.shape != (rows,) or not (np.issubdtype(labels.dtype, np.integer) or not rows):
        raise InputError(f"Labels must be {rows} integers, one for each sample; they are {labels.dtype} of shape "
                         f"{list(labels.shape)}.")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise InputError(f"Sample {seen + int(wrong[0])} has the label {labels[wrong[0]]}; labels go from 0 to "
                         f"{classes - 1}.")
    return labels.astype(np.int64)


def _join(counts: np.ndarray, means: np.ndarray, more: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = counts + more
    share = np.divide(more, total, out=np.zeros(total.size), where=total > 0)[:, None]
    return total, means + (others - means) * share


def _between(counts: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return how much the distance of two means of a class, squared, adds to its scatter: n m / (n + m) [classes]."""
    total = counts + more
    return np.divide(counts * more, total, out=np.zeros(total.size), where=total > 0)
