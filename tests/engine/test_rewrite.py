"""Traced programs made functional node by node: they compute what the module computes; what is not known is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cipm.load.retrace import Sample, export_program, functional
from cipm.load.rewrite import rewrite
from cipm.trace import run

FREE = {0: ("batch", 1, 64)}


class Computes(nn.Module):
    """A module of one function of x [batch, 6, 4] and a weight [4, 4]."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


def turned_off(x, weight):
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        angle = (x.float() @ weight).cos()
    return x * angle


def views(x, weight):
    y = nn.functional.linear(x, weight)
    halves = y.unflatten(-1, (2, 2)).transpose(1, 2).flatten(2).chunk(2, dim=1)
    return halves[0].expand_as(halves[1]).contiguous() + halves[1].to(torch.float32) + y.flatten(1).sum().to(x.dtype)


def strides(x, weight):
    turned = nn.functional.linear(x, weight).transpose(1, 2)
    return turned.reshape(x.shape[0], -1), turned.contiguous().view(x.shape[0], 3, 8)


def like_others(x, weight):
    y = nn.functional.linear(x, weight)
    waves = torch.fft.fft(y, dim=1)
    return torch.broadcast_to(weight[0], x.shape) * y.transpose(1, 2).reshape_as(x), torch.real(waves) + torch.real(y)


def literals(x, weight):
    return nn.functional.dropout(x, 0.5, training=False) @ weight + torch.tensor([1.0, 2.0, 3.0, 4.0])


def in_place(x, weight):
    y = nn.functional.linear(x, weight)
    y += 1
    return y.relu_()


def read_before(x, weight):
    y = nn.functional.linear(x, weight)
    total = y.sum()
    y.mul_(2)
    return y + total


def through_views(x, weight):
    y = nn.functional.linear(x, weight)
    y[:, 0].add_(1)
    for i in range(1, 4):  # as gated delta rules fill a triangle
        y[..., i, :i] = y[..., i, :i] + (y[..., i, :i, None] * y[..., :i, :i]).sum(-2)
    turned = y.transpose(1, 2)
    return turned.sum(1), y


def part_filled(x, weight):
    y = nn.functional.linear(x, weight)
    y[:, 1:3].masked_fill_(y[:, 3:5] > 0, 2)
    y[:, ::2, 0] = 1
    return y.relu_() + weight[0]


def view_read_after(x, weight):
    y = nn.functional.linear(x, weight)
    first = y[:, 0]
    y[:, :2].mul_(2)
    return first + y[:, 1]


def result_is_written(x, weight):
    y = nn.functional.linear(x, weight)
    y[:, 0].add_(1)[:, 1].mul_(3)
    return y


def other_type(x, weight):
    y = nn.functional.linear(x, weight)
    y.add_(weight.double()[0])
    return y


def read_after(x, weight):
    y = nn.functional.linear(x, weight)
    z = y.add_(1)
    return y * z


def of_an_input(x, weight):
    return x.clone().mul_(2) + nn.functional.linear(x, weight).view(x.shape).add_(x)


@pytest.mark.parametrize(("function", "known"), [
    (turned_off, True), (views, True), (strides, True), (like_others, True), (literals, True), (in_place, True),
    (read_before, True), (read_after, True), (through_views, True), (part_filled, True), (view_read_after, False),
    (result_is_written, False), (other_type, False), (of_an_input, False)])
def test_a_program_computes_the_same(function, known):
    torch.manual_seed(0)
    module = Computes(function).eval()
    samples = {"x": Sample((3, 6, 4), torch.float32, FREE)}
    assert rewrite(export_program(module, samples)) is known
    graph, constants = functional(export_program(module, samples), samples)
    x = torch.randn(5, 6, 4)
    with torch.no_grad():
        expected = module(x)
    found = run(graph, {"weight": module.weight.detach()}, constants, {"x": x})
    for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_batch_norm_is_what_torch_makes_of_it():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Dropout(0.3)).eval()
    module[1].running_mean.normal_()
    samples = {"input": Sample((2, 3, 8, 8), torch.float32, FREE)}
    program = export_program(module, samples)
    assert rewrite(program)
    graph, constants = functional(program, samples)
    decomposed = export_program(module, samples).run_decompositions({})
    ops = [str(node.target) for node in decomposed.graph.nodes if node.op == "call_function"]
    assert [node.op for node in graph.nodes] == [op.replace("<built-in function getitem>", "getitem") for op in ops
                                                 if "clone" not in op]
    x = torch.randn(4, 3, 8, 8)
    tensors = {key: tensor.detach() for key, tensor in module.state_dict().items()}
    torch.testing.assert_close(run(graph, tensors, constants, {"input": x})[0], module(x).detach(), rtol=0, atol=0)
