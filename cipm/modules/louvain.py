"""Signed constant-Potts communities in factor space.

The quality of a partition is Σ over pairs i < j in one module of (Ĉ_ij − γ) with Ĉ = F Fᵀ, F [units, factors]. With
the sums S_c = Σ_{j in c} F_j, moving unit i gains F_i·S_c − γ n_c: no matrix of pairs is ever needed. Where sign does
not matter each unit carries one, s_i = ±1, and pairs count as s_i s_j Ĉ_ij: the gain is |F_i·S_c| − γ n_c with signed sums.

Source: Traag, Van Dooren, Nesterov, "Narrow scope for resolution-limit-free community detection" (2011), for the
constant Potts model; Blondel et al., "Fast unfolding of communities in large networks" (2008), for local moving and
aggregation. Signed weights enter as they are, which the quality above allows.
"""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled

FROM_SINGLES = 2048  # more units than these start from an optimum of as many, drawn at random


def communities(factors: np.ndarray, resolution: float, *, generator: np.random.Generator,
                starts: int | None = None, absolute: bool = False, sizes: np.ndarray | None = None) -> np.ndarray:
    """Return a label [units] per unit: the best of several local optima.

    Labels are 0 … m−1, largest module first (ties by first unit); a unit alone has a label of its own. `starts` is
    the number of optima tried (default 4 up to 512 units, fewer beyond): real layers have many, a few per cent apart.
    `absolute` lets units that vary against each other belong together. With `sizes` each row stands for so many units
    and holds the sum of their factors. Cost: units × modules × factors a pass, and
    at most 2048² × factors to begin with; a few passes.
    """
    sizes = np.ones(len(factors), dtype=np.float32) if sizes is None else sizes.astype(np.float32)
    reach = np.linalg.norm(factors, axis=1) / sizes
    near = np.flatnonzero(reach * reach.max(initial=0) > resolution)  # the others are best alone (Cauchy and Schwarz)
    labels = np.arange(len(factors))
    if near.size > 1:
        close = np.ascontiguousarray(factors[near], dtype=np.float32)
        starts = starts or int(np.clip(2048 // len(factors), 1, 4))
        found = [_optimum(close, sizes[near], resolution, generator, absolute) for _ in range(starts)]
        best = max(found, key=lambda one: quality(close, one[0], resolution, one[1], sizes[near]))
        labels[near] = len(factors) + best[0]
    return by_size(labels)


def quality(factors: np.ndarray, labels: np.ndarray, resolution: float, signs: np.ndarray | None = None,
            sizes: np.ndarray | None = None) -> float:
    """Return Σ over pairs in one module of (Ĉ_ij − resolution), for dense labels, up to a constant where rows have
    `sizes`; `signs` [units] ±1 where they count.
    """
    sums, _ = module_sums(factors if signs is None else factors * signs[:, None], labels)
    sizes = np.ones(len(factors)) if sizes is None else sizes
    joint = np.square(np.bincount(labels, weights=sizes)).sum() - np.square(sizes).sum()
    return float((np.square(sums).sum() - np.square(factors).sum() - resolution * joint) / 2)


def _optimum(factors: np.ndarray, sizes: np.ndarray, resolution: float, generator: np.random.Generator,
             absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return labels that neither moving a unit nor merging two modules improves, and the units' signs."""
    labels, signs = _start(factors, sizes, resolution, generator, absolute)
    for _ in range(10):
        before = labels.copy()
        labels, signs = _move(factors, sizes, labels, signs, resolution, generator, absolute)
        labels, signs = _aggregate(factors, sizes, labels, signs, resolution, generator, absolute)
        if np.array_equal(labels, before):
            break
    return labels, signs


def _start(factors: np.ndarray, sizes: np.ndarray, resolution: float, generator: np.random.Generator,
           absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return each unit alone, or, of many units, the optimum of a sample of them and the others unplaced (−1).

    The model has no resolution limit: what is best among all units is best among those of the sample too.
    """
    units = len(factors)
    if units <= FROM_SINGLES:
        return np.arange(units), np.ones(units, dtype=np.float32)
    labels, signs = np.full(units, -1), np.ones(units, dtype=np.float32)
    drawn = np.sort(generator.choice(units, FROM_SINGLES, replace=False))
    labels[drawn], signs[drawn] = _optimum(factors[drawn], sizes[drawn], resolution, generator, absolute)
    return labels, signs


def _aggregate(factors: np.ndarray, sizes: np.ndarray, labels: np.ndarray, signs: np.ndarray, resolution: float,
               generator: np.random.Generator, absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and signs after merging whole modules for as long as that gains."""
    while True:
        sums, _ = module_sums(factors * signs[:, None], labels)
        heavy = np.bincount(labels, weights=sizes).astype(np.float32)
        merged, turned = _move(sums, heavy, np.arange(heavy.size), np.ones_like(heavy), resolution, generator, absolute)
        if merged.max(initial=-1) + 1 == heavy.size:
            return labels, signs
        labels, signs = merged[labels], signs * turned[labels]


def _move(factors: np.ndarray, sizes: np.ndarray, labels: np.ndarray, signs: np.ndarray, resolution: float,
          generator: np.random.Generator, absolute: bool) -> tuple[np.ndarray, np.ndarray]:
    visits = generator.permutation(labels.size)
    moved, turned = _local_moving(factors, sizes, labels.astype(np.int64), signs.astype(np.float32), visits,
                                  np.float32(resolution), absolute)
    return (np.cumsum(np.bincount(moved) > 0) - 1)[moved], turned


def module_sums(factors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the factors [modules, factors] and the sizes [modules]."""
    sizes = np.bincount(labels)
    sums, present = np.zeros((sizes.size, factors.shape[1]), dtype=factors.dtype), np.flatnonzero(sizes)
    if present.size:
        starts = (np.cumsum(sizes) - sizes)[present]
        sums[present] = np.add.reduceat(factors[np.argsort(labels, kind="stable")], starts, axis=0)
    return sums, sizes.astype(factors.dtype)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Return the labels renumbered: largest module 0, ties by first unit."""
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(counts.size, dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(counts.size)
    return rank[inverse]


@compiled
def _local_moving(factors, sizes, labels, signs, visits, resolution, absolute):  # pragma: no cover  (compiled)
    """Move one node at a time to the module that gains most, until a whole pass moves none; −1 is not yet placed.

    `slots` lists the modules in use first (`used` of them), then the empty ones; `spot` is its inverse. A module is
    looked at only where |F_i| |S_c| (Cauchy and Schwarz) leaves room for a better gain than the best so far.
    """
    nodes, width = factors.shape
    sums = np.zeros_like(factors)
    weight, length, own = np.zeros_like(sizes), np.zeros_like(sizes), np.zeros_like(sizes)  # lengths are squared
    for i in range(nodes):
        for f in range(width):
            own[i] += factors[i, f] * factors[i, f]
        if labels[i] >= 0:
            weight[labels[i]] += sizes[i]
            for f in range(width):
                sums[labels[i], f] += signs[i] * factors[i, f]
    slots, spot, used, unused = np.arange(nodes), np.arange(nodes), 0, nodes
    for c in range(nodes):
        if weight[c] > 0.5:
            slots[used], spot[c] = c, used
            used += 1
            for f in range(width):
                length[c] += sums[c, f] * sums[c, f]
        else:
            unused -= 1
            slots[unused], spot[c] = c, unused
    for _ in range(50):
        moves = 0
        for visit in range(nodes):
            i = visits[visit]
            old = labels[i]
            if old >= 0:
                weight[old] -= sizes[i]
                length[old] = 0
                for f in range(width):
                    sums[old, f] -= signs[i] * factors[i, f]
                    length[old] += sums[old, f] * sums[old, f]
            best, best_gain, stay = -1, np.float32(0), np.float32(0)
            sign, kept_sign = np.float32(1), np.float32(1)
            at = 0
            while at < used:
                c = slots[at]
                if weight[c] <= 0.5:  # empty: swap it behind the modules in use
                    used -= 1
                    last = slots[used]
                    slots[at], slots[used] = last, c
                    spot[last], spot[c] = at, used
                    continue
                at += 1
                price = resolution * sizes[i] * weight[c]
                if c != old and own[i] * length[c] <= (price + best_gain) * (price + best_gain):
                    continue
                gain, turn = np.float32(0), np.float32(1)
                for f in range(width):
                    gain += factors[i, f] * sums[c, f]
                if absolute and gain < 0:
                    gain, turn = -gain, np.float32(-1)
                gain -= price
                if c == old:
                    stay, kept_sign = gain, turn
                if gain > best_gain:
                    best, best_gain, sign = c, gain, turn
            if best_gain <= 0 and (old < 0 or stay < 0 or weight[old] <= 0.5):
                best, sign = slots[used], np.float32(1)  # alone is better: an empty module, there is one while i is out
            elif old >= 0 and best_gain <= stay + np.float32(1e-5):
                best, sign = old, kept_sign
            if best != old:
                moves += 1
            labels[i], signs[i] = best, sign
            if spot[best] >= used:
                last = slots[used]
                slots[spot[best]], spot[last] = last, spot[best]
                slots[used], spot[best] = best, used
                used += 1
                weight[best] = 0
                for f in range(width):
                    sums[best, f] = 0
            weight[best] += sizes[i]
            length[best] = 0
            for f in range(width):
                sums[best, f] += sign * factors[i, f]
                length[best] += sums[best, f] * sums[best, f]
        if moves == 0:
            break
    return labels, signs
