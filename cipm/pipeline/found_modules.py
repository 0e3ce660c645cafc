"""The modules of every group, for the report: what they consist of, what drives them, and what they read and write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cipm.modules import Clustering, TopSamples, describe_modules, hierarchy, interactions, partition, unit_weights
from cipm.modules.partition import Partition
from cipm.pipeline.context import Context
from cipm.pipeline.similarity import Similarity
from cipm.symmetry import SymmetryGroup, lined_up

LEVEL_UNITS = 4096
"""Widest group whose modules are sought at several resolutions."""
MOST_MODULES = 100
"""Most modules of a group between which and others strengths are listed."""
LARGEST_TENSOR = 1 << 26


def partition_of(context: Context, correlation: np.ndarray, halves: tuple[np.ndarray, np.ndarray] | None, samples: int,
                 blocks: int) -> Partition:
    """Return the modules; where units may not leave their block, modules are sought block by block."""
    options = context.options
    how = {"resolution": options.resolution if options.module_method == "potts" else 0.0,
           "clustering": Clustering(options.module_method, options.module_pairs, options.module_count),
           "generator": np.random.default_rng(options.seed)}
    if blocks == 1:
        return partition(correlation, samples=samples, halves=halves, **how)
    width = len(correlation) // blocks
    labels = np.full(len(correlation), -1)
    parts = []
    for b in range(blocks):
        run = slice(b * width, (b + 1) * width)
        inner = None if halves is None else (halves[0][run, run], halves[1][run, run])
        part = partition(correlation[run, run], samples=samples, halves=inner, **how)
        labels[run] = np.where(part.labels >= 0, part.labels + labels.max() + 1, -1)
        parts.append(part)
    stabilities = [p.stability for p in parts if p.stability is not None]
    resolutions = [p.resolution for p in parts if p.resolution is not None]
    return Partition(labels, float(np.median(resolutions)) if resolutions else None,
                     float(np.mean(stabilities)) if stabilities else None, f"block by block: {parts[0].how}")


def module_facts(context: Context, group: SymmetryGroup, alike: Similarity, found: Partition, means: np.ndarray | None,
                 rows: np.ndarray) -> dict[str, Any]:
    """Return what the report says of a group's modules; `means` are the row means [rows, units] of the probe `rows`."""
    modules = [asdict(module) | {"size": module.size} for module in describe_modules(alike.whole, found)]
    if means is not None and modules:
        top = TopSamples.create(found.labels, means.mean(axis=0), means.var(axis=0), signs=found.signs).update(means, rows)
        for module, samples in zip(modules, top.finalise(), strict=True):
            module["top_rows"] = [asdict(sample) for sample in samples]
    return {"similarity": alike.kind, "samples": alike.samples, "rows": alike.rows, "dead": list(alike.dead),
            "modules": modules, "labels": found.labels.tolist(), "levels": _levels(context, group, found),
            "partition": {"resolution": found.resolution, "stability": found.stability, "how": found.how}}


def _levels(context: Context, group: SymmetryGroup, found: Partition) -> list[dict[str, Any]]:
    if group.blocks > 1 or group.size > LEVEL_UNITS or found.half_labels is None:
        return []
    found_levels = hierarchy(found, absolute=context.options.module_pairs == "absolute",
                             generator=np.random.default_rng(context.options.seed))
    return [level.to_json() | {"modules": int(level.labels.max()) + 1} for level in found_levels]


def interaction_facts(context: Context, groups: Sequence[SymmetryGroup],
                      labels: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return, for every tensor between the modules of two groups, the strengths (`cipm.modules.Interactions`):
    [{tensor, rows: group, cols: group, reads: the group whose units are read, strength, ratio, z}]."""
    known = [group for group in groups if 0 <= labels.get(group.name, np.zeros(0)).max(initial=-1) < MOST_MODULES]
    known, tensors = lined_up(known, context.checkpoint.tensors)
    return [fact for key, tensor in tensors.items()
            if tensor.is_floating_point() and tensor.numel() <= LARGEST_TENSOR
            for fact in _between(key, tensor.double().numpy(), known, labels)]


def _between(key: str, tensor: np.ndarray, groups: Sequence[SymmetryGroup],
             labels: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    places = [(group, place) for group in groups for place in group.places if place.tensor == key]
    for (a, at), (b, by) in itertools.combinations(places, 2):
        if at.axis != by.axis:
            weights = unit_weights(tensor, (at.axis, at.index), (by.axis, by.index))
            read = next((g.name for g in (a, b) for tap in g.taps if (key, (at if g is a else by).axis) in tap.consumers), None)
            yield {"tensor": key, "rows": a.name, "cols": b.name, "reads": read,
                   **interactions(weights, labels[a.name], labels[b.name]).to_json()}
