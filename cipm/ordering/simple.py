"""Orders that need no search: by module, and NodeSort."""

from __future__ import annotations

import numpy as np

from cipm.errors import InputError, OptionError
from cipm.modules.partition import Partition
from cipm.ordering.seriation import spectral
from cipm.permutation import Permutation


def by_module(correlation: np.ndarray, partition: Partition, samples: int) -> Permutation:
    """Return the order with modules biggest first, each seriated within; units in no module come last, seriated."""
    runs = [np.flatnonzero(partition.labels == m) for m in [*range(partition.modules), -1]]
    return Permutation(np.concatenate([run[spectral(correlation[np.ix_(run, run)], samples).order] for run in runs]))


def nodesort(weights: np.ndarray, p: float = 10.0) -> Permutation:
    """Return the units in ascending order of Σ_j weights[unit, j] · p^j, j = 0 … features − 1; ties by old index.

    As published the powers overflow float32 at p^j > 3·10³⁸ (p = 2: 128 features) and every key becomes infinite.
    Dividing all keys by p^(features − 1) changes no comparison and cannot overflow: for p ≥ 1 the largest power is 1,
    and what underflows is far below the rounding of what stays. Not robust: noise of 10⁻³ of a weight moves one unit
    in ten; `canonical_orders` is exact.

    `weights` is [units, features], for a layer its incoming weights, bias and outgoing weights side by side. Raises
    OptionError for p ≤ 0, InputError for values that are not finite.

    Source: NodeSort, which sorts the neurons of a hidden layer by their weights times powers of p.
    """
    if not (np.isfinite(p) and p > 0):
        raise OptionError(f"NodeSort's p must be a positive number; it cannot be {p}.", where="p")
    values = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(values).all():
        unit, feature = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(f"Weight {feature} of unit {unit} is {values[unit, feature]}; NodeSort needs finite numbers.")
    exponents = np.arange(values.shape[1], dtype=np.float64)
    with np.errstate(under="ignore"):
        powers = np.exp((exponents - (exponents[-1] if p >= 1 and exponents.size else 0)) * np.log(p))
        keys = values @ powers
    return Permutation(np.argsort(keys, kind="stable"))
