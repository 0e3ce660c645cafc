"""Run a Graph: the same few lines serve the proof, the statistics, the what-ifs and the re-export."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from cipm.errors import UnsupportedModel
from cipm.trace.graph import Graph, Node, Ref, map_refs, refs_in

Observer = Callable[[torch.Tensor], None]
Intervention = Callable[[torch.Tensor], torch.Tensor]

PART = 2**22
"""The most elements of a linear layer's weight that are cast at once."""
_REDUCED = (torch.float16, torch.bfloat16, torch.float32)
_UNFILLED = ("aten.empty", "aten.new_empty")
"""Ops whose result is whatever stands in memory, for the graph to write over: zeros, so that two runs are equal."""


def resolve(op: str) -> Callable[..., Any]:
    """Return the function behind an op name; raises UnsupportedModel for anything outside ATen and integer arithmetic."""
    if op == "getitem":
        return operator.getitem
    family, _, name = op.partition(".")
    if family == "_operator" and hasattr(operator, name):
        return getattr(operator, name)
    if family == "math" and hasattr(math, name):
        return getattr(math, name)
    if op in ("torch.sym_max", "torch.sym_min", "torch.sym_float", "torch.sym_int", "torch.sym_not"):
        return getattr(torch, name)
    packet, _, overload = name.partition(".")
    if family == "aten" and hasattr(torch.ops.aten, packet):
        return getattr(getattr(torch.ops.aten, packet), overload or "default")
    raise UnsupportedModel(f"The model uses the operator {op}, which is not part of ATen.", where=op,
                           fix="Rewrite that layer with standard PyTorch operators and export again.")


def run(graph: Graph, tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor],
        inputs: Mapping[str, torch.Tensor], *, dtype: torch.dtype | None = None,
        observe: Mapping[str, Observer] | None = None,
        intervene: Mapping[str, Intervention] | None = None) -> tuple[torch.Tensor | None, ...]:
    """Compute the outputs of the graph.

    `inputs` maps every input name to a tensor. With `dtype` (float64 in the proof) all floating tensors and every
    cast inside the graph take that type. `observe` shows a value to a function; `intervene` replaces a value by what
    the function returns. A stored tensor is asked for at its first use, and values are dropped after their last use:
    where `tensors` reads lazily, a model larger than memory runs. Runs without gradients.

    Raises UnsupportedModel where an operator cannot run on these inputs.
    """
    device = tensors[next(iter(tensors))].device if isinstance(tensors, dict) and tensors else torch.device("cpu")
    observe, intervene = observe or {}, intervene or {}
    values: dict[str, Any] = {name: cast(constants[key], dtype).to(device) for name, key in graph.constants.items()}
    values |= {i.name: cast(inputs[i.name], dtype).to(device) for i in graph.inputs}

    def fetch(names: Iterable[str]) -> None:
        for name in names:
            if name not in values:
                values[name] = read_stored(tensors, graph, name, dtype, parts)
                _visit(values, name, observe, intervene)

    last, parts = last_uses(graph), taken_in_parts(graph)
    with torch.no_grad():
        for name in list(values):
            _visit(values, name, observe, intervene)
        for step, node in enumerate(graph.nodes):
            fetch(node.refs())
            values[node.name] = call_node(node, values, dtype, device)
            _visit(values, node.name, observe, intervene)
            for name in last.get(step, ()):
                del values[name]
        fetch(ref.name for ref in graph.outputs if ref is not None)
    return tuple(None if ref is None else values[ref.name] for ref in graph.outputs)


def last_uses(graph: Graph) -> dict[int, list[str]]:
    """Return for every step the values that no later step and no output reads."""
    last: dict[str, int] = {}
    for step, node in enumerate(graph.nodes):
        last[node.name] = step
        for name in node.refs():
            last[name] = step
    for ref in graph.outputs:
        if ref is not None:
            last.pop(ref.name, None)
    steps: dict[int, list[str]] = {}
    for name, step in last.items():
        steps.setdefault(step, []).append(name)
    return steps


