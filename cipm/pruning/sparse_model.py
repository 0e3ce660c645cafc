"""N:M sparsity of a whole model: orders of its groups, masks of the weights that read them, dense tensors with zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cipm.errors import InputError, OptionError
from cipm.load.checkpoint import Checkpoint, LazyTensors, reordered
from cipm.permutation import Permutation, Plan
from cipm.pruning.sparsity import ESCAPES, SparsityOrder, mask, sparsity_order
from cipm.symmetry import Place, Symmetry, SymmetryGroup, Tap

Objective = Callable[[np.ndarray, Tap], np.ndarray]
"""From |weights| [rows, units] that read a tap to scores of that shape: not negative, larger is more worth keeping."""
Readings = list[tuple[SymmetryGroup, Tap, Place]]


@dataclass(frozen=True)
class SparseWeight:
    """One masked weight: the axis along which n of every m neighbours stay, or the axes of its blocks, and sums of scores.

    `retained_before` is what the mask of the given order keeps, `retained` that of the chosen one. `by_magnitude`: scored by
    |w| whatever the objective, because some of its columns belong to no group.
    """

    tensor: str
    axis: int | tuple[int, int]
    retained_before: float
    retained: float
    total: float
    by_magnitude: bool


@dataclass(frozen=True)
class SparseModel:
    """A reordered checkpoint with zeros, its masks (bool, shape of the tensor, True: kept), and the plan that was applied.

    `left_out` says of each weight that reads a group and stayed dense why.
    """

    checkpoint: Checkpoint
    masks: Mapping[str, torch.Tensor]
    plan: Plan
    weights: tuple[SparseWeight, ...]
    left_out: Mapping[str, str]


def by_variance(variances: Mapping[str, np.ndarray]) -> Objective:
    """Return the objective w² × variance of the unit: the expected squared change of the output by zeroing one weight alone.

    `variances` [units] are given by `tap.key` (the diagonal of the covariance at the tap). Raises InputError for a tap that
    has none, or one of another size.
    """
    def scores(weights: np.ndarray, tap: Tap) -> np.ndarray:
        variance = variances.get(tap.key)
        if variance is None or np.shape(variance) != (weights.shape[1],):
            raise InputError(f"There are no variances of the {weights.shape[1]} units at {tap.value}.", where=tap.value,
                             fix="Collect statistics at every tap, or score by magnitude.")
        return np.square(weights) * np.asarray(variance)

    return scores


def sparse_orders(symmetry: Symmetry, checkpoint: Checkpoint, *, n: int = 2, m: int = 4, objective: Objective | None = None,
                  seed: int = 0, escapes: int = ESCAPES) -> dict[str, SparsityOrder]:
    """Return, by name of group, the order in which n:m sparsity of all weights that read the group retains most.

    `objective` scores the weights; None: by |w|. Groups are independent, since the order of a weight's rows changes nothing
    along its columns. A group is missing where no weight has its units in whole runs of m neighbours (a channel behind a
    flatten fills such runs alone), or where it is not proved. Symmetry.plan takes {name: order.order}.
    Cost: `sparsity_order` for each group, with a row for every output and kernel position of its readers.
    """
    readers, _ = _weights(symmetry, checkpoint, m)
    found = {}
    for group in symmetry.groups:
        tables = [_columns(_scores(checkpoint, key, axis, of, objective)[0], place)
                  for (key, axis), of in readers.items() for place in _places_of(group, of) if _in_runs(place, m)]
        if tables:
            found[group.name] = sparsity_order(tables, n=n, m=m, blocks=group.blocks, seed=seed, escapes=escapes)
    return found


def sparsify(checkpoint: Checkpoint, symmetry: Symmetry, orders: Mapping[str, Permutation], *, n: int = 2, m: int = 4,
             objective: Objective | None = None) -> SparseModel:
    """Return the model in these orders with n of every m neighbours kept in each weight that reads a proved group.

    With orders {} the given order is masked. Tensors stay dense and keep their dtype; masked entries are zero. Weights that
    read no group (a first layer) stay as they are. Raises OptionError where an order does not fit its group.
    """
    plan = symmetry.plan(orders)
    readers, left_out = _weights(symmetry, checkpoint, m)
    masks, facts = {}, []
    for (key, axis), of in readers.items():
        scores, by_magnitude = _scores(checkpoint, key, axis, of, objective)
        moved = plan.move(key, scores)
        keep = mask(moved, n, m, axis=axis)
        before = float(scores[mask(scores, n, m, axis=axis)].sum(dtype=np.float64))
        masks[key] = torch.from_numpy(keep)
        facts.append(SparseWeight(key, axis, before, float(moved[keep].sum(dtype=np.float64)),
                                  float(scores.sum(dtype=np.float64)), by_magnitude))
    return SparseModel(zeroed(checkpoint, plan, masks), masks, plan, tuple(facts), left_out)


def semi_structured(model: SparseModel, *, dtype: torch.dtype = torch.float16,
                    device: str = "cuda") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the masked matrices in torch's semi-structured format on a GPU, and of the others why they cannot be in it.

    The format holds matrices [out, in] with 2:4 along the inputs, of shapes that torch lists. Raises OptionError where there is
    no CUDA device. Assign them to the weights of linear layers.
    """
    if not torch.cuda.is_available():
        raise OptionError("Torch's semi-structured format needs a CUDA device, and there is none.", where="device",
                          fix="Export masks or dense tensors with zeros, and convert them where the model runs.")
    made, refused = {}, {}
    for weight in model.weights:
        tensor = model.checkpoint.tensors[weight.tensor].detach()
        if tensor.ndim != 2 or weight.axis != 1:
            refused[weight.tensor] = "The format holds matrices with the inputs along their last axis."
            continue
        try:
            made[weight.tensor] = torch.sparse.to_sparse_semi_structured(tensor.to(device=device, dtype=dtype).contiguous())
        except (RuntimeError, NotImplementedError) as error:
            refused[weight.tensor] = str(error).splitlines()[0]
    return made, refused


