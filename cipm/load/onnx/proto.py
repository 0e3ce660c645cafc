"""A ModelProto as checked, frozen values: what the interpreter may run, and where every tensor lies. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError, Message

from cipm.errors import CorruptFile, LimitExceeded, RefusedFormat, UnsupportedModel
from cipm.load.archive import MAX_UNPACKED, Source, is_zip, open_source
from cipm.load.onnx.tensor import External, dtype_of, external_place, read_tensor, reader
from cipm.load.onnx.wire import DAMAGED, MAX_BYTES, check_counts
from cipm.load.tensors import MAX_RANK

MIN_OPSET, MAX_OPSET, MAX_NAME = 7, 24, 512
DOMAINS = ("", "ai.onnx")
FIX = ('Export the same model from PyTorch with torch.export.save(torch.export.export(model.eval(), (example_input,)), '
       '"model.pt2"), or to ONNX with standard operators alone.')
_KINDS = {onnx.AttributeProto.FLOAT: "f", onnx.AttributeProto.INT: "i", onnx.AttributeProto.FLOATS: "floats",
          onnx.AttributeProto.INTS: "ints"}
_BAD_KEY = re.compile(r"[\x00-\x1f\x7f]|\A\.*\Z|\A__metadata__\Z")


@dataclass(frozen=True)
class OnnxNode:
    """One node: `outputs = op(*inputs)`; an empty name is a missing optional. `label` is what people are told."""

    label: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OnnxInput:
    """One input: its own name, dtype, and dimensions (None where nothing is declared)."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class OnnxModel:
    """A checked model. `values` holds initialisers and Constant nodes by name; those in `inline` are no tensors of the
    file (numbers written as attributes); `shared` maps a name to an earlier one with the very same bytes beside the file."""

    opset: int
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    values: Mapping[str, torch.Tensor]
    inline: frozenset[str]
    shared: Mapping[str, str]


def open_upload(path: Path) -> tuple[Source, str, onnx.ModelProto]:
    """Return the files of an upload, the name of its .onnx file, and that file parsed.

    Raises UnsupportedModel where there are several, CorruptFile or LimitExceeded where it cannot be parsed.
    """
    if not (path.is_dir() or is_zip(path)):
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(path.name)
        return Source(path, "", {}), path.name, parse(path.read_bytes(), path.name)
    source = open_source(path)
    names = onnx_files(source)
    if len(names) != 1:
        raise UnsupportedModel(f"The upload holds {len(names)} ONNX models ({', '.join(sorted(names)[:5])}).",
                               fix="Upload one .onnx file with its data files.")
    if source.size(names[0]) > MAX_BYTES:
        raise _too_large(names[0])
    return source, names[0], parse(bytes(source.read(names[0], MAX_UNPACKED)), names[0])


def onnx_files(source: Source) -> list[str]:
    """Return the names of the .onnx files of an upload."""
    return [name for name in source.files if name.lower().endswith(".onnx")]


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """Return the parsed bytes of an .onnx file, or raise CorruptFile or LimitExceeded."""
    check_counts(data, name)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CorruptFile(f"{name!r} is not a whole ONNX model: its protobuf is damaged, or nested too deeply.", where=name,
                          fix=DAMAGED) from error
    _check_text(model, name)
    return model


def _check_text(model: Message, name: str) -> None:
    """Raise CorruptFile where a name is not UTF-8, which protobuf hands on as bytes."""
    pending = [model]
    while pending:
        for field, value in pending.pop().ListFields():
            items = (value,) if isinstance(value, (str, bytes, Message)) else value
            if field.type == field.TYPE_MESSAGE:
                pending.extend(items)
            elif field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in items):
                raise CorruptFile(f"{name!r} is damaged: its field {field.name!r} is not text.", where=name, fix=DAMAGED)


def folder_of(name: str) -> str:
    """Return the folder of a file inside the upload, with its slash, or nothing."""
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else f"{parent}/"


