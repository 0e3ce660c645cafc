"""Units of several elements that move together: rotary pairs, channels that gate each other."""

from __future__ import annotations

import torch
from discovered import proved, sizes
from torch import nn


class Rotated(nn.Module):
    """Attention that turns its queries and keys by stored tables of both halves, as ONNX files have them."""

    def __init__(self):
        super().__init__()
        self.emb, self.qkv, self.out = nn.Embedding(20, 12), nn.Linear(12, 3 * 24), nn.Linear(24, 7)
        angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1])
        self.register_buffer("cos", angle.repeat(1, 2).cos())
        self.register_buffer("sin", angle.repeat(1, 2).sin())

    def forward(self, tokens):
        q, k, v = self.qkv(self.emb(tokens)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (x * self.cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * self.sin for x in (q, k))
        return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_rotary_pairs_move_with_tables_that_hold_both_halves():
    symmetry = proved(Rotated(), torch.randint(0, 20, (3, 5)))
    pairs, = [group for group in symmetry.groups if ("cos", 1) in {(p.tensor, p.axis) for p in group.places}]
    assert (pairs.size, pairs.blocks) == (4, 1)
    assert {(p.tensor, p.axis): p.index.shape for p in pairs.places} == {
        ("cos", 1): (4, 2), ("sin", 1): (4, 2), ("qkv.weight", 0): (4, 12), ("qkv.bias", 0): (4, 12)}
    assert sizes(symmetry) == sorted([(pairs.kind, 4, 1), ("heads", 3, 1), ("units in heads", 24, 3), ("units", 12, 1)])


class Crossed(nn.Module):
    """Half of the channels gate the other half, after the positions were merged into them."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(2, 8, 3), nn.Linear(4 * 6, 5)

    def forward(self, x):
        gate, value = self.conv(x).flatten(1).chunk(2, dim=-1)
        return self.out(gate.sigmoid() * value)


def test_channels_that_gate_each_other_after_a_flatten_move_in_pairs():
    group, = proved(Crossed(), torch.randn(3, 2, 8)).groups
    assert (group.size, group.blocks) == (4, 1)
    assert {(p.tensor, p.axis): p.index.shape for p in group.places} == {
        ("conv.weight", 0): (4, 2), ("conv.bias", 0): (4, 2), ("out.weight", 1): (4, 6)}
