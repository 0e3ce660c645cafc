"""How alike the units of a group are, from the statistics that were collected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.pipeline.collecting import carried_by, observed_tap
from cipm.pipeline.context import Context
from cipm.pipeline.stored import Statistics
from cipm.statistics import rv_coefficient
from cipm.symmetry import SymmetryGroup


@dataclass(frozen=True)
class Similarity:
    """How alike the units of a group are: the matrix over all rows and over the two halves, and its name."""

    kind: str
    whole: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    samples: int
    rows: int
    dead: tuple[int, ...]


def similarity(context: Context, group: SymmetryGroup, statistics: Statistics) -> Similarity | None:
    """Return the similarity of a group's units at its last tap, or None where nothing was collected.

    Pearson correlation; for units that carry smaller ones (heads), linear CKA of their activations:
    ‖C_ij‖² / (‖C_ii‖ ‖C_jj‖) with the cross-covariance blocks C_ij (Kornblith et al., 2019).
    """
    seen, inner = observed_tap(context.symmetry.groups, group), carried_by(context.symmetry.groups, group)
    if seen is None or (half := statistics.get(seen.key)) is None:
        return None
    if inner is None:
        return Similarity("pearson", half.whole.correlation(), (half.even.correlation(), half.odd.correlation()),
                          half.samples, half.rows, tuple(np.flatnonzero(half.whole.dead).tolist()))
    index = np.arange(len(seen.index)).reshape(group.size, -1)
    whole, even, odd = (rv_coefficient(part.covariance(), index) for part in (half.whole, half.even, half.odd))
    return Similarity("linear CKA", whole, (even, odd), half.samples, half.rows, ())