def read_model(source: Source, name: str, proto: onnx.ModelProto) -> OnnxModel:
    """Return the checked values of a parsed model, its tensors read.

    Raises UnsupportedModel, RefusedFormat, CorruptFile or LimitExceeded naming what is wrong and where.
    """
    graph = proto.graph
    opset = _opset(proto)
    if len(proto.functions):
        raise UnsupportedModel(f"The file defines functions of its own ({len(proto.functions)}), which CIPM does not run.",
                               where=proto.functions[0].name[:80], fix="Inline them with onnx.inliner.inline_local_functions.")
    if len(graph.sparse_initializer):
        raise UnsupportedModel("The file holds sparse initialisers, which CIPM does not read.", where=name,
                               fix="Store them as dense tensors.")
    places = {t.name: external_place(t, _key(t.name), folder_of(name), source) for t in graph.initializer}
    if len(places) != len(graph.initializer):
        raise CorruptFile("Two initialisers have the same name.", where=_twin([t.name for t in graph.initializer]), fix=DAMAGED)
    shared = _shared(graph.initializer, places)
    read = reader(source)
    values = {t.name: read_tensor(t, t.name, read, places[t.name]) for t in graph.initializer if t.name not in shared}
    nodes, constants, inline = _nodes(graph.node)
    inputs = tuple(_input(item) for item in graph.input if item.name not in places)
    made = [*places, *constants, *(i.name for i in inputs), *(o for n in nodes for o in n.outputs if o)]
    if len(set(made)) != len(made):
        raise CorruptFile("Two values of the graph have the same name.", where=_twin(made), fix=DAMAGED)
    model = OnnxModel(opset, inputs, tuple(o.name for o in graph.output), nodes, values | constants, inline, shared)
    _check_order(model)
    return model


# --- the whole ------------------------------------------------------------------------------------------------------

def _opset(proto: onnx.ModelProto) -> int:
    versions = [item.version for item in proto.opset_import if item.domain in DOMAINS]
    if len(versions) != 1:
        raise CorruptFile(f"The file names {len(versions)} versions of the standard operators instead of one.",
                          where="opset_import", fix=DAMAGED)
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise UnsupportedModel(f"The file uses opset {versions[0]}; {MIN_OPSET} to {MAX_OPSET} are read.", where="opset_import",
                               fix="Convert it with onnx.version_converter.convert_version(model, 17).")
    return versions[0]


def _key(name: str) -> str:
    if len(name) > MAX_NAME or _BAD_KEY.search(name):
        raise CorruptFile(f"The file names a tensor {name[:80]!r}, which is no plain name of at most {MAX_NAME} characters.",
                          where=name[:80], fix="Give the initialisers plain names.")
    return name


def _shared(tensors: Sequence[onnx.TensorProto], places: Mapping[str, External | None]) -> dict[str, str]:
    """Return which initialisers are the very bytes of an earlier one; raises CorruptFile where ranges merely overlap."""
    shared: dict[str, str] = {}
    kept: tuple[External, onnx.TensorProto] | None = None
    named = sorted(((places[t.name], n) for n, t in enumerate(tensors) if places[t.name] and places[t.name].length),
                   key=lambda item: (item[0].file, item[0].offset, item[1]))
    for place, number in named:
        tensor = tensors[number]
        if kept is not None and kept[0].file == place.file and place.offset < kept[0].offset + kept[0].length:
            if (kept[0], tuple(kept[1].dims), kept[1].data_type) != (place, tuple(tensor.dims), tensor.data_type):
                raise CorruptFile(f"Tensors {kept[1].name!r} and {tensor.name!r} overlap in {place.file!r}.", where=tensor.name,
                                  fix=DAMAGED)
            shared[tensor.name] = kept[1].name
        else:
            kept = (place, tensor)
    return shared


def _input(item: onnx.ValueInfoProto) -> OnnxInput:
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        label = _article((kind or "value of no type").removesuffix("_type"))
        raise UnsupportedModel(f"Input {item.name[:80]!r} is {label}, not a tensor.", where=item.name[:80],
                               fix="Export the model with tensor inputs alone.")
    tensor = item.type.tensor_type
    if not tensor.HasField("shape") or len(tensor.shape.dim) > MAX_RANK:
        what = f"{len(tensor.shape.dim)} axes" if tensor.HasField("shape") else "no declared shape"
        raise UnsupportedModel(f"Input {item.name[:80]!r} has {what}; up to {MAX_RANK} axes are read, and their number must be "
                               "known.", where=item.name[:80], fix=FIX)
    dims = tuple(_dimension(dim, item.name) for dim in tensor.shape.dim)
    return OnnxInput(item.name, dims, dtype_of(tensor.elem_type, item.name))


def _dimension(dim: onnx.TensorShapeProto.Dimension, where: str) -> int | str | None:
    if dim.HasField("dim_value"):
        if not 0 <= dim.dim_value < 2**31:
            raise CorruptFile(f"Input {where[:80]!r} declares an axis of {dim.dim_value:,} positions.", where=where[:80],
                              fix=DAMAGED)
        return dim.dim_value
    return dim.dim_param[:MAX_NAME] or None


