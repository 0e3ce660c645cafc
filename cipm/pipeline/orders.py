"""The orders of every group: from the weights, from activations, coordinated between groups, and one policy over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cipm.modules.partition import Partition
from cipm.ordering import (
    Scores,
    by_class,
    by_importance,
    by_module,
    chance,
    class_selectivity,
    lexicographic,
    nodesort,
    policy,
    portfolio,
    scores,
    spectral,
    within_blocks,
)
from cipm.ordering.policy import RULES
from cipm.permutation import Permutation
from cipm.pipeline.context import Context
from cipm.pipeline.similarity import Similarity
from cipm.pipeline.stored import StoredStatistics
from cipm.symmetry import SymmetryGroup

PLAIN_ORDERS = ("random", "nodesort", "lexicographic", "canonical")
"""Orders that need no activations."""
POLICIES = tuple(RULES)
Orders = dict[str, Permutation]


@dataclass(frozen=True, eq=False)
class Seen:
    """The orders of one group made from activations: `whole` from all rows, `half` by the same methods from the even rows
    alone, and in `facts` what is said of them."""

    whole: Orders
    half: Orders
    facts: Mapping[str, Any]


def plain_order(context: Context, group: SymmetryGroup, name: str, canonical: Mapping[str, Permutation]) -> Permutation:
    """Return one of the PLAIN_ORDERS; `canonical` is asked for that order alone."""
    if name == "canonical":
        return canonical[group.name]
    if name == "random":
        generator = np.random.default_rng([context.options.seed, *group.name.encode()])
        return Permutation.random(group.size, generator=generator, blocks=group.blocks)
    weights, width = unit_weights(context, group), group.size // group.blocks
    by = {"nodesort": nodesort, "lexicographic": lexicographic}[name]
    runs = [by(weights[b * width:(b + 1) * width]).order + b * width for b in range(group.blocks)]
    return Permutation(np.concatenate(runs))


def unit_weights(context: Context, group: SymmetryGroup) -> np.ndarray:
    """Return [units, features]: everything stored at each unit's places, side by side, at most 4096 features a place."""
    parts = []
    for place in group.places:
        tensor = context.checkpoint.tensors[place.tensor]
        if tensor.is_floating_point():
            rows = place.rows(tensor.double())[:, :4096].numpy()
            parts.append(rows[place.index.ravel()].reshape(group.size, -1))
    return np.concatenate(parts, axis=1) if parts else np.zeros((group.size, 1))


def seen_orders(context: Context, group: SymmetryGroup, alike: Similarity, found: tuple[Partition, Partition],
                statistics: StoredStatistics) -> Seen:
    """Return the orders of a group made from activations; `found` are the modules of all rows and of the even rows."""
    best = portfolio(alike.whole, alike.halves, alike.samples, blocks=group.blocks)
    whole, half = (_of_correlation(c, samples, group.blocks, part) for c, samples, part in
                   ((alike.whole, alike.samples, found[0]), (alike.halves[0], alike.samples // 2, found[1])))
    whole["portfolio"], half["portfolio"] = best.order, best.half
    single = _by_units(context, group, alike, statistics)
    return Seen(whole | single, half | single, {"portfolio": best.to_json()})


def _of_correlation(correlation: np.ndarray, samples: int, blocks: int, found: Partition) -> Orders:
    """Return the seriation and the order by modules."""
    if blocks == 1:
        return {"spectral": spectral(correlation, samples), "modules": by_module(correlation, found, samples)}
    width = len(correlation) // blocks
    runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
    inner = [by_module(correlation[run, run], _relabelled(found.labels[run]), samples).order + run.start for run in runs]
    return {"spectral": within_blocks(lambda c: spectral(c, samples), correlation, blocks),
            "modules": Permutation(np.concatenate(inner))}


def _relabelled(labels: np.ndarray) -> Partition:
    known = [label for label in np.unique(labels) if label >= 0]
    return Partition(np.array([known.index(label) if label >= 0 else -1 for label in labels]), 0.0, None, "")


def _by_units(context: Context, group: SymmetryGroup, alike: Similarity, statistics: StoredStatistics) -> Orders:
    """Return the orders by what single units do; none for units that carry smaller ones."""
    if alike.kind != "pearson":
        return {}
    tap = group.taps[-1]
    variance = statistics[tap.key].whole.variance
    found = {"importance": by_importance(variance, _outgoing(context, group), blocks=group.blocks)}
    classes = statistics.profile(tap.key).classes
    present = np.zeros(0, bool) if classes is None else classes.counts > 0
    if present.sum() > 1:
        deviation = np.sqrt(classes.within / max(classes.samples - present.sum(), 1))
        found["selectivity"] = by_class(class_selectivity(classes.means[present], deviation), blocks=group.blocks)
    return found


def _outgoing(context: Context, group: SymmetryGroup) -> np.ndarray:
    """Return the norm [units] of all weights that read each unit."""
    squares = np.zeros(group.size)
    readers = {consumer for tap in group.taps for consumer in tap.consumers}
    for place in group.places:
        if (place.tensor, place.axis) in readers:
            tensor = place.rows(context.checkpoint.tensors[place.tensor].double())
            squares += tensor.square().sum(1).numpy()[place.index].sum(axis=1)
    return np.sqrt(squares) if readers else np.ones(group.size)


def judged(context: Context, group: SymmetryGroup, alike: Similarity, orders: Orders, half: Orders) -> dict[str, Any]:
    """Return for every order its scores over all rows; and, held out, those of the order that the even rows alone give
    (or of the same order, where it does not look at activations), judged on the odd rows; and what random orders score."""
    original = {"original": Permutation.identity(group.size)}
    generator = np.random.default_rng(context.options.seed)
    facts = {name: {"scores": scores(alike.whole, order).to_json(),
                    "held_out": scores(alike.halves[1], (original | orders | half)[name]).to_json()}
             for name, order in (original | orders).items()}
    return {"scores": facts, "chance": chance(alike.halves[1], generator=generator, blocks=group.blocks).to_json()}


def policies(orders: Mapping[str, Orders], facts: Mapping[str, Any]) -> dict[str, dict[str, tuple[Permutation, str]]]:
    """Return {objective: {group: (order, why)}} for every objective of `cipm.ordering.policy.RULES`."""
    held_out = {name: {order: Scores(**s["held_out"]) for order, s in facts[name].get("scores", {}).items()} for name in orders}
    unresolved = {name: facts[name]["canonical_ties"] for name in orders}
    return {objective: {name: (choice.order, f"{choice.name}: {choice.why}") for name, choice in
                        policy(objective, orders, held_out=held_out, unresolved=unresolved).items()}
            for objective in POLICIES}
