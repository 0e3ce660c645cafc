"""Fingerprints: one for all copies, whatever the names; another for anything that computes something else. Orders by keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import InputError, OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.ordering import fingerprint, lexicographic, nodesort, nodesort_overflow
from cipm.symmetry import Symmetry, discover_groups, prove, random_member
from cipm.testing.models import Mlp, mlp
from cipm.testing.networks import NETWORKS, as_checkpoint, randomize


def opened(model: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Checkpoint, Symmetry]:
    checkpoint = as_checkpoint(model.requires_grad_(False).eval(), example)
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)


def small(model: nn.Module | None = None) -> tuple[Checkpoint, Symmetry]:
    return opened(model or mlp((5, 9, 7, 3)), (torch.zeros(2, 5),))


class Renamed(nn.Module):
    """The same network as Mlp((5, 9, 7, 3)) under other names, defined in another order, with a tensor that nothing reads."""

    def __init__(self, of: Mlp):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))
        self.z, self.b, self.a = of.layers[2], of.layers[1], of.layers[0]

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.z(torch.relu(self.b(torch.relu(self.a(numbers)))))


@pytest.mark.parametrize("family", ["mlp", "multi_head", "llama_tied"])
def test_copies_have_one_fingerprint(family):
    model = NETWORKS[family].make()
    randomize(model, 0)
    checkpoint, symmetry = opened(model, NETWORKS[family].example())
    rng, found = np.random.default_rng(0), set()
    for _ in range(10):
        copy = checkpoint.with_tensors(random_member(symmetry, symmetry.groups, rng).apply(checkpoint.tensors))
        mark = fingerprint(copy, symmetry)
        assert mark.certain and len(mark.digest) == 64
        found.add(mark.digest)
    assert len(found) == 1


def test_names_and_unread_tensors_are_not_part_of_it():
    model = mlp((5, 9, 7, 3))
    assert fingerprint(*small(model)).digest == fingerprint(*small(Renamed(model))).digest


def last_bit(checkpoint: Checkpoint) -> Checkpoint:
    key = "layers.1.weight"
    changed = checkpoint.tensors[key].clone()
    changed.view(torch.int32)[3, 4] ^= 1
    return checkpoint.with_tensors({**checkpoint.tensors, key: changed})


def wider_type(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint.with_tensors({key: tensor.double() for key, tensor in checkpoint.tensors.items()})


def other_function(checkpoint: Checkpoint) -> Checkpoint:
    nodes = tuple(replace(node, op=node.op.replace("relu", "tanh")) for node in checkpoint.graph.nodes)
    return replace(checkpoint, graph=replace(checkpoint.graph, nodes=nodes))


def swapped_layers(checkpoint: Checkpoint) -> Checkpoint:
    one, two = checkpoint.tensors["layers.0.bias"], checkpoint.tensors["layers.1.bias"]
    return checkpoint.with_tensors({**checkpoint.tensors, "layers.0.bias": torch.cat([two, one[7:]]),
                                    "layers.1.bias": one[:7]})


@pytest.mark.parametrize("change", [last_bit, wider_type, other_function, swapped_layers])
def test_what_computes_something_else_has_another(change: Callable[[Checkpoint], Checkpoint]):
    checkpoint, symmetry = small()
    assert fingerprint(change(checkpoint), symmetry).digest != fingerprint(checkpoint, symmetry).digest


def test_groups_that_are_not_proved_are_not_reordered():
    checkpoint, symmetry = small()
    open_groups = replace(symmetry, groups=tuple(replace(group, proved=False) for group in symmetry.groups))
    copy = checkpoint.with_tensors(random_member(symmetry, symmetry.groups, np.random.default_rng(0)).apply(checkpoint.tensors))
    assert fingerprint(checkpoint, open_groups).digest != fingerprint(copy, open_groups).digest


# --- orders by keys ---------------------------------------------------------------------------------------------------


def test_lexicographic_compares_element_by_element():
    rng = np.random.default_rng(0)
    weights = rng.integers(-2, 3, (300, 4)) * 0.3
    weights[weights == 0] *= rng.choice([-1, 1], (weights == 0).sum())  # zeros of both signs are equal
    assert lexicographic(weights).order.tolist() == sorted(range(300), key=lambda unit: (tuple(weights[unit]), unit))
    assert lexicographic(np.zeros((3, 0))).order.tolist() == [0, 1, 2]


def test_nodesort_says_where_its_published_key_overflows():
    tiny = np.full((2, 40), 1e-3)
    tiny[0, 39] = 0
    assert nodesort_overflow(tiny).tolist() == [True, True]  # 10³⁹ is infinite in float32, and 0 · ∞ no number
    assert not nodesort_overflow(tiny[:, :39]).any() and not nodesort_overflow(tiny, dtype=np.float64).any()
    assert nodesort_overflow(np.array([[0.0] * 38 + [4.0], [1.0] * 39])).tolist() == [True, False]  # 4 · 10³⁸
    assert len(nodesort(tiny)) == 2


@pytest.mark.parametrize("order", [nodesort, nodesort_overflow, lexicographic])
def test_orders_by_keys_refuse_what_is_not_finite(order):
    with pytest.raises(InputError, match="Weight 1 of unit 0 is inf; an order by weights needs finite numbers"):
        order(np.array([[1.0, np.inf]]))


def test_nodesort_overflow_refuses_a_bad_base():
    with pytest.raises(OptionError, match="positive number"):
        nodesort_overflow(np.ones((2, 2)), -1)
