"""What is known of pruning one model on one probe set: curves of all groups, each measured alone, and whole networks measured.

Weights are fitted on the even probe rows, everything is measured on odd ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from cipm.allocation import Choice, Count, Session, Sizes, even
from cipm.calibration import lines
from cipm.errors import UnsupportedModel
from cipm.export import forms
from cipm.pipeline.context import Context
from cipm.pipeline.refitting import Pruned, Refitter
from cipm.pruning import Curve, calibrate
from cipm.pruning.consumers import Consumer, consumed
from cipm.pruning.counts import byte_count, flop_count, parameter_count
from cipm.pruning.curvature import curvatures
from cipm.pruning.merges import Merges, find_merges
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import Moments, read_moments, refit_alone
from cipm.statistics.plan import MIB
from cipm.symmetry import SymmetryGroup

MOST_SHARE, LEAST_SHARE = 0.6, 0.1
"""Between these shares of its units every group is measured alone, evenly in their square roots."""
ALONE_FLOPS = 1e13
"""Most work of refitting whole networks for groups measured alone; beyond it only what reads a group is refitted for it."""
ROWS_NEEDED = "A what-if needs at least 4 probe rows: half of them to fit on, half to measure on."
MERGE_FEATURES = 4096
"""Most features of a consumer at which all pairs of a group's units are compared."""
NUMBER_BYTES = 24
"""Memory of one number of a covariance while it is gathered and kept, and of what reads it, bytes."""


@dataclass(frozen=True, eq=False)
class Alone:
    """A group by itself: its curve, what was measured at some sizes ({keep, loss, kl, …}), and its near-duplicates, where
    weights read its units linearly and it is not too wide to compare all pairs."""

    curve: Curve
    measured: tuple[Mapping[str, Any], ...]
    merges: Merges | None


@dataclass(frozen=True)
class Point:
    """A whole network that was measured, and what was predicted before."""

    keep: Sizes
    predicted: Mapping[str, float]
    measured: Mapping[str, Any]


