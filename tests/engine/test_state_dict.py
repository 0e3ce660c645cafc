"""Weights without a model: every layer type and family computes what torch's own modules do; files are written back whole."""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call

from cipm.errors import InputError
from cipm.export import export, read_plan, restore
from cipm.load import Checkpoint, load
from cipm.load.families import FAMILIES, family_layers
from cipm.load.layer_modules import Layers
from cipm.load.layers import KINDS, Names, parse_layers
from cipm.load.region import Ranges
from cipm.load.torch_file import read_torch_file
from cipm.permutation import Permutation, Plan
from cipm.testing.networks import randomize
from cipm.testing.networks_residual import BasicBlock, Bottleneck, ResNet, Vgg
from cipm.testing.networks_sequence import Recurrent


def computed(items: list[Any], tensors: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
    """Return what a description computes with these tensors."""
    names = Names({key: tensor.to("meta") for key, tensor in tensors.items()})
    module = Layers(parse_layers(items, names), names.metas, torch.float32)
    return functional_call(module, {name: tensors[key] for name, key in module.keys().items()}, x)


def family(name: str, values: dict[str, Any], tensors: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
    """Return what a family computes with these tensors."""
    names = Names({key: tensor.to("meta") for key, tensor in tensors.items()})
    return computed(family_layers(name, values, names)[0], tensors, x)


def random_module(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    return module.eval()


X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 8, 10), torch.randn(2, 4, 6, 5, 7)
W = {"weights": "m"}
LAYERS: dict[str, tuple[dict[str, Any], nn.Module, torch.Tensor]] = {
    "linear": ({**W}, nn.Linear(9, 3), X1),
    "conv 1-D": ({**W, "type": "conv", "stride": 2, "padding": 1}, nn.Conv1d(4, 6, 3, 2, 1), X1),
    "conv 2-D": ({**W, "type": "conv", "stride": [2, 1], "padding": [0, 2], "groups": 2}, nn.Conv2d(4, 6, 3, (2, 1), (0, 2),
                                                                                             groups=2), X2),
    "conv same": ({**W, "type": "conv", "padding": "same", "dilation": 2}, nn.Conv2d(4, 6, 3, padding="same", dilation=2), X2),
    "conv 3-D": ({**W, "type": "conv"}, nn.Conv3d(4, 2, 3, bias=False), X3),
    "conv_transpose": ({**W, "stride": 2, "padding": 1, "output_padding": 1}, nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), X2),
    "batch_norm": ({**W, "eps": 0.1}, nn.BatchNorm2d(4, eps=0.1), X2),
    "batch_norm plain": ({**W, "type": "batch_norm"}, nn.BatchNorm1d(4, affine=False), X1),
    "layer_norm": ({**W}, nn.LayerNorm(9), X1),
    "rms_norm": ({**W, "eps": 1e-3}, nn.RMSNorm(9, 1e-3), X1),
    "group_norm": ({**W, "groups": 2}, nn.GroupNorm(2, 4), X2),
    "prelu": ({**W}, nn.PReLU(4), X2),
    "embedding": ({**W}, nn.Embedding(7, 5), torch.randint(0, 7, (2, 6))),
    "max_pool": ({"size": 3, "stride": 2, "padding": 1, "ceil": True}, nn.MaxPool2d(3, 2, 1, ceil_mode=True), X2),
    "avg_pool": ({"size": [2, 3]}, nn.AvgPool2d((2, 3)), X2),
    "avg_pool 1-D": ({"type": "avg_pool", "size": 2}, nn.AvgPool1d(2), X1),
    "adaptive_avg_pool": ({"size": 3}, nn.AdaptiveAvgPool3d(3), X3),
    "flatten": ({}, nn.Flatten(), X2),
    "dropout": ({"p": 0.3}, nn.Dropout(0.3), X1),
    "lstm": ({**W}, nn.LSTM(9, 5, 2, batch_first=True, bidirectional=True), X1),
    "lstm bare": ({**W, "type": "lstm"}, nn.LSTM(9, 5, bias=False, batch_first=True), X1),
    "gru": ({**W}, nn.GRU(9, 5, 2, batch_first=True), X1),
    "rnn_tanh": ({**W}, nn.RNN(9, 5, batch_first=True), X1),
    "rnn_relu": ({**W}, nn.RNN(9, 5, nonlinearity="relu", batch_first=True), X1),
    **{name: ({}, module, X1) for name, module in {
        "relu": nn.ReLU(), "relu6": nn.ReLU6(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(), "silu": nn.SiLU(), "elu": nn.ELU(), "selu": nn.SELU(), "softplus": nn.Softplus(),
        "mish": nn.Mish(), "hardswish": nn.Hardswish(), "softmax": nn.Softmax(-1), "log_softmax": nn.LogSoftmax(-1),
        "identity": nn.Identity()}.items()},
    "leaky_relu": ({"slope": 0.3}, nn.LeakyReLU(0.3), X1),
}
COMPOSED = {"attention", "positions", "residual", "heads", "subsample_pad", "permute", "last", "global_avg_pool"}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_torchs_own_does(name):
    item, module, x = LAYERS[name]
    random_module(module)
    found = computed([{"type": name, **item}], {f"m.{key}": t for key, t in module.state_dict().items()}, x)
    expected = module(x)
    torch.testing.assert_close(found, expected[0] if isinstance(expected, tuple) else expected)


def test_every_layer_type_is_tested():
    assert {item.get("type", name) for name, (item, _, _) in LAYERS.items()} | COMPOSED == set(KINDS)


def test_every_layer_type_family_and_value_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    words = {*KINDS, *FAMILIES, *(name for kind in KINDS.values() for name in kind.fields if kind is not KINDS["dropout"]),
             *(name for known in FAMILIES.values() for name in known.values),
             *(part for kind in KINDS.values() for part in kind.linears)}
    assert [word for word in sorted(words) if f"`{word}`" not in page] == []


def test_layers_that_hold_layers():
    tensors = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(3, 4), "c.weight": torch.randn(2, 4)}
    x = torch.randn(2, 5, 4)
    items = [{"type": "residual", "layers": [{"type": "linear", "weights": "a"}, "relu"]}, "last",
             {"type": "heads", "branches": [[{"type": "linear", "weights": "b"}], [{"type": "linear", "weights": "c"}]]}]
    y = (x + F.relu(x @ tensors["a.weight"].T))[:, -1]
    for found, key in zip(computed(items, tensors, x), "bc", strict=True):
        torch.testing.assert_close(found, y @ tensors[f"{key}.weight"].T)


def test_shortcuts_without_weights():
    for where, before in (("both", 1), ("end", 0)):
        found = computed([{"type": "subsample_pad", "stride": 2, "channels": 6, "where": where}], {}, X2)
        assert torch.equal(found[:, before:before + 4], X2[:, :, ::2, ::2]) and found.shape == (2, 6, 4, 5)
        assert found.abs().sum((0, 2, 3)).count_nonzero() == 4
    found = computed(["global_avg_pool"], {}, X2)
    torch.testing.assert_close(found, X2.mean((2, 3)))
    assert torch.equal(computed([{"type": "permute", "order": [0, 3, 1, 2]}], {}, X2), X2.permute(0, 3, 1, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_joined_and_apart(causal):
    module = random_module(nn.MultiheadAttention(8, 2, batch_first=True))
    state, x = {key.replace("_weight", ".weight").replace("_bias", ".bias"): t for key, t in module.state_dict().items()}, \
        torch.randn(2, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    expected = module(x, x, x, attn_mask=mask, need_weights=False)[0]
    item = {"type": "attention", "heads": 2, "causal": causal, "out": "out_proj"}
    torch.testing.assert_close(computed([{**item, "qkv": "in_proj"}], state, x), expected)
    apart = {f"{name}.{leaf}": t for leaf in ("weight", "bias") for name, t in zip("qkv", state[f"in_proj.{leaf}"].chunk(3),
                                                                                strict=True)}
    item |= {"query": "q", "key": "k", "value": "v"}
    torch.testing.assert_close(computed([item], state | apart, x), expected)


def test_keras_layouts():
    dense, conv = random_module(nn.Linear(6, 6)), random_module(nn.Conv2d(4, 3, (2, 3)))
    tensors = {"dense/kernel": dense.weight.T.contiguous(), "dense/bias": dense.bias, "c.bias": conv.bias,
               "c.kernel": conv.weight.permute(2, 3, 1, 0).contiguous()}
    found = computed([{"type": "linear", "weight": "dense/kernel", "bias": "dense/bias"}], tensors, torch.ones(2, 6))
    torch.testing.assert_close(found, dense(torch.ones(2, 6)))
    torch.testing.assert_close(computed([{"type": "conv", "weights": "c"}], tensors, X2), conv(X2))


# --- families ---------------------------------------------------------------------------------------------------------

def published(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a ResNet's tensors under the names of torchvision."""
    changes = {r"^stem\.0": "conv1", r"^stem\.1": "bn1", r"norm": "bn", "shortcut": "downsample", "^head": "fc"}
    found = {}
    for key, tensor in model.state_dict().items():
        name = re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", key)
        for old, new in changes.items():
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def _residual(block: Any, large: bool, **options: Any) -> nn.Module:
    model = ResNet(block, (2, 1), (6, 8), 5, large=large, expansion=block.expansion, **options).eval()
    randomize(model, 0)
    return model


@pytest.mark.parametrize(("name", "model", "side"), [
    ("resnet", _residual(Bottleneck, True), 40), ("resnet", _residual(BasicBlock, True), 40),
    ("resnet_cifar", _residual(BasicBlock, False), 16)])
def test_residual_families(name, model, side):
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(family(name, {}, {f"module.{k}": t for k, t in published(model).items()}, x), model(x))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_vgg_family(norm):
    plan = (3, "M", 4, "M", 4, 4, "M", 5, 5, "M", 5, 5, "M")
    model = Vgg(plan, (7, 6), norm=norm, last=2).eval()
    randomize(model, 0)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(family("vgg", {}, model.state_dict(), x), model(x))


@pytest.mark.parametrize(("name", "cell"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)])
def test_recurrent_families(name, cell):
    model = random_module(Recurrent(cell, 11, 6, 5, both_ways=name == "gru"))
    x = torch.randint(0, 11, (3, 7))
    torch.testing.assert_close(family(name, {"output": "last"}, model.state_dict(), x), model(x))


def test_perceptron_with_norms():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 7), nn.LayerNorm(7),
                          nn.Tanh(), nn.Linear(7, 2), nn.Softmax(-1))
    randomize(model.eval(), 0)
    x = torch.randn(4, 5)
    values = {"activation": "tanh", "output_activation": "softmax"}
    torch.testing.assert_close(family("mlp", values, model.state_dict(), x), model(x))


def test_layers_counted_by_name_where_the_file_sorts_them():
    widths = [4, *range(5, 16), 3]
    tensors = {f"fc{i}.weight": torch.randn(b, a) for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False), 1)}
    x = y = torch.randn(2, 4)
    for i in range(1, len(widths)):
        y = y @ tensors[f"fc{i}.weight"].T
        y = F.relu(y) if i < len(widths) - 1 else y
    torch.testing.assert_close(family("mlp", {}, dict(sorted(tensors.items())), x), y)


