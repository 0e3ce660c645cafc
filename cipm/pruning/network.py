"""The curves of a whole network: for every group that can be made smaller, what each size costs its consumers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import Consumer, consumed, gram
from cipm.pruning.elimination import Curve, elimination_curve, quick_curve
from cipm.pruning.sequence import Moments
from cipm.symmetry import Symmetry, SymmetryGroup

CAREFUL_FEATURES = 8192
"""Up to so many features of a group (units × positions) the order is eliminated one by one, beyond by pivots."""
ELEMENT_WORK = 2e10
"""Most units² × elements³: what eliminating units of several elements costs beside its updates."""


def prunable(symmetry: Symmetry, found: Sequence[Consumer]) -> tuple[dict[str, SymmetryGroup], dict[str, str]]:
    """Return the groups that can be made smaller, by name, and for the others why not, in words.

    Where a group carries smaller units that can go (heads and the units inside them) the smaller ones are taken.
    """
    groups: dict[str, SymmetryGroup] = {}
    reasons: dict[str, str] = {}
    for group in symmetry.groups:
        if not group.proved:
            reasons[group.name] = "The group is not proved."
        elif not consumed(found, group.name):
            reasons[group.name] = "No weight reads these units linearly, so what is lost cannot be made up for by the others."
        elif group.size <= group.blocks:
            reasons[group.name] = "It has one unit in each block."
        else:
            groups[group.name] = group
    for group in tuple(groups.values()):
        if group.parent in groups:
            reasons[group.parent] = f"Its units carry those of {group.name}, which are made fewer instead."
            del groups[group.parent]
    return groups, reasons


def group_curves(checkpoint: Checkpoint, found: Sequence[Consumer], groups: Mapping[str, SymmetryGroup],
                 moments: Mapping[str, Moments]) -> dict[str, Curve]:
    """Return the curve of each group from the moments of its consumers' inputs.

    The cost of a group that several consumers read is the sum of what each loses, as a share of the variance that the group
    gives it. Cost: see `elimination_curve`.
    """
    return {name: _curve(checkpoint, consumed(found, name), group, moments) for name, group in groups.items()}


def _curve(checkpoint: Checkpoint, readers: Sequence[Consumer], group: SymmetryGroup, moments: Mapping[str, Moments]) -> Curve:
    covariances, grams = [], []
    for consumer in readers:
        columns = consumer.columns(consumer.units[group.name])
        c, g = moments[consumer.node].covariance[np.ix_(columns, columns)], gram(consumer, group, checkpoint)
        total = float(np.einsum("ij,ij->", c, g))
        covariances.append(c)
        grams.append(g / total if total > 0 and len(readers) > 1 else g)
    widest = max(len(c) for c in covariances)
    careful = widest <= CAREFUL_FEATURES and widest == group.size or \
        widest <= CAREFUL_FEATURES and group.size**2 * (widest // group.size) ** 3 <= ELEMENT_WORK
    samples = min(moments[consumer.node].samples for consumer in readers)
    made = elimination_curve if careful else quick_curve
    return made(covariances, grams, samples=samples, units=group.size, blocks=group.blocks)
