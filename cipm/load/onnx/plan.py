"""What will be run of a checked model, decided before anything is: operators on the list, which values are stored tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch

from cipm.errors import CorruptFile, UnsupportedModel
from cipm.load.onnx import (
    ops_index,
    ops_linear,
    ops_norm,
    ops_pointwise,
    ops_recurrent,
    ops_reduce,
    ops_shape,
    ops_spatial,
)
from cipm.load.onnx.proto import FIX, OnnxModel, OnnxNode
from cipm.load.onnx.values import OPERATORS
from cipm.load.onnx.wire import DAMAGED

FAMILIES = (ops_index, ops_linear, ops_norm, ops_pointwise, ops_recurrent, ops_reduce, ops_shape, ops_spatial)
_SIZES_ONLY = ("Shape", "Size")  # their result says nothing of their input's values


@dataclass(frozen=True)
class Plan:
    """The nodes that the outputs need, in order; the stored tensors; the other values, which are constants of the graph;
    and which stored tensors are no parameters."""

    model: OnnxModel
    nodes: tuple[OnnxNode, ...]
    stored: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]
    buffers: frozenset[str]


def make_plan(model: OnnxModel) -> Plan:
    """Return what to run, or raise UnsupportedModel or CorruptFile naming the first node that cannot be."""
    for node in model.nodes:
        _check_node(node, model.opset)
    nodes = _needed(model)
    known, whole, buffers = _known_before(model, nodes), set(), set()
    reads = Counter(model.shared.get(name, name) for node in nodes for name in node.inputs)
    for node in nodes:
        operator = OPERATORS[node.op]
        whole |= {name for i, name in enumerate(node.inputs) if i in operator.stored}
        buffers |= {name for i, name in enumerate(node.inputs) if i in operator.buffers}
    stored = {name: tensor for name, tensor in model.values.items() if tensor.numel() > 1 and name not in known
              and name not in model.inline and (tensor.is_floating_point() or name in whole)
              and not (reads[name] > 1 and _uniform(tensor))}
    constants = {name: tensor for name, tensor in model.values.items() if name not in stored}
    return Plan(model, nodes, stored, constants, frozenset(buffers & set(stored)))


def _uniform(tensor: torch.Tensor) -> bool:
    """Tell whether all elements are one value: where exporters store such a tensor once for many layers, it ties none."""
    flat = tensor.flatten()
    return bool((flat == flat[0]).all())


def _check_node(node: OnnxNode, opset: int) -> None:
    if node.op not in OPERATORS:
        raise UnsupportedModel(f"Node {node.label!r} uses the operator {node.op!r} of ONNX opset {opset}, which is not among "
                               "those that CIPM runs.", where=node.label, fix=FIX)
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError as error:
        raise CorruptFile(f"Node {node.label!r} uses the operator {node.op!r}, which opset {opset} does not have.",
                          where=node.label, fix=DAMAGED) from error
    unknown = sorted(set(node.attributes) - set(schema.attributes) - {"consumed_inputs"})
    if unknown:
        raise CorruptFile(f"Node {node.label!r} ({node.op}) has the attribute {unknown[0][:80]!r}, which opset {opset} does "
                          "not know.", where=node.label, fix=DAMAGED)
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise CorruptFile(f"Node {node.label!r} ({node.op}) has {len(node.inputs)} inputs.", where=node.label, fix=DAMAGED)
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise CorruptFile(f"Node {node.label!r} ({node.op}) has {len(node.outputs)} outputs.", where=node.label, fix=DAMAGED)


def _needed(model: OnnxModel) -> tuple[OnnxNode, ...]:
    wanted = set(model.outputs)
    kept = []
    for node in reversed(model.nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))


def _known_before(model: OnnxModel, nodes: tuple[OnnxNode, ...]) -> set[str]:
    """Return the values that some node must know before the model runs, and all that they are computed from."""
    known: set[str] = set()
    for node in reversed(nodes):
        operator = OPERATORS[node.op]
        if operator.counts or known & set(node.outputs):
            known.update(node.inputs if node.op not in _SIZES_ONLY else ())
        known.update(name for i, name in enumerate(node.inputs) if i in operator.host)
    return known | {model.shared.get(name, name) for name in known}
