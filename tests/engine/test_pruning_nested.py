"""Nested groups: heads and what is inside them, key–value groups, experts; each level by itself and both at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from cipm.allocation import checked, even, front, nearest
from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import Curve, masked, shrink
from cipm.pruning.consumers import consumed, consumers
from cipm.pruning.counts import flop_count, parameter_count
from cipm.pruning.kept import Labels
from cipm.pruning.masking import find_region
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import Rows, read_moments, refit
from cipm.pruning.shrink import left_out
from cipm.pruning.work import work
from cipm.symmetry import Symmetry, SymmetryGroup, compare, discover_groups, example_inputs, prove
from cipm.testing.models import seeded
from cipm.testing.networks import NETWORKS, as_checkpoint
from cipm.trace import run

NESTED = ["multi_head", "llama_rotary", "mixture_of_experts", "mixture_in_one_layer"]


@dataclass(frozen=True)
class Known:
    """A network with its groups, curves and the rows they come from."""

    checkpoint: Checkpoint
    symmetry: Symmetry
    labels: Labels
    groups: dict[str, SymmetryGroup]
    reasons: dict[str, str]
    curves: dict[str, Curve]
    rows: Rows


@cache
def known(name: str) -> Known:
    checkpoint = as_checkpoint(NETWORKS[name].make(), NETWORKS[name].example())
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    generator = torch.Generator().manual_seed(0)
    labels = Labels.of(checkpoint, symmetry)
    found = consumers(checkpoint, symmetry)
    groups, reasons = prunable(symmetry, found, labels=labels)
    rows = [example_inputs(checkpoint, generator=generator, sizes=(60, 8)) for _ in range(2)]
    curves = group_curves(checkpoint, found, groups, read_moments(checkpoint, found, rows), labels=labels, rows=rows)
    return Known(checkpoint, symmetry, labels, groups, reasons, curves, rows)


def of_kind(one: Known, kind: str) -> SymmetryGroup:
    return next(group for group in one.groups.values() if group.kind == kind)


def some(one: Known, share: float) -> dict[str, int]:
    """Return about this share of every group, at both levels."""
    return {name: nearest(group, share) for name, group in one.groups.items()}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_both_levels_at_once_give_what_the_masked_and_refitted_model_computes(name, share):
    one, sizes = known(name), some(known(name), share)
    keep = {group: one.curves[group].kept(size) for group, size in sizes.items()}
    kept = one.labels.what_stays(keep)
    made, _ = refit(one.checkpoint, one.symmetry, kept, one.rows)
    small = shrink(made, one.symmetry, keep).checkpoint
    inputs = example_inputs(made, generator=torch.Generator().manual_seed(9), sizes=(4, 7))
    reference = run(made.graph, made.tensors, made.constants, inputs, dtype=torch.float64, intervene=left_out(made.graph, kept))
    assert compare(reference, run(small.graph, small.tensors, small.constants, inputs, dtype=torch.float64))[1] <= 1e-10
    assert parameter_count(one.checkpoint, one.symmetry)(sizes) == pytest.approx(small.parameters, abs=1e-6)
    weights, rest = work(small, inputs)
    assert flop_count(one.labels, inputs)(sizes) == pytest.approx(sum(weights.values()) + rest)


@pytest.mark.parametrize("name", NESTED)
def test_all_units_of_all_levels_are_the_checkpoint_itself(name):
    one = known(name)
    keep = {group: range(known.size) for group, known in one.groups.items()}
    made, notes = refit(one.checkpoint, one.symmetry, one.labels.what_stays(keep), one.rows)
    assert made is one.checkpoint and notes == () and shrink(made, one.symmetry, keep).checkpoint is one.checkpoint


def test_what_nests_is_named_and_even_sizes_count_it_once():
    one = known("multi_head")
    heads, units = of_kind(one, "heads"), one.groups["blocks.0.attention.value.units"]
    assert units.parent == heads.name and not one.reasons
    assert even(one.groups, 0.5)[heads.name] == heads.size and even(one.groups, 0.5)[units.name] == 8
    assert even({heads.name: heads}, 0.5) == {heads.name: 2}


def test_a_head_costs_what_its_consumer_loses_when_the_others_take_over():
    one = known("multi_head")
    heads, weight = of_kind(one, "heads"), one.checkpoint.tensors["blocks.0.attention.out.weight"].detach().double().numpy()
    curve, seen = one.curves[heads.name], []
    for batch in one.rows:
        run(one.checkpoint.graph, one.checkpoint.tensors, one.checkpoint.constants, batch,
            observe={heads.taps[0].value: lambda value: seen.append(value.detach().reshape(-1, 20).double().numpy())})
    x = np.concatenate(seen)
    x = x - x.mean(0)
    for size in (3, 2, 1):
        columns = heads.taps[0].index[curve.kept(size)].ravel()
        left = x @ weight.T - x[:, columns] @ np.linalg.lstsq(x[:, columns], x @ weight.T, rcond=None)[0]
        assert curve.cost[size] == pytest.approx(np.square(left).sum(1).mean(), rel=5e-3)
    assert curve.cost[4] == 0


@pytest.mark.parametrize(("name", "at"), [("blocks.0.second.up", "add_138"), ("blocks.0.second.up.", "add_138"),
                                          ("blocks.0.attention.query.units", "add_68")])
def test_what_no_weight_reads_is_masked_and_the_change_measured(name, at):
    one = known("mixture_of_experts")
    found = consumers(one.checkpoint, one.symmetry)
    group = next(g for g in one.groups.values() if g.name == name or name.endswith(".") and g.name.startswith(name))
    curve, join = one.curves[group.name], find_region(one.labels, group).join
    assert not consumed(found, group.name) and join == at
    assert curve.cost[-1] == 0 and (np.diff(curve.cost) <= 0).all() and "by masking them, on 120 rows" in curve.notes[0]
    size = group.size - group.blocks
    model, masks = masked(one.checkpoint, one.symmetry, {group.name: curve.kept(size)})
    change = 0.0
    for batch in one.rows:
        values: list[torch.Tensor] = []
        for made, intervene in ((one.checkpoint, {}), (model, masks)):
            run(made.graph, made.tensors, made.constants, batch, observe={join: values.append}, intervene=intervene)
        change += float((values[0] - values[1]).double().square().sum())
    assert curve.cost[size] == pytest.approx(change / 120, rel=1e-5)


def test_the_expert_whose_absence_changes_least_goes_first_and_the_others_are_chosen_instead():
    one = known("mixture_of_experts")
    experts = of_kind(one, "experts")
    join = find_region(one.labels, experts).join

    def values(keep: list[int]) -> torch.Tensor:
        model, masks = masked(one.checkpoint, one.symmetry, {experts.name: keep})
        seen: list[torch.Tensor] = []
        for batch in one.rows:
            run(model.graph, model.tensors, model.constants, batch, observe={join: seen.append}, intervene=masks)
        return torch.cat(seen)

    everyone = list(range(experts.size))
    changes = [float((values([e for e in everyone if e != gone]) - values(everyone)).square().sum()) for gone in everyone]
    assert one.curves[experts.name].removal_order[0] == int(np.argmin(changes))


class Spread(nn.Module):
    """Units of which the spread is read too, and others that are only read linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.one(x).relu()
        return self.three(self.two(h).relu()) + h.var(1, keepdim=True)


