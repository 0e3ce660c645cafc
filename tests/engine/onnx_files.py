"""ONNX files for tests: models written by both of torch's exporters, single nodes, and their results in onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import nn

from cipm.load import Checkpoint
from cipm.testing.models import seeded
from cipm.trace import run

onnxruntime.set_default_logger_severity(3)


@dataclass(frozen=True)
class Stored:
    """An input of a node that is an initialiser."""

    values: Any


class Encoder(nn.Module):
    """A transformer encoder of two layers over projected inputs, its positions averaged."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.enter, self.leave = nn.Linear(6, 16), nn.Linear(16, 5)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.layers(self.enter(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on its last step."""

    def __init__(self, kind: str):
        super().__init__()
        self.cell, self.leave = getattr(nn, kind)(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.cell(x)[0][:, -1])


def distinct(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return the model with weights that all differ: exporters store equal tensors once, which ties what they belong to."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def encoder() -> nn.Module:
    """Return a seeded Encoder in evaluation mode."""
    return distinct(seeded(Encoder, 0)).eval()


def save_onnx(model: nn.Module, example: torch.Tensor, path: Path, *, dynamo: bool, external: bool = False) -> Path:
    """Write a model with a free number of rows, by torch's new exporter or by its old one."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(model.eval(), (example,), path, dynamo=True, verbose=False, external_data=external,
                              dynamic_shapes=({0: torch.export.Dim("batch")},))
        else:
            torch.onnx.export(model.eval(), (example,), path, dynamo=False, input_names=["x"], opset_version=17,
                              dynamic_axes={"x": {0: "batch"}})
    log.setLevel(before)
    return path


def ort(path: Path | bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return what onnxruntime computes."""
    session = onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def inputs_of(checkpoint: Checkpoint, *, rows: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random inputs of the sizes that the model was traced with, or with other rows where their number is free."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for item in checkpoint.graph.inputs:
        shape = list(checkpoint.origin["samples"][item.name]["shape"])
        if rows is not None and item.shape[:1] == ("batch",):
            shape[0] = rows
        found[item.name] = (torch.rand(shape, generator=generator) if item.dtype.is_floating_point
                            else torch.randint(0, 3, shape, generator=generator)).to(item.dtype)
    return found


def difference(checkpoint: Checkpoint, path: Path, *, rows: int | None = None, dtype: torch.dtype | None = None) -> float:
    """Return the largest difference to onnxruntime over all outputs, relative to their largest magnitude."""
    inputs = inputs_of(checkpoint, rows=rows)
    ours = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, dtype=dtype)
    theirs = ort(path, {checkpoint.origin["inputs"][name]: value.numpy() for name, value in inputs.items()})
    return max(relative(np.asarray(a.numpy()), b) for a, b in zip(ours, theirs, strict=True))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Return max |a − b| / max |b|; infinite where shapes differ or one is not a number and the other is."""
    if a.shape != b.shape or not np.array_equal(np.isnan(a.astype(np.float64)), np.isnan(b.astype(np.float64))):
        return np.inf
    a, b = (np.nan_to_num(v.astype(np.float64), posinf=1e300, neginf=-1e300) for v in (a, b))
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))


def single(op: str, *operands: Any, opset: int = 17, outputs: int = 1, **attributes: Any,
           ) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a model of one node and its inputs: arrays come from outside, Stored ones are initialisers, None is missing."""
    inputs, values, tensors, names = [], {}, [], []
    for number, operand in enumerate(operands):
        name = "" if operand is None else f"i{number}"
        names.append(name)
        if isinstance(operand, Stored):
            tensors.append(numpy_helper.from_array(np.asarray(operand.values), name))
        elif operand is not None:
            values[name] = np.asarray(operand)
            inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype),
                                                        values[name].shape))
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, **attributes)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=name) for name in made], tensors)
    model = helper.make_model(graph, ir_version=10 if opset >= 21 else 8, opset_imports=[helper.make_opsetid("", opset)])
    return onnx.shape_inference.infer_shapes(model).SerializeToString(), values


def rounded(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Return random float32 numbers."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def whole(*values: int) -> Stored:
    """Return stored int64 numbers in a row."""
    return Stored(np.array(values, dtype=np.int64))


def names(values: Sequence[Any]) -> list[str]:
    """Return readable test names for cases that start with an operator."""
    return [f"{number}-{case[0]}" for number, case in enumerate(values)]
