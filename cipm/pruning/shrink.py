"""A smaller model: stored tensors without the units that go, and a graph whose constants say so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cipm.errors import OptionError, UnsupportedModel
from cipm.load.checkpoint import Checkpoint, LazyTensors, metas_of
from cipm.pruning.kept import Keep, Kept, Labels, walked_as_found, what_stays
from cipm.pruning.rewrites import CHOICES, find_rewrite
from cipm.pruning.step import Smaller, rewritten
from cipm.rules import bind, find_rule
from cipm.symmetry import TOLERANCE, Symmetry, SymmetryGroup, compare, example_inputs
from cipm.symmetry.shapes import observe
from cipm.trace import Graph, Node, Ref, run

Intervene = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]


@dataclass(frozen=True)
class Shrunk:
    """A smaller model with what was done: the units kept by group (those that lost any), and the measured proof.

    `max_abs` and `max_rel` are the differences of its outputs from those of the masked model, in float64 on `rows` random
    rows; relative to the largest output of the same sample. `notes` say in words what was changed beside sizes.
    """

    checkpoint: Checkpoint
    keep: Mapping[str, tuple[int, ...]]
    max_abs: float
    max_rel: float
    rows: int
    notes: tuple[str, ...]


def shrink(checkpoint: Checkpoint, symmetry: Symmetry, keep: Keep, *, locked: Collection[str] = (), seed: int = 0) -> Shrunk:
    """Return the model with these units of these groups alone; groups that are not named stay whole.

    What the others computed stays the same, as if the units that go were zero wherever they stand (and left out wherever
    units are ranked or weighed against each other: experts behind a router); this is measured. Where all units of all groups
    stay, the checkpoint itself comes back.

    Raises OptionError where `keep` names no such group or unit, leaves a group or a block of one without units, touches a
    `locked` group, or keeps uneven blocks where the graph needs even ones; UnsupportedModel, naming op, node and groups,
    where a group cannot be made smaller in this graph.
    Cost: the walk of discovery, and one forward pass of both models in float64 on few rows. Memory: as one of them.
    """
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed))
    kept = what_stays(checkpoint, symmetry, keep, walked_as_found(checkpoint, symmetry, inputs), locked=locked)
    if not kept.removed:
        return Shrunk(checkpoint, {}, 0.0, 0.0, 0, ())
    smaller = _rewrite(checkpoint, symmetry, kept, inputs)
    made = _smaller_checkpoint(checkpoint, kept, smaller)
    reference = run(checkpoint.graph, _zeroed(checkpoint, kept), checkpoint.constants, inputs, dtype=torch.float64,
                    intervene=left_out(checkpoint.graph, kept))
    max_abs, max_rel = compare(reference, run(made.graph, made.tensors, made.constants, inputs, dtype=torch.float64))
    if max_rel > TOLERANCE:
        names = ", ".join(kept.removed)
        raise UnsupportedModel(f"The model without the units that go of {names} differs from the masked one by {max_rel:.1e}: "
                               "these groups cannot be made smaller in this graph, only masked.", where=names)
    chosen = {name: tuple(np.setdiff1d(np.arange(symmetry.group(name).size), units).tolist())
              for name, units in kept.removed.items()}
    return Shrunk(made, chosen, max_abs, max_rel, next(iter(inputs.values())).shape[0], tuple(smaller.notes))


def refusals(labels: Labels, groups: Sequence[SymmetryGroup]) -> dict[str, str]:
    """Return why groups cannot be made smaller in this graph, by name, in words; found by halving, on shapes alone.

    One that can only be made smaller together with another (the layers of an LSTM) is not refused.
    Cost: one run of the graph on the meta device where none is refused, and about two more for each that is and each halving.
    """
    if not groups:
        return {}
    problem = _problem(labels, groups, lambda width: width - 1)
    if len(groups) == 1 or problem is None:
        return {groups[0].name: problem} if problem else {}
    half = len(groups) // 2
    return refusals(labels, groups[:half]) | refusals(labels, groups[half:])


def least_kept(labels: Labels, groups: Sequence[SymmetryGroup]) -> dict[str, int]:
    """Return the fewest units that each group can keep, of those that cannot keep as few as one of each block: as many experts
    as a router chooses. Found by halving, on shapes alone, of groups that `refusals` does not name. Cost: as `refusals`."""
    problem = _problem(labels, groups, lambda width: 1) if groups else None
    if problem is None:
        return {}
    if len(groups) > 1:
        half = len(groups) // 2
        return least_kept(labels, groups[:half]) | least_kept(labels, groups[half:])
    few, enough = 1, groups[0].size // groups[0].blocks - 1
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if _problem(labels, groups, lambda width, kept=middle: kept) else (few, middle)
    return {groups[0].name: enough * groups[0].blocks}


def _problem(labels: Labels, groups: Sequence[SymmetryGroup], kept_of: Callable[[int], int]) -> str | None:
    """Return why these groups cannot keep `kept_of(width)` of the units of each of their blocks; None where they can, or where
    one could together with others."""
    keep = {group.name: [unit for unit in range(group.size) if unit % width < kept_of(width)]
            for group in groups for width in (group.size // group.blocks,)}
    try:
        _rewrite(labels.checkpoint, labels.symmetry, labels.what_stays(keep), labels.inputs)
    except UnsupportedModel as error:
        return error.message
    except OptionError as error:
        return error.message if len(groups) > 1 else None
    return None


def masked(checkpoint: Checkpoint, symmetry: Symmetry, keep: Keep, *, seed: int = 0) -> tuple[Checkpoint, Intervene]:
    """Return the whole model with zeros wherever the units that go are stored, and what to put in the place of values as it
    runs: −∞ for their scores where units are weighed against each other. The reference of `shrink`."""
    kept = Labels.of(checkpoint, symmetry, seed=seed).what_stays(keep)
    return checkpoint.with_tensors(_zeroed(checkpoint, kept)), left_out(checkpoint.graph, kept)


def _rewrite(checkpoint: Checkpoint, symmetry: Symmetry, kept: Kept, inputs: Mapping[str, torch.Tensor]) -> Smaller:
    """Return the graph with all constants rewritten, its values observed on the meta device."""
    graph = checkpoint.graph
    metas: dict[str, Any] = {name: kept.cut(checkpoint.meta(key), key) for name, key in graph.tensors.items()}
    metas |= {i.name: inputs[i.name].to("meta") for i in graph.inputs}
    varying = set(metas)
    contents: dict[str, Any] = {name: checkpoint.constants[key] for name, key in graph.constants.items()}
    metas |= {name: value.to("meta") for name, value in contents.items()}
    smaller = Smaller(kept, observe(checkpoint, inputs), driven_by_inputs(graph), symmetry.carried, metas, contents, varying)
    for node in graph.nodes:
        if node.op != "getitem" and _touched(node, smaller):
            rewritten(node, smaller, find_rewrite(node.op))
        else:
            smaller.add(node)
    _check_outputs(graph, smaller)
    return smaller


def _touched(node: Node, smaller: Smaller) -> bool:
    """Tell whether a removed unit stands on what a node makes, or what it reads has another shape than it had."""
    now, before = smaller.metas, smaller.before.metas
    return any(smaller.kept.touches(name) for name in (node.name, *node.refs())) or any(
        getattr(now[name], "shape", None) != getattr(before[name], "shape", None) for name in node.refs())


def _check_outputs(graph: Graph, smaller: Smaller) -> None:
    for ref in graph.outputs:
        assert ref is None or smaller.metas[ref.name].shape == smaller.before.metas[ref.name].shape, ref


def driven_by_inputs(graph: Graph) -> frozenset[str]:
    """Return the values that depend on the model's inputs."""
    driven = {i.name for i in graph.inputs}
    for node in graph.nodes:
        if any(name in driven for name in node.refs()):
            driven.add(node.name)
    return frozenset(driven)


