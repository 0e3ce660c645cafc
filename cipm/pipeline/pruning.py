"""The engine of `cipm prune`: curves of all groups, one budget over them, a refit in sequence, and what it measures.

Weights are fitted on the even probe rows, everything is measured on odd ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cipm.errors import OptionError
from cipm.export import export_pruned
from cipm.load import Checkpoint, load
from cipm.load.probe import open_probe
from cipm.options import parse_options
from cipm.pipeline.context import Context, Emit, batches, fixed_rows
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.whatif import Reference, subset
from cipm.pruning import Curve, calibrate, shrink
from cipm.pruning.allocation import Choice, Count, Sizes, count_of, even, front, parameter_count, within
from cipm.pruning.consumers import Consumer, consumers
from cipm.pruning.kept import Kept, what_stays
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import Moments, Rows, read_moments, refit, refit_alone
from cipm.pruning.shrink import left_out
from cipm.pruning.work import work
from cipm.symmetry import SymmetryGroup, example_inputs
from cipm.symmetry.walk import Walk, walk

FIT_ROWS = 2000
SHARES = (0.5, 0.2)
"""At which sizes each group is measured alone, to turn its cost into a loss."""
WHOLE_SHARES = (0.7, 0.4, 0.15)
"""Where the whole network is measured: shares kept of every group, or of the way on a front from the smallest model."""
TRIES = 6
"""Most whole networks that are measured to find the smallest within an allowed loss."""
BUDGETS = ("keep", "max_loss", "params", "flops")


@dataclass(frozen=True)
class Pruned:
    """A whole network pruned: `checkpoint` has the sizes it had, with zeros where units go; `measured` on held-out rows."""

    checkpoint: Checkpoint
    keep: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    measured: Mapping[str, Any]


class Pruner:
    """What is known of pruning one model on one probe set; each part is computed when it is asked for, and once."""

    def __init__(self, context: Context):
        if context.probe.used_rows < 4:
            raise OptionError("Pruning needs at least 4 probe rows: half of them to fit on, half to measure on.", where="probe")
        self.context = context
        self.walked: Walk = walk(context.checkpoint, example_inputs(
            context.checkpoint, generator=torch.Generator().manual_seed(context.options.seed)))
        self.found: tuple[Consumer, ...] = consumers(context.checkpoint, context.symmetry)
        self.groups: dict[str, SymmetryGroup]
        self.groups, self.reasons = prunable(context.symmetry, self.found)
        self.points: list[tuple[float, dict[str, float]]] = []

    @cached_property
    def rows(self) -> Rows:
        """Return the rows that weights are fitted on: at most 2,000 of the even ones, in batches."""
        probe, fixed = self.context.probe, fixed_rows(self.context.checkpoint) or 1
        there = np.arange(0, probe.used_rows, 2)
        wanted = max(fixed, min(FIT_ROWS, there.size))
        chosen = there[np.arange(wanted) * there.size // wanted]
        return list(batches(subset(probe, torch.from_numpy(chosen)), self.context.checkpoint, self.context.options.batch_rows))

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Return mean and covariance of every consumer's input, by its node."""
        return read_moments(self.context.checkpoint, self.found, self.rows)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Return the curve of every group that can be made smaller."""
        return group_curves(self.context.checkpoint, self.found, self.groups, self.moments)

    @cached_property
    def reference(self) -> Reference:
        """Return the whole model on the rows that pruned ones are measured on."""
        return Reference(self.context, len(self.groups) * len(SHARES) + len(WHOLE_SHARES) + TRIES)

    @cached_property
    def parameters(self) -> Count:
        """Return the parameters as a function of what groups keep."""
        return parameter_count(self.context.checkpoint, self.context.symmetry)

    @cached_property
    def flops(self) -> Count:
        """Return the FLOPs of one row as a function of what groups keep; what reads no weight counts as it is."""
        weights, fixed = work(self.context.checkpoint, self.few_rows)
        return count_of(self.context.checkpoint, self.context.symmetry, weights, fixed)

    @cached_property
    def losses(self) -> dict[str, dict[str, np.ndarray]]:
        """Return {"kl" | "loss": {group: [units + 1] predicted rise when this group alone keeps k units}}.

        Each group is measured alone at two sizes. "kl" is there where outputs look like logits.
        """
        report = self.context.progress("curves", len(self.groups), "groups")
        found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in self.kinds}
        for number, (name, group) in enumerate(self.groups.items()):
            curve = self.curves[name]
            sizes = dict.fromkeys(even({name: group}, share)[name] for share in SHARES)
            rises = {size: self._rises(self._alone(name, size)) for size in sizes if size < group.size}
            for kind in self.kinds:
                points = [(size, rise[kind]) for size, rise in rises.items()]
                found[kind][name] = calibrate(curve.cost, points) if points else curve.cost
            report(number + 1)
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return which losses are predicted; the first is the one that budgets are spread by."""
        return ("kl", "loss") if self.reference.measure({})["kl"] is not None else ("loss",)

    def front(self, count: Count, locked: Collection[str] = (), sizes: Sizes | None = None) -> tuple[Choice, ...]:
        """Return the Pareto front of loss against a count, from the whole model to the smallest."""
        return front(self.losses[self.kinds[0]], count, self.groups, locked=locked, overrides=sizes)

    def made(self, sizes: Sizes) -> Pruned:
        """Return the network with so many units of each group, refitted in sequence, and what it measures."""
        keep = {name: tuple(self.curves[name].kept(size).tolist()) for name, size in sizes.items()}
        kept = self._kept(keep)
        checkpoint, notes = refit(self.context.checkpoint, self.context.symmetry, kept, self.rows)
        return Pruned(checkpoint, keep, notes, self._measured(checkpoint, kept))

    def predicted(self, sizes: Sizes) -> dict[str, float]:
        """Return the predicted loss, and KL to the original where there is one, from the groups' curves and from the whole
        networks that were measured so far (`calibrate_whole`)."""
        found = {}
        for kind in self.kinds:
            found[kind] = self._joined(kind, self._sum(kind, sizes))
        found["loss"] += self.reference.baseline()["loss"]
        return found

    def calibrate_whole(self, several: Iterable[Sizes]) -> None:
        """Measure some whole networks, so that predictions count what groups do to one another."""
        for sizes in several:
            self.remember(sizes)

    def remember(self, sizes: Sizes) -> Pruned:
        """Measure a whole network and let later predictions know of it."""
        made = self.made(sizes)
        rises = self._rises(made.measured)
        for kind in self.kinds:
            self.points.append((self._sum(kind, sizes), {kind: rises[kind]}))
        return made

    def _sum(self, kind: str, sizes: Sizes) -> float:
        return float(sum(self.losses[kind][name][size] for name, size in sizes.items()))

    def _joined(self, kind: str, total: float) -> float:
        known = {at: rise[kind] for at, rise in self.points if kind in rise and at > 0}
        if not known or total <= 0:
            return total
        costs = sorted({0.0, total, *known}, reverse=True)
        line = calibrate(np.array(costs), [(costs.index(at), rise) for at, rise in known.items()])
        return float(line[costs.index(total)])

    def _alone(self, name: str, size: int) -> dict[str, Any]:
        kept = self._kept({name: self.curves[name].kept(size).tolist()})
        return self._measured(refit_alone(self.context.checkpoint, self.found, kept, self.moments), kept)

    def _rises(self, measured: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": measured["loss"] - self.reference.baseline()["loss"], "kl": measured["kl"]}

    def _measured(self, checkpoint: Checkpoint, kept: Kept) -> dict[str, Any]:
        return self.reference.measure_model(checkpoint, dict(left_out(checkpoint.graph, kept)))

    def _kept(self, keep: Mapping[str, Any]) -> Kept:
        return what_stays(self.context.checkpoint, self.context.symmetry, keep, self.walked)

    @property
    def few_rows(self) -> dict[str, torch.Tensor]:
        """Return inputs to count operations on."""
        few = fixed_rows(self.context.checkpoint) or 2
        return {name: tensor[:few] for name, tensor in self.rows[0].items()}


def choose(pruner: Pruner, budget: str, value: float, *, locked: Collection[str] = (), sizes: Sizes | None = None) -> Sizes:
    """Return how many units each group keeps: `budget` is "keep" (share of every group), "max_loss" (allowed rise of the
    measured loss), "params" or "flops" (of one row) that the model may have. Raises OptionError where it cannot be met."""
    unknown = sorted({*locked, *(sizes or {})} - set(pruner.groups))
    if unknown:
        raise OptionError(_not_prunable(pruner, unknown[0]), where=unknown[0])
    if not pruner.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in pruner.reasons.items()) or "it has no free units."
        raise OptionError(f"No group of this model can be made smaller: {why}")
    if budget == "keep":
        wanted = {**even(pruner.groups, value, locked=locked), **(sizes or {})}
        if any(size < pruner.groups[name].size for name, size in wanted.items()):
            pruner.calibrate_whole([even(pruner.groups, share, locked=locked) for share in WHOLE_SHARES])
        return wanted
    if value <= 0:
        raise OptionError(f"The budget {budget.replace('_', '-')} must be more than 0; it cannot be {value:g}.", where=budget)
    count = pruner.flops if budget == "flops" else pruner.parameters
    choices = pruner.front(count, locked, sizes)
    if budget == "max_loss":
        return _least_within_loss(pruner, choices, value)
    what = "parameters" if budget == "params" else "FLOPs"
    chosen = within(choices, value, count, pruner.losses[pruner.kinds[0]], pruner.groups, what=what)
    if chosen.keep != choices[0].keep:
        smallest, most = choices[-1].count, choices[0].count
        limits = [smallest + share * (most - smallest) for share in WHOLE_SHARES]
        pruner.calibrate_whole([next(c for c in choices if c.count <= limit).keep for limit in limits])
    return chosen.keep


