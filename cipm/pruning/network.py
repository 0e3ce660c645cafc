"""The curves of a whole network: for every group that can be made smaller, what each size costs its consumers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import MOST_FEATURES, Consumer, consumed, gram
from cipm.pruning.elimination import Curve, elimination_curve, quick_curve
from cipm.pruning.kept import Labels
from cipm.pruning.masking import MOST_UNITS, masked_curve
from cipm.pruning.sequence import Moments, Rows
from cipm.pruning.shrink import least_kept, refusals
from cipm.symmetry import Symmetry, SymmetryGroup

CAREFUL_FEATURES = 8192
"""Up to so many features of a group (units × positions) the order is eliminated one by one, beyond by pivots."""
ELEMENT_WORK = 2e10
"""Most units² × elements³: what eliminating units of several elements costs beside its updates."""
NOT_READ = f"No weight of at most {MOST_FEATURES:,} inputs reads these units linearly, so the others cannot make up for a loss"
NOR_MASKED = f", and they are more than the {MOST_UNITS} that are masked one by one."
UNWEIGHTED = "No gradient of the predictions reaches all that reads these units, so their cost is not weighted by it."


def prunable(symmetry: Symmetry, found: Sequence[Consumer], *,
             labels: Labels | None = None) -> tuple[dict[str, SymmetryGroup], dict[str, str]]:
    """Return the groups that can be made smaller, by name and inner levels first, and for the others why not, in words.

    Both levels of nested groups are there: heads (key-value groups, experts, groups of channels) and the units inside them.
    `parent` of the inner one names the outer one. The units kept of an inner group are counted over the whole model, equally
    many of each block, whatever its blocks do: a head that goes takes its units with it, counted as kept or not.

    With `labels` also groups that no weight reads linearly, up to MOST_UNITS units (their cost is measured by masking), and
    without those that the graph cannot lose (`refusals`), and `least` of a group is what the graph needs of it (`least_kept`).
    """
    groups: dict[str, SymmetryGroup] = {}
    reasons: dict[str, str] = {}
    for group in symmetry.groups:
        if not group.proved:
            reasons[group.name] = "The group is not proved."
        elif not consumed(found, group.name) and (labels is None or group.size > MOST_UNITS):
            reasons[group.name] = f"{NOT_READ}{'.' if labels is None else NOR_MASKED}"
        elif group.size <= group.blocks:
            reasons[group.name] = "It has one unit in each block."
        else:
            groups[group.name] = group
    refused = refusals(labels, tuple(groups.values())) if labels is not None else {}
    groups = {name: group for name, group in groups.items() if name not in refused}
    least = least_kept(labels, tuple(groups.values())) if labels is not None else {}
    return {name: replace(group, least=least.get(name, 1)) for name, group in groups.items()}, reasons | refused


def group_curves(checkpoint: Checkpoint, found: Sequence[Consumer], groups: Mapping[str, SymmetryGroup],
                 moments: Mapping[str, Moments], *, labels: Labels | None = None, rows: Rows = (),
                 curvature: Mapping[str, np.ndarray] | None = None) -> dict[str, Curve]:
    """Return the curve of each group from the moments of its consumers' inputs.

    The cost of a group that several consumers read is the sum of what each loses, as a share of the variance that the group
    gives it. That of one that none reads is measured by masking on `rows`, with `labels`. Units of several features (a head,
    a channel behind a flatten) go as a block: tr(G_uu P_uu⁻¹) of the Schur complement. Cost: see `elimination_curve`.

    With `curvature` (`curvatures`), what a consumer gives counts by what it matters to the predictions, and costs are nats per
    row: ½ tr(F W (C_SS − C_SK C_KK⁻¹ C_KS) Wᵀ), in which consumers and groups are comparable and simply add up.
    """
    curves = {}
    for name, group in groups.items():
        readers = consumed(found, name)
        assert readers or labels is not None, name
        curves[name] = (_curve(checkpoint, readers, group, moments, curvature) if readers
                        else masked_curve(labels, group, rows))
    return curves


def _curve(checkpoint: Checkpoint, readers: Sequence[Consumer], group: SymmetryGroup, moments: Mapping[str, Moments],
           curvature: Mapping[str, np.ndarray] | None) -> Curve:
    covariances, grams = [], []
    weighted = curvature is not None and all(consumer.node in curvature for consumer in readers)
    for consumer in readers:
        columns = consumer.columns(consumer.units[group.name])
        c = moments[consumer.node].covariance[np.ix_(columns, columns)]
        g = curvature[consumer.node][np.ix_(columns, columns)] / 2 if weighted else gram(consumer, group, checkpoint)
        total = float(np.einsum("ij,ij->", c, g))
        covariances.append(c)
        grams.append(g / total if total > 0 and len(readers) > 1 and not weighted else g)
    widest = max(len(c) for c in covariances)
    careful = widest <= CAREFUL_FEATURES and widest == group.size or \
        widest <= CAREFUL_FEATURES and group.size**2 * (widest // group.size) ** 3 <= ELEMENT_WORK
    samples = min(moments[consumer.node].samples for consumer in readers)
    made = elimination_curve if careful else quick_curve
    curve = made(covariances, grams, samples=samples, units=group.size, blocks=group.blocks)
    return curve if weighted or curvature is None else replace(curve, notes=(*curve.notes, UNWEIGHTED))