# --- files ------------------------------------------------------------------------------------------------------------

def all_axes(checkpoint: Checkpoint, seed: int = 0) -> Plan:
    """Return a plan that moves every axis of every tensor: no symmetry, but it must be undone bit for bit."""
    generator = np.random.default_rng(seed)
    return Plan({(key, axis): Permutation.random(size, generator=generator) for key in checkpoint.tensors
                 for axis, size in enumerate(checkpoint.meta(key).shape)}, {})


def same(a: Any, b: Any) -> bool:
    """Tell whether two nested values are of the same types and bits, order of keys included."""
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def training_file() -> dict[str, Any]:
    """Return what a training script saves: a state dict of views, a tie, parameters and a mask, and its optimiser's state."""
    flat = torch.arange(40.0)
    model = nn.Linear(4, 3)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimiser.step()
    state = OrderedDict({"module.a.weight": flat[:20].view(5, 4), "module.a.bias": flat[20:25],
                         "module.b.weight": torch.randn(5, 3, dtype=torch.float64).t(),
                         "module.b.bias": nn.Parameter(torch.ones(3)), "module.mask": torch.zeros(1, 3).expand(3, 3),
                         "module.count": torch.tensor(7)})
    state["module.c.weight"] = state["module.b.weight"]
    return {"epoch": 3, "state_dict": state, "best": (0.5, None, [True, -2**40]), "optimizer": optimiser.state_dict()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_training_file_is_written_back_whole(tmp_path, legacy, packed):
    torch.manual_seed(0)
    saved, path = training_file(), tmp_path / "w.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    if packed:
        layers = [{"type": "linear", "weights": "a"}, "relu", {"type": "linear", "weights": "b"}]
        with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "w.pt")
            archive.writestr("architecture.json", json.dumps({"layers": layers}))
        path = tmp_path / "w.zip"
    else:
        saved["state_dict"] = OrderedDict((key, t) for key, t in saved["state_dict"].items()
                                          if key not in ("module.mask", "module.count", "module.c.weight"))
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = load(path)
    assert checkpoint.aliases == ({"module.c.weight": "module.b.weight"} if packed else {})
    assert any("optimiser's state" in note for note in checkpoint.origin["notes"])
    plan = all_axes(checkpoint)
    out = export(checkpoint, path, plan, None, tmp_path / f"out{path.suffix}")
    found = torch.load(unpacked(out, tmp_path / "out"), weights_only=True)
    moved = saved["state_dict"] | plan.apply(dict(checkpoint.tensors))
    moved |= {key: moved[of] for key, of in checkpoint.aliases.items()}
    assert list(found) == list(saved) and same(found["optimizer"], saved["optimizer"])
    assert all(torch.equal(found["state_dict"][key], tensor) for key, tensor in moved.items())
    assert all(found["state_dict"][a].data_ptr() == found["state_dict"][b].data_ptr() for a, b in checkpoint.aliases.items())
    assert read_plan(out)[0] == plan
    back = restore(out, tmp_path / f"back{path.suffix}")
    assert same(torch.load(unpacked(back, tmp_path / "back"), weights_only=True), saved)
    if legacy and not packed:
        assert back.read_bytes() == path.read_bytes()