def _smaller_checkpoint(checkpoint: Checkpoint, kept: Kept, smaller: Smaller) -> Checkpoint:
    graph = checkpoint.graph
    constants = dict(checkpoint.constants) | smaller.constants
    named = dict(graph.constants) | {key: key for key in smaller.constants}
    read = {name for node in smaller.nodes for name in node.refs()} | {ref.name for ref in graph.outputs if ref is not None}
    made = replace(graph, nodes=tuple(smaller.nodes), constants={name: key for name, key in named.items() if name in read})
    return replace(checkpoint, graph=made, constants={key: constants[key] for key in made.constants.values()},
                   tensors=_each(checkpoint, lambda key, tensor: kept.cut(tensor, key)))


def _zeroed(checkpoint: Checkpoint, kept: Kept) -> Mapping[str, torch.Tensor]:
    return _each(checkpoint, lambda key, tensor: kept.zeroed(tensor, key))


def _each(checkpoint: Checkpoint, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return the tensors with a change applied to each, when it is asked for where they are read lazily."""
    tensors = checkpoint.tensors
    if not isinstance(tensors, LazyTensors):
        return {key: change(key, tensor) for key, tensor in tensors.items()}
    metas = {key: change(key, meta) for key, meta in metas_of(tensors).items()}
    return LazyTensors(metas, lambda key: change(key, tensors[key]))


def left_out(graph: Graph, kept: Kept) -> Intervene:
    """Return what makes scores −∞ for the units that go, before the first op that weighs or ranks them.

    What comes of such an op (a ranking of weights that add up to one) is left as it is; another choice between other units
    behind it (the router of a later layer) is not.
    """
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    weighed: dict[str, frozenset[int]] = {}
    for node in graph.nodes:
        before = frozenset().union(*(weighed.get(name, ()) for name in node.refs()))
        if find_rule(node.op) in CHOICES and (choice := _choice(node, kept)) is not None:
            mask, units = choice
            if not units <= before:
                found[node.args[0].name] = _without(torch.from_numpy(~mask))
                before |= units
        if before:
            weighed[node.name] = before
    return found


def _choice(node: Node, kept: Kept) -> tuple[np.ndarray, frozenset[int]] | None:
    """Return which units stay along the axis of a choice, laid out as its scores, and their labels; None where all stay."""
    value = kept.values.get(node.args[0].name)
    if value is None or not value.shape:
        return None
    dim = bind(node, {name: Ref(name) for name in node.refs()}).get("dim")
    axis = (-1 if dim is None else dim) % len(value.shape)
    mask = kept.mask(value.name, axis)
    return None if mask is None else (mask, frozenset(np.unique(value.axes[axis]).tolist()))


def _without(gone: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda scores: scores.masked_fill(gone, -torch.inf)
