"""Turn a residual stream onto its principal directions: the same function, and directions that can be cut for less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint, LazyTensors, held, metas_of
from cipm.pruning.consumers import consumers
from cipm.pruning.readers import base_name
from cipm.pruning.sequence import Rows, read_moments
from cipm.rules import bind
from cipm.symmetry import TOLERANCE, ContinuousSymmetry, Symmetry, SymmetryGroup, compare, example_inputs
from cipm.symmetry.freedoms import ORTHOGONAL, SCALE, FreedomPlace
from cipm.symmetry.members import Member, absorbing, applied
from cipm.trace import Node, Ref, run

CENTRED = "Layer norms on the stream became RMS norms: the mean is taken off what writes into it."


@dataclass(frozen=True, eq=False)
class Turned:
    """A checkpoint whose stream (group `group`) stands on its principal directions, the largest first.

    `shares` [units]: which share of what the stream's readers see lies along each direction. `max_abs` and `max_rel` are the
    differences of the outputs from those before, in float64 on random rows, without the rounding of the turned tensors to
    their type. `notes` say what was changed beside weights.
    """

    checkpoint: Checkpoint
    group: str
    shares: np.ndarray
    max_abs: float
    max_rel: float
    notes: tuple[str, ...] = ()


def turnable(symmetry: Symmetry) -> dict[str, ContinuousSymmetry]:
    """Return the groups whose units may be mixed by rotations, with that freedom: streams that only norms read.

    The freedom is the one that `symmetry.continuous` lists as proved.
    """
    free = [freedom for freedom in symmetry.continuous
            if freedom.kind == ORTHOGONAL and freedom.proved and freedom.blocks == 1]
    pairs = ((group, freedom) for group in symmetry.groups for freedom in free if _same(group, freedom))
    return {group.name: freedom for group, freedom in pairs if group.proved}


def turn(checkpoint: Checkpoint, symmetry: Symmetry, group: str, rows: Rows) -> Turned:
    """Return the checkpoint with a stream turned onto the principal directions of what its readers see on these rows.

    Weights of norms are taken over by what reads the normalised values; then all writers are multiplied by the eigenvectors'
    transpose and all readers by the eigenvectors. One rotation for the whole stream, so nothing is added to its shortcuts. The
    second moments of the readers' inputs count alike, each divided by its trace. Layer norms become RMS norms first: the mean
    is taken off what writes into the stream instead. The groups of the symmetry stay what they are (discover them again where
    layer norms were changed): a unit is now a direction, and curves, refit and `shrink` work on it as on any other.

    Raises UnsupportedModel where the group's units may not be mixed (a tied head, a norm after the sum).
    Cost: a forward pass, one eigendecomposition of units³, two forward passes in float64 on few rows.

    Source: Ashkboos et al. 2024, "SliceGPT: Compress Large Language Models by Deleting Rows and Columns" (ICLR), section 3;
    there with a rotation of its own for every block and a matrix on every shortcut.
    """
    freedom = turnable(symmetry).get(group)
    if freedom is None:
        raise UnsupportedModel(f"The units of {group} may not be mixed: the model is not the same function when they are.",
                               where=group, fix="Remove single units of it instead.")
    scales = {one.name: one for one in symmetry.continuous if one.kind == SCALE}
    members = absorbing(scales, checkpoint.tensors, freedom)
    if members is None:
        raise UnsupportedModel(f"The stream {group} cannot be turned: a weight of a norm that reads it is zero or not finite.",
                               where=group, fix="Remove single units of it instead.")
    plain = centred(checkpoint, freedom) if freedom.fixes_ones else checkpoint
    absorbed = _rounded(plain, applied(plain.tensors, members))
    values, vectors = np.linalg.eigh(_second_moment(absorbed, symmetry, group, freedom, rows))
    exact = applied(plain.tensors, [*members, Member(freedom, vectors[:, ::-1].T[None].copy())])
    difference = _difference(checkpoint, plain.with_tensors(exact))
    if difference[1] > TOLERANCE:
        raise UnsupportedModel(f"The stream {group} cannot be turned: the outputs would differ by {difference[1]:.1e}.",
                               where=group, fix="Remove single units of it instead.")
    values = np.maximum(values[::-1], 0)
    return Turned(_rounded(plain, exact), group, values / max(values.sum(), np.finfo(float).tiny), *difference,
                  (CENTRED,) if freedom.fixes_ones else ())


def centred(checkpoint: Checkpoint, freedom: ContinuousSymmetry) -> Checkpoint:
    """Return the checkpoint with RMS norms for the layer norms that read a stream; what writes into it has the mean taken off.

    The tensors that change are in float64. Source: Ashkboos et al. 2024, section 3.3.
    """
    names = {name for name, key in checkpoint.graph.tensors.items() if key in {one.tensor for one in freedom.absorbs}}
    norms = {node.name: bind(node, {name: Ref(name) for name in node.refs()}) for node in checkpoint.graph.nodes
             if base_name(node) == "layer_norm" and not names.isdisjoint(node.refs())}
    biases = {checkpoint.graph.tensors[bound["bias"].name] for bound in norms.values() if bound["bias"] is not None}
    writers = {place.tensor: place for place in freedom.places if place.power > 0 and place.tensor not in biases}

    def read(key: str) -> torch.Tensor:
        tensor, place = checkpoint.tensors[key], writers.get(key)
        return tensor if place is None else _without_mean(tensor.detach().double(), place)

    nodes = [made for node in checkpoint.graph.nodes for made in (
        _root_mean_square(node.name, norms[node.name]) if node.name in norms else (node,))]
    return replace(checkpoint, graph=replace(checkpoint.graph, nodes=tuple(nodes)),
                   tensors=LazyTensors(metas_of(checkpoint.tensors), read))


def _without_mean(tensor: torch.Tensor, place: FreedomPlace) -> torch.Tensor:
    rows = tensor.movedim(place.axis, 0).clone()
    own = torch.from_numpy(place.index[:, 0].copy())
    rows[own] -= rows[own].mean(0)
    return rows.movedim(0, place.axis)


def _root_mean_square(name: str, bound: Mapping[str, Any]) -> tuple[Node, ...]:
    """Return the nodes of an RMS norm in the place of a layer norm; its value keeps the name."""
    arguments = (bound["input"], bound["normalized_shape"], bound["weight"], 1e-5 if bound["eps"] is None else bound["eps"])
    if bound["bias"] is None:
        return (Node(name, "aten.rms_norm.default", arguments),)
    inner = Node(f"{name}_rms", "aten.rms_norm.default", arguments)
    return inner, Node(name, "aten.add.Tensor", (Ref(inner.name), bound["bias"]))


def _difference(checkpoint: Checkpoint, turned: Checkpoint) -> tuple[float, float]:
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(0))
    before, after = (run(one.graph, one.tensors, one.constants, inputs, dtype=torch.float64) for one in (checkpoint, turned))
    return compare(before, after)


def _same(group: SymmetryGroup, freedom: ContinuousSymmetry) -> bool:
    """Tell whether a group and a freedom speak of the same units, one position each."""
    where = {(place.tensor, place.axis): place.index for place in group.places}
    return group.size == freedom.units and group.blocks == 1 and all(
        place.blocks == 1 and place.index.shape[1] == 1 and (place.tensor, place.axis) in where
        and np.array_equal(np.sort(where[place.tensor, place.axis], axis=None), np.sort(place.index, axis=None))
        for place in freedom.places)


def _second_moment(checkpoint: Checkpoint, symmetry: Symmetry, group: str, freedom: ContinuousSymmetry,
                   rows: Rows) -> np.ndarray:
    """Return the second moment [units, units] of what the readers of a stream see, in the order of the freedom's units."""
    where = {(place.tensor, place.axis): place.index[:, 0] for place in freedom.places if place.power < 0}
    readers = [one for one in consumers(checkpoint, symmetry) if group in one.units and (one.key, one.weight_axis) in where]
    moments = read_moments(checkpoint, readers, rows)
    total = np.zeros((freedom.units, freedom.units))
    for one in readers:
        columns, seen = where[one.key, one.weight_axis], moments[one.node]
        second = (seen.covariance + np.outer(seen.mean, seen.mean))[np.ix_(columns, columns)]
        total += second / max(float(np.trace(second)), np.finfo(float).tiny)
    return total


def _rounded(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Return the checkpoint with these tensors in the types it has."""
    metas = metas_of(checkpoint.tensors)
    return checkpoint.with_tensors(held(LazyTensors(metas, lambda key: tensors[key].to(metas[key].dtype))))


__all__ = ["Turned", "centred", "turn", "turnable"]
