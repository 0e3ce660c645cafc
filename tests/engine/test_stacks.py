"""Units that every slice of a stack orders by itself: experts × hidden units, heads × units, layers × units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import factorial, log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cipm.errors import CorruptFile
from cipm.export import export, restore
from cipm.export.record import check_plan, read_plan
from cipm.load import Checkpoint, load
from cipm.options import parse_options
from cipm.ordering import canonical_orders, fingerprint, match_units
from cipm.permutation import Permutation, Plan, View, compose
from cipm.pipeline import RUN
from cipm.pipeline.collecting import collection_notes
from cipm.pipeline.context import Context
from cipm.pipeline.organizing import _why_not
from cipm.statistics.collect import collect
from cipm.symmetry import CHOSEN_WORDS, Symmetry, discover_groups, lined_up, prove, random_member, refine, symmetry_from_json
from cipm.testing.models import quiet
from cipm.testing.networks import NETWORKS, as_checkpoint
from cipm.trace import run


class Chosen(nn.Module):
    """Every token is given to the expert with its highest score, whose weights are gathered for it."""

    def __init__(self, *, shared: bool = False):
        super().__init__()
        self.embed, self.router = nn.Embedding(11, 6), nn.Linear(6, 3)
        self.up, self.bias = nn.Parameter(torch.randn(3, 6, 10)), nn.Parameter(torch.randn(3, 10))
        self.down = nn.Parameter(torch.randn(3, 5, 6))
        self.gain = nn.Parameter(torch.rand(5) + 0.5) if shared else None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        weight, best = self.router(x).softmax(-1).max(-1)
        inner = torch.einsum("btd,btdh->bth", x, self.up[best]) + self.bias[best]
        gate, value = inner.chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * value
        if self.gain is not None:
            inner = inner * self.gain
        return torch.einsum("bth,bthd->btd", inner, self.down[best]) * weight[..., None]


class Ranked(Chosen):
    """Every token is given to its two best experts of three, all choices on one axis as transformers has them."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        weight, best = self.router(x).softmax(-1).topk(2)
        flat, own = best.reshape(-1), x.flatten(0, 1).repeat_interleave(2, dim=0)
        gate, value = (torch.bmm(own[:, None], self.up[flat])[:, 0] + self.bias[flat]).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * value
        made = torch.bmm(inner[:, None], self.down[flat])[:, 0] * weight.reshape(-1, 1)
        return made.unflatten(0, (*tokens.shape, 2)).sum(-2)


class Tasks(nn.Module):
    """An input says which of four layers answers: the layers keep their places, each one's units are free."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 5, 7)), nn.Parameter(torch.randn(4, 7, 3))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        inner = torch.bmm(x[:, None], self.first[task]).tanh()
        return torch.bmm(inner, self.second[task])[:, 0]


class Grouped(nn.Module):
    """Convolutions in three groups, one of them transposed, between plain ones."""

    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv1d(2, 12, 3), nn.Conv1d(12, 6, 3, groups=3)
        self.back, self.last = nn.ConvTranspose1d(6, 15, 3, groups=3), nn.Conv1d(15, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.back(self.grouped(self.first(x).tanh()).tanh()).tanh()).mean(-1)


class Started(nn.Module):
    """Two recurrent layers with a learned first state, held in one tensor."""

    def __init__(self):
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(11, 4), nn.GRU(4, 5, 2, batch_first=True), nn.Linear(5, 3)
        self.start = nn.Parameter(torch.randn(2, 1, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens), self.start.expand(-1, tokens.shape[0], -1).contiguous())[0])


class Added(nn.Module):
    """Both slices of a stack add to the same units."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 5, 7)), nn.Parameter(torch.randn(2, 7, 3))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.einsum("bi,sih->bh", x, self.first).relu()
        return torch.einsum("bh,sho->bo", inner, self.second)


