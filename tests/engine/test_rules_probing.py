"""Ops without a rule are tried alone; what that grants is never more than a rule would, and it is proved."""

from __future__ import annotations

import pytest
import torch
from discovered import proved, trace
from torch import nn
from torch.nn import functional as F

from cipm.rules import registry
from cipm.symmetry import discover_groups, probing, prove


class Between(nn.Module):
    """A function of hidden units between two layers."""

    def __init__(self, function, width=8, out=None):
        super().__init__()
        self.one, self.two, self.function = nn.Linear(5, width), nn.Linear(out or width, 3), function

    def forward(self, x):
        return self.two(self.function(self.one(x)))


class Heads(nn.Module):
    """A function of three heads of four units between two layers."""

    def __init__(self, function):
        super().__init__()
        self.one, self.two, self.function = nn.Linear(5, 12), nn.Linear(12, 3), function

    def forward(self, x):
        return self.two(self.function(self.one(x).view(*x.shape[:2], 3, 4)).flatten(2))


def found(symmetry) -> list[tuple[int, int]]:
    return sorted((g.size, g.blocks) for g in symmetry.groups)


FREE = {
    "renorm": lambda x: torch.renorm(x, 2, 1, 1.0),
    "quantile": lambda x: x - torch.quantile(x, 0.5, -1, keepdim=True),
    "matrix_exp": lambda x: x @ torch.matrix_exp(0.1 * x.transpose(1, 2) @ x),
    "many parts": lambda x: torch.vstack([x * k for k in range(1, 12)]).unflatten(0, (11, -1)).sum(0),
}


@pytest.mark.parametrize("name", FREE)
def test_units_move_through_an_op_where_trying_it_shows_that_they_may(name):
    symmetry = proved(Between(FREE[name]), torch.randn(2, 4, 5))
    assert found(symmetry) == [(8, 1)]


@pytest.mark.parametrize("name", ["renorm", "quantile"])
def test_units_within_heads_move_through_it_too(name):
    assert found(proved(Heads(FREE[name]), torch.randn(2, 4, 5))) == [(3, 1), (12, 3)]


@pytest.mark.parametrize("function", [lambda x: torch.rot90(x, 1, [1, 2]).transpose(1, 2),
                                      lambda x: x * torch.trapezoid(x)[..., None]])
def test_an_op_that_minds_the_order_pins_and_is_named(function):
    symmetry = discover_groups(trace(Between(function), torch.randn(2, 4, 5)))
    assert symmetry.groups == ()
    assert any("it pins what it reads" in note for note in symmetry.notes)
    assert any("tried: its order matters" in pin.reason for pin in symmetry.pins)


def test_an_op_that_is_too_large_is_not_tried(monkeypatch):
    monkeypatch.setattr(probing, "MAX_ELEMENTS", 10)
    symmetry = discover_groups(trace(Between(FREE["renorm"]), torch.randn(2, 4, 5)))
    assert symmetry.groups == () and any("too large to be tried" in pin.reason for pin in symmetry.pins)


def test_the_same_op_on_the_same_kinds_of_operands_is_tried_once(monkeypatch):
    tried = []
    real = probing._try
    monkeypatch.setattr(probing, "_try", lambda *args: tried.append(args) or real(*args))
    checkpoint = trace(Between(lambda x: torch.renorm(torch.renorm(x, 2, 1, 1.0), 2, 1, 1.0)), torch.randn(2, 4, 5))
    assert len(discover_groups(checkpoint).groups) == 1 and len(tried) == 1


def test_an_op_that_trusts_its_numbers_as_positions_is_not_tried(monkeypatch):
    assert "fractional_max_pool2d" in probing.NEVER
    monkeypatch.setattr(probing, "NEVER", {"renorm"})
    symmetry = discover_groups(trace(Between(FREE["renorm"]), torch.randn(2, 4, 5)))
    assert symmetry.groups == () and any("it cannot be tried alone" in pin.reason for pin in symmetry.pins)


HIDDEN = {
    "softmax": (Between(lambda x: x.softmax(-1)), ("softmax",)),
    "softmax over positions": (Between(lambda x: x.softmax(1)), ("softmax",)),
    "mean": (Between(lambda x: x - x.mean(-1, keepdim=True)), ("mean",)),
    "layer_norm": (nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)), ("layer_norm",)),
    "matmul": (Between(lambda x: x @ x.transpose(1, 2) @ x), ("matmul",)),
    "linear": (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 3)), ("linear",)),
    "cumsum": (Between(lambda x: x.cumsum(-1)), ("cumsum",)),
    "cumsum over positions": (Between(lambda x: x.cumsum(1)), ("cumsum",)),
    "glu": (Between(F.glu, 8, 4), ("glu",)),
    "flip": (Between(lambda x: x.flip(-1)), ("flip",)),
    "slice": (Between(lambda x: x[..., :4], 8, 4), ("slice",)),
    "cat": (Between(lambda x: torch.cat([x, x.tanh()], -1), 8, 16), ("cat",)),
    "attention": (Heads(lambda x: F.scaled_dot_product_attention(*[x.transpose(1, 2)] * 3).transpose(1, 2)),
                  ("scaled_dot_product_attention",)),
    "permute": (Heads(lambda x: x.transpose(1, 2).tanh().transpose(1, 2)), ("transpose",)),
    "topk": (Between(lambda x: x * torch.topk(x, 3, -1).values.sum(-1, keepdim=True)), ("topk",)),
    "einsum": (Between(lambda x: torch.einsum("bni,bnj,bnj->bni", x, x, x)), ("einsum",)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_trying_grants_no_more_than_the_rule(name, monkeypatch):
    module, ops = HIDDEN[name]
    with_rule = discover_groups(trace(module, torch.randn(2, 4, 5)))
    monkeypatch.setattr(registry, "_RULES", {op: rule for op, rule in registry.known_ops().items() if op not in ops})
    checkpoint = trace(module, torch.randn(2, 4, 5))
    without = discover_groups(checkpoint)
    assert not without.groups or len(prove(checkpoint, without).groups) == len(without.groups)
    assert any("has no rule that fits" in note for note in without.notes)
    for group in without.groups:  # each of its units moves a set of places that some group with the rule moves, too
        assert any({(p.tensor, p.axis) for p in other.places} >= {(p.tensor, p.axis) for p in group.places}
                   and other.log10_members >= group.log10_members for other in with_rule.groups)
    assert sum(g.log10_members for g in without.groups) <= sum(g.log10_members for g in with_rule.groups) + 1e-9
