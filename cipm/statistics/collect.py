"""Collect statistics at the taps of a model while it runs over a probe set, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cipm.errors import InputError, ProbeError
from cipm.statistics.activity import ActivationRange
from cipm.statistics.classes import ClassConditional
from cipm.statistics.covariance import BLOCK_SAMPLES, Covariance
from cipm.statistics.halves import HalfSplit
from cipm.statistics.labels import Labelled, Labels, labels_at, with_labels
from cipm.statistics.profile import Profile
from cipm.statistics.sampling import GOLDEN, Layout, Padding, real_samples
from cipm.symmetry.taps import Tap, observers

Observers = Mapping[str, Callable[[torch.Tensor], None]]
Forward = Callable[[Mapping[str, torch.Tensor], Observers], Any]


@dataclass(frozen=True, eq=False)
class Collected:
    """What was collected at one tap.

    `possible` counts the samples that the rows have, `padding` those of them that a mask left out, and
    `half.samples` those that were kept. `said` is what a person should know of it, in words, and `labels` of its classes;
    `classes` holds the covariance of every class over all kept samples, where that was asked for.
    """

    half: HalfSplit
    profile: Profile
    possible: int
    padding: int
    said: tuple[str, ...]
    labels: Labelled = Labelled()
    classes: ClassConditional | None = None

    def merge(self, other: Collected) -> Collected:
        """Return what both shards of the rows gave."""
        return Collected(self.half.merge(other.half), self.profile.merge(other.profile), self.possible + other.possible,
                         self.padding + other.padding, tuple(dict.fromkeys((*self.said, *other.said))),
                         self.labels.merge(other.labels), self.classes and self.classes.merge(other.classes))


@dataclass(frozen=True, eq=False)
class Rows:
    """One batch: its number, the number of its first row, how many rows, their labels, and their padding."""

    batch: int
    first: int
    count: int
    labels: Labels | None
    padding: Padding


def collect(forward: Forward, taps: Sequence[Tap], batches: Iterable[Mapping[str, torch.Tensor]], *, positions: int,
            progress: Callable[[int], None] = lambda rows: None, start: tuple[int, int] = (0, 0), cuts: Sequence[int] = (),
            labels: np.ndarray | None = None, by_class: Collection[str] = (),
            ranges: Mapping[str, ActivationRange] | None = None) -> dict[Tap, Collected]:
    """Return the statistics of each tap over all batches, from one forward pass a batch.

    `forward(inputs, observe)` runs the model and calls observe[value](activation) for every tapped value. Axis 0 of an
    activation counts the rows (a tap whose units stand on axis 0 has one row). Every combination of the other
    positions and of the elements of a unit is one sample of the row; of these at most `positions` (0: all) are kept,
    spread evenly and the same for every row. Where the inputs have an attention mask, samples at masked positions do not
    count. Even rows go to one half and odd rows to the other, whatever the batches. `progress(rows)` is called after
    each batch with the rows done.

    `start` is the (batch, row) that the first batch begins with, for a shard of a probe set; at the rows `cuts` sums
    begin anew, so that shards which begin there merge to the same numbers. `labels` [all rows] or [all rows, positions…] are
    classes (negative: none), `by_class` the keys of the taps whose covariances are gathered class by class as well, `ranges`
    the values that an activation can take, by the name of the value. Labels of positions are used at activations that have
    these positions; of the others `Collected.labels` says why they are not.

    The result is keyed by the taps themselves (by identity; taps of equal keys share one). Raises
    ProbeError where an activation is not finite, naming the value, row and unit, or where there are no rows.
    """
    classes = 0 if labels is None else int(labels.max(initial=-1)) + 1
    streams: dict[str, _Stream] = {}
    by_tap = {tap: streams.setdefault(tap.key, _Stream(tap, positions, classes,
                                                       (ranges or {}).get(tap.value, ActivationRange()),
                                                       classes > 0 and tap.key in by_class))
              for tap in taps}
    (batch, row), first = start, start[1]
    here: list[Rows] = []
    observe = observers([stream.tap for stream in streams.values()],
                        lambda tap, x, axis: by_tap[tap].add(x.detach(), axis, here[0]))
    for inputs in batches:
        count = next(iter(inputs.values())).shape[0]
        if row in cuts:
            for stream in streams.values():
                stream.cut()
        padding = Padding.of(inputs)
        own = None if labels is None else Labels.of(labels[row:row + count], inputs, padding)
        here[:] = [Rows(batch, row, count, own, padding)]
        with torch.no_grad():
            forward(inputs, observe)
        batch, row = batch + 1, row + count
        progress(row - first)
    return {tap: stream.finish() for tap, stream in by_tap.items()}


@dataclass(frozen=True, eq=False)
class _Told:
    """One sample [rows, units] of each row and, where there are labels, means [rows, units] and labels [rows] of rows, or
    all samples with labels of their positions."""

    single: torch.Tensor
    means: np.ndarray | None
    labels: np.ndarray | None


@dataclass(eq=False)
class _Stream:
    """The accumulators of one tap. Samples on the host are added at once, those on a device together, in large blocks."""

    tap: Tap
    positions: int
    classes: int
    range: ActivationRange
    by_class: bool
    halves: list[Covariance] = field(default_factory=list)
    held: list[list[tuple[torch.Tensor, np.ndarray]]] = field(default_factory=lambda: [[], []])
    layouts: dict[tuple[int, ...], Layout] = field(default_factory=dict)
    rows: int = 0
    possible: int = 0
    padding: int = 0
    said: dict[str, None] = field(default_factory=dict)
    labels: Labelled = Labelled()

    def __post_init__(self) -> None:
        units = len(self.tap.index)
        self.halves = [Covariance.create(units, threads="torch") for _ in range(2)]
        self.profile = Profile.create(units, range=self.range, classes=self.classes)
        self.each = ClassConditional.create(units, self.classes) if self.by_class else None

    def add(self, x: torch.Tensor, axis: int, rows: Rows) -> None:
        """Add the samples of one batch, an activation with its units on `axis`."""
        merged = axis > 0 and x.shape[0] != rows.count and x.shape[0] % rows.count == 0
        if axis == 0:
            x, axis = x.unsqueeze(0), 1
        elif merged:
            x, axis = x.unflatten(0, (rows.count, -1)), axis + 1
        layout = self.layouts.setdefault((*x.shape[1:], axis), Layout(tuple(x.shape), axis, self.tap.index, self.positions))
        theirs = x.shape[0] == rows.count
        first = rows.first if theirs else rows.batch * x.shape[0]
        labels = self._labels_of(rows, layout, theirs, merged)
        mask, why_not = rows.padding.about(tuple(x.shape), axis) if theirs else (None, None)
        if why_not:
            self.said[why_not] = None
        told = []
        for offset in range(min(2, x.shape[0])):
            half = (first + offset) % 2
            part = None if labels is None else labels[offset::2]
            numbers = np.arange(first + offset, first + x.shape[0], 2)
            if mask is None or mask.all():
                told.append(self._add(half, x[offset::2], layout, numbers, part))
            else:
                told.append(self._add_real(half, x[offset::2], mask[offset::2], layout, numbers, part))
        self._describe([one for one in told if one is not None])
        self.rows, self.possible = self.rows + x.shape[0], self.possible + x.shape[0] * layout.there

    def _labels_of(self, rows: Rows, layout: Layout, theirs: bool, merged: bool) -> np.ndarray | None:
        if rows.labels is None:
            return None
        labels, why_not = rows.labels.about(layout, rows=theirs, merged=merged)
        of = None if labels is None else "rows" if labels.ndim == 1 else "positions"
        self.labels = self.labels.merge(Labelled(of, (why_not,) if why_not else ()))
        return labels

    def cut(self) -> None:
        """Begin anew: what comes is rounded as in a stream of its own."""
        self._flush()
        self.halves = [half.cut() for half in self.halves]

    def finish(self) -> Collected:
        if not self.rows:
            raise ProbeError("The probe set has no rows.", where=self.tap.value)
        self._flush()
        return Collected(HalfSplit(self.halves[0], self.halves[1], self.rows), self.profile, self.possible, self.padding,
                         tuple(self.said), self.labels, self.each)

    def _add(self, half: int, x: torch.Tensor, layout: Layout, numbers: np.ndarray, labels: np.ndarray | None) -> _Told | None:
        """Add the samples of whole rows with these numbers; return what they tell of units, unless they have none."""
        samples = layout.of(x)
        kept = samples.shape[1]
        if not kept:
            return None
        single = samples[torch.arange(len(x)), torch.from_numpy(_turning(numbers, kept))]
        own = samples.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        flat, means, known = samples.reshape(-1, samples.shape[2]), None, None
        if labels is not None and labels.ndim > 1:
            known = labels_at(labels, layout, slice(None), layout.chosen)
            means, labels = with_labels(flat, known, copy=own)
        elif labels is not None:
            known, means = np.repeat(labels, kept), (samples.mean(dim=1) if kept > 1 else single).double().cpu().numpy()
        self._take(half, flat, np.repeat(numbers, kept) if x.is_cuda else (numbers, kept), own, known)
        return _Told(single, means, labels)

    def _add_real(self, half: int, x: torch.Tensor, mask: np.ndarray, layout: Layout, numbers: np.ndarray,
                  labels: np.ndarray | None) -> _Told | None:
        """Add the samples at the real positions of the sequences, and return what they tell of units."""
        self.padding += int((~mask).sum()) * (layout.there // mask.shape[1])
        row, chosen = real_samples(mask, layout)
        if not row.size:
            return None
        samples = layout.at(x, row, chosen)
        there, begin, count = np.unique(row, return_index=True, return_counts=True)
        single = samples[torch.from_numpy(begin + _turning(numbers[there], count))]
        means = known = None
        if labels is not None and labels.ndim > 1:
            known = labels_at(labels, layout, row, chosen)
            means, labels = with_labels(samples, known, copy=True)
        elif labels is not None:
            known = labels[row]
            sums = samples.new_zeros((len(there), samples.shape[1]))
            sums.index_add_(0, torch.from_numpy(np.repeat(np.arange(len(there)), count)).to(samples.device), samples)
            means, labels = sums.double().cpu().numpy() / count[:, None], labels[there]
        self._take(half, samples, numbers[row], True, known)
        return _Told(single, means, labels)

    def _describe(self, told: list[_Told]) -> None:
        if not told:
            return
        means, labels = (None if getattr(told[0], name) is None else np.concatenate([getattr(one, name) for one in told])
                         for name in ("means", "labels"))
        try:
            self.profile = self.profile.update(torch.cat([one.single for one in told]), means, labels)
        except InputError:
            self._flush()  # which names the row
            raise

    def _take(self, half: int, x: torch.Tensor, rows: Any, own: bool, labels: np.ndarray | None) -> None:
        """Add samples, of these classes, or hold them back on a device; `own`: nobody else reads them, so that they may be
        overwritten."""
        self.held[half].append((x, rows))
        if self.each is not None and labels is not None:
            self._take_by_class(half, x, labels)
        if not x.is_cuda or sum(len(part) for part, _ in self.held[half]) >= 2 * BLOCK_SAMPLES:
            self._flush(half, own=own)

    def _take_by_class(self, half: int, x: torch.Tensor, labels: np.ndarray) -> None:
        try:
            self.each = self.each.update(*with_labels(x, labels, copy=False))
        except InputError:
            self._flush(half)  # which names the row
            raise

    def _flush(self, *halves: int, own: bool = False) -> None:
        for half in halves or (0, 1):
            parts, self.held[half] = self.held[half], []
            if parts:
                x = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts])
                try:
                    self.halves[half] = self.halves[half].update(x, spend=own)
                except InputError as error:
                    raise self._named(error, parts) from None

    def _named(self, error: InputError, parts: list[tuple[torch.Tensor, Any]]) -> InputError:
        """Return the error with the probe row and the tap in its place; any other error as it is."""
        for x, rows in parts:
            bad = torch.nonzero(~torch.isfinite(x))
            if len(bad):
                sample, unit = (int(i) for i in bad[0])
                row = int(rows[0][sample // rows[1]] if isinstance(rows, tuple) else rows[sample])
                return ProbeError(f"For probe row {row} the activation {self.tap.value} is {float(x[sample, unit])} at unit "
                                  f"{unit}; statistics need finite numbers.",
                                  where=f"row {row}, {self.tap.value} axis {self.tap.axis}, unit {unit}",
                                  fix="Leave the row out, or look for an overflow in the model.")
        return error


def _turning(rows: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Return for each row one of its `count` samples; which one turns with the number of the row."""
    return np.floor((rows * GOLDEN) % 1 * count).astype(np.int64)
