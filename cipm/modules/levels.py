"""Modules within modules: partitions at several resolutions, each a refinement of the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cipm.modules.louvain import communities, module_sums
from cipm.modules.methods import resolutions, together
from cipm.modules.partition import Partition, agreement

STABLE = 0.8  # share of the partition's own stability that a level must reach
SAME = 0.7  # partitions that agree as much with the first of a run are one level with it


@dataclass(frozen=True, eq=False)
class Level:
    """One level: `labels` [units] int, 0 the largest module, −1 in none; `stability` the agreement of the two probe
    halves (adjusted Rand index), None where none was measured. A module lies whole in one module of the level before,
    and a unit in none stays in none.
    """

    resolution: float
    stability: float | None
    labels: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {"resolution": self.resolution, "stability": self.stability, "labels": self.labels.tolist()}


def hierarchy(found: Partition, *, absolute: bool = False,
              generator: np.random.Generator | None = None) -> tuple[Level, ...]:
    """Return the levels around a partition, coarsest first; the partition itself is one of them.

    Above it whole modules are merged at ever lower resolutions, below it each module is split by itself at ever higher
    ones, in the whole and, beginning with the partition's `half_labels`, in each half. Of each run of resolutions that
    give about the same partition the most stable one is kept, if it is about as stable as the partition; without halves
    there is no telling, and the partition is the only level. The factors are those that the partition was found in. Cost:
    less than one more scan of resolutions.
    """
    if found.resolution is None or not found.modules:
        return ()
    own = Level(found.resolution, found.stability, found.labels)
    if found.loadings is None or found.half_labels is None:
        return (own,)
    seed = int((generator or np.random.default_rng(0)).integers(2**31))
    values = resolutions(found.loadings[0], absolute)
    starts = zip(found.loadings, (found.labels, *found.half_labels), strict=True)
    chains = [_chain(loadings, labels, found.resolution, values, absolute, seed) for loadings, labels in starts]
    coarse = [Level(g, agreement(a, b), w) for g, (w, a, b) in _rows(chains, 0)]
    fine = [Level(g, agreement(a, b), w) for g, (w, a, b) in _rows(chains, 1)]
    return (*reversed(_distinct(own, coarse, -1)), own, *_distinct(own, fine, 1))


def _rows(chains: list[tuple[dict, dict]], side: int) -> list[tuple[float, list[np.ndarray]]]:
    return [(gamma, [chain[side][gamma] for chain in chains]) for gamma in chains[0][side]]


def _chain(factors: np.ndarray, labels: np.ndarray, own: float, values: tuple[float, ...], absolute: bool,
           seed: int) -> tuple[dict[float, np.ndarray], dict[float, np.ndarray]]:
    """Return the labels by resolution, from the partition's own outwards: the coarser ones, the finer ones."""
    coarser, finer, last = {}, {}, labels
    for gamma in sorted((value for value in values if value < own), reverse=True):
        last = coarser[gamma] = _merged(factors, last, gamma, absolute, seed)
    last = labels
    for gamma in sorted(value for value in values if value > own):
        last = finer[gamma] = _split(factors, last, gamma, absolute, seed)
    return coarser, finer


def _merged(factors: np.ndarray, labels: np.ndarray, resolution: float, absolute: bool, seed: int) -> np.ndarray:
    """Return labels in which whole modules and lone units are joined where that gains.

    A module enters as one node: its mean factors stand for each of its units, and the sums are the same.
    """
    live = np.flatnonzero(np.abs(factors).sum(axis=1) > 0)
    dense = np.where(labels[live] >= 0, labels[live], labels.max(initial=-1) + 1 + np.arange(live.size))
    _, dense = np.unique(dense, return_inverse=True)
    sums, sizes = module_sums(_one_sided(factors[live], dense) if absolute else factors[live], dense)
    joined = communities(sums, resolution, generator=np.random.default_rng(seed), absolute=absolute, sizes=sizes)
    result = np.full(labels.size, -1)
    result[live] = together(joined[dense])
    return result


def _one_sided(factors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the factors with units turned to the side of the longest one of their module."""
    longest = np.lexsort((-np.linalg.norm(factors, axis=1), labels))
    first = longest[np.searchsorted(labels[longest], np.arange(labels.max(initial=-1) + 1))]
    side = np.einsum("uf,uf->u", factors, factors[first[labels]])
    return np.where(side < 0, -1, 1)[:, None] * factors


def _split(factors: np.ndarray, labels: np.ndarray, resolution: float, absolute: bool, seed: int) -> np.ndarray:
    """Return labels in which each module is taken apart where that gains."""
    result, count = np.full(labels.size, -1), 0
    for module in range(labels.max(initial=-1) + 1):
        units = np.flatnonzero(labels == module)
        parts = together(communities(factors[units], resolution, generator=np.random.default_rng(seed), absolute=absolute))
        result[units] = np.where(parts >= 0, parts + count, -1)
        count += parts.max(initial=-1) + 1
    return together(result)


def _distinct(own: Level, levels: list[Level], direction: int) -> list[Level]:
    """Return, going outwards, the most stable level of each run of about equal ones that is not the partition's own; each
    has fewer (direction −1) or more (1) modules than the one before, and two at least.
    """
    kept, run = [own], [own]
    for level in [*levels, None]:
        if level is not None and agreement(level.labels, run[0].labels) >= SAME:
            run.append(level)
            continue
        best, before = max(run, key=lambda one: one.stability), kept[-1]
        more = direction * (int(best.labels.max()) - int(before.labels.max())) > 0
        if own not in run and more and best.stability >= STABLE * own.stability and best.labels.max() >= 1:
            kept.append(best)
        run = [level]
    return kept[1:]
