"""Orders by what single units do: how much they send on, how long pruning keeps them, which class they prefer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.errors import InputError
from cipm.permutation import Permutation


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Per unit, the class it is most active for and by how much.

    `preferred` [units] is that class, −1 for a unit that tells no class from another. `strength` [units] is the distance
    of that class' mean from the mean of the other classes' means, in standard deviations within classes.
    """

    preferred: np.ndarray
    strength: np.ndarray


def by_importance(variance: np.ndarray, outgoing: np.ndarray, *, blocks: int = 1) -> Permutation:
    """Return the units by variance × squared outgoing norm, largest first: the variance that each sends on by itself.

    `variance` [units] is that of the activations, `outgoing` [units] the norm of all weights that read the unit. Units
    stay within their one of `blocks` equal runs; ties keep the old order. What units say twice is not seen here:
    `by_elimination` sees it. Raises InputError for values that are not finite.
    """
    worth = np.asarray(variance, dtype=np.float64) * np.square(np.asarray(outgoing, dtype=np.float64))
    return _descending(worth, blocks, "importance")


def by_elimination(removal_order: np.ndarray, *, blocks: int = 1) -> Permutation:
    """Return the units that pruning keeps longest first, so that the first k are the smaller layer of k units.

    `removal_order` [units] names the units in the order of removal, first removed first (`elimination_curve`). With
    `blocks` > 1 that holds within each block.
    """
    rank = np.empty(len(removal_order))
    rank[removal_order] = np.arange(len(removal_order))
    return _descending(rank, blocks, "removal order")


def class_selectivity(means: np.ndarray, deviation: np.ndarray) -> Selectivity:
    """Return which class each unit prefers and how clearly.

    `means` [classes, units] are the mean activations by class, of two classes or more; classes without samples are left
    out by the caller. `deviation` [units] is the standard deviation within classes. Where it is zero and the means differ,
    the unit tells its class without fail and comes before the others (strength infinite is given as the largest finite
    float). Raises InputError for fewer than two classes or values that are not finite.
    """
    means, deviation = np.asarray(means, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    if len(means) < 2:
        raise InputError(f"Class selectivity compares classes; there is {len(means)}.",
                         fix="Give labelled probe rows of two classes or more.")
    _finite(means, "class mean")
    _finite(deviation, "deviation")
    best = means.argmax(axis=0)
    top = means.max(axis=0)
    apart = top - (means.sum(axis=0) - top) / (len(means) - 1)
    tells = apart > 1e-9 * np.abs(means).max(axis=0)
    safe = np.where(deviation > 0, deviation, 1.0)
    strength = np.where(deviation > 0, apart / safe, np.finfo(np.float64).max)
    return Selectivity(np.where(tells, best, -1), np.where(tells, strength, 0.0))


def by_class(selectivity: Selectivity, *, blocks: int = 1) -> Permutation:
    """Return the units grouped by preferred class in the order of the classes, the clearest first within each; units that
    prefer none come last. Units stay within their one of `blocks` equal runs; ties keep the old order.
    """
    units = np.arange(selectivity.preferred.size)
    group = np.where(selectivity.preferred < 0, selectivity.preferred.max(initial=0) + 1, selectivity.preferred)
    return Permutation(np.lexsort((units, -selectivity.strength, group, _block(units.size, blocks))))


def _descending(worth: np.ndarray, blocks: int, what: str) -> Permutation:
    _finite(worth, what)
    return Permutation(np.lexsort((np.arange(worth.size), -worth, _block(worth.size, blocks))))


def _block(units: int, blocks: int) -> np.ndarray:
    assert units % blocks == 0
    return np.arange(units) // max(1, units // blocks)


def _finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        unit = int(np.argwhere(~np.isfinite(values))[0][-1])
        raise InputError(f"The {what} of unit {unit} is not finite, so the units cannot be ordered by it.")