def taken_in_parts(graph: Graph) -> frozenset[str]:
    """Return the stored tensors that only linear layers and embeddings read: they are cast part by part, never as a whole."""
    places = {"aten.embedding.default": 0, "aten.linear.default": 1}
    found, others = set(), {ref.name for ref in graph.outputs if ref is not None}
    for node in graph.nodes:
        for at, argument in enumerate(node.args):
            (found if places.get(node.op) == at else others).update(refs_in(argument))
        others.update(refs_in(tuple(node.kwargs.values())))
    return frozenset(found - others) & frozenset(graph.tensors)


def read_stored(tensors: Mapping[str, torch.Tensor], graph: Graph, name: str, dtype: torch.dtype | None,
                parts: frozenset[str]) -> torch.Tensor:
    """Return a stored tensor by its value's name, in this type unless it is taken in parts."""
    tensor = tensors[graph.tensors[name]]
    return tensor if name in parts else cast(tensor, dtype)


def call_arguments(argument: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with references replaced by values, in the list form that ATen calls take."""
    filled = map_refs(argument, lambda ref: values[ref.name])
    return _as_list(filled)


def call_node(node: Node, values: Mapping[str, Any], dtype: torch.dtype | None, device: torch.device) -> Any:
    """Return what one node makes of these values; raises UnsupportedModel where it cannot run on them."""
    def prepare(argument: Any) -> Any:
        if isinstance(argument, torch.dtype) and dtype is not None and argument in _REDUCED:
            return dtype
        return device if isinstance(argument, torch.device) else argument

    args = [prepare(call_arguments(argument, values)) for argument in node.args]
    kwargs = {key: prepare(call_arguments(argument, values)) for key, argument in node.kwargs.items()}
    call = _linear_in_parts if node.op == "aten.linear.default" and dtype is not None else resolve(node.op)
    try:
        made = _typed(call, args, kwargs, dtype)
        return made.zero_() if node.op.startswith(_UNFILLED) else made
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UnsupportedModel(f"The model cannot run on these inputs: {node.op} says {reason!r}.",
                               where=node.name) from error


def _linear_in_parts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x Wᵀ + b in the type of x, a run of W's rows at a time, each cast for itself."""
    rows = max(1, PART // max(1, weight.shape[-1]))
    if weight.dtype == x.dtype or weight.ndim != 2 or weight.shape[0] <= rows:
        return torch.nn.functional.linear(x, weight.to(x.dtype), bias)
    starts = range(0, weight.shape[0], rows)
    products = [torch.nn.functional.linear(x, weight[start:start + rows].to(x.dtype)) for start in starts]
    product = torch.cat(products, -1)
    return product if bias is None else product + bias


def _typed(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], dtype: torch.dtype | None) -> Any:
    """Call a function; what it makes has the asked type. A kernel without float64 (quantisation) computes in float32."""
    try:
        made = function(*args, **kwargs)
    except RuntimeError:
        if dtype is not torch.float64:
            raise
        made = function(*_cast_all(args, torch.float32), **_cast_all(kwargs, torch.float32))
    return _cast_all(made, dtype)


def _cast_all(item: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(item, Mapping):
        return {key: _cast_all(part, dtype) for key, part in item.items()}
    if isinstance(item, list | tuple):
        return [_cast_all(part, dtype) for part in item]
    return cast(item, dtype) if isinstance(item, torch.Tensor) else item


def _visit(values: dict[str, Any], name: str, observe: Mapping[str, Observer],
           intervene: Mapping[str, Intervention]) -> None:
    if name in intervene:
        values[name] = intervene[name](values[name])
    if name in observe:
        observe[name](values[name])


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a floating tensor in this type; others, and without a type all, as they are."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _as_list(argument: Any) -> Any:
    return [_as_list(item) for item in argument] if isinstance(argument, tuple) else argument


__all__ = ["Intervention", "Observer", "Ref", "call_arguments", "call_node", "cast", "last_uses", "read_stored", "resolve",
           "run", "taken_in_parts"]
