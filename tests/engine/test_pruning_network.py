"""Whole networks: refits in sequence against plain least squares, and one budget over all groups against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cipm.allocation import Choice, Count, even, front, within
from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import shrink
from cipm.pruning.consumers import Window, consumers
from cipm.pruning.counts import parameter_count
from cipm.pruning.kept import what_stays
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import aim_numbers, read_aims, read_moments, refit, refit_alone
from cipm.statistics.sampling import staggered
from cipm.symmetry import Symmetry, SymmetryGroup, compare, discover_groups, example_inputs, prove
from cipm.symmetry.walk import walk
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

Case = tuple[Checkpoint, Symmetry, list[dict[str, torch.Tensor]]]


def drawn(model: nn.Module, shape: tuple[int, ...], rows: int = 400) -> Case:
    """Return a network with proved groups, and two batches of rows."""
    checkpoint = as_checkpoint(model.eval(), (torch.zeros(2, *shape),))
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
    name = checkpoint.graph.inputs[0].name
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1), [{name: x[:rows // 3]}, {name: x[rows // 3:]}]


def staying(checkpoint: Checkpoint, symmetry: Symmetry, keep: Mapping[str, list[int]]):
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(0))
    return what_stays(checkpoint, symmetry, keep, walk(checkpoint, inputs))


def outputs(checkpoint: Checkpoint, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, batch)[0] for batch in rows])


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.Tanh(),
                         nn.Linear(16, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_a_refit_is_least_squares_with_or_without_a_constant(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5, bias=bias))
    checkpoint, symmetry, rows = drawn(model, (6,))
    units = list(range(0, 20, 3))
    made, notes = refit(checkpoint, symmetry, staying(checkpoint, symmetry, {"0": units}), rows)
    hidden = torch.cat([model[:2](next(iter(batch.values()))) for batch in rows]).detach().double().numpy()
    wanted = torch.cat([model(next(iter(batch.values()))) for batch in rows]).detach().double().numpy()
    design = np.column_stack([hidden[:, units], np.ones((400, int(bias)))])
    best = np.square(design @ np.linalg.lstsq(design, wanted, rcond=None)[0] - wanted).mean()
    reached = np.square(outputs(made, rows).numpy() - wanted).mean()
    assert reached == pytest.approx(best, rel=1e-3)
    assert bool(notes) != bias
    assert not made.tensors["0.weight"][1].any() and not made.tensors["2.weight"][:, 1].any()


def test_a_convolution_is_refitted_on_patches_with_the_mean_of_its_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, stride=2, padding=1, bias=False),
                          nn.BatchNorm2d(5))
    checkpoint, symmetry, rows = drawn(model, (2, 8, 8), 60)
    units = [0, 2, 3, 6]
    made, _ = refit(checkpoint, symmetry, staying(checkpoint, symmetry, {"0": units}), rows)
    hidden = torch.cat([model[:2](next(iter(batch.values()))) for batch in rows]).detach()
    wanted = outputs(checkpoint, rows).double().movedim(1, -1).reshape(-1, 5).numpy()
    patches = F.unfold(hidden[:, units], 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 36).double().numpy()
    design = np.column_stack([patches, np.ones(len(patches))])
    best = np.square(design @ np.linalg.lstsq(design, wanted, rcond=None)[0] - wanted).mean()
    assert np.square(outputs(made, rows).movedim(1, -1).reshape(-1, 5).numpy() - wanted).mean() == pytest.approx(best, rel=1e-3)
    assert torch.equal(made.tensors["3.weight"], checkpoint.tensors["3.weight"])
    assert not torch.equal(made.tensors["3.running_mean"], checkpoint.tensors["3.running_mean"])


def test_later_layers_make_up_for_what_earlier_ones_changed():
    checkpoint, symmetry, rows = drawn(deep(), (12,))
    found = consumers(checkpoint, symmetry)
    groups, reasons = prunable(symmetry, found)
    assert list(groups) == ["0", "2", "4"] and not reasons
    moments = read_moments(checkpoint, found, rows)
    curves = group_curves(checkpoint, found, groups, moments)
    keep = {name: curves[name].kept(size).tolist() for name, size in even(groups, 0.5).items()}
    kept = staying(checkpoint, symmetry, keep)
    whole, (sequence, _) = outputs(checkpoint, rows), refit(checkpoint, symmetry, kept, rows)
    alone = refit_alone(checkpoint, found, kept, moments)
    errors = [float((outputs(made, rows) - whole).square().mean()) for made in (sequence, alone)]
    assert errors[0] < 0.9 * errors[1] < float(whole.var())
    small = shrink(sequence, symmetry, keep)
    assert compare((outputs(small.checkpoint, rows),), (outputs(sequence, rows),))[1] < 1e-5
    assert [tuple(small.checkpoint.tensors[f"{i}.weight"].shape) for i in (0, 2, 4, 6)] == [(12, 12), (10, 12), (8, 10), (4, 8)]


def test_a_refit_with_aims_known_is_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1, bias=False),
                          nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 9))  # more outputs than inputs
    checkpoint, symmetry, rows = drawn(model, (2, 8, 8), 60)
    found = consumers(checkpoint, symmetry)
    aims = read_aims(checkpoint, found, rows)
    sizes = {one.node: [tuple(part.shape) for part in aims[one.node]] for one in found}
    assert list(sizes.values()) == [[(20 * 64, 5), (40 * 64, 5)], [(20, 5), (40, 5)]]  # of the last its inputs
    assert aim_numbers(checkpoint, found) >= sum(part.numel() for one in aims.values() for part in one)
    kept = staying(checkpoint, symmetry, {"0": [0, 2, 3, 6], "2": [0, 1, 4]})
    anew, known = (refit(checkpoint, symmetry, kept, rows, aims=one)[0] for one in (None, aims))
    for key, tensor in anew.tensors.items():
        assert torch.allclose(tensor, known.tensors[key], atol=1e-6), key


def test_the_cost_of_one_group_is_what_its_consumer_loses():
    checkpoint, symmetry, rows = drawn(deep(), (12,))
    found = consumers(checkpoint, symmetry)
    groups, _ = prunable(symmetry, found)
    moments = read_moments(checkpoint, found, rows)
    curve = group_curves(checkpoint, found, groups, moments)["4"]  # its consumer writes the outputs
    for size in (12, 8, 4):
        kept = staying(checkpoint, symmetry, {"4": curve.kept(size).tolist()})
        change = outputs(refit_alone(checkpoint, found, kept, moments), rows) - outputs(checkpoint, rows)
        assert curve.cost[size] == pytest.approx(float(change.square().sum(1).mean()), rel=0.02)


def test_nothing_removed_gives_the_same_tensors():
    checkpoint, symmetry, rows = drawn(deep(), (12,))
    made, notes = refit(checkpoint, symmetry, staying(checkpoint, symmetry, {"0": list(range(24))}), rows)
    assert made is checkpoint and notes == ()


def group(name: str, size: int, blocks: int = 1) -> SymmetryGroup:
    return SymmetryGroup(name, "units", size, blocks, None, (), (), True)


GROUPS = {"a": group("a", 6), "b": group("b", 5)}
COUNT = Count(10.0, ((60.0, ({"a": 1.0},)), (100.0, ({"a": 1.0}, {"b": 1.0})), (50.0, ({"b": 1.0},))), {"a": 6, "b": 5})
LOSSES = {"a": np.array([9.0, 4.0, 2.0, 1.0, 0.4, 0.1, 0.0]), "b": np.array([30.0, 6.0, 3.0, 1.5, 0.5, 0.0])}


def test_the_front_meets_a_budget_nearly_as_well_as_any_choice():
    choices = front(LOSSES, COUNT, GROUPS)
    assert choices[0] == Choice({"a": 6, "b": 5}, 0.0, 220.0) and choices[-1].keep == {"a": 1, "b": 1}
    assert all(one.count > other.count and one.loss <= other.loss for one, other in itertools.pairwise(choices))
    for budget in (200, 150, 100, 60):
        chosen = within(choices, budget, COUNT, LOSSES, GROUPS, what="parameters")
        every = [LOSSES["a"][a] + LOSSES["b"][b] for a in range(1, 7) for b in range(1, 6)
                 if COUNT({"a": a, "b": b}) <= budget]
        assert chosen.count <= budget and min(every) <= chosen.loss <= min(every) + 1.6


def test_locks_and_overrides_hold_and_a_budget_beyond_reach_is_refused():
    locked = front(LOSSES, COUNT, GROUPS, locked={"a"})
    assert {choice.keep["a"] for choice in locked} == {6}
    fixed = front(LOSSES, COUNT, GROUPS, overrides={"b": 2})
    assert {choice.keep["b"] for choice in fixed} == {2}
    with pytest.raises(OptionError, match=r"still has \d+ parameters: a budget of 50 cannot be met"):
        within(locked, 50, COUNT, LOSSES, GROUPS, what="parameters")
    with pytest.raises(OptionError, match="There is no prunable group 'c'; the groups are a, b"):
        front(LOSSES, COUNT, GROUPS, locked={"c"})
    with pytest.raises(OptionError, match="Group a is locked and cannot be given a size"):
        front(LOSSES, COUNT, GROUPS, locked={"a"}, overrides={"a": 3})
    with pytest.raises(OptionError, match="Group b can keep 1 to 5 units; it cannot keep 0"):
        front(LOSSES, COUNT, GROUPS, overrides={"b": 0})


def test_even_sizes_leave_one_unit_in_every_block():
    groups = {"heads": group("heads", 12, 4), "units": group("units", 7)}
    assert even(groups, 0.5) == {"heads": 8, "units": 4} and even(groups, 0.01) == {"heads": 4, "units": 1}
    assert even(groups, 1) == {"heads": 12, "units": 7} and even(groups, 0.5, locked=["units"])["units"] == 7
    for share in (0, -1, 1.5):
        with pytest.raises(OptionError, match="What is kept must be more than 0 and at most 1"):
            even(groups, share)


def test_parameters_are_counted_as_the_smaller_model_has_them():
    checkpoint, symmetry, _ = drawn(deep(), (12,))
    keep = {"0": 7, "2": 20, "4": 3}
    small = shrink(checkpoint, symmetry, {name: list(range(units)) for name, units in keep.items()})
    assert parameter_count(checkpoint, symmetry)(keep) == pytest.approx(small.checkpoint.parameters)


@pytest.mark.parametrize("window, shape", [(Window((3, 3), (2, 1), (1, 0), (1, 2)), (3, 4, 9, 8)),
                                           (Window((1, 5), (1, 2), (0, 2), (1, 1)), (2, 3, 11))])
def test_patches_at_some_positions_are_those_of_all(window, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = x if x.ndim == 4 else x.unsqueeze(-2)
    every = F.unfold(image, window.kernel, window.dilation, window.padding, window.stride).transpose(1, 2)
    assert torch.equal(window.samples(x, 0), every.reshape(-1, every.shape[2]))
    some = window.samples(x, 4).reshape(len(x), 4, -1)
    assert torch.equal(some, every[:, staggered(every.shape[1], 4)])
