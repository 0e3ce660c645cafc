"""Near-duplicate units: those that one other unit nearly gives, as the special case of a refit that people can see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.errors import OptionError
from cipm.statistics.covariance import correlation_from_covariance


@dataclass(frozen=True)
class Duplicate:
    """Unit `removed` is nearly `scale` × unit `kept` + `offset`; `r2` is the share of its variance that this gives."""

    removed: int
    kept: int
    scale: float
    offset: float
    r2: float


def near_duplicates(covariance: np.ndarray, mean: np.ndarray, *, r2: float = 0.95) -> tuple[Duplicate, ...]:
    """Return units that can be merged into another one, the most alike first; no unit is both merged and merged into.

    `covariance` [units, units] and `mean` [units] are those of the units' activations. A consumer W with bias c takes a
    duplicate by W_kept + scale · W_removed and c + offset · W_removed. Of a pair the unit with less variance goes (ties by
    index). Dead units are nobody's duplicates. Raises OptionError for an r2 that is not in (0, 1]. Cost: units² log units.

    Source: Kim et al. 2020, "Neuron Merging: Compensating for Pruned Neurons", with an offset and covariance for weights.
    """
    if not 0 < r2 <= 1:
        raise OptionError(f"The share of variance must be more than 0 and at most 1; it cannot be {r2:g}.", where="r2")
    alike = np.square(correlation_from_covariance(covariance))
    one, other = np.triu_indices(len(covariance), 1)
    near = np.flatnonzero(alike[one, other] >= r2 - 1e-12)
    near = near[np.argsort(-alike[one[near], other[near]], kind="stable")]
    variance, found = covariance.diagonal(), []
    merged, takers = set(), set()
    for i, j in zip(one[near].tolist(), other[near].tolist(), strict=True):
        kept, removed = (i, j) if variance[i] >= variance[j] and j not in takers or i in takers else (j, i)
        if not {kept, removed} & merged and removed not in takers:
            scale = float(covariance[kept, removed] / variance[kept])
            found.append(Duplicate(removed, kept, scale, float(mean[removed] - scale * mean[kept]), float(alike[i, j])))
            merged.add(removed)
            takers.add(kept)
    return tuple(found)
