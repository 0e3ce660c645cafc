"""The .pt2 reader: the graph it gives computes what the module computes, for any batch; everything stored is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_models import Mlp, Named, Nested, NoGrad, ResNetLike, Sequence, Tied, save_export
from torch import nn
from torch.export import Dim

from cipm.errors import CorruptFile, NotFound, UnsupportedModel
from cipm.load import content_hash, describe, load
from cipm.load.ops import op_name
from cipm.load.pt2 import CONSTANT
from cipm.load.symbols import evaluate, parse
from cipm.symmetry import discover_groups, prove
from cipm.trace import from_json, run, to_json


class Standardised(nn.Module):
    """A convolution whose filters have mean 0 and variance 1, by a batch norm over the weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = nn.functional.batch_norm(self.conv.weight.reshape(1, 6, -1), None, None, training=True)
        x = nn.functional.conv2d(x, weight.reshape_as(self.conv.weight), self.conv.bias)
        return self.head(x.relu().mean((2, 3)))


CASES: dict[str, tuple[type[nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "mlp": (Mlp, (torch.randn(3, 6),), {}),
    "resnet-like": (ResNetLike, (torch.randn(2, 3, 8, 8),), {}),
    "gru and attention": (Sequence, (torch.randn(2, 5, 4),), {}),
    "tied": (Tied, (torch.randint(0, 10, (2, 5)),), {}),
    "no_grad and in-place": (NoGrad, (torch.randn(2, 8),), {}),
    "weight standardisation": (Standardised, (torch.randn(2, 3, 8, 8),), {}),
}


def _outputs(checkpoint: Any, *inputs: torch.Tensor) -> list[torch.Tensor | None]:
    named = {i.name: value for i, value in zip(checkpoint.graph.inputs, inputs, strict=True)}
    return list(run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, named))


@pytest.mark.parametrize("decompose", ["no", "functional", "core"])
@pytest.mark.parametrize("name", CASES)
def test_graph_computes_the_module(name: str, decompose: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls, args, _ = CASES[name]
    module = cls().eval()
    checkpoint = load(save_export(module, tmp_path / "m.pt2", args, decompose=decompose))
    for batch in (1, 2, 7):
        x = torch.cat([args[0]] * 4)[:batch]
        expected = torch.utils._pytree.tree_leaves(module(x))
        for got, want in zip(_outputs(checkpoint, x), expected, strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_stored_tensor_is_kept_bit_for_bit(name: str, tmp_path: Path) -> None:
    cls, args, _ = CASES[name]
    module = cls().eval()
    checkpoint = load(save_export(module, tmp_path / "m.pt2", args))
    state = module.state_dict()
    tables = {key for key in checkpoint.tensors if key.startswith(CONSTANT)}
    assert (set(checkpoint.tensors) - tables) | set(checkpoint.aliases) == set(state)
    assert tables <= set(checkpoint.origin["buffers"])
    for key, value in state.items():
        stored = checkpoint.tensors[checkpoint.aliases.get(key, key)]
        assert stored.dtype == value.dtype and torch.equal(stored, value)


def test_filters_that_are_standardised_are_channels(tmp_path: Path) -> None:
    module = Standardised().eval()
    checkpoint = load(save_export(module, tmp_path / "m.pt2", CASES["weight standardisation"][1]))
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    group, = symmetry.groups
    assert (group.kind, group.size, group.proved) == ("channels", 6, True) and not symmetry.notes


def test_a_batch_norm_of_activations_without_statistics_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedModel) as refused:
        load(save_export(module, tmp_path / "m.pt2", (torch.randn(5, 4),)))
    assert refused.value.message == (
        "aten.batch_norm.default keeps no running statistics and normalises by those of the batch at hand, in either mode: "
        "each row's result depends on the other rows.")
    assert "track_running_stats=True" in refused.value.fix


def test_tied_weights_are_one_key_and_an_alias(tmp_path: Path) -> None:
    checkpoint = load(save_export(Tied(), tmp_path / "m.pt2", CASES["tied"][1]))
    assert checkpoint.aliases == {"out.weight": "embed.weight"}
    assert set(checkpoint.tensors) == {"embed.weight", "unused", "table", "constant:lifted_tensor_0"}
    assert set(checkpoint.constants) == {"scale"}
    assert set(checkpoint.graph.tensors.values()) == {"embed.weight", "unused", "table", "constant:lifted_tensor_0"}


def test_graph_is_functional_and_keeps_whole_layers(tmp_path: Path) -> None:
    path = save_export(ResNetLike().eval(), tmp_path / "m.pt2", CASES["resnet-like"][1])
    ops = {node.op for node in load(path).graph.nodes}
    assert {"aten.conv2d.default", "aten.linear.default", "aten._native_batch_norm_legit_no_training.default"} <= ops
    assert not any(op.split(".")[1].endswith("_") for op in ops if op.startswith("aten.")) and "aten.dropout.default" not in ops
    path = save_export(Sequence().eval(), tmp_path / "s.pt2", CASES["gru and attention"][1])
    ops = {node.op for node in load(path).graph.nodes}
    assert {"aten.layer_norm.default", "aten.scaled_dot_product_attention.default", "aten.gru.input"} <= ops


def test_graph_survives_json(tmp_path: Path) -> None:
    checkpoint = load(save_export(ResNetLike().eval(), tmp_path / "m.pt2", CASES["resnet-like"][1]))
    assert from_json(json.loads(json.dumps(to_json(checkpoint.graph)))) == checkpoint.graph
    assert json.loads(json.dumps(dict(checkpoint.origin))) == checkpoint.origin


def test_sizes_have_names(tmp_path: Path) -> None:
    batch, length = Dim("b"), Dim("length", max=64)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    checkpoint = load(save_export(module, tmp_path / "m.pt2", (torch.randn(2, 5, 4),), dynamic=({0: batch, 1: length},)))
    assert checkpoint.graph.inputs[0].shape == ("batch", "size2", 4)
    assert checkpoint.origin["samples"]["input"]["dynamic"]["1"][1:] == [0, 64]


def test_two_inputs_share_one_size(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.sum(1), y.mean(1)

    b = Dim("b")
    checkpoint = load(save_export(Two(), tmp_path / "m.pt2", (torch.randn(2, 3), torch.randn(2, 4)), dynamic=({0: b}, {0: b})))
    assert [i.shape for i in checkpoint.graph.inputs] == [("batch", 3), ("batch", 4)]
    checkpoint = load(save_export(Two(), tmp_path / "n.pt2", (torch.randn(2, 3), torch.randn(2, 4)),
                                  dynamic=({0: b}, {0: Dim("c")})))
    assert [i.shape for i in checkpoint.graph.inputs] == [("batch", 3), ("size2", 4)]


def test_static_and_derived_sizes(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x]) + y

    b = Dim("b")
    checkpoint = load(save_export(Twice(), tmp_path / "m.pt2", (torch.randn(3, 2), torch.randn(6, 2)),
                                  dynamic=({0: b}, {0: 2 * b})))
    assert [i.shape for i in checkpoint.graph.inputs] == [("batch", 2), ("2*batch", 2)]
    checkpoint = load(save_export(Twice(), tmp_path / "n.pt2", (torch.randn(3, 2), torch.randn(6, 2)), dynamic=None))
    assert [i.shape for i in checkpoint.graph.inputs] == [(3, 2), (6, 2)]


def test_inputs_are_named_as_in_the_signature(tmp_path: Path) -> None:
    module = Named()
    kwargs = {"scale": torch.randn(2, 3), "list": torch.randn(3)}
    x = torch.randn(2, 4)
    checkpoint = load(save_export(module, tmp_path / "m.pt2", (x,), kwargs, dynamic=None))
    assert [i.name for i in checkpoint.graph.inputs] == ["input", "scale", "list"]
    assert (checkpoint.origin["args"], checkpoint.origin["kwargs"]) == (["input"], ["scale", "list"])
    torch.testing.assert_close(_outputs(checkpoint, x, kwargs["scale"], kwargs["list"])[0], module(x, **kwargs).detach())


def test_nested_inputs_are_flattened_in_order(tmp_path: Path) -> None:
    module, x, y = Nested(), torch.randn(2, 4), torch.randn(2, 4)
    checkpoint = load(save_export(module, tmp_path / "m.pt2", ([x, {"a": y}],), dynamic=None))
    assert [i.name for i in checkpoint.graph.inputs] == ["pair_0", "pair_1_a"]
    torch.testing.assert_close(_outputs(checkpoint, x, y)[0], module([x, {"a": y}])[0].detach())
    assert checkpoint.origin["notes"] == ["Nested or constant inputs of the model are passed one tensor after the other in "
                                          "the exported file."]


def test_half_precision_is_kept(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU()).bfloat16()
    x = torch.randn(2, 4).bfloat16()
    checkpoint = load(save_export(module, tmp_path / "m.pt2", (x,)))
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.bfloat16}
    assert torch.equal(_outputs(checkpoint, x)[0], module(x).detach())


def test_a_file_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    path = save_export(Mlp(), tmp_path / "m.pt2", (torch.randn(2, 6),))
    renamed = path.rename(tmp_path / "photo.png")
    assert describe(renamed) == "a torch.export archive"
    checkpoint = load(renamed)
    assert checkpoint.format == "pt2" and checkpoint.sha256 == content_hash(renamed)
    with pytest.raises(NotFound, match="There is no file or folder 'm.pt2'"):
        load(path)


@pytest.mark.parametrize(("text", "sizes", "value"), [
    ("Symbol('s77', positive=True, integer=True)", {"s77": 5}, 5),
    ("Mul(Integer(2), Symbol('s0', integer=True))", {"s0": 4}, 8),
    ("Add(Symbol('s0'), Symbol('s1'), Integer(-1))", {"s0": 4, "s1": 2}, 5),
    ("FloorDiv(Add(Symbol('s0'), Integer(3)), Integer(2))", {"s0": 4}, 3),
    ("Pow(Symbol('s0'), Integer(2))", {"s0": 4}, None),
])
def test_size_expressions(text: str, sizes: dict[str, int], value: int | None) -> None:
    assert evaluate(parse(text), sizes) == value


@pytest.mark.parametrize("text", [
    "", "s0", "Symbol(s0)", "Symbol('s0'", "Symbol('s0') Symbol('s1')", "Symbol('__class__')", "open('x')", "Integer(2).real",
    "Symbol('s0', positive=open)", "Add(" * 100, "Lambda(Symbol('s0'), Integer(1))", "Integer(1 if 1 else 2)", "'s0'", "2",
    "Symbol('s0')\nimport os", "Symbol(\"s0\")", "Function('f')", "eval('1')", "Integer(1))",
])
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(CorruptFile, match="is not integer arithmetic"):
        parse(text)


def test_operators_without_side_effects_only() -> None:
    assert op_name("torch.ops.aten.linear.default") == "aten.linear.default"
    assert op_name("_operator.getitem") == "getitem"
    assert op_name("torch.ops.aten._assert_scalar.default") is None
    for target in ("torch.ops.aten.set_.source_Tensor", "torch.ops.aten.resize_.default", "torch.ops.aten.add.out",
                   "torch.ops.aten.from_file.default", "torch.ops.aten._print.default", "torch.ops.aten.randn.default",
                   "torch.ops.prim.device.default", "torch.ops.aten.linear", "aten.linear.default", "builtins.eval",
                   "_operator.methodcaller", "_operator.attrgetter", "math.__dict__", "torch.load", "torch.hub.load",
                   "torch.ops.aten.convolution_backward.default", "torch.ops.aten.nothing.default"):
        with pytest.raises(Exception, match="The model (uses the operator|draws random numbers)"):
            op_name(target)
