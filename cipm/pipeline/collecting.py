"""Stages `collect` and `shard`: as few passes over the probe set as memory allows gather the statistics of every tap."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from cipm.pipeline.activity import activation_ranges, class_labels, why_no_classes
from cipm.pipeline.context import Context, batches, fixed_rows
from cipm.pipeline.stored import Statistics, StoredStatistics, read_pass, write_pass
from cipm.stages import segments, shard_rows
from cipm.statistics.collect import Collected, collect
from cipm.statistics.plan import MIB, CollectionPlan, class_bytes, plan_collection, tap_bytes
from cipm.statistics.sampling import EVERY_POSITION
from cipm.symmetry import CHOSEN_WORDS, SymmetryGroup, Tap
from cipm.trace import run

__all__ = ["Statistics", "StoredStatistics", "carried_by", "collect_shard", "collect_statistics", "collection_facts",
           "collection_notes",
           "collection_plan", "observed_tap", "read_statistics", "shard_ranges", "why_not_by_class", "why_not_collected"]

MOST_MATRICES = 100
"""Most classes of which each has a correlation matrix."""


def collect_statistics(context: Context, folder: Path) -> None:
    """Gather the statistics of every tap over all rows; shards that the request names are read, the others run here."""
    plan, ranges = collection_plan(context), shard_ranges(context)
    stored = {int(number): Path(there) for number, there in context.request.get("shards", {}).items()}
    here = [rows for number, rows in enumerate(ranges) if number not in stored]
    count = _Count(context.progress("collect", len(plan.passes) * sum(end - first for first, end in here), "rows"))

    def shard(number: int, at: int) -> dict[str, Collected]:
        if number in stored:
            return read_pass(stored[number], at)
        return _collect_rows(context, plan.passes[at].taps, ranges[number], count)

    facts = []
    for at in range(len(plan.passes)):
        found = reduce(_merged, (shard(number, at) for number in range(len(ranges))))
        facts += write_pass(folder, at, plan.passes[at].taps, found)
    (folder / "statistics.json").write_text(json.dumps({"taps": facts, **_plan_facts(plan, len(ranges))}))


def collect_shard(context: Context, folder: Path) -> None:
    """Gather the statistics of every tap over one shard of the rows, the one that the request names."""
    plan, rows = collection_plan(context), shard_ranges(context)[context.request["shard"]]
    count = _Count(context.progress("shard", len(plan.passes) * (rows[1] - rows[0]), "rows"))
    facts = []
    for at, one in enumerate(plan.passes):
        facts += write_pass(folder, at, one.taps, _collect_rows(context, one.taps, rows, count))
    (folder / "statistics.json").write_text(json.dumps({"taps": facts}))


def collection_plan(context: Context) -> CollectionPlan:
    """Return which taps are collected in which pass: those of proved groups no wider than max_width, one for each place. Of
    units that carry smaller ones every element is collected for itself."""
    groups = context.symmetry.groups
    chosen: dict[str, Tap] = {}
    for group in (group for group in groups if group.proved):
        for tap in group.taps if carried_by(groups, group) is None else [observed_tap(groups, group)]:
            if len(tap.index) <= context.options.max_width:
                chosen.setdefault(tap.key, tap)
    return plan_collection(list(chosen.values()), memory=context.options.statistics_memory * MIB, by_class=_by_class(context),
                           **_measures(context))


def why_not_by_class(context: Context, units: int) -> str | None:
    """Return in words why so many units have no correlations class by class, or None where they have."""
    sizes = _measures(context)
    need, most = class_bytes(units, sizes["classes"]), context.options.class_correlations
    if sizes["classes"] > MOST_MATRICES:
        return f"There are {sizes['classes']:,} classes; correlations are computed class by class for at most {MOST_MATRICES}."
    if need > most * MIB:
        return f"Correlations class by class take {need / MIB:,.3g} MiB here, more than class_correlations = {most}."
    if need + tap_bytes(units, **sizes) > context.options.statistics_memory * MIB:
        return f"Correlations class by class do not fit into statistics_memory = {context.options.statistics_memory}."
    return None


def _by_class(context: Context) -> frozenset[str]:
    """Return the keys of the taps, the one of each group that is looked at, which are collected class by class as well."""
    if class_labels(context.probe.labels) is None:
        return frozenset()
    return frozenset(group.taps[-1].key for group in context.symmetry.groups
                     if group.taps and why_not_by_class(context, group.size) is None)


def _measures(context: Context) -> dict[str, int]:
    """Return what the memory of a tap depends on beside its units: {classes, itemsize}."""
    labels = class_labels(context.probe.labels)
    wide = any(i.dtype == torch.float64 for i in context.checkpoint.graph.inputs)
    return {"classes": 0 if labels is None else int(labels.max()) + 1, "itemsize": 8 if wide else 4}


def shard_ranges(context: Context) -> tuple[tuple[int, int], ...]:
    """Return (first row, end row) of each shard; no more than the rows allow."""
    rows, size = _rows(context)
    return shard_rows(segments(rows, size), rows, context.options.shards)


def read_statistics(context: Context) -> StoredStatistics:
    """Return the statistics of every collected tap by its key; each is read from its file when it is asked for."""
    return StoredStatistics(context.folders["collect"], context.options.statistics_memory * MIB)


def collection_facts(context: Context) -> dict[str, Any]:
    """Return what was collected, and how: {taps, passes, left_out, budget_bytes, shards, words}, as statistics.json has it."""
    return context.read("collect", "statistics.json")


def collection_notes(context: Context) -> list[str]:
    """Return in sentences what a person should know of how activations were collected."""
    facts = collection_facts(context)
    said = [text for tap in facts["taps"]
            for text in (tap["positions"]["words"], *tap["padding"]["words"], *tap["labels"]["words"])]
    chosen = any(tap.chosen for group in context.symmetry.groups if group.proved for tap in group.taps)
    return [facts["words"], *(text for text in dict.fromkeys(said) if text != EVERY_POSITION), *[CHOSEN_WORDS] * chosen,
            *_label_notes(context)]


def _label_notes(context: Context) -> list[str]:
    labels = context.probe.labels
    if labels is None:
        return []
    if (why_not := why_no_classes(labels)) is not None:
        return [why_not]
    sizes = " × ".join(f"{n:,}" for n in labels.shape[1:] if n > 1)
    return [f"Labels name the class of each of {sizes} positions of a row. Statistics by class take every kept position of a "
            "class as one sample, where an activation has the same positions (row by row where they are flattened). Negative "
            "labels belong to no class."] if sizes else []


def why_not_collected(context: Context, group: SymmetryGroup) -> str | None:
    """Return in words why a tap of the group was left out for want of memory, or None where none was."""
    seen = observed_tap(context.symmetry.groups, group)
    keys = {tap.key for tap in (*group.taps, *([seen] if seen else []))}
    return next((entry["words"] for entry in collection_facts(context)["left_out"] if entry["key"] in keys), None)


def carried_by(groups: tuple[SymmetryGroup, ...], group: SymmetryGroup) -> SymmetryGroup | None:
    """Return the group of smaller units that the units of this group carry where it is read, or None."""
    if not group.taps:
        return None
    place = (group.taps[-1].value, group.taps[-1].axis)
    inner = [g for g in groups if g.parent == group.name and any((t.value, t.axis) == place for t in g.taps)]
    return inner[0] if inner else None


def observed_tap(groups: tuple[SymmetryGroup, ...], group: SymmetryGroup) -> Tap | None:
    """Return the tap whose statistics tell of a group: its last one; for units that carry smaller ones (heads) with all their
    elements one by one, unit by unit."""
    if not group.taps or carried_by(groups, group) is None:
        return group.taps[-1] if group.taps else None
    return replace(group.taps[-1], index=group.taps[-1].index.reshape(-1, 1))


def _rows(context: Context) -> tuple[int, int]:
    """Return how many rows are run, and how many in a batch; a model with a fixed batch takes full ones only."""
    fixed, used = fixed_rows(context.checkpoint), context.probe.used_rows
    return (used - used % fixed, fixed) if fixed else (used, context.options.batch_rows)


def _collect_rows(context: Context, taps: Sequence[Tap], rows: tuple[int, int], count: _Count) -> dict[str, Collected]:
    """Run some rows once and return what these taps gave, by their keys."""
    checkpoint, options, probe = context.checkpoint, context.options, context.probe
    constants = {key: tensor.to(context.device) for key, tensor in checkpoint.constants.items()}

    def forward(inputs: Mapping[str, Any], observe: Mapping[str, Any]) -> Any:
        return run(checkpoint.graph, context.tensors, constants, inputs, observe=observe)

    total, size = _rows(context)
    found = collect(forward, taps, batches(probe, checkpoint, options.batch_rows, rows=rows), positions=options.positions,
                    progress=count.part(), start=(rows[0] // size, rows[0]), cuts=segments(total, size)[1:],
                    labels=class_labels(probe.labels), by_class=_by_class(context),
                    ranges=activation_ranges(checkpoint.graph, [t.value for t in taps]))
    return {tap.key: collected for tap, collected in found.items()}


@dataclass
class _Count:
    """The rows done over all passes and shards."""

    report: Callable[[int], None]
    done: int = 0

    def part(self) -> Callable[[int], None]:
        """Return a function that is told the rows done of the next part."""
        before = self.done

        def advance(rows: int) -> None:
            self.done = before + rows
            self.report(self.done)

        return advance


def _merged(one: dict[str, Collected], other: dict[str, Collected]) -> dict[str, Collected]:
    return {key: one.pop(key).merge(other.pop(key)) for key in list(one)}


def _plan_facts(plan: CollectionPlan, shards: int) -> dict[str, Any]:
    left = [{"key": tap.key, "value": tap.value, "axis": tap.axis, "units": len(tap.index), "bytes": size,
             "words": f"Its statistics alone need {size / MIB:,.0f} MiB, more than statistics_memory = {plan.memory // MIB}."}
            for tap, size in plan.left_out]
    return {"passes": [{"taps": [tap.key for tap in one.taps], "bytes": one.bytes} for one in plan.passes],
            "left_out": left, "budget_bytes": plan.memory, "shards": shards, "words": plan.words}
