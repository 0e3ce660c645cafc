"""Smaller models: whatever units go, what is left computes what the whole model computes with those units masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import masked, shrink
from cipm.symmetry import Symmetry, SymmetryGroup, compare, discover_groups, example_inputs
from cipm.testing.networks import NETWORKS, as_checkpoint
from cipm.trace import run

Keep = dict[str, np.ndarray]


@cache
def known(name: str) -> tuple[Checkpoint, Symmetry]:
    """Return a family as a checkpoint with its symmetry."""
    network = NETWORKS[name]
    checkpoint = as_checkpoint(network.make(), network.example())
    return checkpoint, discover_groups(checkpoint)


def random_keep(groups: Sequence[SymmetryGroup], seed: int, share: float = 0.6) -> Keep:
    """Return about this share of the units of every group, equally many of each block."""
    generator = np.random.default_rng(seed)
    found = {}
    for group in groups:
        width = group.size // group.blocks
        count = min(max(1, round(width * share)), width - 1)
        found[group.name] = np.concatenate([block * width + np.sort(generator.choice(width, count, replace=False))
                                            for block in range(group.blocks)])
    return found


def difference(whole: Checkpoint, symmetry: Symmetry, keep: Keep, smaller: Checkpoint, seed: int = 5) -> float:
    """Return how far a smaller model is from the masked one on other inputs of another size, in float64."""
    inputs = example_inputs(whole, generator=torch.Generator().manual_seed(seed), sizes=(4, 6))
    model, intervene = masked(whole, symmetry, keep)
    return compare(run(model.graph, model.tensors, model.constants, inputs, dtype=torch.float64, intervene=intervene),
                   run(smaller.graph, smaller.tensors, smaller.constants, inputs, dtype=torch.float64))[1]


@pytest.mark.parametrize("name", ["mlp", "vgg16_bn", "resnet20"])
def test_every_group_at_once(name: str) -> None:
    checkpoint, symmetry = known(name)
    keep = random_keep(symmetry.groups, 0)
    small = shrink(checkpoint, symmetry, keep)
    assert small.keep == {group: tuple(units.tolist()) for group, units in keep.items()}
    assert difference(checkpoint, symmetry, keep, small.checkpoint) <= 1e-10
    assert small.checkpoint.parameters < 0.6 * checkpoint.parameters


def test_an_mlp_has_the_shapes_of_the_units_kept() -> None:
    checkpoint, symmetry = known("mlp")
    small = shrink(checkpoint, symmetry, {"layers.0": [1, 4, 9], "layers.1": [7]}).checkpoint
    assert {key: tuple(tensor.shape) for key, tensor in small.tensors.items()} == {
        "layers.0.weight": (3, 6), "layers.0.bias": (3,), "layers.1.weight": (1, 3), "layers.1.bias": (1,),
        "layers.2.weight": (3, 1), "layers.2.bias": (3,)}
    assert torch.equal(small.tensors["layers.1.weight"], checkpoint.tensors["layers.1.weight"][[7]][:, [1, 4, 9]])


def test_what_goes_nowhere_is_the_checkpoint_itself() -> None:
    checkpoint, symmetry = known("mlp")
    whole = shrink(checkpoint, symmetry, {"layers.0": range(10)})
    assert whole.checkpoint is checkpoint and whole.keep == {} and whole.max_rel == 0


@pytest.mark.parametrize(("keep", "text"), [
    ({"layers.0": []}, "Group layers.0 would keep none of its 10 units: at least one must stay."),
    ({"layers.0": [0, 0]}, "The units kept of layers.0 must be distinct numbers from 0 to 9."),
    ({"layers.0": [10]}, "The units kept of layers.0 must be distinct numbers from 0 to 9."),
    ({"layers.7": [0]}, "There is no group 'layers.7'; the groups are layers.0, layers.1."),
    ({"layers.1": [0]}, "Group layers.1 is locked: no unit of it may be removed."),
])
def test_what_cannot_be_kept_is_said(keep: Keep, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        shrink(*known("mlp"), keep, locked=["layers.1"])
    assert caught.value.message == text
