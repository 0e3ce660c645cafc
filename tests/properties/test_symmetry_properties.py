"""Whatever the architecture: any member of the symmetry preserves the function, and the co-inverse restores every bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import Permutation
from cipm.symmetry import TOLERANCE, compare, discover_groups, example_inputs, random_member
from cipm.trace import from_exported, run

POINTWISE = [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU]


class Skip(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@st.composite
def perceptrons(draw) -> nn.Module:
    """A random chain of linear layers, norms, activations and skips: [rows, 5] → [rows, 3]."""
    layers: list[nn.Module] = []
    width = 5
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(2, 9))
        layers += [nn.Linear(width, out, bias=draw(st.booleans())), draw(st.sampled_from(POINTWISE))()]
        width = out
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm]))(width))
        if draw(st.booleans()):
            layers.append(Skip(nn.Sequential(nn.Linear(width, hidden := draw(st.integers(2, 6))), nn.ReLU(),
                                             nn.Linear(hidden, width))))
    return nn.Sequential(*layers, nn.Linear(width, 3))


@st.composite
def convolutions(draw) -> nn.Module:
    """A random convolutional net: [rows, 2, 6, 6] → [rows, 3]."""
    layers: list[nn.Module] = []
    channels = 2
    for _ in range(draw(st.integers(1, 2))):
        out = 4 * draw(st.integers(1, 2))
        groups = draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1
        layers.append(nn.Conv2d(channels, out, 3, padding=1, groups=groups))
        channels = out
        layers.append(draw(st.sampled_from([nn.BatchNorm2d(out), nn.GroupNorm(2, out), nn.ReLU()])))
        if draw(st.booleans()):
            layers.append(Skip(nn.Conv2d(channels, channels, 3, padding=1, groups=draw(st.sampled_from([1, channels])))))
    tail = [nn.Flatten(), nn.Linear(channels * 9, 3)] if draw(st.booleans()) else \
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), *tail)


def traced(module: nn.Module, shape: tuple[int, ...], seed: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.1 + torch.rand(tensor.shape, generator=generator))
    with torch.no_grad():
        program = torch.export.export(module.eval(), (torch.zeros(3, *shape),), strict=False,
                                      dynamic_shapes=({0: torch.export.Dim("batch")},))
    return Checkpoint("pt2", *from_exported(program.run_decompositions({})))


def check(module: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    checkpoint = traced(module, shape, seed)
    symmetry = discover_groups(checkpoint)
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(seed))
    moved = plan.apply(checkpoint.tensors)
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed))
    before, after = (run(checkpoint.graph, tensors, checkpoint.constants, inputs, dtype=torch.float64)
                     for tensors in (checkpoint.tensors, moved))
    assert compare(before, after)[1] <= TOLERANCE
    back = plan.coinverse.apply(moved)
    assert all(torch.equal(back[key], checkpoint.tensors[key]) for key in back)
    assert symmetry.groups, "a hidden layer always has a group"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(perceptrons(), st.integers(0, 2**20))
def test_any_member_preserves_a_perceptron(module, seed):
    check(module, (5,), seed)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions(), st.integers(0, 2**20))
def test_any_member_preserves_a_convolutional_net(module, seed):
    check(module, (2, 6, 6), seed)


@given(st.integers(1, 40), st.integers(0, 2**20))
def test_permutations_form_a_group(n, seed):
    generator = np.random.default_rng(seed)
    a, b, c = (Permutation.random(n, generator=generator) for _ in range(3))
    values = generator.normal(size=n)
    assert a.then(b).then(c) == a.then(b.then(c))
    assert a.then(a.coinverse) == Permutation.identity(n) == a.coinverse.then(a)
    np.testing.assert_array_equal(b.apply(a.apply(values)), a.then(b).apply(values))
    np.testing.assert_array_equal(a.coinverse.apply(a.apply(values)), values)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**20))
def test_blocked_permutations_keep_their_blocks(blocks, width, seed):
    generator = np.random.default_rng(seed)
    assert Permutation.random(blocks * width, generator=generator, blocks=blocks).keeps_blocks(blocks)
