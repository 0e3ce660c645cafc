"""A whole network made smaller and judged: weights refitted on the even probe rows, measured on odd ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cipm.compiled import one_thread
from cipm.errors import OptionError
from cipm.load import Checkpoint
from cipm.pipeline.context import Context, batches, fixed_rows
from cipm.pipeline.reference import Reference, RowCost, row_cost, rows_of, spread
from cipm.pruning.again import refit_again
from cipm.pruning.consumers import Consumer, consumers
from cipm.pruning.kept import Kept, Labels
from cipm.pruning.sequence import FEWEST_SAMPLES, PER_FEATURE, Aims, Rows, aim_numbers, read_aims, refit
from cipm.pruning.shrink import left_out
from cipm.symmetry import SymmetryGroup

FIT_ROWS, FEWEST_FIT_ROWS = 2000, 32
FIT_FLOPS = 4e12
"""Work of running both models over the rows of one refit: about a minute on two cores."""
FIT_NUMBERS = 2**26
"""Most numbers of the largest value of the graph on all rows of a refit (256 MB)."""
AIM_NUMBERS = 2**26
"""Most numbers of what the whole model gives at its consumers that are kept from one refit to the next (256 MB); of a larger
model they are computed anew for each."""
SMALL = 1e11
"""Floating-point operations of a refit below which threads would wait for each other more than they work."""
CHOSEN_AGAIN = "Units were chosen anew, group by group, on what the smaller and refitted layers before them give."
Units = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Pruned:
    """A whole network pruned: `checkpoint` has the sizes it had, with zeros where units go; `measured` on held-out rows."""

    checkpoint: Checkpoint
    keep: Units
    notes: tuple[str, ...]
    measured: Mapping[str, Any]


class Refitter:
    """Makes a network smaller and measures it. `points` and `rows` are those of `Reference`."""

    def __init__(self, context: Context, points: int = 1, *, rows: int | None = None, labels: Labels | None = None):
        self.context = context
        self._asked, self._labels = (points, rows), labels

    @cached_property
    def labels(self) -> Labels:
        """Return the labels that discovery puts on every value."""
        return self._labels or Labels.of(self.context.checkpoint, self.context.symmetry, seed=self.context.options.seed)

    @cached_property
    def consumers(self) -> tuple[Consumer, ...]:
        """Return the linear maps that read units."""
        return consumers(self.context.checkpoint, self.context.symmetry)

    @cached_property
    def reference(self) -> Reference:
        """Return the whole model on the rows that smaller ones are measured on."""
        points, rows = self._asked
        return Reference(self.context, points, rows=rows)

    @cached_property
    def cost(self) -> RowCost:
        """Return what one row costs."""
        return row_cost(self.context)

    @cached_property
    def rows(self) -> Rows:
        """Return the rows that weights are fitted on, in batches: at most 2,000 of the even ones, fewer for a large model."""
        context = self.context
        return list(batches(rows_of(context.probe, self._chosen), context.checkpoint, context.options.batch_rows))

    @cached_property
    def _chosen(self) -> np.ndarray:
        there = np.arange(0, self.context.probe.used_rows, 2)
        return spread(there, self.fit_rows, fixed_rows(self.context.checkpoint))

    @property
    def classes(self) -> list[torch.Tensor] | None:
        """Return the labels of these rows, batch by batch, where the option `fisher` asks for them; None where it does not.

        Raises OptionError where the probe has no classes."""
        if self.context.options.fisher == "predictions":
            return None
        labels = self.context.probe.labels
        if self.reference.kind != "cross_entropy":
            raise OptionError("fisher is 'labels', but the probe has no classes to compare the model's outputs with.",
                              where="fisher", fix="Give labels with the probe, or leave fisher at 'predictions'.")
        chosen = labels[torch.from_numpy(self._chosen % self.context.probe.used_rows)]
        return list(chosen.split([len(next(iter(batch.values()))) for batch in self.rows]))

    @cached_property
    def aims(self) -> Aims | None:
        """Return what the whole model gives where refits look; None where it is too much to keep."""
        few = aim_numbers(self.context.checkpoint, self.consumers) <= AIM_NUMBERS
        return read_aims(self.context.checkpoint, self.consumers, self.rows) if few else None

    @property
    def fit_rows(self) -> int:
        """Return how many rows a refit looks at, where there are so many."""
        most = min(FIT_FLOPS / max(2 * self.cost.flops, 1), FIT_NUMBERS / self.cost.largest)
        return int(min(FIT_ROWS, max(FEWEST_FIT_ROWS, most)))

    @property
    def notes(self) -> list[str]:
        """Return in words what was bounded because the model is large."""
        there = (self.context.probe.used_rows + 1) // 2
        fewer = [] if self.fit_rows >= min(FIT_ROWS, there) else [
            f"Weights were refitted on {self.fit_rows} of {there} rows, because a refit runs both models over them."]
        return [*fewer, *self.reference.notes]

    def threads(self) -> AbstractContextManager[None]:
        """Return the context to refit in: one thread where there is little to do."""
        return one_thread() if self.work <= SMALL else nullcontext()

    @property
    def work(self) -> float:
        """Return the floating-point operations of one refit of the whole network, an upper bound."""
        features = [consumer.features for consumer in self.consumers]
        moments = sum(max(FEWEST_SAMPLES, PER_FEATURE * f) * (2.0 * f) ** 2 for f in features)
        return 2 * self.cost.flops * self.fit_rows + moments

    @property
    def few_rows(self) -> dict[str, torch.Tensor]:
        """Return inputs to count operations on."""
        few = fixed_rows(self.context.checkpoint) or 2
        return {name: tensor[:few] for name, tensor in self.rows[0].items()}

    def made(self, units: Units) -> Pruned:
        """Return the network with these units of these groups, refitted in sequence, and what it measures."""
        kept = self.kept(units)
        checkpoint, notes = refit(self.context.checkpoint, self.context.symmetry, kept, self.rows, aims=self.aims,
                                  found=self.consumers)
        return Pruned(checkpoint, units, notes, self.measured(checkpoint, kept))

    def made_again(self, units: Units, groups: Mapping[str, SymmetryGroup], curvature: Mapping[str, np.ndarray]) -> Pruned:
        """Return the same with as many units of each group, chosen anew where that is nearer to the whole model on the rows
        that weights are fitted on (`refit_again`)."""
        given = {name: list(kept) for name, kept in units.items()}
        checkpoint, chosen, notes = refit_again(self.labels, self.consumers, groups, given, curvature, self.rows,
                                                aims=self.aims)
        said = () if chosen == given else (CHOSEN_AGAIN,)
        return Pruned(checkpoint, chosen, (*notes, *said), self.measured(checkpoint, self.kept(chosen)))

    def measured(self, checkpoint: Checkpoint, kept: Kept) -> dict[str, Any]:
        """Return what a masked network measures."""
        return self.reference.measure(checkpoint, dict(left_out(checkpoint.graph, kept)))

    def kept(self, units: Mapping[str, Any]) -> Kept:
        """Return what stays of every stored axis and value."""
        return self.labels.what_stays(units)
