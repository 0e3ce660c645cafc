"""Discovery finds exactly the freedoms that mathematics allows, on hand-made blocks whose groups are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from discovered import proved, sizes, trace
from torch import nn

from cipm.errors import OptionError
from cipm.load import load
from cipm.permutation import Permutation, Plan
from cipm.symmetry import discover_groups, prove, symmetry_from_json
from cipm.testing.models import save_huggingface


def test_mlp_has_its_hidden_layers_and_nothing_else():
    symmetry = proved(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)),
                      torch.randn(4, 6))
    assert [(g.name, g.size) for g in symmetry.groups] == [("0", 16), ("2", 12)]
    places = {(p.tensor, p.axis) for p in symmetry.group("0").places}
    assert places == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    assert {(pin.tensor, pin.axis) for pin in symmetry.pins} == {("0.weight", 1), ("4.weight", 0), ("4.bias", 0)}
    assert symmetry.log10_equivalents == pytest.approx(sum(np.log10(np.arange(1, n + 1)).sum() for n in (16, 12)))


def test_convolution_flattened_into_a_linear_layer_moves_all_positions_of_a_channel():
    symmetry = proved(nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                    nn.Linear(8 * 9, 5)), torch.randn(4, 2, 8, 8))
    group, = symmetry.groups
    index = next(p.index for p in group.places if p.tensor == "5.weight")
    np.testing.assert_array_equal(index, np.arange(72).reshape(8, 9))
    assert {p.tensor for p in group.places} == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                                                "1.running_var", "5.weight"}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.first, self.second = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.down, self.head = nn.Conv2d(12, 24, 1, stride=2), nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def test_residual_add_ties_the_stream_and_leaves_the_inside_free():
    symmetry = proved(Residual(), torch.randn(2, 3, 8, 8))
    assert sorted(g.size for g in symmetry.groups) == [10, 12, 24]
    stream = next(g for g in symmetry.groups if g.size == 12)
    assert stream.kind == "residual stream"
    assert {(p.tensor, p.axis) for p in stream.places} >= {("stem.weight", 0), ("first.weight", 1), ("second.weight", 0),
                                                           ("down.weight", 1)}


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.norm, self.depth, self.head = nn.GroupNorm(8, 32), nn.Conv2d(32, 32, 3, groups=32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.depth(self.norm(self.grouped(self.stem(x)))).mean((2, 3)))


def test_grouped_convolution_and_group_norm_nest():
    symmetry = proved(Grouped(), torch.randn(2, 3, 8, 8))
    found = sizes(symmetry)
    assert ("channels in groups", 32, 8) in found  # within each of the 8 groups of the norm
    assert ("channel groups in groups", 8, 4) in found  # the norm's groups within each group of the convolution
    assert ("channel groups", 4, 1) in found       # the convolution's groups, with the stem's channels


class Attention(nn.Module):
    def __init__(self, heads=4, kv=4, width=32, *, fused=False, norm=False):
        super().__init__()
        self.heads, self.kv, self.unit = heads, kv, width // heads
        self.fused = fused
        self.qkv = nn.Linear(width, (heads + 2 * kv) * self.unit)
        self.out, self.ln, self.emb = nn.Linear(width, width), nn.LayerNorm(width), nn.Embedding(20, width)
        self.norm = nn.RMSNorm(self.unit) if norm else nn.Identity()
        self.head = nn.Linear(width, 7)

    def forward(self, tokens):
        x = self.emb(tokens)
        b, n, w = x.shape
        h = self.qkv(self.ln(x))
        if self.fused:
            q, k, v = h.view(b, n, 3, self.heads, self.unit).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = h.split([w, self.kv * self.unit, self.kv * self.unit], dim=-1)
            q, k, v = (p.view(b, n, -1, self.unit).transpose(1, 2) for p in parts)
            k, v = (t.repeat_interleave(self.heads // self.kv, dim=1) for t in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(self.norm(q), k, v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, w)))


@pytest.mark.parametrize("fused", [False, True])
def test_attention_has_heads_and_within_each_head_query_key_and_value_units(fused):
    symmetry = proved(Attention(fused=fused), torch.randint(0, 20, (3, 5)))
    assert sizes(symmetry) == [("heads", 4, 1), ("residual stream", 32, 1), ("units in heads", 32, 4),
                               ("units in heads", 32, 4)]
    heads = next(g for g in symmetry.groups if g.kind == "heads")
    assert all(g.parent == heads.name for g in symmetry.groups if g.kind == "units in heads")
    assert symmetry.groups.index(heads) > 1  # inner levels first


def test_grouped_query_attention_keeps_kv_groups_query_heads_and_units():
    symmetry = proved(Attention(heads=6, kv=2, width=48), torch.randint(0, 20, (3, 5)))
    found = sizes(symmetry)
    assert ("heads", 2, 1) in found            # key-value groups
    assert ("heads in groups", 6, 2) in found  # query heads within each
    assert found.count(("units in heads", 16, 2)) == 2  # query-key and value units within each


def test_shared_query_norm_ties_its_units_over_heads():
    symmetry = proved(Attention(norm=True), torch.randint(0, 20, (3, 5)))
    tied = next(g for g in symmetry.groups if any(p.tensor == "norm.weight" for p in g.places))
    assert tied.size == 8 and tied.blocks == 1


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 20), nn.Linear(10, 4)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(torch.sigmoid(gate) * value)


def test_chunks_of_one_layer_move_together():
    group, = proved(Gated(), torch.randn(3, 6)).groups
    index = next(p.index for p in group.places if p.tensor == "up.weight")
    np.testing.assert_array_equal(index, np.stack([np.arange(10), np.arange(10, 20)], axis=1))


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(9, 5, 1), nn.Conv2d(14, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cat([x, torch.relu(self.one(x))], 1)
        x = torch.cat([x, torch.relu(self.two(x))], 1)
        return self.head(self.three(x).mean((2, 3)))


def test_concatenation_keeps_each_part_free():
    symmetry = proved(Dense(), torch.randn(2, 3, 4, 4))
    assert sorted(g.size for g in symmetry.groups) == [4, 5, 6]
    assert next(p for p in symmetry.pins if p.tensor == "one.weight" and p.axis == 1).op == "input"


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 9), nn.Linear(9, 6)
        self.three = nn.Linear(6, 2)

    def forward(self, x):
        h = self.one(x)
        return self.three(torch.relu(self.two(h * torch.trapezoid(h, dim=-1)[:, None])))


def test_op_without_a_rule_pins_its_axes_and_is_named():
    symmetry = proved(Unknown(), torch.randn(3, 4))
    assert [g.size for g in symmetry.groups] == [6]
    pin = next(p for p in symmetry.pins if (p.tensor, p.axis) == ("one.weight", 0))
    assert pin.op == "aten.trapezoid.dx"
    assert pin.reason == "it enters trapezoid.dx, an op without a rule (tried: its order matters)"
    assert "trapezoid.dx has no rule that fits, so it was tried alone: it pins what it reads" in symmetry.notes


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.two(self.one(x).cumsum(-1))


def test_op_that_depends_on_order_pins():
    symmetry = discover_groups(trace(Ordered(), torch.randn(3, 4)))
    assert symmetry.groups == ()
    assert any("order" in p.reason and p.tensor == "one.weight" for p in symmetry.pins)


class Lopsided(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(2, 3)

    def forward(self, x):
        h = torch.relu(self.one(x))
        return self.two(torch.stack([h[:, :4].mean(1), h[:, 4:].mean(1)], 1))


def test_slices_that_are_summed_stay_apart():
    symmetry = proved(Lopsided(), torch.randn(3, 4))
    assert sorted(g.size for g in symmetry.groups) == [4, 4]  # not one group of 8


def test_proof_finds_a_wrong_group_and_says_so():
    """A group that is not a symmetry must not survive: the check can fail."""
    checkpoint = trace(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)),
                       torch.randn(4, 6))
    found = discover_groups(checkpoint)
    broken = tuple(type(g)(g.name, g.kind, g.size, g.blocks, g.parent, g.places[:-1] if g.name == "2" else g.places, g.taps)
                   for g in found.groups)
    symmetry = prove(checkpoint, replace(found, groups=broken))
    assert [g.name for g in symmetry.groups] == ["0"]
    assert symmetry.notes == ("2 was found but failed the proof and is left out",)
    assert symmetry.certificate.passed


def test_symmetry_survives_json():
    symmetry = proved(Attention(), torch.randint(0, 20, (3, 5)))
    again = symmetry_from_json(json.loads(json.dumps(symmetry.to_json())))
    assert again.to_json() == symmetry.to_json()


def test_plans_refuse_orders_that_do_not_fit():
    symmetry = proved(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6))
    with pytest.raises(OptionError, match="must permute 16 units"):
        symmetry.plan({"0": Permutation.identity(15)})
    with pytest.raises(OptionError, match="There is no group 'x'; the groups are 0."):
        symmetry.plan({"x": Permutation.identity(16)})


def test_plan_survives_json_and_undoes_itself():
    symmetry = proved(Attention(), torch.randint(0, 20, (3, 5)))
    generator = np.random.default_rng(0)
    plan = symmetry.plan({g.name: Permutation.random(g.size, generator=generator, blocks=g.blocks) for g in symmetry.groups})
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.axes == plan.axes and again.orders == plan.orders and hash(again) == hash(plan)
    tensors = trace(Attention(), torch.randint(0, 20, (3, 5))).tensors
    back = plan.coinverse.apply(plan.apply(tensors))
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    assert not all(torch.equal(plan.apply(tensors)[key], tensors[key]) for key in tensors)


class Larger(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 9), nn.Linear(4, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.three(torch.max(self.one(x), self.two(x)))


def test_the_larger_of_two_ties_both():
    group, = proved(Larger(), torch.randn(3, 4)).groups
    assert {p.tensor for p in group.places} == {"one.weight", "one.bias", "two.weight", "two.bias", "three.weight"}


class BesideTheDiagonal(nn.Module):
    """A form of an op that its rule does not cover: a diagonal beside the main one."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 9), nn.Linear(8, 3)

    def forward(self, x):
        h = self.one(x)
        return self.two((h[:, :, None] * h[:, None, :]).diagonal(offset=1, dim1=1, dim2=2))


