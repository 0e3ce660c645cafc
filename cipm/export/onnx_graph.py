"""Write a graph as a new ONNX model, by torch's own exporter: for models that got smaller, whose upload cannot be patched."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cipm.errors import LimitExceeded, UnsupportedModel
from cipm.export.pt2 import exported
from cipm.export.record import NAME
from cipm.load.checkpoint import Checkpoint
from cipm.load.onnx.wire import MAX_BYTES

PT2 = "Write it as a .pt2 file."


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], record: str | None, out: Path, *,
          inputs: Mapping[str, str], outputs: Sequence[str] | None) -> None:
    """Write the graph of a .pt2 checkpoint with these tensors as one .onnx file, its inputs by the names that `inputs` gives
    for their own, its outputs by these names. The operator set is the exporter's own.

    Raises UnsupportedModel where torch cannot write an op in ONNX, LimitExceeded beyond what protobuf can hold.
    """
    if sum(t.numel() * t.dtype.itemsize for t in tensors.values()) > MAX_BYTES:
        raise LimitExceeded("The model has more bytes than one ONNX file can hold.", fix=PT2)
    proto = _translated(exported(checkpoint, tensors)).model_proto
    _rename(proto, [inputs.get(i.name, i.name) for i in checkpoint.graph.inputs], outputs)
    if record is not None:
        proto.metadata_props.add(key=NAME, value=record)
    if proto.ByteSize() > MAX_BYTES:
        raise LimitExceeded("The model has more bytes than one ONNX file can hold.", fix=PT2)
    out.write_bytes(proto.SerializeToString())


def _translated(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    exporter = importlib.import_module("torch.onnx")
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torch and onnxscript warn about their own internals
            return exporter.export(program, dynamo=True, verbose=False, optimize=False)
    except Exception as error:  # the exporter wraps whatever went wrong in classes of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UnsupportedModel(f"torch cannot write this model as ONNX: {lines[0][:300]}", fix=PT2) from error
    finally:
        log.setLevel(before)


def _rename(proto: Any, names: Sequence[str], given: Sequence[str] | None) -> None:
    """Give inputs and outputs these names; without any, outputs are called output, or output0, output1 …"""
    graph = proto.graph
    plain = ["output"] if len(graph.output) == 1 else [f"output{number}" for number in range(len(graph.output))]
    ends = plain if given is None else given
    taken = {**{old.name: new for old, new in zip(graph.input, names, strict=True)},
             **{old.name: new for old, new in zip(graph.output, ends, strict=True)}}
    wanted = set(taken.values())
    inner = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    taken |= {name: f"{name}_inner" for name in inner if name in wanted and name not in taken}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [taken.get(name, name) for name in field]
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.name = taken.get(item.name, item.name)
