"""Smaller models: whatever units go, what is left computes what the whole model computes with those units masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from cipm.errors import OptionError, UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import masked, shrink
from cipm.pruning.kept import Labels
from cipm.pruning.shrink import refusals
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


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
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


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet"])
def test_depthwise_grouped_and_concatenated_channels(name: str) -> None:
    checkpoint, symmetry = known(name)
    keep = random_keep(symmetry.groups, 1)
    assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10


def test_recurrent_layers() -> None:
    checkpoint, symmetry = known("lstm")
    keep = random_keep(symmetry.groups, 2)
    assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10
    with pytest.raises(OptionError, match=r"What is kept of cell.weight_ih_l0 differs from block to block, but aten\..* needs "
                                          "equally many units in each"):
        shrink(checkpoint, symmetry, {"cell.weight_ih_l0": keep["cell.weight_ih_l0"]})


@pytest.mark.parametrize("name", ["multi_head", "llama_rotary", "mixture_of_experts"])
def test_heads_grouped_queries_gates_experts_and_the_stream_under_rms_norms(name: str) -> None:
    checkpoint, symmetry = known(name)
    keep = random_keep(symmetry.groups, 3)
    small = shrink(checkpoint, symmetry, keep)
    assert difference(checkpoint, symmetry, keep, small.checkpoint) <= 1e-10
    assert small.notes == ("An RMS norm over units that go stands between two factors, so that those that stay keep their "
                           "values.",)


def test_heads_and_units_of_a_transformer() -> None:
    checkpoint, symmetry = known("transformer")
    groups = [group for group in symmetry.groups if group.kind != "residual stream"]
    heads = [group for group in groups if group.kind in ("heads", "units")]
    keep = random_keep(heads, 4)
    assert len(heads) == 5
    assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10
    inner = random_keep([group for group in groups if group.kind == "units in heads"], 4)
    assert difference(checkpoint, symmetry, inner, shrink(checkpoint, symmetry, inner).checkpoint) <= 1e-10


@pytest.mark.parametrize("seed", range(2))
def test_any_groups_of_a_decoder(seed: int) -> None:
    checkpoint, symmetry = known("llama_rotary")
    chosen = np.random.default_rng(seed).random(len(symmetry.groups)) < 0.4
    keep = random_keep([group for group, take in zip(symmetry.groups, chosen, strict=True) if take], seed, share=0.3)
    assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10


def test_a_layer_norm_over_units_that_go_is_written_out() -> None:
    checkpoint, symmetry = known("transformer")
    stream = next(group for group in symmetry.groups if group.kind == "residual stream")
    keep = random_keep([stream], 6)
    small = shrink(checkpoint, symmetry, keep)
    assert difference(checkpoint, symmetry, keep, small.checkpoint) <= 1e-10
    assert small.notes == ("A norm over units that go is written out, with mean and variance over as many as before.",)


def test_units_and_whole_groups_of_a_group_norm() -> None:
    checkpoint, symmetry = known("unet_group_norm")
    inner = symmetry.group("down.0.0.0.units")
    for keep in ({inner.parent: np.array([0, 3])}, {inner.name: np.arange(0, inner.size, 2)},
                 {inner.parent: np.array([1, 2]), inner.name: np.arange(1, inner.size, 2)}):
        assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10


def test_uneven_and_empty_heads_are_refused() -> None:
    checkpoint, symmetry = known("multi_head")
    inner = next(group for group in symmetry.groups if group.kind == "units in heads")
    width = inner.size // inner.blocks
    with pytest.raises(OptionError, match=f"What is kept of {inner.name} differs from block to block, but aten.view.default"):
        shrink(checkpoint, symmetry, {inner.name: range(1, inner.size)})
    with pytest.raises(OptionError, match=f"Group {inner.name} would keep none of the {width} units of block 0"):
        shrink(checkpoint, symmetry, {inner.name: range(width, inner.size)})
    keep = {inner.name: np.arange(width, inner.size), inner.parent: np.arange(1, inner.blocks)}
    assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10


def test_a_router_must_have_experts_to_choose_from() -> None:
    checkpoint, symmetry = known("mixture_of_experts")
    experts = next(group for group in symmetry.groups if group.kind == "experts")
    with pytest.raises(UnsupportedModel, match=r"at aten.topk.default \(topk\) it chooses 2 of 1 units"):
        shrink(checkpoint, symmetry, {experts.name: [0]})


class Norms(torch.nn.Module):
    """Units whose variance is computed, and weights that are scaled to length one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.one(x).relu()
        weight = self.two.weight / self.two.weight.norm(dim=1, keepdim=True)
        return torch.nn.functional.linear(h, weight) + h.var(1, keepdim=True)


def test_what_is_computed_from_weights_of_units_that_go_is_refused() -> None:
    checkpoint = as_checkpoint(Norms(), (torch.zeros(2, 4),))
    symmetry = discover_groups(checkpoint)
    group, = symmetry.groups
    with pytest.raises(UnsupportedModel) as caught:
        shrink(checkpoint, symmetry, {group.name: [0, 1, 2]})
    assert caught.value.message == (
        "Group one cannot be made smaller in this graph, only masked: at aten.linalg_vector_norm.default (linalg_vector_norm) "
        "it is computed from the weights of the units that go.")
    assert caught.value.fix == "Keep all units of one, or keep the file whole and mask them."
    assert refusals(Labels.of(checkpoint, symmetry), [group]) == {"one": caught.value.message}


class Padded(torch.nn.Module):
    """Channels doubled by padding with zeros and added to a convolution's, then picked by a fixed index and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 8, 1)
        self.register_buffer("order", torch.tensor([7, 0, 3, 5, 1, 2, 6, 4]), persistent=False)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        y = torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 2)) + self.more(x)
        y = torch.cat([y[:, :3], y[:, 3:]], 1)[:, self.order].mean((2, 3))
        return self.head(y) + y.mean(1, keepdim=True)


def test_padding_slices_fixed_indices_and_means() -> None:
    checkpoint = as_checkpoint(Padded(), (torch.zeros(2, 3, 4, 4),))
    symmetry = discover_groups(checkpoint)
    for group in symmetry.groups:
        keep = random_keep([group], 0)
        assert difference(checkpoint, symmetry, keep, shrink(checkpoint, symmetry, keep).checkpoint) <= 1e-10
    assert sum(group.size for group in symmetry.groups) >= 4
