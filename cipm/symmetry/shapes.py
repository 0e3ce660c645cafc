"""Shapes and known contents of every value of a graph, from the shapes of the tensors alone (torch's meta device).

No weight is read and none is computed with: a graph of eight billion parameters takes seconds. What depends on neither inputs
nor stored tensors (positions, masks) is computed for real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.trace.graph import Node
from cipm.trace.interpret import call_arguments, resolve

META = torch.device("meta")


@dataclass(frozen=True)
class Observed:
    """What is known of every value by name: tensors without bytes (several results: a list), and contents of constants."""

    metas: Mapping[str, Any]
    contents: Mapping[str, Any]

    def shape(self, name: str) -> Any:
        """Return the shape of a value, () for a number; a list of shapes where the value is several."""
        value = self.metas[name]
        return [_shape(item) for item in value] if isinstance(value, list | tuple) else _shape(value)


def observe(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> Observed:
    """Run the graph on the meta device for inputs of these shapes.

    Raises UnsupportedModel where an op does not fit its operands.
    """
    graph = checkpoint.graph
    metas: dict[str, Any] = {name: checkpoint.meta(key) for name, key in graph.tensors.items()}
    metas |= {i.name: inputs[i.name].to(META) for i in graph.inputs}
    varying = set(metas)
    contents: dict[str, Any] = {name: checkpoint.constants[key] for name, key in graph.constants.items()}
    metas |= {name: _to_meta(value) for name, value in contents.items()}
    for node in graph.nodes:
        observe_node(node, metas, contents, varying)
    return Observed(metas, contents)


def observe_node(node: Node, metas: dict[str, Any], contents: dict[str, Any], varying: set[str]) -> None:
    """Add the value of one node to what is known of those before it; `varying` are the tensors that depend on inputs.

    Raises UnsupportedModel where the op does not fit its operands.
    """
    if any(name in varying for name in node.refs()):
        value = _on_meta(node, metas, contents)
        if _is_tensor(value):
            varying.add(node.name)
    else:
        value = _for_real(node, contents)
    if node.name not in varying:
        contents[node.name] = value
    metas[node.name] = _to_meta(value)


def _on_meta(node: Node, metas: Mapping[str, Any], contents: Mapping[str, Any]) -> Any:
    """Return the result for operands without bytes; an op that needs bytes is run on zeros of the same shapes."""
    try:
        return _call(node, metas, META)
    except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError):
        filled = {name: contents[name] if name in contents else _zeros(metas[name]) for name in node.refs()}
        return _to_meta(_for_real(node, filled))


def _for_real(node: Node, values: Mapping[str, Any]) -> Any:
    try:
        return _call(node, values, torch.device("cpu"))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UnsupportedModel(f"The model cannot run on these inputs: {node.op} says {reason!r}.", where=node.name) from error


def _call(node: Node, values: Mapping[str, Any], device: torch.device) -> Any:
    def prepare(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else call_arguments(argument, values)

    with torch.no_grad():
        return resolve(node.op)(*map(prepare, node.args), **{key: prepare(item) for key, item in node.kwargs.items()})


def _to_meta(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_meta(item) for item in value]
    return value.to(META) if isinstance(value, torch.Tensor) else value


def _zeros(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_zeros(item) for item in value]
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | list | tuple)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