class Pruner:
    """What is known of pruning one model on one probe set; each part is computed when it is asked for, and once.

    `wholes` is how many whole networks are to be measured, for the bound of the rows; progress is told as of `stage`. What is
    known `like` another is measured on the same rows and alike.
    """

    def __init__(self, context: Context, wholes: int = 10, stage: str = "whatif", *, like: Pruner | None = None):
        self.context, self.stage, self.wholes, self._like = context, stage, wholes, like
        self.points: list[Point] = []
        self._held: tuple[tuple[str, ...], Sizes] = (), {}
        self._known: list[Point] = []
        known = Refitter(context)
        self._found, self._labels = known.consumers, known.labels
        self.groups: dict[str, SymmetryGroup]
        self.reasons: dict[str, str]
        self.groups, self.reasons = prunable(context.symmetry, self._found, labels=self._labels)
        self._leave_out_wide()
        if context.probe.used_rows < 4:
            self.reasons |= dict.fromkeys(self.groups, ROWS_NEEDED)
            self.groups = {}

    @cached_property
    def refitter(self) -> Refitter:
        """Return what makes networks smaller and measures them."""
        rows = self._like.refitter.reference.rows if self._like else None
        return Refitter(self.context, len(self.groups) * len(self.shares) + self.wholes, rows=rows, labels=self._labels)

    @cached_property
    def alone(self) -> dict[str, Alone]:
        """Return the curve of every group, and what it measures alone at a few sizes; with as many passes over the rows as the
        covariances need that fit into statistics_memory together."""
        report = self.context.progress(self.stage, len(self.groups) + self.wholes, "what-ifs")
        found: dict[str, Alone] = {}
        for names, readers in self._passes():
            moments = read_moments(self.context.checkpoint, readers, self.refitter.rows)
            weighted = self._curvatures(readers)
            curves = group_curves(self.context.checkpoint, self._found, {name: self.groups[name] for name in names}, moments,
                                  labels=self._labels, rows=self.refitter.rows, curvature=weighted)
            for name, curve in curves.items():
                found[name] = Alone(curve, self._measured_alone(name, curve, readers, moments), self._merges(name, moments))
                report(len(found))
        return {name: found[name] for name in self.groups}

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the shares of its units at which every group is measured alone, at least one."""
        count = max(1, self.context.options.measured_points)
        between = [0.5] if count == 1 else np.linspace(0, 1, count)
        roots = np.sqrt(MOST_SHARE), np.sqrt(LEAST_SHARE)
        return tuple(float(np.interp(at, (0, 1), roots)) ** 2 for at in between)

    @cached_property
    def in_sequence(self) -> bool:
        """Tell whether groups are measured alone as whole networks are, all that comes behind them refitted too."""
        if self._like:
            return self._like.in_sequence
        return len(self.groups) * len(self.shares) * self.refitter.work <= ALONE_FLOPS

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return which losses are predicted; the first is the one that budgets are spread by."""
        return ("loss",) if self.refitter.reference.baseline["kl"] is None else ("kl", "loss")

    @property
    def base(self) -> Mapping[str, float]:
        """Return what the whole model measures, by kind of loss."""
        return {"kl": 0.0, "loss": self.refitter.reference.baseline["loss"]}

    @cached_property
    def counts(self) -> dict[str, Count]:
        """Return parameters, FLOPs of one row and bytes as functions of what groups keep."""
        checkpoint, symmetry = self.context.checkpoint, self.context.symmetry
        return {"parameters": parameter_count(checkpoint, symmetry), "flops": flop_count(self._labels, self.refitter.few_rows),
                "bytes": byte_count(checkpoint, symmetry)}

    def rises(self, kind: str) -> dict[str, np.ndarray]:
        """Return the predicted rise [size + 1] of a loss where a group alone keeps so many units."""
        return {name: self._calibrated(kind, one, one.measured) for name, one in self.alone.items()}

    def beside(self, context: Context, name: str) -> Pruner:
        """Return what is known of one group of another model of the same function, measured on the same rows and alike. Raises
        UnsupportedModel where it cannot be made smaller there."""
        other = Pruner(replace(context, emit=lambda event: None), 0, self.stage, like=self)
        if name not in other.groups:
            raise UnsupportedModel(other.reasons[name], where=name)
        other.groups = {name: other.groups[name]}
        return other

    @cached_property
    def _alone_only(self) -> Session:
        rises = {kind: self.rises(kind) for kind in self.kinds}
        orders = {name: one.curve.removal_order for name, one in self.alone.items()}
        alone = Session(self.groups, self.reasons, self.kinds, self.base["loss"], rises, orders, {}, self.counts,
                        forms(self.context.checkpoint))
        return replace(alone, frontier=alone.along_front())

    @property
    def session(self) -> Session:
        """Return what predicts, from the groups alone and the whole networks that are to be known."""
        alone = self._alone_only.held(*self._held)
        return replace(alone, whole={
            kind: lines((alone.total(kind, point.keep), self._rise(kind, point), alone.excess(point.keep))
                        for point in self._known) for kind in self.kinds})

    def predicted(self, sizes: Sizes) -> dict[str, float]:
        """Return the predicted loss, and KL to the original where there is one."""
        return self.session.losses(sizes)

    def front(self, count: str, locked: Iterable[str] = (), sizes: Sizes | None = None) -> tuple[Choice, ...]:
        """Return the Pareto front of loss against a count, from the whole model to the smallest."""
        return self.session.front(count, tuple(locked), sizes)

    def made(self, sizes: Sizes) -> Pruned:
        """Return the network with so many units of each group, refitted in sequence, and what it measures."""
        return self.refitter.made(self._alone_only.units_kept(sizes))

    def made_again(self, sizes: Sizes) -> Pruned:
        """Return the same with units chosen anew where that is better, and work and memory allow it."""
        if not self.in_sequence or _bytes(self._found) > self._memory:
            return self.made(sizes)
        weighted = self._curvatures(self._found)
        return self.refitter.made_again(self._alone_only.units_kept(sizes), self.groups, weighted)

    def point(self, sizes: Sizes) -> Point:
        """Measure a whole network; predictions do not know of it."""
        predicted = self.predicted(sizes)
        measured = self.made(sizes).measured
        self.points.append(Point(dict(sizes), predicted, measured))
        self.context.progress(self.stage, len(self.groups) + self.wholes, "what-ifs")(
            min(len(self.groups) + len(self.points), len(self.groups) + self.wholes))
        return self.points[-1]

    def hold(self, locked: Iterable[str], sizes: Sizes | None) -> None:
        """Let predictions be those of what-ifs with these groups locked or at these sizes (`Session.held`)."""
        self._held = tuple(locked), dict(sizes or {})

    def remember(self, point: Point) -> None:
        """Let later predictions know of a whole network that was measured."""
        self._known.append(point)

    def calibrate(self, several: Iterable[Sizes]) -> None:
        """Measure some whole networks, so that predictions count what groups do to one another."""
        for sizes in several:
            self.remember(self.point(sizes))

    def even(self, share: float, locked: Iterable[str] = ()) -> dict[str, int]:
        """Return sizes at which every group keeps this share of its units."""
        return even(self.groups, share, locked=tuple(locked))

    def by_the_others(self, name: str, number: int) -> float | None:
        """Return the loss that the other measured points of a group predict for this one; None where there is no other."""
        one = self.alone[name]
        point, others = one.measured[number], one.measured[:number] + one.measured[number + 1:]
        return float(self.base["loss"] + self._calibrated("loss", one, others)[point["keep"]]) if others else None

    def _rise(self, kind: str, point: Point) -> float:
        return point.measured[kind] - self.base[kind]

    def _calibrated(self, kind: str, one: Alone, measured: Iterable[Mapping[str, Any]]) -> np.ndarray:
        points = [(point["keep"], point[kind] - self.base[kind]) for point in measured]
        return calibrate(one.curve.cost, points) if points else one.curve.cost

    def _measured_alone(self, name: str, curve: Curve, readers: Iterable[Consumer],
                        moments: Mapping[str, Moments]) -> tuple[Mapping[str, Any], ...]:
        sizes = dict.fromkeys(even({name: self.groups[name]}, share)[name] for share in self.shares)
        return tuple({"keep": size, **self._one(name, curve.kept(size), readers, moments)} for size in sizes
                     if size < self.groups[name].size)

    def _curvatures(self, readers: Sequence[Consumer]) -> dict[str, np.ndarray]:
        return curvatures(self.context.checkpoint, readers, self.refitter.rows, seed=self.context.options.seed,
                          labels=self.refitter.classes)

    def _merges(self, name: str, moments: Mapping[str, Moments]) -> Merges | None:
        group, mine = self.groups[name], consumed(self._found, name)
        if not mine or max(one.features for one in mine) > MERGE_FEATURES:
            return None
        return find_merges(self.context.checkpoint, mine, group, moments)

    def _one(self, name: str, units: np.ndarray, readers: Iterable[Consumer], moments: Mapping[str, Moments]) -> dict[str, Any]:
        if self.in_sequence:
            return dict(self.refitter.made({name: units.tolist()}).measured)
        kept = self.refitter.kept({name: units.tolist()})
        return self.refitter.measured(refit_alone(self.context.checkpoint, tuple(readers), kept, moments), kept)

    def _passes(self) -> Iterator[tuple[list[str], list[Consumer]]]:
        """Yield (groups, their consumers) whose covariances fit into memory together, in graph order."""
        names: list[str] = []
        readers: dict[str, Consumer] = {}
        for name in self.groups:
            mine = {one.node: one for one in consumed(self._found, name)}
            if names and _bytes({**readers, **mine}.values()) > self._memory:
                yield names, list(readers.values())
                names, readers = [], {}
            names.append(name)
            readers |= mine
        if names:
            yield names, list(readers.values())

    def _leave_out_wide(self) -> None:
        for name in list(self.groups):
            needed = _bytes(consumed(self._found, name))
            if needed > self._memory:
                self.reasons[name] = (f"The covariance of what reads it takes {needed // MIB:,} MiB, and statistics_memory "
                                      f"allows {self._memory // MIB:,} MiB.")
                del self.groups[name]

    @property
    def _memory(self) -> int:
        return self.context.options.statistics_memory * MIB


def _bytes(readers: Iterable[Consumer]) -> int:
    return sum(NUMBER_BYTES * one.features**2 for one in readers)