def test_form_of_an_op_that_its_rule_does_not_cover_pins():
    symmetry = discover_groups(trace(BesideTheDiagonal(), torch.randn(3, 4)))
    assert symmetry.groups == ()
    assert "an op in a form that its rule does not cover" in next(p.reason for p in symmetry.pins
                                                                  if (p.tensor, p.axis) == ("one.weight", 0))


class Einsum(nn.Module):
    """One head of attention, its contractions written as einsum, weights first."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(12, 12)) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        q, k, v = (torch.einsum("oi,bni->bno", w, x) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bnd,bmd->bnm", q, k).softmax(-1)
        return self.head(torch.einsum("de,bne->bnd", self.o, torch.einsum("bnm,bmd->bnd", weights, v)))


def test_einsum_is_the_equation_it_says_and_only_weights_are_consumers():
    symmetry = proved(Einsum(), torch.randn(3, 5, 12))
    places = [{(p.tensor, p.axis) for p in g.places} for g in symmetry.groups]
    assert places == [{("q", 0), ("k", 0)}, {("v", 0), ("o", 1)}, {("o", 0), ("head.weight", 1)}]
    assert [[tap.consumers for tap in g.taps] for g in symmetry.groups] == [[()], [(("o", 1),)], [(("head.weight", 1),)]]


class PatchMerging(nn.Module):
    """Four neighbouring positions joined along the channels, as between the stages of a Swin transformer."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(2, 6, 1), nn.LayerNorm(24)
        self.reduce, self.head = nn.Linear(24, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
        return self.head(self.reduce(self.norm(x)).mean((1, 2)))


def test_joined_parts_with_the_same_channels_move_as_channels_and_keep_their_places():
    symmetry = proved(PatchMerging(), torch.randn(2, 2, 4, 4))
    assert [g.size for g in symmetry.groups] == [6, 5]
    index = next(p.index for p in symmetry.groups[0].places if p.tensor == "reduce.weight")
    np.testing.assert_array_equal(index, np.arange(24).reshape(4, 6).T)


class Buffered(nn.Module):
    """Both halves of a hidden layer are written into a tensor that is allocated empty."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 5), nn.Linear(11, 2)

    def forward(self, x):
        first = self.first(x)
        inner = first.new_empty(first.shape[0], 11)
        inner[:, :6], inner[:, 6:] = first.tanh(), self.second(x).tanh()
        return self.last(inner)


def test_memory_that_is_written_over_is_no_part_of_the_function():
    assert sizes(proved(Buffered(), torch.randn(3, 4))) == [("units", 5, 1), ("units", 6, 1)]


def test_a_failing_group_is_split_down_to_the_units_that_are_proved():
    """Two units whose rows in one tensor were mixed up: the others are proved without them."""
    checkpoint = trace(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6))
    found = discover_groups(checkpoint)
    group, = found.groups
    last = group.places[-1]
    mixed = last.index.copy()
    mixed[[2, 3]] = mixed[[3, 2]]
    broken = replace(group, places=(*group.places[:-1], replace(last, index=mixed)))
    symmetry = prove(checkpoint, replace(found, groups=(broken,)))
    assert symmetry.certificate.passed and all(g.proved for g in symmetry.groups)
    units = np.concatenate([g.places[0].index[:, 0] for g in symmetry.groups])
    assert np.unique(units).size == units.size and set(range(4, 16)) <= set(units.tolist())
    assert symmetry.notes[0].startswith("0 failed the proof as a whole; ")
    assert {g.name for g in symmetry.groups} == {f"0.part{i}" for i in range(1, len(symmetry.groups) + 1)}


def test_every_group_is_proved_by_itself_with_a_control_of_its_own():
    symmetry = proved(Attention(), torch.randint(0, 20, (3, 5)))
    proofs = symmetry.certificate.groups
    assert [p.name for p in proofs] == [g.name for g in symmetry.groups]
    assert all(p.passed and p.max_rel <= symmetry.certificate.tolerance < p.negative_control for p in proofs)
    assert symmetry.certificate.negative_control == min(p.negative_control for p in proofs)


def test_units_that_keep_their_place_within_a_head_are_pinned_with_the_reason(tmp_path):
    """The rotary frequencies of a Hugging Face model follow from its configuration and cannot move."""
    save_huggingface("llama", tmp_path / "llama")
    symmetry = discover_groups(load(tmp_path / "llama"))
    held = {(pin.tensor, pin.axis) for pin in symmetry.pins if "it moves, but not within its units" in pin.reason}
    assert held == {(f"model.layers.{layer}.self_attn.{name}_proj.weight", 0) for layer in (0, 1) for name in "qk"}
