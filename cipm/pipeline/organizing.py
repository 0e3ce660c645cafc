"""Stage `organize`: correlations become modules and orders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cipm.modules import describe_modules, effective_dimension, partition, redundancy
from cipm.modules.partition import Partition
from cipm.ordering import by_module, canonical_orders, nodesort, scores, spectral, within_blocks
from cipm.permutation import Permutation
from cipm.pipeline.collecting import Statistics, read_statistics
from cipm.pipeline.context import Context
from cipm.pipeline.similarity import Similarity, similarity
from cipm.symmetry import SymmetryGroup

PLAIN_ORDERS = ("random", "nodesort", "canonical")


def organize(context: Context, folder: Path) -> None:
    """Find the modules of every group, order its units in every way, and judge the orders on held-out rows."""
    statistics = read_statistics(context)
    canonical = canonical_orders(context.symmetry, context.checkpoint.tensors)
    groups = [group for group in context.symmetry.groups if group.proved]
    report = context.progress("organize", len(groups), "groups")
    facts: dict[str, Any] = {}
    (folder / "correlation").mkdir()
    for number, group in enumerate(groups):
        alike = similarity(context, group, statistics)
        orders = {name: plain_order(context, group, name, canonical.orders) for name in PLAIN_ORDERS}
        facts[group.name] = {"similarity": None, "modules": [], "labels": [-1] * group.size,
                             "canonical_ties": canonical.unresolved.get(group.name, 0),
                             "unavailable": None if alike else _why_not(context, group)}
        if alike:
            np.save(folder / "correlation" / f"{group.name}.npy", alike.whole.astype(np.float32))
            found, facts_of_modules = _modules(context, group, alike)
            orders |= seen_orders(alike.whole, alike.samples, group.blocks, found)
            facts[group.name] |= facts_of_modules | _dimension(context, group, statistics, alike)
            facts[group.name]["scores"] = _scores(context, group, alike, orders)
        target = folder / "orders" / group.name
        target.mkdir(parents=True)
        for name, order in orders.items():
            np.save(target / f"{name}.npy", order.order)
        report(number + 1)
    (folder / "organize.json").write_text(json.dumps(facts))


def plain_order(context: Context, group: SymmetryGroup, name: str, canonical: Mapping[str, Permutation]) -> Permutation:
    """Return one of the PLAIN_ORDERS, which need no activations; `canonical` is asked for that order alone."""
    if name == "canonical":
        return canonical[group.name]
    if name == "random":
        generator = np.random.default_rng([context.options.seed, *group.name.encode()])
        return Permutation.random(group.size, generator=generator, blocks=group.blocks)
    weights, width = _unit_weights(context, group), group.size // group.blocks
    runs = [nodesort(weights[b * width:(b + 1) * width]).order + b * width for b in range(group.blocks)]
    return Permutation(np.concatenate(runs))


def _unit_weights(context: Context, group: SymmetryGroup) -> np.ndarray:
    """Return [units, features]: everything stored at each unit's places, side by side, at most 4096 features a place."""
    parts = []
    for place in group.places:
        tensor = context.checkpoint.tensors[place.tensor]
        if tensor.is_floating_point():
            rows = tensor.double().movedim(place.axis, 0).reshape(place.length, -1)[:, :4096].numpy()
            parts.append(rows[place.index.ravel()].reshape(group.size, -1))
    return np.concatenate(parts, axis=1) if parts else np.zeros((group.size, 1))


def seen_orders(correlation: np.ndarray, samples: int, blocks: int, found: Partition) -> dict[str, Permutation]:
    """Return the orders made from activations: spectral (seriation) and modules."""
    def modules(block: np.ndarray, labels: np.ndarray) -> Permutation:
        return by_module(block, _relabel(labels), samples)

    if blocks == 1:
        return {"spectral": spectral(correlation, samples), "modules": by_module(correlation, found, samples)}
    width = len(correlation) // blocks
    runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
    inner = [modules(correlation[run, run], found.labels[run]).order + run.start for run in runs]
    return {"spectral": within_blocks(lambda c: spectral(c, samples), correlation, blocks),
            "modules": Permutation(np.concatenate(inner))}


