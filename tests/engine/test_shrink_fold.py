"""Refits in stored weights: the smaller model computes what the whole one does with removed units replaced by A · kept + b."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import InputError, UnsupportedModel
from cipm.pruning import shrink, with_refit
from cipm.symmetry import Tap, compare, discover_groups
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

Fit = tuple[np.ndarray, np.ndarray]


def replaced(tap: Tap, kept: np.ndarray, removed: np.ndarray, fit: Fit) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what puts A · kept + b in the place of the removed units of a value."""
    def change(value: torch.Tensor) -> torch.Tensor:
        last = value.movedim(tap.axis, -1).clone()
        mix, shift = (torch.from_numpy(part) for part in fit)
        seen = last[..., torch.from_numpy(tap.index[kept])]
        last[..., torch.from_numpy(tap.index[removed])] = torch.einsum("rk,...ke->...re", mix, seen) + shift[:, None]
        return last.movedim(-1, tap.axis)
    return change


def convolutions(*, bias: bool = True, norm: bool = False) -> nn.Module:
    """Return two convolutions without padding, the second with a bias or a batch norm behind it, and a linear head."""
    between = [nn.BatchNorm2d(6)] if norm else []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=bias), *between, nn.ReLU(), nn.Flatten(),
                          nn.Linear(6 * 4, 5)).eval()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


CASES = {"linear": (lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)), (6,), "0"),
         "convolution": (convolutions, (3, 6, 6), "0"),
         "convolution with a batch norm behind": (lambda: convolutions(bias=False, norm=True), (3, 6, 6), "0"),
         "flattened channels": (convolutions, (3, 6, 6), "2")}


@pytest.mark.parametrize("case", CASES)
def test_a_refit_is_in_the_weights(case: str) -> None:
    make, shape, name = CASES[case]
    checkpoint = as_checkpoint(make(), (torch.zeros(2, *shape),))
    symmetry = discover_groups(checkpoint)
    group, generator = symmetry.group(name), np.random.default_rng(0)
    kept = np.sort(generator.choice(group.size, group.size // 2, replace=False))
    removed = np.setdiff1d(np.arange(group.size), kept)
    tap, = group.taps
    fit = generator.normal(size=(removed.size, kept.size)), generator.normal(size=removed.size)
    refitted, notes = with_refit(checkpoint, symmetry, name, kept, {tap.key: fit})
    small = shrink(refitted, symmetry, {name: kept}).checkpoint
    inputs = {checkpoint.graph.inputs[0].name: torch.randn(5, *shape)}
    wanted = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, dtype=torch.float64,
                 intervene={tap.value: replaced(tap, kept, removed, fit)})
    made = run(small.graph, small.tensors, small.constants, inputs, dtype=torch.float64)
    assert notes == () and compare(wanted, made)[1] <= 1e-5  # the weights are stored in float32
    whole = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, dtype=torch.float64)
    assert compare(wanted, whole)[1] > 0.1


def test_patches_of_a_convolution_may_have_a_fit_of_their_own() -> None:
    checkpoint = as_checkpoint(convolutions(), (torch.zeros(2, 3, 6, 6),))
    symmetry, generator = discover_groups(checkpoint), np.random.default_rng(0)
    group, kept, removed = symmetry.group("0"), np.arange(4), np.arange(4, 8)
    mix, shift = generator.normal(size=(36, 36)), generator.normal(size=36)
    refitted, _ = with_refit(checkpoint, symmetry, "0", kept, {group.taps[0].key: (mix, shift)})
    weight, bias = (checkpoint.tensors[f"2.{part}"].double() for part in ("weight", "bias"))
    flat = weight.reshape(6, 8, 9)
    expected = flat[:, kept].reshape(6, 36) + flat[:, removed].reshape(6, 36) @ torch.from_numpy(mix)
    torch.testing.assert_close(refitted.tensors["2.weight"][:, kept].double().reshape(6, 36), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(refitted.tensors["2.bias"].double(),
                               bias + flat[:, removed].reshape(6, 36) @ torch.from_numpy(shift), rtol=1e-6, atol=1e-6)


def test_a_consumer_without_a_bias_says_so() -> None:
    checkpoint = as_checkpoint(nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4, bias=False)), (torch.zeros(2, 6),))
    symmetry = discover_groups(checkpoint)
    fit = np.ones((5, 5)), np.ones(5)
    key = symmetry.group("0").taps[0].key
    refitted, notes = with_refit(checkpoint, symmetry, "0", range(5), {key: fit})
    assert notes == ("2.weight has no bias of its own: it cannot take the constant part of the refit.",)
    weight = checkpoint.tensors["2.weight"]
    torch.testing.assert_close(refitted.tensors["2.weight"][:, :5], weight[:, :5] + weight[:, 5:].sum(1, keepdim=True))


class Shared(nn.Module):
    """One linear layer that reads two values of the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.one(x)
        return self.two(h.relu()) + self.two(h.tanh())


def test_one_weight_takes_one_refit() -> None:
    checkpoint = as_checkpoint(Shared(), (torch.zeros(2, 4),))
    symmetry = discover_groups(checkpoint)
    one, two = (tap.key for tap in symmetry.group("one").taps)
    fit, other = (np.ones((3, 3)), np.ones(3)), (np.zeros((3, 3)), np.ones(3))
    with pytest.raises(UnsupportedModel, match="two.weight reads the units in two places of the graph"):
        with_refit(checkpoint, symmetry, "one", range(3), {one: fit, two: other})
    refitted, _ = with_refit(checkpoint, symmetry, "one", range(3), {one: fit, two: fit})
    weight = checkpoint.tensors["two.weight"]
    torch.testing.assert_close(refitted.tensors["two.weight"][:, :3], weight[:, :3] + weight[:, 3:].sum(1, keepdim=True))
    with pytest.raises(InputError, match=r"A refit of shapes \(2, 3\) and \(3,\) does not fit two.weight: 3 units go and 3"):
        with_refit(checkpoint, symmetry, "one", range(3), {one: (np.ones((2, 3)), np.ones(3))})
