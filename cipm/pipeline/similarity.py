"""How alike the units of a group are, from the statistics that were collected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.pipeline.collecting import carried_by
from cipm.pipeline.context import Context
from cipm.pipeline.stored import Statistics
from cipm.statistics import rv_coefficient
from cipm.symmetry import SymmetryGroup, Tap


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
    inner = carried_by(context.symmetry.groups, group)
    seen = _shared_tap(group, inner) if inner else group.taps[-1] if group.taps else None
    if seen is None or (half := statistics.get(seen.key)) is None:
        return None
    if inner is None:
        return Similarity("pearson", half.whole.correlation(), (half.even.correlation(), half.odd.correlation()),
                          half.samples, half.rows, tuple(np.flatnonzero(half.whole.dead).tolist()))
    index = _unit_index(group, seen)
    if index is None:
        return None
    whole, even, odd = (rv_coefficient(part.covariance(), index) for part in (half.whole, half.even, half.odd))
    return Similarity("linear CKA", whole, (even, odd), half.samples, half.rows, ())


def _shared_tap(group: SymmetryGroup, inner: SymmetryGroup) -> Tap:
    """Return the inner group's tap at the place where the outer group is read."""
    place = (group.taps[-1].value, group.taps[-1].axis)
    return next(tap for tap in inner.taps if (tap.value, tap.axis) == place)


def _unit_index(group: SymmetryGroup, inner: Tap) -> np.ndarray | None:
    """Return [units, elements]: which collected inner unit stands at each element of each outer unit, or None where
    inner units stand at several."""
    index = group.taps[-1].index
    if inner.index.shape[1] != 1 or inner.index.size != index.size:
        return None
    unit_at = np.zeros(inner.index.max() + 1, dtype=np.int64)
    unit_at[inner.index[:, 0]] = np.arange(len(inner.index))
    return unit_at[index]
