"""Matching to a reference: noisy copies return to their places, with margins; what cannot be matched is said or refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import InputError, UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.ordering.matching import Matching, match_units
from cipm.permutation import Plan
from cipm.symmetry import Symmetry, discover_groups, prove, random_member
from cipm.testing.models import cnn_residual, mlp
from cipm.testing.networks import NETWORKS, as_checkpoint, randomize


def opened(model: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Checkpoint, Symmetry]:
    randomize(model, 1)
    checkpoint = as_checkpoint(model.requires_grad_(False), example)
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)


def small(seed: int = 0, widths: tuple[int, ...] = (5, 9, 7, 3)) -> tuple[Checkpoint, Symmetry]:
    checkpoint = as_checkpoint(mlp(widths, seed=seed).requires_grad_(False), (torch.zeros(2, widths[0]),))
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)


def noisy(checkpoint: Checkpoint, plan: Plan, noise: float, seed: int = 0) -> Checkpoint:
    """Return a permuted copy with relative noise on every weight."""
    generator = torch.Generator().manual_seed(seed)
    return checkpoint.with_tensors({
        key: tensor * (1 + noise * torch.randn(tensor.shape, generator=generator)) if tensor.is_floating_point() else tensor
        for key, tensor in plan.apply(checkpoint.tensors).items()})


def share_back(checkpoint: Checkpoint, symmetry: Symmetry, plan: Plan, found: Matching) -> float:
    """Return the share of all entries that the plan and then the match leave where they were."""
    places = {key: torch.arange(t.numel()).reshape(t.shape) for key, t in checkpoint.tensors.items()}
    back = symmetry.plan(found.orders).apply(plan.apply(places))
    return float(torch.cat([(back[key] == places[key]).flatten() for key in places]).float().mean())


FAMILIES = {"mlp": lambda: (mlp((5, 9, 7, 3)), (torch.zeros(2, 5),)),
            "residual convolutions": lambda: (cnn_residual(1, 6, 3), (torch.randn(2, 1, 6, 6),)),
            **{name: lambda name=name: (NETWORKS[name].make(), NETWORKS[name].example())
               for name in ("multi_head", "llama_rotary", "resnext", "lstm")}}


@pytest.mark.parametrize("family", FAMILIES)
def test_noisy_copies_return_to_their_places(family):
    checkpoint, symmetry = opened(*FAMILIES[family]())
    rng = np.random.default_rng(0)
    for noise in (0, 0.01, 0.1):
        plan = random_member(symmetry, symmetry.groups, rng)
        found = match_units(symmetry, noisy(checkpoint, plan, noise), checkpoint)
        assert share_back(checkpoint, symmetry, plan, found) == 1
        assert found.certain_share == 1 and found.converged
        assert found.distance <= 1.3 * noise + 1e-6 and found.distance_before > 1
        assert min(group.margin for group in found.groups) > 0.2


def test_twins_and_dead_units_are_matched_but_not_certain():
    checkpoint, symmetry = small()
    tensors = {key: tensor.clone() for key, tensor in checkpoint.tensors.items()}
    for key, axis in (("layers.0.weight", 0), ("layers.0.bias", 0), ("layers.1.weight", 1)):
        rows = tensors[key].movedim(axis, 0)
        rows[1], rows[2:4] = rows[0], 0
    twins = checkpoint.with_tensors(tensors)
    found = match_units(symmetry, noisy(twins, random_member(symmetry, symmetry.groups, np.random.default_rng(0)), 0), twins)
    first, second = found.groups
    assert (first.certain, first.margin) == (5, pytest.approx(0, abs=1e-6)) and second.certain == 7
    assert found.distance == pytest.approx(0, abs=1e-6)


def test_unrelated_models_are_hardly_certain():
    (checkpoint, symmetry), (other, _) = small(), small(1)
    found = match_units(symmetry, checkpoint, other)
    assert found.certain_share < 0.2 and 0.8 < found.distance < found.distance_before
    assert json.loads(json.dumps(found.to_json()))["groups"][0]["name"] == symmetry.groups[0].name


def test_margins_are_those_of_every_exchange():
    """Against all exchanges, one by one, of a single group."""
    (checkpoint, symmetry), (other, _) = small(0, (5, 9, 3)), small(1, (5, 9, 3))
    found = match_units(symmetry, checkpoint, other)
    scale = {key: float(t.square().mean().sqrt()) for key, t in other.tensors.items()}
    def units(tensors):
        return torch.cat([tensors["layers.0.weight"] / scale["layers.0.weight"], tensors["layers.0.bias"][:, None]
                          / scale["layers.0.bias"], tensors["layers.1.weight"].T / scale["layers.1.weight"]], 1).double()
    there, here = units(other.tensors), units(symmetry.plan(found.orders).apply(checkpoint.tensors))
    apart, squares = torch.cdist(there, here) ** 2, there.square().sum(1) + here.square().sum(1)
    least, certain = math.inf, set(range(9))
    for i in range(9):
        for j in set(range(9)) - {i}:
            kept, exchanged = apart[i, i] + apart[j, j], apart[i, j] + apart[j, i]
            least = min(least, float((exchanged - kept) / (squares[i] + squares[j])))
            certain -= {i} if exchanged <= 2 * kept else set()
    assert found.groups[0].margin == pytest.approx(least, abs=1e-5) and found.groups[0].certain == len(certain)


def test_a_group_of_one_unit_has_no_margin():
    checkpoint, symmetry = small(0, (5, 2, 3))
    alone = replace(symmetry, groups=tuple(replace(group, blocks=group.size) for group in symmetry.groups))
    found = match_units(alone, checkpoint, checkpoint)
    assert [(group.margin, group.certain) for group in found.groups] == [(None, 2)]


def test_models_without_groups_have_nothing_to_match():
    checkpoint, symmetry = small()
    found = match_units(replace(symmetry, groups=()), checkpoint, checkpoint)
    assert (found.orders, found.groups, found.certain_share, found.distance) == ({}, (), 1.0, 0.0)


def other_step(checkpoint: Checkpoint) -> Checkpoint:
    nodes = tuple(replace(node, op=node.op.replace("relu", "tanh")) for node in checkpoint.graph.nodes)
    return replace(checkpoint, graph=replace(checkpoint.graph, nodes=nodes))


def other_setting(checkpoint: Checkpoint) -> Checkpoint:
    first = checkpoint.graph.nodes[0]
    nodes = (replace(first, kwargs={"bias": None}), *checkpoint.graph.nodes[1:])
    return replace(checkpoint, graph=replace(checkpoint.graph, nodes=nodes))



def other_input(checkpoint: Checkpoint) -> Checkpoint:
    inputs = tuple(replace(item, dtype=torch.float64) for item in checkpoint.graph.inputs)
    return replace(checkpoint, graph=replace(checkpoint.graph, inputs=inputs))


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: small(0, (5, 9, 8, 3))[0], r"tensor 'layers.1.weight' is \[7, 9\], and its counterpart 'layers.1.weight' in "
                                          r"the reference \[8, 9\]"),
    (lambda c: small(0, (5, 9, 7, 3, 3))[0], "the model has 5 steps, the reference 7"),
    (other_step, "step relu is aten.relu.default in the model and aten.tanh.default in the reference"),
    (other_setting, r"step linear \(aten.linear.default\) reads other values or has other settings in the reference"),
    (other_input, "their inputs are not the same")])
def test_models_of_other_structure_are_refused(change, words):
    checkpoint, symmetry = small()
    with pytest.raises(UnsupportedModel, match=f"The two models differ in structure: ({words})"):
        match_units(symmetry, checkpoint, change(checkpoint))


def test_weights_that_are_not_finite_are_refused():
    checkpoint, symmetry = small()
    bad = checkpoint.with_tensors({**checkpoint.tensors, "layers.1.bias": torch.full((7,), torch.nan)})
    with pytest.raises(InputError, match="Tensor 'layers.1.bias' holds values that are not finite"):
        match_units(symmetry, bad, checkpoint)
