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


def communities(factors: np.ndarray, resolution: float, *, generator: np.random.Generator,
                starts: int | None = None) -> np.ndarray:
    """Return a label [units] per unit: the best of several local optima.

    Labels are 0 … m−1, largest module first (ties by first unit); a unit alone has a label of its own. `starts` is
    the number of optima tried (default 4 up to 512 units, fewer beyond): real layers have many, a few per cent apart.
    """
    factors = np.ascontiguousarray(factors, dtype=np.float32)
    starts = starts or int(np.clip(2048 // max(len(factors), 1), 1, 4))
    found = [_optimum(factors, resolution, generator) for _ in range(starts)]
    return by_size(max(found, key=lambda labels: quality(factors, labels, resolution)))


def quality(factors: np.ndarray, labels: np.ndarray, resolution: float) -> float:
    """Return Σ over pairs in one module of (Ĉ_ij − resolution), for dense labels."""
    sums, sizes = module_sums(factors, labels)
    return float((np.square(sums).sum() - np.square(factors).sum() - resolution * (sizes * (sizes - 1)).sum()) / 2)


def _optimum(factors: np.ndarray, resolution: float, generator: np.random.Generator) -> np.ndarray:
    """Return labels that neither moving a unit nor merging two modules improves."""
    labels = np.arange(factors.shape[0])
    for _ in range(10):
        before = labels.copy()
        labels = _move(factors, np.ones(len(labels), dtype=np.float32), labels, resolution, generator)
        labels = _aggregate(factors, labels, resolution, generator)
        if np.array_equal(labels, before):
            break
    return labels


def _aggregate(factors: np.ndarray, labels: np.ndarray, resolution: float, generator: np.random.Generator) -> np.ndarray:
    """Return labels after merging whole modules for as long as that gains."""
    while True:
        sums, sizes = module_sums(factors, labels)
        merged = _move(sums, sizes, np.arange(sizes.size), resolution, generator)
        if merged.max(initial=-1) + 1 == sizes.size:
            return labels
        labels = merged[labels]


def _move(factors: np.ndarray, sizes: np.ndarray, labels: np.ndarray, resolution: float,
          generator: np.random.Generator) -> np.ndarray:
    visits = generator.permutation(labels.size)
    moved = _local_moving(factors, sizes, labels.astype(np.int64), visits, np.float32(resolution))
    return np.unique(moved, return_inverse=True)[1]


def module_sums(factors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the factors [modules, factors] and the sizes [modules] of dense labels."""
    sums = np.zeros((labels.max(initial=-1) + 1, factors.shape[1]), dtype=factors.dtype)
    np.add.at(sums, labels, factors)
    return sums, np.bincount(labels, minlength=sums.shape[0]).astype(factors.dtype)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Return the labels renumbered: largest module 0, ties by first unit."""
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(counts.size, dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(counts.size)
    return rank[inverse]


@compiled
def _local_moving(factors, sizes, labels, visits, resolution):  # pragma: no cover  (compiled)
    """Move one node at a time to the module that gains most, until a whole pass moves none.

    `slots` lists the modules in use first (`used` of them), then the empty ones; `spot` is its inverse.
    """
    nodes, width = factors.shape
    sums = np.zeros_like(factors)
    weight = np.zeros_like(sizes)
    for i in range(nodes):
        weight[labels[i]] += sizes[i]
        for f in range(width):
            sums[labels[i], f] += factors[i, f]
    slots, spot, used = np.arange(nodes), np.arange(nodes), nodes
    for _ in range(50):
        moves = 0
        for visit in range(nodes):
            i = visits[visit]
            old = labels[i]
            weight[old] -= sizes[i]
            for f in range(width):
                sums[old, f] -= factors[i, f]
            best, best_gain, stay = old, np.float32(0), np.float32(0)
            at = 0
            while at < used:
                c = slots[at]
                if weight[c] <= 0.5:  # empty: swap it behind the modules in use
                    used -= 1
                    last = slots[used]
                    slots[at], slots[used] = last, c
                    spot[last], spot[c] = at, used
                    continue
                gain = -resolution * sizes[i] * weight[c]
                for f in range(width):
                    gain += factors[i, f] * sums[c, f]
                if c == old:
                    stay = gain
                if gain > best_gain:
                    best, best_gain = c, gain
                at += 1
            if best_gain <= 0 and stay < 0:
                best = slots[used]  # alone is better: an empty module, and there is one while i is out
            elif best_gain <= stay + np.float32(1e-5):
                best = old
            if best != old:
                moves += 1
            labels[i] = best
            if spot[best] >= used:
                last = slots[used]
                slots[spot[best]], spot[last] = last, spot[best]
                slots[used], spot[best] = best, used
                used += 1
                weight[best] = 0
                for f in range(width):
                    sums[best, f] = 0
            weight[best] += sizes[i]
            for f in range(width):
                sums[best, f] += factors[i, f]
        if moves == 0:
            break
    return labels