def unpacked(path: Path, folder: Path) -> Path:
    """Return the weights file of an upload."""
    if path.suffix != ".zip":
        return path
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder / "w.pt"


def test_exports_of_torch_files_can_be_mapped_into_memory(tmp_path):
    state = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict()
    torch.save(state, tmp_path / "w.pt")
    checkpoint = load(tmp_path / "w.pt")
    out = export(checkpoint, tmp_path / "w.pt", Plan({}, {}), None, tmp_path / "out.pt")
    mapped = torch.load(out, mmap=True, weights_only=True)
    assert same(mapped, state) and all(t.data_ptr() % 64 == 0 for t in mapped.values())


def test_a_folder_stays_one(tmp_path):
    (tmp_path / "m").mkdir()
    save_file({"fc1.weight": torch.randn(4, 6), "fc2.weight": torch.randn(3, 4)}, tmp_path / "m" / "w.safetensors")
    (tmp_path / "m" / "architecture.json").write_text('{"family": "mlp", "activation": "tanh"}')
    (tmp_path / "m" / "README.md").write_text("a model")
    checkpoint = load(tmp_path / "m")
    out = export(checkpoint, tmp_path / "m", all_axes(checkpoint), None, tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "architecture.json", "cipm.json", "w.safetensors"]
    back = restore(out, tmp_path / "back")
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), legacy=st.booleans())
def test_damaged_files_are_read_or_refused(tmp_path_factory, seed, legacy):
    path = tmp_path_factory.mktemp("damage") / "w.pt"
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "lr": 0.1}, path, _use_new_zipfile_serialization=not legacy)
    data, generator = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(generator.choice((1, 2, 20))):
        data[generator.randrange(len(data) if generator.random() < 0.3 else 500)] = generator.randrange(256)
    path.write_bytes(data)
    try:
        file = read_torch_file(Ranges.of_file(path))
        assert all(t.dtype == file.tensors.metas[key].dtype for key, t in file.tensors.items())
    except InputError as error:
        assert error.message and "\n" not in error.line()
