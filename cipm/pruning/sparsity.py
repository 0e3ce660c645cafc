"""N:M sparsity: which N weights of every M neighbours to keep, and the order of the columns in which most is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cipm.errors import InputError, OptionError
from cipm.permutation import Permutation
from cipm.pruning.swaps import search

ESCAPES = 8_000_000
"""Random swaps tried by default: about 0.7 s for 128 rows, in proportion to the rows."""


@dataclass(frozen=True, eq=False)
class SparsityOrder:
    """An order of columns with what N:M sparsity retains of the scores: before it, by descending alone, after all.

    `best_possible` is what each row would retain were it free to keep any n/m of its columns: a bound that no order needs to
    reach. `total` is the sum of all scores.
    """

    order: Permutation
    retained_before: float
    retained_by_descent: float
    retained_after: float
    best_possible: float
    total: float

    @property
    def won_back(self) -> float:
        """Return the share won back of what N:M loses beyond the bound; 1 where it loses nothing."""
        lost = self.best_possible - self.retained_before
        return (self.retained_after - self.retained_before) / lost if lost > 1e-12 * self.total else 1.0


def sparsity_order(scores: Sequence[np.ndarray], *, n: int = 2, m: int = 4, blocks: int = 1, seed: int = 0,
                   escapes: int = ESCAPES) -> SparsityOrder:
    """Return the order of the columns in which keeping the n best of every m neighbours retains the largest sum of scores.

    `scores`: one matrix [rows, columns] for every weight whose columns move together; not negative, larger is more worth
    keeping (|w|, or w² × variance of the input). With `blocks` > 1 every column stays in its one of `blocks` equal runs. Where
    m does not divide the columns, the last group is short. The result retains at least as much as the given order.

    Descends by the best swap of each group with any other until none gains. Then `escapes` random swaps are tried at falling
    temperature (simulated annealing), in rounds, each followed by another descent; the best end is taken. Deterministic: the
    budget is a count, not a clock. Raises InputError where shapes differ or a score is negative or not finite, OptionError
    where n, m or blocks do not fit.
    Cost: a swap costs one pass over the rows; a sweep of the descent columns² swaps. Memory: 3 times the scores in float32.

    Source: the problem is that of Pool & Yu, "Channel permutations for N:M sparsity" (2021); annealing is Kirkpatrick, Gelatt,
    Vecchi, "Optimization by simulated annealing" (1983). The evaluation of a swap (`swaps.py`) is our own.
    """
    table = _table(scores)
    rows, units = table.shape
    _check(n, m, units, blocks)
    if escapes < 0:
        raise OptionError(f"Escapes are a count of swaps to try; it cannot be {escapes}.", where="escapes")
    start = np.arange(units + -units % m)
    peak = float(table.max(initial=0.0))
    found = [start]
    if peak > 0 and n < m < units:
        columns = np.zeros((start.size, rows), dtype=np.float32)
        columns[:units] = table.T / peak
        found += search(columns, start, keep=n, size=m, units=units, width=units // blocks, escapes=escapes, seed=seed)
    kept = [retained(table[:, order[:units]], n, m) for order in found]
    best = int(np.argmax(kept))
    bound = -np.sort(-table, axis=1)[:, :_most_kept(units, n, m)].sum()
    return SparsityOrder(Permutation(found[best][:units]), kept[0], max(kept[:2]), kept[best], float(bound), float(table.sum()))


def mask(scores: np.ndarray, n: int = 2, m: int = 4, *, axis: int = -1) -> np.ndarray:
    """Return which entries to keep (bool, the shape of `scores`): the n largest of every m neighbours along an axis.

    Of equal scores the first is kept. Where m does not divide the axis, the last group is short and keeps at most n too.
    Raises OptionError where n or m does not fit.
    """
    last = np.moveaxis(np.asarray(scores), axis, -1)
    _check(n, m, last.shape[-1], 1)
    grouped = _grouped(last, m, -np.inf)
    chosen = np.zeros(grouped.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-grouped, axis=-1, kind="stable")[..., :n], True, axis=-1)
    flat = chosen.reshape(*last.shape[:-1], -1)[..., :last.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))


def retained(scores: np.ndarray, n: int = 2, m: int = 4) -> float:
    """Return the sum of the scores [rows, columns] that N:M sparsity keeps in the given order."""
    grouped = _grouped(np.asarray(scores), m, 0)
    return float(np.partition(grouped, m - n, axis=-1)[..., m - n:].sum(dtype=np.float64)) if n < m else float(np.sum(scores))


def _grouped(values: np.ndarray, m: int, fill: float) -> np.ndarray:
    """Return values [..., columns] as [..., groups, m], the last group filled up."""
    short = -values.shape[-1] % m
    if short:
        widths = [(0, 0)] * (values.ndim - 1) + [(0, short)]
        values = np.pad(values.astype(np.float64), widths, constant_values=fill)
    elif not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    return values.reshape(*values.shape[:-1], -1, m)


def _most_kept(units: int, n: int, m: int) -> int:
    return units // m * n + min(n, units % m)


def _table(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Return all scores as one matrix [rows, columns] in float64."""
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in scores]
    if not matrices or any(matrix.ndim != 2 for matrix in matrices) or len({matrix.shape[1] for matrix in matrices}) != 1:
        raise InputError("Scores are one matrix or more, [rows, columns], with the same columns; the shapes are "
                         f"{[np.shape(matrix) for matrix in scores]}.", where="scores")
    table = np.concatenate(matrices)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise InputError("A score is negative or not finite; scores say how much an entry is worth keeping.", where="scores")
    return table


def _check(n: int, m: int, units: int, blocks: int) -> None:
    if not 1 <= n <= m:
        raise OptionError(f"N:M sparsity keeps 1 ≤ n ≤ m of every m entries; it cannot be {n}:{m}.", where="n:m",
                          fix="Use 2:4, which NVIDIA's sparse tensor cores run.")
    if blocks < 1 or units % blocks:
        raise OptionError(f"{units} columns cannot stand in {blocks} equal runs.", where="blocks")
