"""ONNX written back: onnxruntime computes the same, everything but the values stays, and restore gives every bit back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import encoder, ort, relative, rounded, save_onnx

from cipm.cli import main
from cipm.errors import CorruptFile, UnknownFormat
from cipm.export import export, read_plan, restore
from cipm.export import onnx as writer
from cipm.load import Checkpoint, content_hash, load
from cipm.permutation import Permutation, Plan
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import cnn_residual, mlp

CERTIFICATE = {"passed": True, "max_rel": 1e-12}


def random_plan(checkpoint: Checkpoint, seed: int = 0) -> Plan:
    """Return a plan that moves most axes at random: no symmetry, but it must be undone bit for bit."""
    generator = np.random.default_rng(seed)
    return Plan({(key, axis): Permutation.random(length, generator=generator) for key, tensor in checkpoint.tensors.items()
                 for axis, length in enumerate(tensor.shape) if generator.random() < 0.8}, {})


def contents(model: onnx.ModelProto) -> dict[str, bytes]:
    """Return the serialised initialisers and Constant values, by name."""
    constants = {n.output[0]: n.attribute[0].SerializeToString() for n in model.graph.node if n.op_type == "Constant"}
    return constants | {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}


def without_values(model: onnx.ModelProto) -> bytes:
    """Return all of a model but the values of its tensors and the record."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in [*copy.graph.initializer, *(n.attribute[0].t for n in copy.graph.node if n.op_type == "Constant")]:
        for field in ("raw_data", "float_data", "double_data", "int32_data"):
            tensor.ClearField(field)
    for entry in [entry for entry in copy.metadata_props if entry.key == "cipm.json"]:
        copy.metadata_props.remove(entry)
    return copy.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model by hand: raw and typed fields, a Constant node, float64 by a cast, metadata, a producer, odd names."""
    nodes = [helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(rounded(5), "inner")),
             helper.make_node("MatMul", ["x", "a/w:0"], ["h"], name="first"), helper.make_node("Add", ["h", "bias"], ["i"]),
             helper.make_node("Tanh", ["i"], ["j"]), helper.make_node("Cast", ["j"], ["k"], to=11),
             helper.make_node("MatMul", ["k", "typed64"], ["y"])]
    tensors = [numpy_helper.from_array(rounded(4, 5), "a/w:0"),
               helper.make_tensor("typed64", TensorProto.DOUBLE, [5, 3], rounded(15).astype(np.float64)),
               helper.make_tensor("typed32", TensorProto.FLOAT, [2, 3], rounded(6)),
               helper.make_tensor("half", TensorProto.FLOAT16, [4], rounded(4).astype(np.float16))]
    graph = helper.make_graph(nodes, "the graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
                              [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["n", 3])], tensors, doc_string="a text")
    model = helper.make_model(graph, ir_version=7, opset_imports=[helper.make_opsetid("", 14)], producer_name="somebody",
                              producer_version="1.2", domain="their.domain", model_version=3)
    model.metadata_props.add(key="classes", value="one,two,three")
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data file, and files that are left out or kept."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    folder.mkdir()
    save_onnx(mlp((16, 24, 20, 5)), torch.randn(2, 16), folder / "net.onnx", dynamo=True, external=True)
    for name in ("labels.txt", "script.py", "old.safetensors"):
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def small_record(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writer, "BESIDE", 100)
    yield


def test_everything_but_the_values_stays(mixed: Path, tmp_path: Path) -> None:
    checkpoint = load(mixed)
    out = export(checkpoint, mixed, random_plan(checkpoint), CERTIFICATE, tmp_path / "out.onnx", order="random")
    before, after = onnx.load(mixed), onnx.load(out)
    assert without_values(before) == without_values(after) and contents(before) != contents(after)
    assert {entry.key for entry in after.metadata_props} == {"classes", "cipm.json"}
    plan, record = read_plan(out)
    assert plan == random_plan(checkpoint) and (record["order"], record["certificate"]) == ("random", CERTIFICATE)
    assert record["source_sha256"] == content_hash(mixed)


def test_typed_fields_stay_typed(mixed: Path, tmp_path: Path) -> None:
    checkpoint = load(mixed)
    out = onnx.load(export(checkpoint, mixed, random_plan(checkpoint), None, tmp_path / "out.onnx"))
    fields = {t.name: (len(t.raw_data), len(t.float_data), len(t.double_data), len(t.int32_data))
              for t in out.graph.initializer}
    assert fields == {"a/w:0": (80, 0, 0, 0), "typed64": (0, 0, 15, 0), "typed32": (0, 6, 0, 0), "half": (0, 0, 0, 4)}


@pytest.mark.parametrize("seed", range(3))
def test_restore_gives_every_bit_back(mixed: Path, tmp_path: Path, seed: int) -> None:
    checkpoint = load(mixed)
    out = export(checkpoint, mixed, random_plan(checkpoint, seed), CERTIFICATE, tmp_path / "out.onnx")
    back = restore(out, tmp_path / "back.onnx")
    assert contents(onnx.load(back)) == contents(onnx.load(mixed))
    assert onnx.load(back).SerializeToString(deterministic=True) == onnx.load(mixed).SerializeToString(deterministic=True)


@pytest.mark.parametrize("zipped", [False, True])
def test_data_files_keep_their_layout(packed: Path, tmp_path: Path, zipped: bool) -> None:
    checkpoint = load(packed)
    out = export(checkpoint, packed, random_plan(checkpoint), None, tmp_path / ("out.zip" if zipped else "out"))
    if zipped:
        with zipfile.ZipFile(out) as archive:
            archive.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" if zipped else out
    assert {file.name for file in folder.iterdir()} == {"net.onnx", "net.onnx.data", "labels.txt"}
    before, after = (onnx.load(f / "net.onnx", load_external_data=False) for f in (packed, folder))
    assert without_values(before) == without_values(after)
    assert (folder / "net.onnx.data").stat().st_size == (packed / "net.onnx.data").stat().st_size
    assert (folder / "net.onnx.data").read_bytes() != (packed / "net.onnx.data").read_bytes()
    back = restore(out, tmp_path / ("back.zip" if zipped else "back"))
    for name in ("net.onnx", "net.onnx.data"):
        data = zipfile.ZipFile(back).read(name) if zipped else (back / name).read_bytes()
        assert data == (packed / name).read_bytes()


def test_a_large_record_lies_beside_a_packed_model(packed: Path, tmp_path: Path, small_record: None) -> None:
    checkpoint = load(packed)
    out = export(checkpoint, packed, random_plan(checkpoint), CERTIFICATE, tmp_path / "out")
    assert read_plan(out)[0] == random_plan(checkpoint) and (out / "cipm.json").exists()
    assert not onnx.load(out / "net.onnx", load_external_data=False).metadata_props
    assert (restore(out, tmp_path / "back") / "net.onnx.data").read_bytes() == (packed / "net.onnx.data").read_bytes()


@pytest.mark.parametrize(("make", "shape", "tolerance"), [
    (lambda: mlp((16, 24, 20, 5)).double(), (2, 16), 1e-10), (lambda: cnn_residual(1, 8), (2, 1, 12, 12), 1e-5),
    (encoder, (2, 7, 6), 1e-5)], ids=["float64", "convolutions", "attention"])
def test_onnxruntime_computes_the_same_from_a_reorganised_file(make: Any, shape: Any, tolerance: float, tmp_path: Path) -> None:
    model = make()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    source = save_onnx(model, x, tmp_path / "model.onnx", dynamo=False)
    checkpoint = load(source)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
    out = export(checkpoint, source, plan, CERTIFICATE, tmp_path / "out.onnx")
    assert any(not torch.equal(t, checkpoint.tensors[key]) for key, t in load(out).tensors.items())
    for rows in (1, 5):
        inputs = {"x": np.random.default_rng(rows).random((rows, *shape[1:])).astype(x.numpy().dtype)}
        assert relative(ort(out, inputs)[0], ort(source, inputs)[0]) <= tolerance


def test_a_file_without_a_record_has_no_plan(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="'mixed.onnx' carries no plan"):
        restore(mixed, tmp_path / "back.onnx")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", "{}"])
def test_a_damaged_record_is_refused(mixed: Path, tmp_path: Path, text: str) -> None:
    model = onnx.load(mixed)
    model.metadata_props.add(key="cipm.json", value=text)
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(CorruptFile, match="The record cipm.json is damaged"):
        read_plan(tmp_path / "bad.onnx")


def test_the_command_line_takes_a_model_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, back = (tmp_path / name for name in ("model.onnx", "out.onnx", "back.onnx"))
    save_onnx(mlp((16, 24, 5)), torch.randn(2, 16), source, dynamo=True)
    assert main(["reorganize", str(source), "--order", "random", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["plan"]["passed"]
    assert main(["verify", str(source), str(out)]) == 0 and main(["restore", str(out), "--out", str(back)]) == 0
    assert contents(onnx.load(back)) == contents(onnx.load(source)) != contents(onnx.load(out))