class HeadsApart(nn.Module):
    """Attention of four heads with weights [in, heads, units]."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Parameter(torch.randn(5, 4, 3)), nn.Parameter(torch.randn(5, 4, 3))
        self.value, self.out = nn.Parameter(torch.randn(5, 4, 6)), nn.Parameter(torch.randn(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("bti,ihu->bthu", x, w) for w in (self.query, self.key, self.value))
        scores = torch.einsum("bthu,bshu->bhts", query, key).softmax(-1)
        return torch.einsum("bhts,bshu,huo->bto", scores, value, self.out)


def checkpoint_of(model: nn.Module, *example: Tensor) -> Checkpoint:
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return as_checkpoint(model.eval(), example)


def tokens(high: int) -> Tensor:
    return torch.randint(high, (4, 6), generator=torch.Generator().manual_seed(0))


@cache
def proved(name: str) -> tuple[Checkpoint, Symmetry]:
    checkpoint = {
        "chosen": lambda: checkpoint_of(Chosen(), tokens(11)),
        "ranked": lambda: checkpoint_of(Ranked(), tokens(11)),
        "shared": lambda: checkpoint_of(Chosen(shared=True), tokens(11)),
        "tasks": lambda: checkpoint_of(Tasks(), torch.randn(4, 5), torch.tensor([0, 3, 1, 2])),
        "grouped": lambda: checkpoint_of(Grouped(), torch.randn(4, 2, 20)),
        "started": lambda: checkpoint_of(Started(), tokens(11)),
        "added": lambda: checkpoint_of(Added(), torch.randn(4, 5)),
        "heads": lambda: checkpoint_of(HeadsApart(), torch.randn(4, 7, 5)),
        "dense": lambda: as_checkpoint(NETWORKS["mixture_of_experts"].make(), NETWORKS["mixture_of_experts"].example()),
    }[name]()
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=2)


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


def test_taps_show_the_units_of_every_slice() -> None:
    checkpoint, symmetry = proved("dense")
    inner, = [group for group in symmetry.groups if group.stacked]
    tap = inner.taps[0]
    seen: list[torch.Tensor] = []
    inputs = {i.name: tokens(17) for i in checkpoint.graph.inputs}
    run(checkpoint.graph, checkpoint.tensors, {}, inputs, observe={tap.value: seen.append})
    x, axis = tap.seen(seen[0])
    units = x.movedim(axis, -1)[..., torch.from_numpy(tap.index[:, 0].copy())]
    stacked = seen[0].movedim((tap.outer, tap.axis), (-2, -1))
    assert torch.equal(units.unflatten(-1, (5, 9)), stacked) and tap.consumers == (("blocks.0.second.down", 1),)
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    [tap], [inputs], positions=0)
    assert found[tap].half.whole.mean == pytest.approx(units.reshape(-1, 45).mean(0).double().numpy(), abs=1e-6)


def hidden_of_experts(tensors: Mapping[str, Tensor], words: Tensor, chosen: int) -> Tensor:
    """Return what all units of all experts of Chosen and Ranked give [words, experts × 5], 0 where not chosen."""
    x = tensors["embed.weight"][words]
    best = (x @ tensors["router.weight"].T + tensors["router.bias"]).topk(chosen).indices
    gate, value = (torch.einsum("nd,edh->neh", x, tensors["up"]) + tensors["bias"]).chunk(2, -1)
    mask = torch.zeros(len(words), 3).scatter(1, best, 1.0)
    return (torch.nn.functional.silu(gate) * value * mask[..., None]).flatten(1)


@pytest.mark.parametrize(("name", "chosen"), [("chosen", 1), ("ranked", 2)])
def test_units_of_chosen_experts_are_seen_as_in_the_dense_layer(name: str, chosen: int) -> None:
    checkpoint, symmetry = proved(name)
    inner, = [group for group in symmetry.groups if group.stacked]
    tap, = inner.taps
    assert tap.consumers == (("down", 1),) and tap.chosen is not None and tap.chosen.slices == 3
    assert np.array_equal(tap.index, np.arange(15)[:, None])
    assert symmetry.group(inner.parent).taps[0].index.shape == (3, 5)  # the experts are read there too
    x = torch.randint(11, (10, 6), generator=torch.Generator().manual_seed(1))
    batches = [{checkpoint.graph.inputs[0].name: part} for part in x.split(4)]
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    [tap], batches, positions=0)[tap]
    dense = hidden_of_experts(checkpoint.tensors, x.flatten(), chosen).double().detach().numpy()
    assert found.half.samples == 60 and found.half.rows == 10
    assert found.half.whole.mean == pytest.approx(dense.mean(0), rel=1e-5, abs=1e-6)
    assert found.half.whole.covariance() == pytest.approx(np.cov(dense.T), rel=1e-5, abs=1e-6)
    even = dense.reshape(10, 6, 15)[::2].reshape(-1, 15)
    assert found.half.even.covariance() == pytest.approx(np.cov(even.T), rel=1e-5, abs=1e-6)
    assert (np.abs(found.half.whole.correlation()[:5, 5:10]) > 0.02).any()  # units of two experts are compared


def test_units_that_an_input_chooses_are_seen() -> None:
    checkpoint, symmetry = proved("tasks")
    taps = [group.taps[0] for group in symmetry.groups]
    x, task = torch.randn(8, 5, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 3, 1, 2, 1, 1, 0, -1])
    inputs = dict(zip((i.name for i in checkpoint.graph.inputs), (x, task), strict=True))
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    taps, [inputs], positions=0)
    hidden = torch.einsum("bi,sih->bsh", x, checkpoint.tensors["first"]).tanh()
    hidden = hidden * torch.nn.functional.one_hot(task % 4, 4)[..., None]
    for tap in taps:
        which = int(tap.index[0, 0]) // 7
        assert found[tap].half.whole.mean == pytest.approx(hidden[:, which].mean(0).double().detach().numpy(), abs=1e-6)


def test_units_of_chosen_experts_have_modules_and_orders(tmp_path: Path) -> None:
    checkpoint, symmetry = proved("ranked")
    inner, = [group for group in symmetry.groups if group.stacked]
    context, facts = organized(checkpoint, np.random.default_rng(0).integers(0, 11, (40, 6)), tmp_path)
    assert facts[inner.name]["unavailable"] is None and facts[inner.name]["similarity"] == "pearson"
    assert facts[inner.parent]["similarity"] == "linear CKA"
    order = np.load(tmp_path / "organize" / "orders" / inner.name / "importance.npy")
    assert Permutation(order).keeps_blocks(3) and facts[inner.name]["activity"]["samples"] == 40
    assert CHOSEN_WORDS in collection_notes(context)


def test_key_value_groups_are_compared_by_all_that_their_query_heads_give(tmp_path: Path) -> None:
    network = NETWORKS["llama_rotary"]
    checkpoint, words = as_checkpoint(network.make(), network.example()), np.random.default_rng(0).integers(0, 17, (30, 6))
    context, facts = organized(checkpoint, words, tmp_path)
    group = next(g for g in context.symmetry.groups if g.kind == "heads" and g.size == 2)
    assert facts[group.name]["similarity"] == "linear CKA" and facts[group.name]["unavailable"] is None
    tap, seen = group.taps[-1], []
    run(checkpoint.graph, context.checkpoint.tensors, checkpoint.constants,
        {checkpoint.graph.inputs[0].name: torch.from_numpy(words)}, observe={tap.value: seen.append})
    c = np.cov(seen[0].movedim(tap.axis, -1).flatten(0, -2).double().detach().numpy().T)
    one, other = tap.index
    norm = np.linalg.norm
    expected = norm(c[np.ix_(one, other)]) ** 2 / (norm(c[np.ix_(one, one)]) * norm(c[np.ix_(other, other)]))
    assert np.load(tmp_path / "organize" / "correlation" / f"{group.name}.npy")[0, 1] == pytest.approx(expected, rel=1e-3)
    wider = replace(context, options=parse_options({"max_width": 16}))
    assert _why_not(wider, group) == "Its 2 units have 48 elements in all, more than max_width = 16."


def organized(checkpoint: Checkpoint, probe: np.ndarray, folder: Path) -> tuple[Context, dict[str, Any]]:
    """Run the stages up to `organize` in the folder; return their context and what is said of each group."""
    checkpoint = checkpoint.with_tensors({key: tensor.detach() for key, tensor in checkpoint.tensors.items()})
    np.savez(folder / "probe.npz", x=probe)
    done: dict[str, Path] = {}
    for stage in ("discover", "probe", "collect", "organize"):
        (folder / stage).mkdir()
        context = Context({"probe": str(folder / "probe.npz"), "kind": "analyze"}, parse_options({}), dict(done),
                          lambda event: None, {"checkpoint": checkpoint})
        RUN[stage](context, folder / stage)
        done[stage] = folder / stage
    return replace(context, folders=done), json.loads((folder / "organize" / "organize.json").read_text())["groups"]


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
