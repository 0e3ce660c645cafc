"""Stage `organize`: correlations become modules and orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cipm.modules import effective_dimension, neighbour_dimension, redundancy
from cipm.ordering import canonical_orders, coordinate_groups, links, nodesort_overflow
from cipm.pipeline.activity import activity_facts, class_correlations, class_means
from cipm.pipeline.collecting import observed_tap, read_statistics, why_not_by_class, why_not_collected
from cipm.pipeline.context import Context
from cipm.pipeline.found_modules import interaction_facts, module_facts, partition_of
from cipm.pipeline.orders import PLAIN_ORDERS, Orders, judged, plain_order, policies, seen_orders, unit_weights
from cipm.pipeline.rows import RowMeans, row_means
from cipm.pipeline.similarity import Similarity, similarity
from cipm.pipeline.stored import StoredStatistics
from cipm.symmetry import SymmetryGroup


@dataclass(eq=False)
class _Found:
    """What is known of one group so far: its orders, those that the even rows alone give, its modules, and facts."""

    orders: Orders
    half: Orders
    labels: np.ndarray | None
    half_labels: np.ndarray | None
    facts: dict[str, Any]


def organize(context: Context, folder: Path) -> None:
    """Find the modules of every group, order its units in every way, and judge the orders on held-out rows."""
    statistics = read_statistics(context)
    groups = [group for group in context.symmetry.groups if group.proved]
    report = context.progress("organize", 2 * len(groups), "groups")
    (folder / "correlation").mkdir()
    found = _from_weights(context, groups)
    rows = row_means(context, [group.taps[-1] for group in groups if group.taps and group.taps[-1].key in statistics])
    for number, group in enumerate(groups):
        _from_activations(context, group, statistics, rows, found[group.name], folder)
        report(number + 1)
    coordination = _coordinate(context, groups, found)
    for number, group in enumerate(groups):
        one = found[group.name]
        if one.labels is not None:
            one.facts |= judged(context, group, similarity(context, group, statistics), one.orders, one.half)
        report(len(groups) + number + 1)
    _add_policies(found)
    _write(folder, found)
    labels = {name: one.labels for name, one in found.items() if one.labels is not None}
    (folder / "organize.json").write_text(json.dumps({
        "groups": {name: one.facts for name, one in found.items()}, "coordination": coordination,
        "interactions": interaction_facts(context, groups, labels)}))


def _from_weights(context: Context, groups: Sequence[SymmetryGroup]) -> dict[str, _Found]:
    """Return what is known of each group without activations: the plain orders, and what they leave open."""
    canonical = canonical_orders(context.symmetry, context.checkpoint.tensors)
    return {group.name: _Found({name: plain_order(context, group, name, canonical.orders) for name in PLAIN_ORDERS}, {}, None,
                               None, {"similarity": None, "modules": [], "labels": [-1] * group.size,
                                      "canonical_ties": canonical.unresolved.get(group.name, 0),
                                      "nodesort_overflow": int(nodesort_overflow(unit_weights(context, group)).sum())})
            for group in groups}


def _from_activations(context: Context, group: SymmetryGroup, statistics: StoredStatistics, rows: RowMeans, one: _Found,
                      folder: Path) -> None:
    """Write the correlations of a group, and add what they tell; or say why there are none."""
    alike = similarity(context, group, statistics)
    one.facts["unavailable"] = None if alike else _why_not(context, group)
    if not alike:
        return
    np.save(folder / "correlation" / f"{group.name}.npy", alike.whole.astype(np.float32))
    if alike.kind == "pearson":
        one.facts["classes"] = _by_class(context, group, statistics, folder / "classes" / group.name)
    _see(context, group, alike, statistics, rows, one)


def _add_policies(found: Mapping[str, _Found]) -> None:
    """Add the order that each policy takes for each group, and why."""
    chosen = policies({name: one.orders for name, one in found.items()}, {name: one.facts for name, one in found.items()})
    for objective, by_group in chosen.items():
        for name, (order, why) in by_group.items():
            found[name].orders[objective] = order
            found[name].facts.setdefault("policies", {})[objective] = why


def _write(folder: Path, found: Mapping[str, _Found]) -> None:
    for name, one in found.items():
        target = folder / "orders" / name
        target.mkdir(parents=True)
        for order, permutation in one.orders.items():
            np.save(target / f"{order}.npy", permutation.order)


def _by_class(context: Context, group: SymmetryGroup, statistics: StoredStatistics, folder: Path) -> dict[str, Any] | None:
    """Write means.npy [classes, units], within.npy and NUMBER.npy [units, units], as far as there are classes; return
    {samples: {"within" or number: samples of the correlation}, words: why there are no correlations by class | null}."""
    means = class_means(statistics, group.taps[-1])
    if means is None:
        return None
    folder.mkdir(parents=True)
    np.save(folder / "means.npy", means)
    found = class_correlations(statistics, group.taps[-1])
    for name, (correlation, _) in found.items():
        np.save(folder / f"{name}.npy", correlation.astype(np.float32))
    return {"samples": {name: samples for name, (_, samples) in found.items()}, "words": why_not_by_class(context, group.size)}


def _see(context: Context, group: SymmetryGroup, alike: Similarity, statistics: StoredStatistics, rows: RowMeans,
         one: _Found) -> None:
    """Add what activations tell of a group: modules, dimension, redundancy, activity, and orders."""
    whole = partition_of(context, alike.whole, alike.halves, alike.samples, group.blocks)
    half = partition_of(context, alike.halves[0], None, alike.samples // 2, group.blocks)
    seen = seen_orders(context, group, alike, (whole, half), statistics)
    one.orders |= seen.whole
    one.half |= seen.half
    one.labels, one.half_labels = whole.labels, half.labels
    means = rows.values.get(group.taps[-1].key) if alike.kind == "pearson" else None
    one.facts |= module_facts(context, group, alike, whole, means, rows.rows) | _dimension(group, statistics, alike, means)
    one.facts |= seen.facts
    one.facts["activity"] = activity_facts(statistics, group.taps[-1]) if alike.kind == "pearson" else None


def _coordinate(context: Context, groups: Sequence[SymmetryGroup], found: Mapping[str, _Found]) -> dict[str, Any]:
    """Add the coordinated orders of all groups with modules; return how well matrices line up, before and after."""
    known = {name: one for name, one in found.items() if one.labels is not None}
    seen = [group for group in groups if group.name in known]
    between = links(seen, context.checkpoint.tensors)
    whole = coordinate_groups(seen, between, {name: one.orders["portfolio"] for name, one in known.items()},
                              labels={name: one.labels for name, one in known.items()})
    half = coordinate_groups(seen, between, {name: one.half["portfolio"] for name, one in known.items()},
                             labels={name: one.half_labels for name, one in known.items()})
    for name, one in known.items():
        one.orders["coordinated"], one.half["coordinated"] = whole.orders[name], half.orders[name]
    return whole.to_json()


def _dimension(group: SymmetryGroup, statistics: StoredStatistics, alike: Similarity,
               means: np.ndarray | None) -> dict[str, Any]:
    if alike.kind != "pearson":
        return {"effective_dimension": None, "redundancy": None}
    half = statistics[group.taps[-1].key]
    spare = redundancy(half.whole.covariance(), samples=alike.samples, halves=(half.even.covariance(), half.odd.covariance()))
    dimension = asdict(effective_dimension(alike.whole, alike.samples, alike.halves))
    near = None if means is None else asdict(neighbour_dimension(means))
    return {"effective_dimension": dimension | {"nearest_neighbour": near},
            "redundancy": {"share": spare.share, "r2_median": spare.r2_median, "r2": spare.r2.tolist(), "how": spare.how}}


def _why_not(context: Context, group: SymmetryGroup) -> str:
    if not group.taps and group.stacked:
        return ("Which expert's units a value shows is decided by an index from row to row, so no value shows these units side "
                "by side.")
    if not group.taps:
        return "No value of the graph shows these units alone, so their activations cannot be read."
    most, elements = context.options.max_width, len(observed_tap(context.symmetry.groups, group).index)
    if group.size > most:
        return f"The group has {group.size} units, more than max_width = {most}."
    if elements > most:
        return f"Its {group.size} units have {elements} elements in all, more than max_width = {most}."
    return why_not_collected(context, group) or "Nothing was collected where its units stand."
