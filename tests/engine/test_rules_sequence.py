"""Recurrent layers, rotary attention and experts: exactly the groups that mathematics allows, each proved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from discovered import proved, trace
from rule_models import Between, Experts, Recurrent, Rotary, Unrolled
from torch import nn
from torch.nn import functional as F

from cipm.symmetry import discover_groups

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self.layer._flat_weights:UserWarning")  # torch's own


def found(symmetry) -> list[tuple[int, int]]:
    return sorted((g.size, g.blocks) for g in symmetry.groups)


RECURRENT = {
    "lstm": (Recurrent(nn.LSTM), [(6, 1)]),
    "lstm both ways, two layers": (Recurrent(nn.LSTM, num_layers=2, bidirectional=True), [(6, 1)] * 4),
    "lstm that projects": (Recurrent(nn.LSTM, proj_size=4), [(4, 1), (6, 1)]),
    "gru that starts from learned states in one tensor": (Recurrent(nn.GRU, num_layers=2, learned=True), [(6, 1)] * 2),
    "rnn whose last state is read": (Recurrent(nn.RNN, num_layers=2, last=True), [(6, 1)] * 2),
    "relu": (Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True), [(6, 1)] * 2),
    "lstm cell": (Unrolled(nn.LSTMCell(5, 6)), [(6, 1)]),
    "gru cell": (Unrolled(nn.GRUCell(5, 6)), [(6, 1)]),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_hidden_units_move_with_their_gates(name):
    module, expected = RECURRENT[name]
    symmetry = proved(module, torch.randn(2, 4, 5))
    assert found(symmetry) == expected


def test_a_unit_is_a_row_of_every_gate_and_an_element_of_every_state():
    group, = [g for g in proved(Recurrent(nn.LSTM, learned=False), torch.randn(2, 4, 5)).groups]
    places = {(p.tensor, p.axis): p.index for p in group.places}
    np.testing.assert_array_equal(places["layer.weight_ih_l0", 0], np.arange(24).reshape(4, 6).T)
    np.testing.assert_array_equal(places["layer.weight_hh_l0", 1], np.arange(6)[:, None])
    assert ("head.weight", 1) in places


ROTARY = {
    "half": (Rotary("half"), [(4, 1), (4, 1), (32, 1), (32, 4)]),
    "half, grouped": (Rotary("half", 6, 2, 48), [(2, 1), (4, 1), (6, 2), (16, 2), (48, 1)]),
    "interleaved": (Rotary("interleaved"), [(4, 1), (4, 1), (32, 1), (32, 4)]),
    "repeated, in part": (Rotary("repeated", share=0.5), [(2, 1), (4, 1), (16, 4), (32, 1), (32, 4)]),
    "complex, in part, fused": (Rotary("complex", share=0.5, fused=True), [(2, 1), (4, 1), (16, 4), (32, 1), (32, 4)]),
    "complex, grouped": (Rotary("complex", 6, 2, 48), [(2, 1), (4, 1), (6, 2), (16, 2), (48, 1)]),
}


@pytest.mark.parametrize("name", ROTARY)
def test_a_rotary_pair_moves_with_its_frequency_in_every_head(name):
    module, expected = ROTARY[name]
    symmetry = proved(module, torch.randint(0, 20, (3, 5)))
    assert found(symmetry) == expected
    pairs = next(g for g in symmetry.groups if any(p.tensor == "frequencies" for p in g.places))
    index = next(p.index for p in pairs.places if p.tensor == "project.0.weight")
    step = module.turned // 2 if module.layout == "half" else 1
    assert pairs.size == module.turned // 2 and all({i, i + step} <= set(unit) for unit, i in
                                                    zip(index.tolist(), index[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("how", ["dense", "scatter", "one_hot", "numbers", "plain", "bias"])
def test_experts_move_through_their_router_however_they_are_chosen(how):
    symmetry = proved(Experts(how), torch.randn(4, 5))
    assert found(symmetry) == [(6, 1), (8, 1), (60, 6)]
    experts = next(g for g in symmetry.groups if g.size == 6)
    assert {("up", 0), ("down", 0), ("router.weight", 0), ("router.bias", 0)} <= {(p.tensor, p.axis) for p in experts.places}


def test_experts_chosen_within_groups_move_within_them_and_the_groups_move():
    symmetry = proved(Experts("grouped"), torch.randn(4, 5))
    assert found(symmetry) == [(3, 1), (6, 3), (8, 1), (60, 6)]


def test_numbers_of_units_that_are_computed_with_pin_the_units():
    module = Between(lambda x: x * torch.topk(x, 2, -1).indices.sum(-1, keepdim=True))
    symmetry = discover_groups(trace(module, torch.randn(4, 5)))
    assert symmetry.groups == ()
    assert any("their numbers enter an op" in pin.reason for pin in symmetry.pins)


class Attending(nn.Module):
    def __init__(self, **options: object):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.attend(x, x, x, need_weights=self.attend.bias_k is None)[0])


@pytest.mark.parametrize("module", [Attending(), Attending(add_bias_kv=True, add_zero_attn=True)])
def test_multihead_attention_of_torch_has_heads_and_units_within_them(module):
    symmetry = proved(module, torch.randint(0, 20, (2, 5)))
    assert found(symmetry) == [(4, 1), (16, 1), (16, 4), (16, 4)]


class Biased(nn.Module):
    """Attention in windows of a 4 × 4 image that is rolled, with a table of relative positions (Swin)."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out, self.head = nn.Conv2d(3, 12, 1), nn.Linear(12, 36), nn.Linear(12, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(9, 3))
        at = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        self.register_buffer("places", ((at[:, :, None] - at[:, None, :]) + 1).mul(torch.tensor([3, 1])[:, None, None]).sum(0))

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        h = torch.roll(x, (-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 12)
        q, k, v = self.qkv(h).reshape(-1, 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.places.view(-1)].view(4, 4, 3).permute(2, 0, 1)
        y = ((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 12)
        y = self.out(y).view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12)
        return self.head((x + torch.roll(y, (1, 1), (1, 2))).mean((1, 2)))


def test_windows_that_are_rolled_and_a_table_of_relative_positions():
    symmetry = proved(Biased(), torch.randn(2, 3, 4, 4))
    assert found(symmetry) == [(3, 1), (12, 1), (12, 3), (12, 3)]
    heads = next(g for g in symmetry.groups if g.size == 3)
    assert ("table", 1) in {(p.tensor, p.axis) for p in heads.places}


FUNCTIONS = {
    "sort": (Between(lambda x: x * torch.sort(x, -1).values[..., :1]), [(8, 1)]),
    "cumulative sum over positions": (Between(lambda x: x.cumsum(1)), [(8, 1)]),
    "fourier transform of positions": (Between(lambda x: torch.fft.fft(x, dim=1).real), [(8, 1)]),
    "complex product of real transforms": (
        Between(lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.fft.rfft(x, dim=1), n=4, dim=1)), [(8, 1)]),
    "flip": (Between(lambda x: x.flip(-1)), [(8, 1)]),
    "roll": (Between(lambda x: x.roll(3, -1)), [(8, 1)]),
    "gated linear unit": (Between(F.glu, 8, 4), [(4, 1)]),
    "hard swish": (Between(F.hardswish), [(8, 1)]),
    "normalised": (Between(lambda x: F.normalize(x, dim=-1)), [(8, 1)]),
    "distances": (Between(lambda x: torch.cdist(x, x) @ x), [(8, 1)]),
    "einsum with leading axes": (Between(lambda x: torch.einsum("...ij,...kj->...ik", x, x) @ x), [(8, 1)]),
    "triangle of positions": (Between(lambda x: torch.tril(x @ x.transpose(1, 2)) @ x), [(8, 1)]),
    "diagonal": (Between(lambda x: (x.transpose(1, 2) @ x).diagonal(dim1=1, dim2=2)), [(8, 1)]),
    "overwritten half": (Between(lambda x: x.slice_scatter(x[..., 4:].exp(), -1, 0, 4)), [(4, 1)] * 2),  # half of them unread
    "where, clamp, lerp": (Between(lambda x: torch.where(x > 0, x, x.tanh()).clamp(min=-1).lerp(x, 0.5)), [(8, 1)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_between_two_layers(name):
    module, expected = FUNCTIONS[name]
    assert found(proved(module, torch.randn(2, 4, 5))) == expected


@pytest.mark.parametrize("function", [lambda x: x.cumsum(-1), lambda x: torch.fft.fft(x, dim=-1).real,
                                      lambda x: x + x.roll(1, -1), lambda x: x * torch.arange(8.0)])
def test_what_depends_on_places_pins(function):
    assert discover_groups(trace(Between(function), torch.randn(2, 4, 5))).groups == ()
