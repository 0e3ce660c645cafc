"""Pruned files: the formats' own tools load them, and they compute what the masked model computes."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_files import Recurrent, ort, relative, save_onnx
from safetensors.torch import load_file, save_file

from cipm.errors import Conflict, UnsupportedModel
from cipm.export import export_pruned, read_plan, restore
from cipm.load import Checkpoint, load
from cipm.pruning import masked, shrink
from cipm.symmetry import Symmetry, discover_groups
from cipm.testing.models import cnn_residual, mlp, quiet, save_huggingface, save_pt2
from cipm.trace import run


def halved(symmetry: Symmetry, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a random half of the units of every group."""
    generator = np.random.default_rng(seed)
    return {group.name: np.sort(generator.choice(group.size, group.size // 2, replace=False)) for group in symmetry.groups}


def reference(checkpoint: Checkpoint, symmetry: Symmetry, keep: dict[str, np.ndarray], **inputs: torch.Tensor) -> torch.Tensor:
    """Return what the masked model computes."""
    model, intervene = masked(checkpoint, symmetry, keep)
    return run(model.graph, model.tensors, model.constants, inputs, intervene=intervene)[0]


@pytest.mark.parametrize(("model", "shape"), [(mlp((64, 40, 30, 10)), (64,)), (cnn_residual(1, 8), (1, 8, 8))],
                         ids=["mlp", "cnn"])
def test_a_pruned_pt2_file_is_the_masked_model(model: torch.nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    source = save_pt2(model, torch.zeros(2, *shape), tmp_path / "m.pt2")
    checkpoint = load(source)
    symmetry = discover_groups(checkpoint)
    keep = halved(symmetry)
    small = shrink(checkpoint, symmetry, keep)
    out = export_pruned(small, source, tmp_path / "out.pt2", details={"loss": {"after": 0.25, "rows": 100}})
    x = torch.randn(7, *shape)
    program = torch.export.load(out)
    torch.testing.assert_close(program.module()(x), reference(checkpoint, symmetry, keep, x=x), rtol=1e-5, atol=1e-6)
    assert sum(t.numel() for t in program.state_dict.values()) < 0.45 * sum(t.numel() for t in model.state_dict().values())
    record = read_plan(out)[1]
    assert record["pruned"]["keep"] == {name: units.tolist() for name, units in keep.items()}
    assert record["pruned"]["loss"] == {"after": 0.25, "rows": 100} and record["certificate"]["max_rel"] <= 1e-10
    with pytest.raises(Conflict, match="The model was pruned: what was removed is not in the file"):
        restore(out, tmp_path / "back.pt2")


def test_keeping_everything_gives_every_bit(tmp_path: Path) -> None:
    source = save_pt2(mlp((8, 6, 3)), torch.zeros(2, 8), tmp_path / "m.pt2")
    checkpoint = load(source)
    out = export_pruned(shrink(checkpoint, discover_groups(checkpoint), {"layers.0": range(6)}), source, tmp_path / "out.pt2")
    again = torch.export.load(out).state_dict
    assert all(torch.equal(again[key], tensor) for key, tensor in checkpoint.tensors.items())


@pytest.mark.parametrize(("make", "shape", "dynamo"), [
    (lambda: mlp((16, 24, 20, 5)).double(), (2, 16), True), (lambda: cnn_residual(1, 8), (2, 1, 8, 8), False),
    (lambda: Recurrent("LSTM"), (2, 6, 5), False)], ids=["float64", "convolutions", "lstm"])
def test_onnxruntime_computes_the_masked_model(make: Any, shape: Any, dynamo: bool, tmp_path: Path) -> None:
    model = make().eval()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    checkpoint = load(save_onnx(model, x, tmp_path / "m.onnx", dynamo=dynamo))
    symmetry = discover_groups(checkpoint)
    keep = halved(symmetry)
    out = export_pruned(shrink(checkpoint, symmetry, keep), tmp_path / "m.onnx", tmp_path / "out.onnx")
    before, after = onnx.load(tmp_path / "m.onnx"), onnx.load(out)
    assert [i.name for i in after.graph.input] == [i.name for i in before.graph.input]
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    x = torch.randn(5, *shape[1:], dtype=x.dtype)
    wanted = reference(checkpoint, symmetry, keep, **{checkpoint.graph.inputs[0].name: x}).numpy()
    made, = ort(out, {before.graph.input[0].name: x.numpy()})
    assert relative(made, wanted) <= (1e-10 if x.dtype is torch.float64 else 1e-5)
    stored = [sum(np.prod(tensor.dims) for tensor in model.graph.initializer) for model in (before, after)]
    assert stored[1] < 0.6 * stored[0]
    assert read_plan(out)[1]["pruned"]["keep"] == {name: units.tolist() for name, units in keep.items()}


Known = tuple[Path, Checkpoint, Symmetry]


def known(kind: str, folder: Path) -> Known:
    """Write a tiny transformers model; return its folder and what is known of it."""
    save_huggingface(kind, folder)
    checkpoint = load(folder)
    return folder, checkpoint, discover_groups(checkpoint)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return known("llama", tmp_path_factory.mktemp("llama") / "m")


def hub_inputs(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return random tokens, all of them attended to."""
    ids = torch.randint(0, 97, (2, 9))
    return {i.name: ids if i.name == "input_ids" else torch.ones_like(ids) for i in checkpoint.graph.inputs}


def check_folder(source: Known, keep: dict[str, np.ndarray], config: dict[str, int], out: Path) -> None:
    """Prune a folder and compare what transformers loads with the masked model."""
    folder, checkpoint, symmetry = source
    export_pruned(shrink(checkpoint, symmetry, keep), folder, out)
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text()) | config
    with quiet():
        model = getattr(importlib.import_module("transformers"), checkpoint.origin["architecture"]).from_pretrained(out).eval()
    inputs = hub_inputs(checkpoint)
    torch.testing.assert_close(model(**inputs).logits, reference(checkpoint, symmetry, keep, **inputs), rtol=1e-4, atol=1e-5)
    assert read_plan(out)[1]["pruned"]["keep"] == {name: units.tolist() for name, units in keep.items()}


def test_transformers_loads_fewer_heads_and_units(llama: Known, tmp_path: Path) -> None:
    names = [group.name for group in llama[2].groups]
    heads, units = ([name for name in names if name.endswith(end)] for end in ("q_proj.heads", "gate_proj"))
    keep = {name: np.array([number]) for number, name in enumerate(heads)} | {
        name: np.sort(np.random.default_rng(number).choice(80, 50, replace=False)) for number, name in enumerate(units)}
    assert len(keep) == 4
    check_folder(llama, keep, {"intermediate_size": 50, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
                 tmp_path / "out")


def test_a_width_that_the_configuration_did_not_say_is_said(tmp_path: Path) -> None:
    source = known("gpt2", tmp_path / "m")
    keep = {group.name: np.arange(0, group.size, 3) for group in source[2].groups if group.name.endswith("mlp.c_fc")}
    check_folder(source, keep, {"n_inner": 64}, tmp_path / "out")


def test_widths_that_differ_are_no_class_of_transformers(llama: Known, tmp_path: Path) -> None:
    folder, checkpoint, symmetry = llama
    one, two = (group.name for group in symmetry.groups if group.name.endswith("gate_proj"))
    small = shrink(checkpoint, symmetry, {one: range(40), two: range(60)})
    with pytest.raises(UnsupportedModel) as caught:
        export_pruned(small, folder, tmp_path / "out")
    assert caught.value.message.startswith(
        "The pruned model is no LlamaForCausalLM of transformers: its config.json has one width for all layers, and no change "
        "of it fits: Stored tensors do not fit LlamaForCausalLM of config.json (6): model.layers.0.mlp.")
    assert caught.value.fix == "Write it as pt2 or onnx, or choose one width for all layers."
    assert list(tmp_path.iterdir()) == []
    inputs = hub_inputs(checkpoint)
    made = torch.export.load(export_pruned(small, folder, tmp_path / "out.pt2", form="pt2")).module()(*inputs.values())
    wanted = reference(checkpoint, symmetry, {one: np.arange(40), two: np.arange(60)}, **inputs)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".zip"])
def test_weights_alone_are_written_smaller(suffix: str, tmp_path: Path) -> None:
    model = mlp((12, 9, 7, 4))
    source = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), source, {"activation": "relu", "epoch": "3"})
    else:
        torch.save(model.state_dict(), tmp_path / "w.pt")
    if suffix == ".zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(tmp_path / "w.pt", "w.pt")
            archive.writestr("architecture.json", json.dumps({"family": "mlp", "activation": "tanh"}))
    checkpoint = load(source)
    symmetry = discover_groups(checkpoint)
    keep = halved(symmetry)
    small = shrink(checkpoint, symmetry, keep)
    out = export_pruned(small, source, tmp_path / f"out{suffix}")
    if suffix == ".zip":
        zipfile.ZipFile(out).extract("w.pt", tmp_path / "there")
    weights = load_file(out) if suffix == ".safetensors" else torch.load(tmp_path / "there/w.pt" if suffix == ".zip" else out)
    assert list(weights) == list(model.state_dict()) or suffix == ".safetensors"
    assert all(torch.equal(weights[key], tensor) for key, tensor in small.checkpoint.tensors.items())
    x = torch.randn(3, 12)
    again = load(out)
    torch.testing.assert_close(run(again.graph, again.tensors, again.constants, {"x": x})[0],
                               reference(checkpoint, symmetry, keep, x=x))
    assert read_plan(out)[1]["pruned"]["keep"] == {name: units.tolist() for name, units in keep.items()}
    program = torch.export.load(export_pruned(small, source, tmp_path / "out.pt2", form="pt2")).module()
    torch.testing.assert_close(program(x), reference(checkpoint, symmetry, keep, x=x))


def test_a_format_that_the_upload_has_not_is_refused(tmp_path: Path) -> None:
    source = save_pt2(mlp((8, 6, 3)), torch.zeros(2, 8), tmp_path / "m.pt2")
    checkpoint = load(source)
    small = shrink(checkpoint, discover_groups(checkpoint), {"layers.0": range(3)})
    with pytest.raises(UnsupportedModel, match="A model uploaded as pt2 cannot be written as huggingface.") as caught:
        export_pruned(small, source, tmp_path / "out", form="huggingface")
    assert caught.value.fix == "Choose pt2, onnx."
