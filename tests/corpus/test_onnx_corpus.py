"""Every ONNX file that CIPM does not run gets its own sentence, and nothing outside the upload is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_onnx as make
import numpy as np
import onnx
import pytest
from jailed import refusal
from onnx import TensorProto, helper

from cipm.errors import CipmError
from cipm.load import load
from cipm.load.archive import Source
from cipm.load.onnx import plan, values
from cipm.load.onnx.module import OnnxModule
from cipm.load.onnx.proto import parse, read_model
from cipm.load.onnx.sample import identifiers

Builder = Callable[[Path], Path]
HERE = Path(__file__).parent
EXPECTED: dict[str, list[Any]] = json.loads((HERE / "onnx_messages.json").read_text())


def _one(name: str, inputs: Any = ("x",), **attributes: Any) -> Builder:
    return make.saved(make.model([make.node(name, inputs, **attributes)]))


def _outside(location: str, **places: str) -> Builder:
    return make.folder(make.model(tensors=[make.external(location, **places)]))


def _input(kind: onnx.TypeProto) -> Builder:
    return make.changed(lambda m: m.graph.input[0].type.CopyFrom(kind))


def _value(**fields: Any) -> Builder:
    return make.changed(lambda m: m.graph.initializer[0].CopyFrom(TensorProto(name="w", **fields)))


def _constant(**attributes: Any) -> Builder:
    return make.saved(make.model([make.node("Constant", [], ["c"], **attributes), make.node("Add", ["x", "c"])]))


def _cut(tmp: Path) -> Path:
    path = make.saved(make.model())(tmp)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def _outer(tmp: Path) -> Path:
    return make.saved(b"\x08\x08\x3a\x05\x0a\x03\xff\xff\xff")(tmp)


FLOATS, LONGS, TEXTS = (helper.make_tensor_type_proto(kind, ["n", 4]) for kind in (1, 7, 8))
CASES: dict[str, Builder] = {
    "data file of the system": _outside("/etc/passwd"),
    "data file above": _outside("../secret.bin"),
    "data file below": _outside("sub/w.bin"),
    "data file of windows": _outside("C:\\secret.bin"),
    "data file without a name": _outside(""),
    "data file not uploaded": _outside("other.bin"),
    "data file beside a single file": make.saved(make.model(tensors=[make.external("w.bin")])),
    "data file by a symbolic link": lambda tmp: make.links(tmp, "symbolic"),
    "data file by a hard link": lambda tmp: make.links(tmp, "hard"),
    "data file too short": _outside("w.bin", offset="8"),
    "data file of another length": _outside("w.bin", length="12"),
    "data file before its start": _outside("w.bin", offset="-8"),
    "data file shared in part": make.folder(make.model(tensors=[make.external("w.bin"), make.external(
        "w.bin", name="v", shape=(2,), length="8", offset="16")])),
    "constant that reads a file": _constant(value=make.external("/etc/passwd", shape=(4,), length="16", name="")),
    "attribute that reads a file": make.saved(make.model([
        make.node("Shape", ["x"], ["s"]),
        make.node("ConstantOfShape", ["s"], value=make.external("/etc/passwd", shape=(1,), length="4", name=""))])),
    "foreign domain": make.saved(make.model([helper.make_node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft")])),
    "function bomb": make.with_function,
    "endless loop": make.branch("Loop", body=None),
    "scan": make.branch("Scan", body=None),
    "branch": make.branch("If", then_branch=None, else_branch=None),
    "graph as an attribute": make.branch("Relu", body=None),
    "graphs two hundred deep": make.nested,
    "huge fill": make.filled("ConstantOfShape", 2**20, 2**20),
    "huge expansion": make.filled("Expand", 2**20, 2**20),
    "huge tiling": make.filled("Tile", 2**20, 2**20),
    "huge range": make.filled("Range", 2**60),
    "huge padding": make.saved(make.model([make.node("Pad", ["x", "p"])], [make.tensor("p", np.array([0, 0, 0, 2**40]))])),
    "huge by broadcasting": make.saved(make.model(
        [make.node("ConstantOfShape", ["s"], ["a"], value=make.tensor("", np.array([1]))),
         make.node("Transpose", ["a"], ["b"]), make.node("Mul", ["a", "b"], ["c"]),
         make.node("Cast", ["c"], ["d"], to=1), make.node("Add", ["x", "d"])], [make.tensor("s", np.array([2**20, 1]))])),
    "huge initialiser": _value(data_type=1, dims=[2**31, 2**31]),
    "negative size": _value(data_type=1, dims=[-4, 3]),
    "rank nine": _value(data_type=1, dims=[1] * 9, float_data=[1.0]),
    "fewer bytes than declared": _value(data_type=1, dims=[4, 3], raw_data=bytes(40)),
    "values in two fields": _value(data_type=1, dims=[4, 3], raw_data=bytes(48), float_data=[0.0] * 12),
    "values in the wrong field": _value(data_type=1, dims=[4, 3], int64_data=[0] * 12),
    "values beyond their type": _value(data_type=3, dims=[2], int32_data=[1000, 0]),
    "segments": make.changed(lambda m: m.graph.initializer[0].segment.CopyFrom(TensorProto.Segment(begin=0, end=4))),
    "text tensor": _value(data_type=8, dims=[1], string_data=[b"x"]),
    "complex tensor": _value(data_type=14, dims=[1], float_data=[0.0, 0.0]),
    "four-bit tensor": _value(data_type=22, dims=[2], int32_data=[0]),
    "unknown data type": _value(data_type=99, dims=[1]),
    "tensor name with a line break": make.changed(lambda m: setattr(m.graph.initializer[0], "name", "a\nb")),
    "name that is no text": lambda tmp: make.saved(make.model().SerializeToString().replace(b"matmul", b"m\xfftmul"))(tmp),
    "tensor without a name": make.changed(lambda m: setattr(m.graph.initializer[0], "name", "")),
    "chain of 200,000 nodes": make.chain(200_000),
    "two initialisers of one name": make.saved(make.model(tensors=[make.tensor("w"), make.tensor("w")])),
    "two values of one name": make.saved(make.model([make.node("Neg", ["x"], ["y"]), make.node("Abs", ["x"], ["y"])])),
    "cycle": make.saved(make.model([make.node("Neg", ["b"], ["a"]), make.node("Abs", ["a"], ["b"]), make.node("Relu", ["b"])])),
    "missing value": _one("Neg", ["nowhere"]),
    "missing output": make.saved(make.model(outputs=["z"])),
    "no output": make.saved(make.model(outputs=[])),
    "no input": make.changed(lambda m: m.graph.input.pop(), nodes=[make.node("Neg", ["w"])]),
    "cut short": _cut,
    "damaged inside": _outer,
    "sequence input": _input(helper.make_sequence_type_proto(FLOATS)),
    "map input": _input(helper.make_map_type_proto(7, FLOATS)),
    "optional input": _input(helper.make_optional_type_proto(FLOATS)),
    "text input": _input(TEXTS),
    "input without a shape": make.changed(lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")),
    "input of negative size": make.saved(make.model(shape=[-1, 4])),
    "huge input": make.saved(make.model(shape=[2**30, 4])),
    "sparse initialiser": make.changed(lambda m: m.graph.sparse_initializer.add()),
    "old opset": make.saved(make.model(opset=6)),
    "future opset": make.saved(make.model(opset=99)),
    "no opset": make.changed(lambda m: m.ClearField("opset_import")),
    "operator off the list": _one("RandomNormalLike"),
    "operator of a later opset": make.saved(make.model([make.node("Gelu", ["x"])])),
    "unknown attribute": _one("Relu", command="rm"),
    "attribute of a function": make.changed(lambda m: m.graph.node[0].attribute.add(name="axis", type=2, ref_attr_name="a"),
                                            nodes=[make.node("Softmax", ["x"])]),
    "attribute twice": make.changed(lambda m: [m.graph.node[0].attribute.add(name="axis", type=2, i=1) for _ in range(2)],
                                    nodes=[make.node("Softmax", ["x"])]),
    "attribute of another type": _one("Softmax", axis="last"),
    "too many inputs": _one("Relu", ["x", "x"]),
    "constant text": _constant(value_string=b"hello"),
    "empty constant": _constant(),
    "shape from data": make.saved(make.model([make.node("Cast", ["x"], ["s"], to=7), make.node("Reshape", ["x", "s"])])),
    "result sized by data": make.saved(make.model([make.node("NonZero", ["x"], ["i"]), make.node("Cast", ["i"], to=1)])),
    "shapes that do not fit": make.saved(make.model(shape=["n", 5])),
    "positions beyond their axis": make.saved(make.model([make.node("Gather", ["w", "i"], ["g"]), make.node("Add", ["x", "g"])],
                                                         [make.tensor("w"), make.tensor("i", np.array([9]))])),
    "training mode": make.saved(make.model([make.node("Dropout", ["x", "r", "t"])], [make.tensor("r", np.float32(0.5)),
                                                                                     make.tensor("t", np.bool_(True))])),
    "two models": make.packed(a__onnx=b"\x08\x08", b__onnx=b"\x08\x08"),
    "zip of an empty model": make.packed(a__onnx=b""),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal_says_what_it_is_and_what_to_do(name: str, tmp_path: Path) -> None:
    error = refusal(CASES[name](tmp_path), tmp_path / "scratch")
    assert [error.code, error.message, error.fix] == EXPECTED[name]


def test_every_expected_message_has_its_file() -> None:
    assert set(EXPECTED) == set(CASES)


def test_data_files_of_the_upload_are_read(tmp_path: Path) -> None:
    whole = load(make.saved(make.model())(tmp_path))
    beside = load(make.folder(make.model(tensors=[make.external("w.bin")]))(tmp_path))
    assert (beside.tensors["w"] == whole.tensors["w"]).all() and set(beside.tensors) == {"w"}


def _damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Return the bytes with some of them changed, taken out or put in."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at, size = int(generator.integers(len(changed))), int(generator.integers(1, 4))
        new = generator.bytes(size)
        changed[at:at + int(generator.choice([0, size]))] = new if generator.random() < 0.7 else b""
    return bytes(changed)


def test_damaged_bytes_end_in_a_sentence_or_a_model() -> None:
    constants = {"zero": np.int64([0]), "to": np.int64([0, -1]), "w": make.WEIGHT, "half": np.float32(0.5)}
    data = make.model([make.node("Reshape", ["x", "to"], ["a"]), make.node("MatMul", ["a", "w"], ["b"]),
                       make.node("Unsqueeze", ["half", "zero"], ["c"]), make.node("Pad", ["b", "pads"], ["d"]),
                       make.node("Add", ["c", "d"], ["e"]), make.node("Softmax", ["e"], axis=-1)],
                      [*(make.tensor(key, value) for key, value in constants.items()),
                       make.tensor("pads", np.int64([0, 1, 0, 1]))]).SerializeToString()
    generator, outcomes = np.random.default_rng(0), set()
    for _ in range(400):
        try:
            proto = parse(_damaged(data, generator), "model.onnx")
            model = read_model(Source(Path("model.onnx"), "", {}), "model.onnx", proto)
            OnnxModule(plan.make_plan(model), identifiers([item.name for item in model.inputs]))
            outcomes.add("a model")
        except CipmError as error:
            outcomes.add(error.code)
    assert outcomes >= {"a model", "corrupt_file"}


def test_every_listed_operator_is_one_of_onnx() -> None:
    assert len(plan.FAMILIES) == 8 and len(values.OPERATORS) > 130
    for name in values.OPERATORS:
        assert onnx.defs.get_schema(name, 24, "").domain == ""
