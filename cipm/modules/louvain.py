"""Signed constant-Potts communities in factor space.

The quality of a partition is Σ over pairs i < j in one module of (Ĉ_ij − γ) with Ĉ = F Fᵀ, F [units, factors]. With
the sums S_c = Σ_{j in c} F_j, moving unit i gains F_i·S_c − γ n_c: no matrix of pairs is ever needed.

Source: Traag, Van Dooren, Nesterov, "Narrow scope for resolution-limit-free community detection" (2011), for the
constant Potts model; Blondel et al., "Fast unfolding of communities in large networks" (2008), for local moving and
aggregation. Signed weights enter as they are, which the quality above allows.
"""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled


def communities(factors: np.ndarray, resolution: float, *, generator: np.random.Generator) -> np.ndarray:
    """Return a label [units] per unit: local moving, then whole modules moved, until nothing gains.

    Labels are 0 … m−1, largest module first (ties by first unit); a unit alone has a label of its own.
    """
    factors = np.ascontiguousarray(factors, dtype=np.float64)
    labels = np.arange(factors.shape[0])
    for _ in range(10):
        before = labels.copy()
        labels = _move(factors, np.ones(len(labels)), labels, resolution, generator)
        labels = _aggregate(factors, labels, resolution, generator)
        if np.array_equal(labels, before):
            break
    return by_size(labels)


def _aggregate(factors: np.ndarray, labels: np.ndarray, resolution: float, generator: np.random.Generator) -> np.ndarray:
    """Return labels after merging whole modules for as long as that gains."""
    while True:
        sums, sizes = module_sums(factors, labels)
        merged = _move(sums, sizes, np.arange(sizes.size), resolution, generator)
        if merged.max(initial=0) + 1 == sizes.size:
            return labels
        labels = merged[labels]


def _move(factors: np.ndarray, sizes: np.ndarray, labels: np.ndarray, resolution: float,
          generator: np.random.Generator) -> np.ndarray:
    visits = generator.permutation(labels.size)
    moved = _local_moving(factors, sizes, labels.astype(np.int64), visits, resolution)
    return np.unique(moved, return_inverse=True)[1]


def module_sums(factors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the factors [modules, factors] and the sizes [modules] of dense labels."""
    sums = np.zeros((labels.max(initial=-1) + 1, factors.shape[1]))
    np.add.at(sums, labels, factors)
    return sums, np.bincount(labels, minlength=sums.shape[0]).astype(np.float64)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Return the labels renumbered: largest module 0, ties by first unit."""
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(counts.size, dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(counts.size)
    return rank[inverse]


@compiled
def _local_moving(factors, sizes, labels, visits, resolution):  # pragma: no cover  (compiled)
    """Move one node at a time to the module that gains most, until a whole pass moves none."""
    nodes, width = factors.shape
    slots = nodes
    sums = np.zeros((slots, width))
    weight = np.zeros(slots)
    for i in range(nodes):
        weight[labels[i]] += sizes[i]
        for f in range(width):
            sums[labels[i], f] += factors[i, f]
    for _ in range(50):
        moves = 0
        for visit in range(nodes):
            i = visits[visit]
            old = labels[i]
            weight[old] -= sizes[i]
            for f in range(width):
                sums[old, f] -= factors[i, f]
            best = old
            best_gain = 0.0
            if weight[old] > 0.0:
                for f in range(width):
                    best_gain += factors[i, f] * sums[old, f]
                best_gain -= resolution * sizes[i] * weight[old]
            floor = max(best_gain, 0.0) + 1e-9
            alone = -1
            for c in range(slots):
                if weight[c] <= 0.0:
                    if alone < 0:
                        alone = c
                    continue
                gain = -resolution * sizes[i] * weight[c]
                for f in range(width):
                    gain += factors[i, f] * sums[c, f]
                if gain > floor:
                    floor = gain
                    best = c
            if best == old and best_gain < -1e-9 and alone >= 0:
                best = alone
            if best != old:
                moves += 1
            labels[i] = best
            if weight[best] <= 0.0:
                for f in range(width):
                    sums[best, f] = 0.0
            weight[best] += sizes[i]
            for f in range(width):
                sums[best, f] += factors[i, f]
        if moves == 0:
            break
    return labels
