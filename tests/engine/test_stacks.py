"""Units that every slice of a stack orders by itself: experts × hidden units, heads × units, layers × units."""

from __future__ import annotations

import json
from dataclasses import replace
from math import factorial, log10
from pathlib import Path

import numpy as np
import pytest
import torch
from stack_models import Chosen, checkpoint_of, proved, tokens
from torch import Tensor, nn

from cipm.errors import CorruptFile
from cipm.export import export, restore
from cipm.export.record import check_plan, read_plan
from cipm.load import load
from cipm.ordering import canonical_orders, fingerprint, match_units
from cipm.permutation import Permutation, Plan, View, compose
from cipm.symmetry import discover_groups, lined_up, prove, random_member, refine, symmetry_from_json
from cipm.testing.models import quiet


@pytest.mark.parametrize(("name", "outer", "sizes"), [("chosen", 3, [5]), ("ranked", 3, [5]), ("dense", 5, [9]),
                                                      ("heads", 4, [3, 6])])
def test_each_slice_orders_its_units_by_itself(name: str, outer: int, sizes: list[int]) -> None:
    _, symmetry = proved(name)
    stacked = [group for group in symmetry.groups if group.stacked]
    assert [(group.size, group.blocks) for group in stacked] == [(outer * units, outer) for units in sizes]
    parent, = {group.parent for group in stacked}
    assert symmetry.group(parent).kind == ("heads" if name == "heads" else "experts")
    assert sum(group.log10_members for group in (*stacked, symmetry.group(parent))) == pytest.approx(
        sum(outer * log10(factorial(units)) for units in sizes) + log10(factorial(outer)))
    assert symmetry.group(parent).size == outer and not symmetry.group(parent).stacked and not symmetry.notes
    assert symmetry.certificate.passed and symmetry.certificate.max_rel <= 1e-10
    proofs = {one.name: one for one in symmetry.certificate.groups}
    assert all(proofs[group.name].passed and proofs[group.name].negative_control > 1e-6 for group in stacked)
    assert symmetry_from_json(symmetry.to_json()).to_json() == symmetry.to_json()


def test_slices_that_keep_their_places_have_units_of_their_own() -> None:
    _, symmetry = proved("tasks")
    groups = [(group.size, group.blocks, group.parent) for group in symmetry.groups]
    assert sum(size // blocks == 7 and blocks or 0 for size, blocks, _ in groups) == 4 and {g[2] for g in groups} == {None}
    assert symmetry.log10_equivalents == pytest.approx(4 * log10(factorial(7)))
    assert {(pin.tensor, pin.axis) for pin in symmetry.pins} >= {("first", 0), ("second", 0)}


def test_what_all_slices_share_keeps_one_order_for_all() -> None:
    _, symmetry = proved("shared")
    hidden, = [group for group in symmetry.groups if ("gain", 0) in {(p.tensor, p.axis) for p in group.places}]
    assert (hidden.size, hidden.blocks) == (5, 1) and not any(group.stacked for group in symmetry.groups)
    assert {(p.tensor, p.axis): p.index.shape for p in hidden.places} == {
        ("up", 2): (5, 2), ("bias", 1): (5, 2), ("down", 1): (5, 1), ("gain", 0): (5, 1)}


def test_inputs_and_outputs_of_every_group_of_filters_are_free() -> None:
    _, symmetry = proved("grouped")
    # groups; inputs of the first grouped layer, its outputs, outputs of the transposed one: 4, 2 and 5 in each of three groups
    assert sorted((group.size, group.blocks) for group in symmetry.groups) == [(3, 1), (6, 3), (12, 3), (15, 3)]
    assert symmetry.log10_equivalents == pytest.approx(log10(6) + 3 * sum(log10(factorial(n)) for n in (4, 2, 5)))
    assert symmetry.certificate.passed and not symmetry.notes


def test_layers_whose_first_states_stand_in_one_tensor_have_groups_of_their_own() -> None:
    _, symmetry = proved("started")
    layers = [group for group in symmetry.groups if group.stacked]
    assert [(group.size, group.blocks, group.parent) for group in layers] == [(5, 1, None)] * 2
    assert all(symmetry.certificate.passed and group.proved for group in layers)


def test_where_slices_fail_by_themselves_that_they_move_alike_is_proved() -> None:
    checkpoint, symmetry = proved("added")
    hidden, = [group for group in symmetry.groups if group.size == 7]
    assert (hidden.size, hidden.blocks, hidden.stacked) == (7, 1, False)
    spread = tuple(replace(p, length=14, view=View(tuple(checkpoint.meta(p.tensor).shape), (0, p.axis)),
                           index=np.arange(14)[:, None]) for p in hidden.places)
    claimed = replace(hidden, size=14, blocks=2, places=spread)
    found = prove(checkpoint, replace(symmetry, groups=(claimed,)), draws=1)
    assert [(group.size, group.blocks, group.proved) for group in found.groups] == [(7, 1, True)]
    assert (f"{hidden.name} failed the proof where each slice has an order of its own; that all slices move alike is "
            "proved") in found.notes and found.certificate.passed


def test_too_many_units_to_be_told_apart_move_alike_and_the_notes_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "MOST_LABELS", 40)
    symmetry = discover_groups(proved("chosen")[0])
    assert not any(group.stacked for group in symmetry.groups)
    assert symmetry.notes == ("1 stack of tensors has too many units to tell those of its slices apart: they move alike",)