def _least_within_loss(pruner: Pruner, choices: tuple[Choice, ...], allowed: float) -> Sizes:
    """Return the smallest sizes on the front found whose measured loss rises by at most `allowed`."""
    fits, fails = 0, len(choices)
    base = pruner.reference.baseline()["loss"]
    for _ in range(TRIES):
        inside = range(fits + 1, fails)
        if not inside:
            break
        hoped = [n for n in inside if pruner.predicted(choices[n].keep)["loss"] - base <= allowed]
        at = max(hoped) if hoped and pruner.points else inside[len(inside) // 2]
        rise = pruner.remember(choices[at].keep).measured["loss"] - base
        fits, fails = (at, fails) if rise <= allowed else (fits, at)
    return choices[fits].keep


def _not_prunable(pruner: Pruner, name: str) -> str:
    if name in pruner.reasons:
        return f"Group {name} cannot be made smaller: {pruner.reasons[name]}"
    return f"There is no group {name!r}; those that can be made smaller are {', '.join(pruner.groups)}."


def prune_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write a smaller model; the jail's entry of `cipm prune`.

    `request` has model, probe, filename, options, `budget` and `value` as `choose` takes them, `locked`, `sizes` and `form`.
    """
    options = parse_options(request["options"])
    checkpoint = load(request["model"])
    probe = open_probe(Path(request["probe"]), checkpoint.graph.inputs, max_rows=options.max_rows)
    context = Context(request, options, {}, emit, {"checkpoint": checkpoint, "probe": probe})
    context.kept["symmetry"] = proved_groups(context)
    pruner = Pruner(context)
    sizes = choose(pruner, request["budget"], request["value"], locked=request["locked"], sizes=request["sizes"])
    made = pruner.made(sizes)
    shrunk = shrink(made.checkpoint, context.symmetry, made.keep, locked=request["locked"], seed=options.seed)
    after, before = (_flops(one, pruner) for one in (shrunk.checkpoint, checkpoint))
    baseline = pruner.reference.baseline()
    facts = {"parameters": {"before": checkpoint.parameters, "after": shrunk.checkpoint.parameters},
             "flops": {"before": before, "after": after},
             "baseline": {name: baseline[name] for name in ("loss_kind", "loss", "accuracy")},
             "predicted": {"kl": None, **(pruner.predicted(sizes) if made.keep else {"loss": baseline["loss"]})},
             "measured": {name: made.measured[name] for name in ("loss", "kl", "agreement", "accuracy")},
             "rows": pruner.reference.rows, "keep": dict(sizes), "unavailable": pruner.reasons,
             "notes": [*made.notes, *shrunk.notes, *_limits(pruner), *pruner.reference.notes]}
    out = export_pruned(shrunk, request["model"], scratch / request["filename"], form=request["form"], details=facts)
    return {"filename": out.name, **facts}


def _flops(checkpoint: Checkpoint, pruner: Pruner) -> int:
    weights, fixed = work(checkpoint, pruner.few_rows)
    return round(sum(weights.values()) + fixed)


def _limits(pruner: Pruner) -> list[str]:
    return [f"{name}: {note}" for name, curve in pruner.curves.items() for note in curve.notes]
