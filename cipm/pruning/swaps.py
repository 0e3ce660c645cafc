"""The search behind N:M sparsity: swaps of two columns between groups, descending, then annealed, then descending again."""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled

WARM, COLD = 0.08, 0.03
"""Temperatures at the start and the end of annealing, as shares of the typical change by a random swap."""
TRIALS = 1000
"""Random swaps from which the typical change is measured, and after which the temperature falls by a step."""
PER_PAIR = 500
"""Random swaps of each pair of columns after which a second round from the start gives more than a longer first."""


def search(columns: np.ndarray, order: np.ndarray, *, keep: int, size: int, units: int, width: int, escapes: int,
           seed: int) -> list[np.ndarray]:
    """Return orders of which no swap gains: the one that descending gives, and one for each round of escapes from there.

    `columns` [places, rows], float32, holds the scores of one column in each row; `order` [places] the column at each place.
    Every `size` places are a group, of which each row keeps its `keep` largest. The columns at places from `units` on fill the
    last group and stay; a column stays in its run of `width` places. `escapes` counts the random swaps tried in all rounds.
    """
    found = [order.copy()]
    _search(columns, found[0], keep, size, units, width, 0, 0, WARM, COLD)
    rounds = min(escapes, max(1, escapes // (PER_PAIR * units * width)))
    seeds = np.random.SeedSequence(seed).generate_state(rounds)
    for number in range(rounds):
        found.append(found[0].copy())
        _search(columns, found[-1], keep, size, units, width, escapes // rounds, int(seeds[number]), WARM, COLD)
    return found


def prepare() -> None:
    """Compile the search, or load it from numba's cache."""
    search(np.eye(4, dtype=np.float32), np.arange(4), keep=1, size=2, units=4, width=4, escapes=1, seed=0)


@compiled
def _search(columns, order, keep, size, units, width, escapes, seed, warm, cold):  # pragma: no cover  (compiled)
    """Change `order` in place: `escapes` random swaps at falling temperature, then each group's best swap until none gains.

    For every column a, `limit[a]` [rows] is the keep-th largest of the others of its group and `base[a]` the sum of the
    keep − 1 largest. With column c in the place of a the group retains base[a] + Σ max(limit[a], c): one pass over the rows
    for every swap. A swap changes limits and bases of its two groups alone. One function, because compiled ones of this
    package do not call each other.
    """
    places, rows = columns.shape
    top = np.zeros((keep + 1, rows), np.float32)
    limit = np.zeros_like(columns)
    base, worth = np.zeros(places, np.float32), np.zeros(places // size, np.float32)

    def refresh(g):
        top[:] = 0
        for p in range(g * size, (g + 1) * size):
            column = columns[order[p]]
            for r in range(rows):
                x = column[r]
                for i in range(keep + 1):
                    t = top[i, r]
                    top[i, r] = max(t, x)
                    x = min(t, x)
        total = np.float32(0)
        for i in range(keep):
            for r in range(rows):
                total += top[i, r]
        worth[g] = total
        least, spare = top[keep - 1], top[keep]
        for p in range(g * size, (g + 1) * size):
            a = order[p]
            column, out, gone = columns[a], limit[a], np.float32(0)
            for r in range(rows):
                out[r] = spare[r] if column[r] >= least[r] else least[r]
                gone += max(column[r], least[r])
            base[a] = total - gone

    def gain(p, q):
        a, b = order[p], order[q]
        of_a, of_b, limit_a, limit_b = columns[a], columns[b], limit[a], limit[b]
        total = np.float32(0)
        for r in range(rows):
            total += max(limit_a[r], of_b[r]) + max(limit_b[r], of_a[r])
        return total + base[a] + base[b] - worth[p // size] - worth[q // size]

    np.random.seed(seed)
    groups = places // size
    touched, pending = np.arange(groups), groups
    step, typical, heat = -TRIALS if escapes else 0, 0.0, 0.0
    g, still = -1, 0
    while still < groups:
        for i in range(pending):
            refresh(touched[i])
        pending, at, to = 0, -1, -1
        if step < escapes:
            p = np.random.randint(units)
            q = p // width * width + np.random.randint(width)
            if step >= 0 and step % TRIALS == 0:
                heat = typical * warm * (cold / warm) ** (step / escapes)
            step += 1
            if p // size == q // size:
                continue
            change = gain(p, q)
            if step <= 0:
                typical = np.sqrt(typical ** 2 + change ** 2 / TRIALS)
            elif change > 0 or np.random.random() < np.exp(change / max(heat, 1e-30)):
                at, to = p, q
        else:
            g = (g + 1) % groups
            best = 1e-6 * worth[g]
            for p in range(g * size, min((g + 1) * size, units)):
                start = p // width * width
                for q in range(start, start + width):
                    if q // size != g:
                        change = gain(p, q)
                        if change > best:
                            best, at, to = change, p, q
            still = 0 if at >= 0 else still + 1
        if at >= 0:
            order[at], order[to] = order[to], order[at]
            touched[0], touched[1], pending = at // size, to // size, 2
