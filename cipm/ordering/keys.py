"""Orders by one key per unit, read from its weights alone: NodeSort, and element by element."""

from __future__ import annotations

import numpy as np

from cipm.errors import InputError, OptionError
from cipm.permutation import Permutation


def nodesort(weights: np.ndarray, p: float = 10.0) -> Permutation:
    """Return the units in ascending order of Σ_j weights[unit, j] · p^j, j = 0 … features − 1; ties by old index.

    As published the powers overflow (`nodesort_overflow` says where). Dividing all keys by p^(features − 1) changes no
    comparison and cannot overflow: for p ≥ 1 the largest power is 1, and what underflows is far below the rounding of
    what stays. So in float64 the last 16 / log10(p) features decide. Not robust: noise of 10⁻³ of a weight moves one unit
    in ten; `canonical_orders` is exact.

    `weights` is [units, features], for a layer its incoming weights, bias and outgoing weights side by side. Raises
    OptionError for p ≤ 0, InputError for values that are not finite.

    Source: NodeSort, which sorts the neurons of a hidden layer by their weights times powers of p.
    """
    values = _checked(weights, p)
    exponents = np.arange(values.shape[1], dtype=np.float64)
    with np.errstate(under="ignore"):
        powers = np.exp((exponents - (exponents[-1] if p >= 1 and exponents.size else 0)) * np.log(p))
        keys = values @ powers
    return Permutation(np.argsort(keys, kind="stable"))


def nodesort_overflow(weights: np.ndarray, p: float = 10.0, *, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Return which units [units] have no finite key under NodeSort as published: Σ_j weights[unit, j] · p^j in `dtype`.

    Where any is True the published key does not define the order: infinite keys are equal, and infinity times a weight of
    zero is no number. In float32 the powers end at 39 features for p = 10, at 128 for p = 2. Raises as `nodesort` does.
    """
    values = _checked(weights, p).astype(dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        keys = values @ (dtype(p) ** np.arange(values.shape[1]).astype(dtype))
    return ~np.isfinite(keys)


def lexicographic(weights: np.ndarray) -> Permutation:
    """Return the units in ascending order of their rows, compared element by element from the first; ties by old index.

    `weights` is [units, features]. Exact: no arithmetic on the weights. The order of the features decides, so copies of a
    model agree only where the units of the neighbouring layers stand alike; `canonical_orders` is free of that. Raises
    InputError for values that are not finite. Memory: two copies of the weights.
    """
    values = _finite(weights) + 0.0  # −0 becomes 0
    bits = np.ascontiguousarray(values).view(np.int64)
    ascending = np.where(bits < 0, ~bits, bits ^ np.int64(-2**63)).view(np.uint64).astype(">u8")
    if not values.shape[1]:
        return Permutation.identity(len(values))
    return Permutation(np.argsort(ascending.view(f"V{8 * values.shape[1]}").ravel(), kind="stable"))


def _checked(weights: np.ndarray, p: float) -> np.ndarray:
    if not (np.isfinite(p) and p > 0):
        raise OptionError(f"NodeSort's p must be a positive number; it cannot be {p}.", where="p")
    return _finite(weights)


def _finite(weights: np.ndarray) -> np.ndarray:
    values = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(values).all():
        unit, feature = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(f"Weight {feature} of unit {unit} is {values[unit, feature]}; an order by weights needs finite "
                         "numbers.")
    return values
