"""Choose the units of every layer anew, on what the smaller and refitted layers before it give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import Consumer, consumed
from cipm.pruning.kept import Kept, Labels
from cipm.pruning.network import group_curves
from cipm.pruning.sequence import Aims, Rows, refit, refitted_inputs
from cipm.pruning.shrink import Intervene, left_out
from cipm.symmetry import SymmetryGroup
from cipm.trace import run

Keep = Mapping[str, Sequence[int]]
Made = tuple[Checkpoint, dict[str, list[int]], tuple[str, ...]]


def refit_again(labels: Labels, found: Sequence[Consumer], groups: Mapping[str, SymmetryGroup], keep: Keep,
                curvature: Mapping[str, np.ndarray], rows: Rows, *, aims: Aims | None = None) -> Made:
    """Return what `refit` gives with as many units of each group as `keep` names, those units, and notes: the units given or
    those of `chosen_again`, whichever leaves the model's outputs nearer to the whole one's on these rows.

    Near is, where outputs look like logits, the KL divergence, else the squared error. Units of a chain of layers are better
    chosen anew; behind a residual stream, where layers hardly depend on each other, it makes no difference or harm (measured:
    docs/pruning.md), so both are tried. Cost: two refits and what `chosen_again` costs.
    """
    given = {name: sorted(int(unit) for unit in units) for name, units in keep.items()}
    again = chosen_again(labels, found, groups, given, curvature, rows, aims=aims)
    first = _made(labels, found, given, rows, aims)
    if again == given:
        return first
    second = _made(labels, found, again, rows, aims)
    apart = _apart(labels.checkpoint, [(made, labels.what_stays(units)) for made, units, _ in (first, second)], rows)
    return second if apart[1] < apart[0] else first


def _made(labels: Labels, found: Sequence[Consumer], units: dict[str, list[int]], rows: Rows, aims: Aims | None) -> Made:
    kept = labels.what_stays(units)
    checkpoint, notes = refit(labels.checkpoint, labels.symmetry, kept, rows, aims=aims, found=found)
    return checkpoint, units, notes


def chosen_again(labels: Labels, found: Sequence[Consumer], groups: Mapping[str, SymmetryGroup], keep: Keep,
                 curvature: Mapping[str, np.ndarray], rows: Rows, *, aims: Aims | None = None) -> dict[str, list[int]]:
    """Return as many units of each group as `keep` names, chosen group by group in graph order: each by elimination on the
    covariance C′ of what its consumers see in the smaller model, refitted up to there.

    The refitted consumer W′ = T W makes of C′ what the whole one made of C, so the curvature of the whole model's outputs gives
    its Gram, T G Tᵀ with `curvature` G = WᵀFW (`curvatures`) and T = W′ W⁺. Groups that are read at several values (residual
    streams), or by a consumer without curvature, keep the units given. Cost: for each other group, a refit up to its consumers
    and its elimination.
    """
    again = [name for name in sorted(groups, key=lambda name: _first(found, name))
             if len(keep.get(name, ())) and _at_one_value(found, name, curvature)]
    chosen = {name: list(units) for name, units in keep.items() if name not in again}
    for name in again:
        mine = consumed(found, name)
        seen = refitted_inputs(labels.checkpoint, found, labels.what_stays(chosen), rows, {one.node for one in mine},
                               aims=aims) if chosen else {}
        chosen[name] = list(keep[name]) if len(seen) < len(mine) else _eliminated(
            labels.checkpoint, mine, {name: groups[name]}, len(keep[name]), curvature, seen)
    return {name: chosen[name] for name in keep}


def _eliminated(checkpoint: Checkpoint, mine: Sequence[Consumer], group: Mapping[str, SymmetryGroup], count: int,
                curvature: Mapping[str, np.ndarray], seen: Mapping[str, tuple]) -> list[int]:
    grams = {}
    for one in mine:
        through = seen[one.node][1] @ np.linalg.pinv(one.matrix(checkpoint.tensors[one.key]))
        grams[one.node] = through @ curvature[one.node] @ through.T
    moments = {node: moment for node, (moment, _) in seen.items()}
    curve, = group_curves(checkpoint, mine, group, moments, curvature=grams).values()
    return curve.kept(count).tolist()


def _first(found: Sequence[Consumer], group: str) -> int:
    """Return the place of the first consumer of a group in graph order; of one that none reads, behind all."""
    return next((number for number, one in enumerate(found) if group in one.units), len(found))


def _at_one_value(found: Sequence[Consumer], group: str, curvature: Mapping[str, np.ndarray]) -> bool:
    mine = consumed(found, group)
    return len({one.value for one in mine}) == 1 and all(one.node in curvature for one in mine)


def _apart(whole: Checkpoint, made: Sequence[tuple[Checkpoint, Kept]], rows: Rows) -> np.ndarray:
    """Return how far the outputs of each smaller model are from the whole one's, on average over the rows."""
    total, count = np.zeros(len(made)), 0
    for batch in rows:
        wanted = _output(whole, batch, {})
        total += [_distance(_output(one, batch, left_out(one.graph, kept)), wanted) for one, kept in made]
        count += len(wanted)
    return total / max(count, 1)


def _output(model: Checkpoint, batch: Mapping[str, torch.Tensor], masked: Intervene) -> torch.Tensor:
    found = run(model.graph, model.tensors, model.constants, batch, intervene=masked)
    return next(value for value in found if value is not None).float()


def _distance(given: torch.Tensor, wanted: torch.Tensor) -> float:
    if wanted.ndim in (2, 3) and wanted.shape[-1] > 1:  # logits
        return float(F.kl_div(given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum"))
    return float((given - wanted).square().sum())


__all__ = ["chosen_again", "refit_again"]
