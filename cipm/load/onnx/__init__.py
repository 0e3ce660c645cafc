"""ONNX models: one .onnx file, or a zip or folder of it with the files that hold its tensors.

The protobuf is parsed and checked whole, nothing of it is run by an ONNX runtime: its nodes are interpreted by a list of
operators of our own as a torch module, which is exported to the one functional graph. The keys of the checkpoint are the
names of the initialisers. Integers, single numbers and what shapes are made of are constants of the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cipm.errors import CipmError, LimitExceeded, UnsupportedModel
from cipm.load.archive import is_zip, open_source
from cipm.load.checkpoint import Checkpoint
from cipm.load.onnx.module import OnnxModule
from cipm.load.onnx.plan import make_plan
from cipm.load.onnx.proto import FIX, onnx_files, open_upload, read_model
from cipm.load.onnx.sample import candidates, frozen, identifiers
from cipm.load.onnx.wire import is_onnx
from cipm.load.retrace import Sample, export_program, functional
from cipm.trace import Graph

__all__ = ["FORMAT", "is_onnx", "match", "onnx_files", "open", "open_upload"]
FORMAT = "onnx"


def match(path: Path) -> bool:
    """Tell whether this is an ONNX model, by its first bytes or by the members of a zip or folder."""
    if path.is_dir() or is_zip(path):
        source = open_source(path)
        return bool(onnx_files(source)) and "saved_model.pb" not in source
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return is_onnx(stream.read(65_536))


def open(path: Path) -> Checkpoint:
    """Return the checkpoint of an ONNX model.

    Raises UnsupportedModel, RefusedFormat, CorruptFile or LimitExceeded.
    """
    source, name, proto = open_upload(path)
    plan = make_plan(read_model(source, name, proto))
    names = identifiers([item.name for item in plan.model.inputs])
    if not names:
        raise UnsupportedModel("The model takes no input.", fix=FIX)
    module = OnnxModule(plan, names)
    graph, constants, samples = _trace(module, _sizes(module, names))
    keys = {f"t{number}": key for number, key in enumerate(plan.stored)}
    graph = replace(graph, tensors={value: keys[key] for value, key in graph.tensors.items()})
    packed = path.is_dir() or is_zip(path)
    origin = {"file": name, "packed": packed, "opset": plan.model.opset, "ir_version": proto.ir_version,
              "producer": proto.producer_name[:80],
              "inputs": dict(zip(names, (item.name for item in plan.model.inputs), strict=True)),
              "outputs": list(plan.model.outputs), "buffers": sorted(plan.buffers), "notes": _notes(graph, module, names),
              "samples": {item: {"shape": list(s.shape), "dynamic": {str(axis): list(b) for axis, b in s.dynamic.items()}}
                          for item, s in samples.items()}}
    aliases = {alias: key for alias, key in plan.model.shared.items() if key in plan.stored}
    return Checkpoint(FORMAT, graph, dict(plan.stored), constants, aliases, origin=origin)


def _sizes(module: OnnxModule, names: list[str]) -> dict[str, Sample]:
    """Return the first samples that the model runs on, without computing anything; raises why the last ones failed."""
    failure: CipmError | None = None
    for samples in candidates(module.plan.model.inputs, names):
        try:
            _dry_run(module, samples)
            return samples
        except UnsupportedModel as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _dry_run(module: OnnxModule, samples: Mapping[str, Sample]) -> None:
    for name, sample in samples.items():
        if torch.Size(sample.shape).numel() > 2**27:
            raise LimitExceeded(f"Input {name!r} of shape {list(sample.shape)} is too large to trace.", where=name)
    with torch.no_grad(), module.checked(), _without_log(), FakeTensorMode(allow_non_fake_inputs=True):
        module(**{name: torch.zeros(sample.shape, dtype=sample.dtype) for name, sample in samples.items()})


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep torch from logging what an error already says."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _trace(module: OnnxModule, samples: dict[str, Sample]) -> tuple[Graph, dict[str, torch.Tensor], dict[str, Sample]]:
    """Trace with all sizes free that may vary, else with the batch alone, else with none."""
    attempts = list(_attempts(samples))
    for attempt in attempts[:-1]:
        try:
            return *functional(export_program(module, attempt), attempt), attempt
        except UnsupportedModel:
            continue  # a size that cannot vary; the last attempt says what else is wrong
    return *functional(export_program(module, attempts[-1]), attempts[-1]), attempts[-1]


def _attempts(samples: dict[str, Sample]) -> Iterator[dict[str, Sample]]:
    batch, none = frozen(samples, keep_first=True), frozen(samples, keep_first=False)
    if batch not in (samples, none):
        yield samples
        yield batch
    elif samples != none:
        yield samples
    yield none


def _notes(graph: Graph, module: OnnxModule, names: list[str]) -> list[str]:
    """Say aloud which sizes the file leaves open and the graph does not."""
    shapes = {item.name: item.shape for item in graph.inputs}
    notes = []
    for item, name in zip(module.plan.model.inputs, names, strict=True):
        for axis, dim in enumerate(item.shape):
            fixed = shapes.get(name, item.shape)[axis]
            if not isinstance(dim, int) and isinstance(fixed, int):
                label = f" ({dim[:80]})" if dim else ""
                notes.append(f"Axis {axis}{label} of input {item.name[:80]!r} is read as {fixed} positions: the graph could "
                             "not be traced with another size.")
    return notes