def _weights(symmetry: Symmetry, checkpoint: Checkpoint, m: int) -> tuple[dict[tuple[str, int], Readings], dict[str, str]]:
    """Return the weights to mask with what they read along that axis, and why others are left out."""
    found: dict[tuple[str, int], Readings] = {}
    for group in (group for group in symmetry.groups if group.proved):
        places = {(place.tensor, place.axis): place for place in group.places}
        for tap in group.taps:
            for consumer in tap.consumers:
                if consumer in places:
                    found.setdefault(consumer, []).append((group, tap, places[consumer]))
    taken: dict[str, tuple[str, int]] = {}
    left_out: dict[str, str] = {}
    for key, axis in found:
        why = _unfit(checkpoint, key, axis, m)
        if why is None and taken.setdefault(key, (key, axis)) == (key, axis):
            continue
        left_out[key if why else f"{key}, axis {axis}"] = why or f"It is masked along axis {taken[key][1]}."
    return {consumer: found[consumer] for consumer in taken.values()}, left_out


def _unfit(checkpoint: Checkpoint, key: str, axis: int, m: int) -> str | None:
    """Return why a weight cannot be masked, in words, or None."""
    meta = checkpoint.meta(key)
    if not meta.is_floating_point():
        return f"Its numbers are {str(meta.dtype).removeprefix('torch.')}."
    if meta.shape[axis] < m:
        return f"It has {meta.shape[axis]} columns, fewer than {m}."
    names = {name for name, stored in checkpoint.graph.tensors.items() if stored == key}
    if any(node.op.startswith("aten.embedding") and names & set(node.refs()) for node in checkpoint.graph.nodes):
        return "It is an embedding too: masking it would change what the model reads."
    return None


def _scores(checkpoint: Checkpoint, key: str, axis: int, of: Readings, objective: Objective | None) -> tuple[np.ndarray, bool]:
    """Return the scores of a stored weight, float32 of its shape, and whether they are |w| in spite of the objective.

    A weight that reads the same units at several taps gets the mean of their scores.
    """
    size = checkpoint.tensors[key].detach().abs().float().numpy()
    if objective is None:
        return size, False
    covered = np.unique(np.concatenate([place.index.ravel() for _, _, place in of]))
    if covered.size != size.shape[axis]:
        return size, True
    last = np.moveaxis(size, axis, -1)
    total, count = np.zeros(last.shape, np.float32), np.zeros(last.shape[-1], np.float32)
    for _, tap, place in of:
        for positions in place.index.T:
            part = last[..., positions]
            scores = objective(part.reshape(-1, positions.size), tap)
            total[..., positions] += scores.reshape(part.shape)
            count[positions] += 1
    return np.moveaxis(total / count, -1, axis), False


def _places_of(group: SymmetryGroup, of: Readings) -> list[Place]:
    """Return the place of a group among what a weight reads, once, or nothing."""
    return [place for other, _, place in of if other.name == group.name][:1]


def _in_runs(place: Place, m: int) -> bool:
    """Tell whether every m neighbouring units are m neighbours, at the start of a run, for each of their elements; in a stack,
    within every slice."""
    if place.view is not None and place.view.shape[place.view.axes[-1]] % m:
        return False
    units = np.arange(len(place.index))
    heads = place.index[units // m * m]
    short = units.size % m
    return bool((place.index == heads + (units % m)[:, None]).all() and (heads % m == 0).all()
                and (not short or (heads[-1] + short == place.length).all()))


def _columns(scores: np.ndarray, place: Place) -> np.ndarray:
    """Return the scores of a weight as [rows, units], a row for each output, kernel position and element of the units."""
    by_unit = place.line_up(scores)[place.index]
    return by_unit.reshape(len(place.index), -1).T


def zeroed(checkpoint: Checkpoint, plan: Plan, masks: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Return the checkpoint with a plan applied and zeros wherever a mask (of the new order) says False."""
    moved = reordered(checkpoint.tensors, plan)

    def read(key: str) -> torch.Tensor:
        tensor = moved[key]
        return tensor.detach().masked_fill(~masks[key].to(tensor.device), 0) if key in masks else tensor

    lazy = LazyTensors(moved.metas, read)
    return checkpoint.with_tensors(lazy if isinstance(checkpoint.tensors, LazyTensors) else dict(lazy))


def summary(model: SparseModel) -> dict[str, Any]:
    """Return what was masked and what it retains, as JSON-ready values."""
    kept = sum(int(m.sum()) for m in model.masks.values())
    there = sum(m.numel() for m in model.masks.values())
    return {"weights": [{"tensor": w.tensor, "axis": w.axis, "retained_before": w.retained_before, "retained": w.retained,
                         "total": w.total, "by_magnitude": w.by_magnitude} for w in model.weights],
            "left_out": dict(model.left_out), "kept": kept, "masked": there - kept,
            "parameters": model.checkpoint.parameters}
