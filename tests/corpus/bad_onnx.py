"""ONNX files that are not honest, or that use what CIPM does not run, made with the tools that make real ones."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Builder = Callable[[Path], Path]
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def tensor(name: str, values: Any = WEIGHT) -> TensorProto:
    """Return an initialiser."""
    return numpy_helper.from_array(np.asarray(values), name)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    """Return a node named after its operator."""
    return helper.make_node(op, list(inputs), list(outputs), name=op.lower(), **attributes)


def model(nodes: Sequence[onnx.NodeProto] = (), tensors: Sequence[TensorProto] = (), *, opset: int = 17, shape: Any = ("n", 4),
          outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """Return a model of one input x; without nodes y = x · w."""
    nodes = list(nodes) or [node("MatMul", ("x", "w"))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
                              list(tensors) or [tensor("w")])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def saved(made: onnx.ModelProto | bytes) -> Builder:
    """Return a builder of the file."""
    return lambda tmp: _write(tmp / "model.onnx", made if isinstance(made, bytes) else made.SerializeToString())


def changed(change: Callable[[onnx.ModelProto], Any], **options: Any) -> Builder:
    """Return a builder of the plain model with something changed."""
    def build(tmp: Path) -> Path:
        made = model(**options)
        change(made)
        return saved(made)(tmp)
    return build


def external(location: str, *, offset: str = "0", length: str = "48", shape: Sequence[int] = (4, 3), name: str = "w",
             ) -> TensorProto:
    """Return an initialiser that says its bytes lie in another file."""
    made = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=value)
    return made


def folder(made: onnx.ModelProto, link: Callable[[Path, Path], None] | None = None) -> Builder:
    """Return a builder of a folder of the model and its data file w.bin, which may be a link to a file outside."""
    def build(tmp: Path) -> Path:
        (tmp / "model").mkdir()
        (tmp / "secret.bin").write_bytes(WEIGHT.tobytes())
        link(tmp / "secret.bin", tmp / "model" / "w.bin") if link else _write(tmp / "model" / "w.bin", WEIGHT.tobytes())
        _write(tmp / "model" / "model.onnx", made.SerializeToString())
        return tmp / "model"
    return build


def packed(**members: bytes) -> Builder:
    """Return a builder of a zip with these members (`__` in a name stands for a dot)."""
    def build(tmp: Path) -> Path:
        with zipfile.ZipFile(tmp / "model.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name.replace("__", "."), data)
        return tmp / "model.zip"
    return build


def with_function(tmp: Path) -> Path:
    """A bomb: functions that call one another twice, thirty deep."""
    made = model([helper.make_node("f0", ["x"], ["y"], domain="bomb")])
    made.opset_import.append(helper.make_opsetid("bomb", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("bomb", 1)]
    for i in range(30):
        inner = [helper.make_node(f"f{i + 1}", [a], [b], domain="bomb") for a, b in (("a", "m"), ("m", "b"))]
        inner = inner if i < 29 else [helper.make_node("Neg", ["a"], ["b"])]
        made.functions.append(helper.make_function("bomb", f"f{i}", ["a"], ["b"], inner, opsets))
    return saved(made)(tmp)


def nested(tmp: Path) -> Path:
    """Graphs inside attributes of graphs, two hundred deep."""
    data = onnx.GraphProto(name="g").SerializeToString()
    for _ in range(200):
        attribute = b"\x0a\x01b\xa0\x01\x05" + b"\x32" + _varint(len(data)) + data
        inner = b"\x2a" + _varint(len(attribute)) + attribute
        data = b"\x0a" + _varint(len(inner)) + inner
    return saved(b"\x08\x08\x3a" + _varint(len(data)) + data)(tmp)


def chain(length: int) -> Builder:
    """Return a builder of a chain of nodes, its bytes written one by one: the library would take long."""
    names = [b"x", *(b"v%d" % i for i in range(length - 1)), b"y"]
    text = lambda tag, value: tag + bytes([len(value)]) + value  # noqa: E731
    nodes = [text(b"\x0a", text(b"\x0a", a) + text(b"\x12", b) + text(b"\x22", b"Neg"))
             for a, b in zip(names, names[1:], strict=False)]

    def build(tmp: Path) -> Path:
        made = model([node("Neg", ["x"])])
        made.graph.ClearField("node")
        graph = made.graph.SerializeToString() + b"".join(nodes)
        made.ClearField("graph")
        return saved(made.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph)(tmp)
    return build


def branch(op: str, **attributes: Any) -> Builder:
    """Return a builder of a model with control flow."""
    body = helper.make_graph([], "body", [], [])
    return lambda tmp: saved(model([node(op, ("x",), **{key: body for key in attributes})]))(tmp)


def filled(op: str, *shape: int) -> Builder:
    """Return a builder of a model that makes a huge constant: a fill, an expansion, copies, or a range."""
    sizes = tensor("s", np.array(shape, dtype=np.int64))
    made = {"ConstantOfShape": [node("ConstantOfShape", ["s"], ["h"])], "Expand": [node("Expand", ["one", "s"], ["h"])],
            "Tile": [node("Tile", ["one", "s"], ["h"])], "Range": [node("Range", ["zero", "s", "step"], ["h"])]}[op]
    sizes = tensor("s", np.int64(shape[0])) if op == "Range" else sizes
    others = [tensor("one", np.ones((1,) * len(shape), np.int64)), tensor("zero", np.int64(0)), tensor("step", np.int64(1))]
    return saved(model([*made, node("Cast", ["h"], ["f"], to=1), node("Add", ["x", "f"])], [sizes, *others, tensor("w")]))


def links(tmp: Path, how: str) -> Path:
    """Return a folder whose data file is a symbolic or a hard link to a file outside."""
    return folder(model(tensors=[external("w.bin")]), {"symbolic": lambda a, b: b.symlink_to(a), "hard": os.link}[how])(tmp)


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