def _check_order(model: OnnxModel) -> None:
    known = {"", *model.values, *model.shared, *(i.name for i in model.inputs)}
    for node in model.nodes:
        for name in node.inputs:
            if name not in known:
                raise CorruptFile(f"Node {node.label!r} ({node.op}) reads {name[:80]!r} before anything makes it: the graph is "
                                  "not in order, has a cycle, or lacks a value.", where=node.label, fix=DAMAGED)
        known.update(node.outputs)
    if not model.outputs:
        raise CorruptFile("The model has no output.", fix=DAMAGED)
    for name in model.outputs:
        if name not in known or not name:
            raise CorruptFile(f"Nothing in the graph makes its output {name[:80]!r}.", where=name[:80], fix=DAMAGED)


# --- nodes ----------------------------------------------------------------------------------------------------------

_CONTROL = {"Loop", "Scan", "If", "SequenceMap"}


def _nodes(protos: Sequence[onnx.NodeProto]) -> tuple[tuple[OnnxNode, ...], dict[str, torch.Tensor], frozenset[str]]:
    nodes: list[OnnxNode] = []
    constants: dict[str, torch.Tensor] = {}
    inline: set[str] = set()
    for number, proto in enumerate(protos):
        node = _node(proto, number)
        if node.op != "Constant":
            nodes.append(node)
            continue
        name = _key(node.outputs[0]) if len(node.outputs) == 1 else ""
        if not name or name in constants or len(node.attributes) != 1:
            raise CorruptFile(f"Node {node.label!r} (Constant) does not make one value of its own.", where=node.label,
                              fix=DAMAGED)
        (kind, value), = node.attributes.items()
        constants[name] = value if kind == "value" else _number(value, kind, node.label)
        inline |= set() if kind == "value" else {name}
    return tuple(nodes), constants, frozenset(inline)


def _number(value: Any, kind: str, label: str) -> torch.Tensor:
    if kind not in ("value_int", "value_ints", "value_float", "value_floats"):
        raise UnsupportedModel(f"Node {label!r} (Constant) holds a {kind}, which CIPM does not read.", where=label, fix=FIX)
    return torch.tensor(value, dtype=torch.float32 if "float" in kind else torch.int64)


def _node(proto: onnx.NodeProto, number: int) -> OnnxNode:
    label = (proto.name or f"number {number}")[:80]
    if proto.domain not in DOMAINS:
        raise UnsupportedModel(f"Node {label!r} uses the operator {proto.op_type[:80]!r} of the domain {proto.domain[:80]!r}, "
                               "which is not part of ONNX.", where=label, fix=FIX)
    if proto.op_type in _CONTROL:
        raise UnsupportedModel(f"Node {label!r} is {_article(proto.op_type)}, which runs graphs of its own: CIPM reads graphs "
                               "without control flow.", where=label, fix="Export the model again for one fixed path through "
                               "it: in evaluation mode, without loops or branches that depend on data.")
    attributes: dict[str, Any] = {}
    for item in proto.attribute:
        if item.name in attributes:
            raise CorruptFile(f"Node {label!r} has the attribute {item.name[:80]!r} twice.", where=label, fix=DAMAGED)
        attributes[item.name] = _attribute(item, label)
    return OnnxNode(label, proto.op_type[:80], tuple(proto.input), tuple(proto.output), attributes)


def _attribute(item: onnx.AttributeProto, label: str) -> Any:
    if item.ref_attr_name:
        raise CorruptFile(f"Node {label!r} takes the attribute {item.name[:80]!r} from a function, but stands in none.",
                          where=label, fix=DAMAGED)
    if item.type in _KINDS:
        value = getattr(item, _KINDS[item.type])
        return tuple(value) if isinstance(value, Sequence) else value
    if item.type == onnx.AttributeProto.STRING:
        return item.s.decode("utf-8", "replace")[:MAX_NAME]
    if item.type == onnx.AttributeProto.TENSOR:
        return read_tensor(item.t, f"{label}.{item.name[:80]}")
    if item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise RefusedFormat(f"Node {label!r} carries a graph in its attribute {item.name[:80]!r}: it was not opened.",
                            where=label, fix=FIX)
    if item.type == onnx.AttributeProto.STRINGS:
        return tuple(text.decode("utf-8", "replace")[:MAX_NAME] for text in item.strings)
    known = item.type in onnx.AttributeProto.AttributeType.values()
    kind = onnx.AttributeProto.AttributeType.Name(item.type).lower().replace("_", " ") if known else str(item.type)
    raise UnsupportedModel(f"Node {label!r} has the attribute {item.name[:80]!r} of type {kind}, which CIPM does not read.",
                           where=label, fix=FIX)


def _article(op: str) -> str:
    return f"an {op}" if op[0] in "AEIOaeio" else f"a {op}"


def _twin(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")[:80]


def _too_large(name: str) -> LimitExceeded:
    return LimitExceeded(f"{name!r} has more than {MAX_BYTES:,} bytes, the most that one ONNX file can have.", where=name,
                         fix="Save its tensors as external data and upload everything as one zip or folder.")