def test_groups_that_the_graph_cannot_lose_are_named_with_the_reason():
    checkpoint = as_checkpoint(Spread().eval(), (torch.zeros(2, 4),))
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    groups, reasons = prunable(symmetry, consumers(checkpoint, symmetry), labels=Labels.of(checkpoint, symmetry))
    assert list(groups) == ["two"] and list(reasons) == ["one"]
    assert "its var is taken over these units, so that those that stay would change" in reasons["one"]


@pytest.mark.parametrize("name", ["mixture_of_experts", "mixture_in_one_layer"])
def test_an_expert_that_never_fires_goes_first_and_few_rows_are_said(name):
    torch.manual_seed(0)
    model = NETWORKS[name].make().eval()
    with torch.no_grad():
        model.blocks[0].second.router.bias[3] = -100
    checkpoint = as_checkpoint(model, NETWORKS[name].example())
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    labels, found = Labels.of(checkpoint, symmetry), consumers(checkpoint, symmetry)
    groups, _ = prunable(symmetry, found, labels=labels)
    rows = [example_inputs(checkpoint, generator=torch.Generator().manual_seed(0), sizes=(3, 8))]
    curves = group_curves(checkpoint, found, groups, read_moments(checkpoint, found, rows), labels=labels, rows=rows)
    experts = next(group for group in groups.values() if group.kind == "experts")
    assert curves[experts.name].removal_order[0] == 3
    assert curves[experts.name].cost[experts.size - 1] <= 1e-3 * curves[experts.name].cost[1]
    assert all(np.isfinite(curve.cost).all() for curve in curves.values())
    said = [note for curve in curves.values() for note in curve.notes]
    assert any("samples for" in note and "the prediction is optimistic" in note for note in said)
    if not consumed(found, experts.name):
        assert "1 of 5 units changed nothing on 3 rows" in curves[experts.name].notes[1]
    kept = labels.what_stays({experts.name: [0, 1, 2, 4]})
    made, _ = refit(checkpoint, symmetry, kept, rows)
    assert all(bool(tensor.isfinite().all()) for tensor in made.tensors.values())


class Weighed(nn.Module):
    """Experts that all compute, weighed by a softmax: [rows, 6] → [rows, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("re,ri,eio->ro", self.router(x).softmax(-1), x, self.experts)


def test_experts_go_behind_every_router_of_a_network():
    checkpoint = as_checkpoint(seeded(lambda: nn.Sequential(Weighed(), Weighed(), nn.Linear(6, 3)), 0), (torch.zeros(2, 6),))
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    experts = [group.name for group in symmetry.groups if group.size == 4]
    assert len(experts) == 2
    smaller = shrink(checkpoint, symmetry, dict.fromkeys(experts, [0, 2]))
    assert smaller.max_rel <= 1e-10
    assert {smaller.checkpoint.meta(f"{layer}.experts").shape for layer in (0, 1)} == {(2, 6, 6)}


@pytest.mark.parametrize("name", ["mixture_of_experts", "mixture_in_one_layer"])
def test_no_budget_leaves_fewer_experts_than_the_router_chooses(name):
    one = known(name)
    experts = of_kind(one, "experts")
    assert {group.least for group in one.groups.values()} == {1, 2} and experts.least == 2
    assert even({experts.name: experts}, 0.01) == {experts.name: 2}
    choices = front({group: one.curves[group].cost for group in one.groups}, parameter_count(one.checkpoint, one.symmetry),
                    one.groups)
    assert choices[-1].keep[experts.name] == 2 and checked(experts.name, experts, 2) == 2
    with pytest.raises(OptionError, match="can keep 2 to 5 units; it cannot keep 1. The model chooses among them"):
        checked(experts.name, experts, 1)
    shrink(one.checkpoint, one.symmetry, {experts.name: one.curves[experts.name].kept(2)})
