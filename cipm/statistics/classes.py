"""Statistics by class, where samples have labels: class means, and what varies within and between classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from cipm.compiled import compiled
from cipm.errors import InputError
from cipm.statistics.covariance import Covariance, correlation_from_covariance
from cipm.statistics.samples import as_samples, finite_samples, need_samples, on_host


@final
@dataclass(frozen=True, eq=False)
class ClassConditional:
    """An accumulator of class means and of the covariance within and between classes: create, update, merge, finalise.

    `counts` [classes] int64 and `means` [classes, units] float64 (zero for a class without samples) are exact to about
    1e-15 · (|mean| + sd). `whole` is the covariance of all samples; `each`, where asked for, one for each class.

    Error: the scatter within classes is the whole one less that between them, so its relative error is that of the
    covariance times whole/within: 2e-6 / (1 − share of variance between classes), for float32 samples. Ask for `each`
    to have it without that loss, at classes × the memory. Update uses the receiver up, as for Covariance.
    """

    counts: np.ndarray
    means: np.ndarray
    whole: Covariance
    each: tuple[Covariance, ...]

    @classmethod
    def create(cls, units: int, classes: int, *, each: bool = False, exact: bool = False) -> ClassConditional:
        """Return the accumulator of no samples; `each` also keeps a covariance for every class."""
        return cls(np.zeros(classes, np.int64), np.zeros((classes, units)), Covariance.create(units, exact=exact),
                   tuple(Covariance.create(units, exact=exact) for _ in range(classes if each else 0)))

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    def update(self, batch: Any, labels: Any) -> ClassConditional:
        """Return the accumulator with samples [samples, units] of classes labels [samples] added.

        Raises InputError where the labels are not integers from 0 to classes − 1, one for each sample.
        """
        labels = checked_labels(labels, len(batch), self.counts.size, self.samples)
        whole = self.whole.update(batch)  # refuses what is not finite
        x = on_host(as_samples(batch))
        counts = np.bincount(labels, minlength=self.counts.size)
        present = np.flatnonzero(counts)
        ordered = x[np.argsort(labels, kind="stable")].astype(np.float64)
        starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]]).astype(np.int64)
        means = np.zeros_like(self.means)
        if present.size:
            shift = ordered[0]
            means[present] = shift + np.add.reduceat(ordered - shift, starts, axis=0) / counts[present, None]
        each = tuple(c.update(x[labels == k]) for k, c in enumerate(self.each))
        return ClassConditional(*_join(self.counts, self.means, counts, means), whole, each)

    def merge(self, other: ClassConditional) -> ClassConditional:
        """Return the accumulator of both shards' samples."""
        assert self.means.shape == other.means.shape and len(self.each) == len(other.each)
        return ClassConditional(*_join(self.counts, self.means, other.counts, other.means), self.whole.merge(other.whole),
                                tuple(a.merge(b) for a, b in zip(self.each, other.each, strict=True)))

    def finalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (means [classes, units], correlation within classes [units, units])."""
        return self.means, self.within_correlation()

    def between(self) -> np.ndarray:
        """Return the covariance [units, units] of the class means, each counted as often as it has samples, divided by
        classes present − 1."""
        return self._between_scatter() / (self._present(2) - 1)

    def within(self) -> np.ndarray:
        """Return the covariance [units, units] about the class means, divided by samples − classes present."""
        return self._within_scatter() / (self.samples - self._present(1))

    def within_correlation(self) -> np.ndarray:
        """Return the correlation [units, units] of what is left when the class is known; units that only tell the class
        get 0, and 1 on the diagonal."""
        return correlation_from_covariance(self._within_scatter(), self.whole.dead)

    def between_correlation(self) -> np.ndarray:
        """Return the correlation [units, units] of the class means; units of the same mean in every class get 0."""
        self._present(2)
        return correlation_from_covariance(self._between_scatter(), self.whole.dead)

    def correlation_of(self, label: int) -> np.ndarray:
        """Return the correlation [units, units] over the samples of one class; needs `each`."""
        return self.each[label].correlation()

    def _within_scatter(self) -> np.ndarray:
        present = self._present(1)
        if self.samples <= present:
            raise InputError(f"Statistics within classes need more samples ({self.samples}) than classes ({present}).",
                             fix="Give more probe rows.")
        if self.each:
            return sum(c.covariance() * (c.samples - 1) for c in self.each if c.samples > 1)
        whole = self.whole.covariance() * (self.samples - 1)
        scatter = whole - self._between_scatter()
        lost = scatter.diagonal() <= 1e-5 * whole.diagonal()  # nothing but rounding is left
        scatter[lost], scatter[:, lost] = 0, 0
        return scatter

    def _between_scatter(self) -> np.ndarray:
        apart = np.sqrt(self.counts)[:, None] * np.where(self.counts[:, None] > 0, self.means - self.whole.mean, 0)
        return apart.T @ apart

    def _present(self, least: int) -> int:
        present = int((self.counts > 0).sum())
        if present < least:
            raise InputError(f"Statistics by class need samples of at least {least} classes; there are {present}.",
                             fix="Give labelled probe rows of more classes.")
        return present


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
        weight = np.divide(self.counts * other.counts, counts, out=np.zeros(counts.size), where=counts > 0)
        return ClassMeans(counts, means, self.within + other.within + weight @ np.square(other.means - self.means))

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