class BothWays(nn.Module):
    """Two layers of two directions held in one tensor each; both directions of the second read all units of the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 6, 9)), nn.Parameter(torch.randn(2, 18, 5))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([(x @ self.first[d]).tanh() for d in range(2)], -1)
        return self.head(torch.cat([(x @ self.second[d]).tanh() for d in range(2)], -1))


def test_slices_whose_units_all_slices_of_the_next_read_have_orders_of_their_own() -> None:
    symmetry = discover_groups(checkpoint_of(BothWays(), torch.randn(4, 6)))
    assert sorted((group.size, group.blocks) for group in symmetry.groups) == [(5, 1)] * 2 + [(9, 1)] * 2
    assert prove(checkpoint_of(BothWays(), torch.randn(4, 6)), symmetry).certificate.passed


class Placed(nn.Module):
    """Words and five of the nine places of a table, a hidden layer, and a sum over a table of which every row is read."""

    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(11, 6), nn.Parameter(torch.randn(9, 6))
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.summed = nn.Parameter(torch.randn(4, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places[:5] + self.summed.exp().sum(0)
        return self.head(self.hidden(x).tanh())


@pytest.mark.parametrize("kept", [False, True])
def test_rows_that_no_op_reads_are_no_group_and_cost_none(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    if kept:  # as they were a group, telling them apart for every direction of the stream would hold the stream
        monkeypatch.setattr("cipm.symmetry.discover.without_unread", lambda *facts: (list(facts[-1]), []))
    symmetry = discover_groups(checkpoint_of(Placed(), tokens(11)[:, :5]))
    moving = {(place.tensor, place.axis): group.size for group in symmetry.groups for place in group.places}
    assert moving["places", 1] == 6 and moving["hidden.weight", 0] == 8 and ("summed", 0) in moving
    assert (("places", 0) in moving) is kept
    assert symmetry.notes == (() if kept else (
        "Positions that no op reads may hold anything, and are no group: 4 of 9 of 'places' (axis 0).",))


def test_a_view_moves_what_numpy_moves() -> None:
    generator = np.random.default_rng(0)
    for shape, axes in (((3, 4, 5), (0, 2)), ((3, 4, 5), (2, 0)), ((3, 4), (0, 1)), ((2, 3, 4, 5), (0, 2))):
        array = generator.integers(0, 1000, shape)
        view, order = View(shape, axes), None
        order = generator.permutation(view.length)
        rest = [axis for axis in range(len(shape)) if axis not in axes]
        lined = array.transpose(*axes, *rest).reshape(view.length, -1)
        expected = lined[order].reshape([shape[axis] for axis in (*axes, *rest)]).transpose(np.argsort([*axes, *rest]))
        assert np.array_equal(view.take(array, order), expected)
        moved = view.take(torch.from_numpy(array), order)
        assert moved.is_contiguous() and np.array_equal(moved.numpy(), expected)


def test_a_plan_along_views_and_axes_is_undone_and_read_back() -> None:
    generator = np.random.default_rng(1)
    tensor = torch.randn(3, 4, 5)
    view = View((3, 4, 5), (0, 2))
    inner = Permutation.random(15, generator=generator, blocks=3)
    outer = Permutation(np.array([2, 0, 1]))
    plan = Plan(compose([(("t", view), 15, np.arange(15)[:, None], inner), (("t", 0), 3, np.arange(3)[:, None], outer)]), {})
    moved = plan.move("t", tensor)
    for to, expert in enumerate(outer.order):
        assert torch.equal(moved[to], tensor[expert][:, inner.order.reshape(3, 5)[expert] % 5])
    assert torch.equal(plan.coinverse.move("t", moved), tensor)
    for one in (plan, plan.coinverse):
        again = Plan.from_json(json.loads(json.dumps(one.to_json())))
        assert list(again.axes.items()) == list(one.axes.items()) and hash(again) == hash(one)


@pytest.mark.parametrize("name", ["chosen", "ranked", "dense", "heads", "grouped", "started"])
def test_copies_have_one_canonical_form_and_are_matched(name: str) -> None:
    checkpoint, symmetry = proved(name)
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(3))
    copy = checkpoint.with_tensors(plan.apply(dict(checkpoint.tensors)))
    orders = [canonical_orders(symmetry, one.tensors).orders for one in (checkpoint, copy)]
    forms = [symmetry.plan(by).apply(dict(one.tensors)) for by, one in zip(orders, (checkpoint, copy), strict=True)]
    assert all(torch.equal(forms[0][key], forms[1][key]) for key in checkpoint.tensors)
    assert fingerprint(checkpoint, symmetry).digest == fingerprint(copy, symmetry).digest
    back = symmetry.plan(match_units(symmetry, copy, checkpoint).orders).apply(dict(copy.tensors))
    assert all(torch.equal(back[key], checkpoint.tensors[key]) for key in checkpoint.tensors)


def test_lined_up_tensors_hold_the_same_units() -> None:
    checkpoint, symmetry = proved("dense")
    groups, tensors = lined_up(symmetry.groups, checkpoint.tensors)
    assert not any(group.stacked for group in groups)
    for one, other in zip(symmetry.groups, groups, strict=True):
        for place, there in zip(one.places, other.places, strict=True):
            rows, lined = place.rows(checkpoint.tensors[place.tensor]), there.rows(tensors[there.tensor])
            assert torch.equal(rows[place.index].flatten(1).sort().values, lined[there.index].flatten(1).sort().values)


def test_an_export_computes_the_same_and_comes_back(tmp_path: Path) -> None:
    model = Chosen().double().eval()
    with quiet():
        program = torch.export.export(model, (tokens(11),), strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    checkpoint = load(tmp_path / "model.pt2")
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(5))
    assert any(isinstance(along, View) for _, along in plan.axes)
    out = export(checkpoint, tmp_path / "model.pt2", plan, None, tmp_path / "out.pt2")
    with torch.no_grad():
        first, second = model(tokens(11)), torch.export.load(out).module()(tokens(11))
    assert float((first - second).abs().max() / first.abs().max()) <= 1e-10
    assert read_plan(out)[0].axes == plan.axes
    back = load(restore(out, tmp_path / "back.pt2"))
    assert all(torch.equal(back.tensors[key], checkpoint.tensors[key]) for key in checkpoint.tensors)


def test_a_plan_whose_view_does_not_fit_is_refused() -> None:
    plan = Plan({("t", View((3, 5), (0, 1))): Permutation.identity(15)}, {})
    with pytest.raises(CorruptFile, match=r"moves 15 positions of axes \[0, 1\] of \[3, 5\] of 't', which does not fit"):
        check_plan(plan, {"t": torch.zeros(4, 5)})