def _partition(context: Context, correlation: np.ndarray, halves: tuple[np.ndarray, np.ndarray] | None, samples: int,
               blocks: int) -> Partition:
    """Return the modules; where units may not leave their block, modules are sought block by block."""
    generator = np.random.default_rng(context.options.seed)
    chosen = context.options.resolution
    if blocks == 1:
        return partition(correlation, samples=samples, resolution=chosen, halves=halves, generator=generator)
    width = len(correlation) // blocks
    labels = np.full(len(correlation), -1)
    parts = []
    for b in range(blocks):
        run = slice(b * width, (b + 1) * width)
        inner = None if halves is None else (halves[0][run, run], halves[1][run, run])
        part = partition(correlation[run, run], samples=samples, resolution=chosen, halves=inner, generator=generator)
        labels[run] = np.where(part.labels >= 0, part.labels + labels.max() + 1, -1)
        parts.append(part)
    stabilities = [p.stability for p in parts if p.stability is not None]
    return Partition(labels, float(np.median([p.resolution for p in parts])),
                     float(np.mean(stabilities)) if stabilities else None, f"block by block: {parts[0].how}")


def _relabel(labels: np.ndarray) -> Partition:
    known = [label for label in np.unique(labels) if label >= 0]
    return Partition(np.array([known.index(label) if label >= 0 else -1 for label in labels]), 0.0, None, "")


def _modules(context: Context, group: SymmetryGroup, alike: Similarity) -> tuple[Partition, dict[str, Any]]:
    found = _partition(context, alike.whole, alike.halves, alike.samples, group.blocks)
    modules = [asdict(module) | {"size": module.size} for module in describe_modules(alike.whole, found)]
    return found, {"similarity": alike.kind, "samples": alike.samples, "rows": alike.rows, "dead": list(alike.dead),
                   "modules": modules, "labels": found.labels.tolist(),
                   "partition": {"resolution": found.resolution, "stability": found.stability, "how": found.how}}


def _dimension(context: Context, group: SymmetryGroup, statistics: Statistics,
               alike: Similarity) -> dict[str, Any]:
    if alike.kind != "pearson":
        return {"effective_dimension": None, "redundancy": None}
    half = statistics[group.taps[-1].key]
    covariance = half.whole.covariance()
    spare = redundancy(covariance, samples=alike.samples, halves=(half.even.covariance(), half.odd.covariance()))
    return {"effective_dimension": asdict(effective_dimension(alike.whole, alike.samples)),
            "redundancy": {"share": spare.share, "r2_median": spare.r2_median, "r2": spare.r2.tolist(), "how": spare.how}}


def _scores(context: Context, group: SymmetryGroup, alike: Similarity, orders: Mapping[str, Permutation]) -> dict[str, Any]:
    """Return for every order its scores over all rows; and, held out, those of the order that the even rows alone
    give, judged on the odd rows."""
    identity = {"original": Permutation.identity(group.size)}
    found = _partition(context, alike.halves[0], None, alike.samples // 2, group.blocks)
    half_orders = dict(orders) | seen_orders(alike.halves[0], alike.samples // 2, group.blocks, found)
    return {name: {"scores": scores(alike.whole, order).to_json(),
                   "held_out": scores(alike.halves[1], (identity | half_orders)[name]).to_json()}
            for name, order in (identity | dict(orders)).items()}


def _why_not(context: Context, group: SymmetryGroup) -> str:
    if not group.taps:
        return "No value of the graph shows these units alone, so their activations cannot be read."
    if group.size > context.options.max_width:
        return f"The group has {group.size} units, more than max_width = {context.options.max_width}."
    return "Its units carry smaller ones that several of them share; no similarity is defined for such units yet."
