"""The one intermediate representation: the functional ATen graph, as frozen values that serialise to JSON.

Every front end ends here, every later stage starts here. A node's `op` is the qualified overload name as torch prints
it (`aten.linear.default`), or `getitem`, or one of a few integer operators (`_operator.mul`) on symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class Ref:
    """A reference to a value of the graph by name."""

    name: str


Argument = Any  # Ref | int | float | bool | str | None | torch.dtype | torch.device | torch.layout | tuple of those


@dataclass(frozen=True)
class Input:
    """One input of the model. A dimension is an int, or the name of a symbolic size (`"batch"`)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Node:
    """One operation: `name = op(*args, **kwargs)`. Several results are one tuple value, read by `getitem`."""

    name: str
    op: str
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] = field(default_factory=dict)

    def refs(self) -> tuple[str, ...]:
        """Return the names of the values this node reads, in argument order."""
        return self._refs

    @cached_property
    def _refs(self) -> tuple[str, ...]:
        return tuple(refs_in((self.args, tuple(self.kwargs.values()))))


@dataclass(frozen=True)
class Graph:
    """A traced model.

    `tensors` maps the value name of a stored tensor to its key in the checkpoint (two names may share a key: tied
    weights). `constants` maps a value name to the key of a tensor that belongs to the graph alone and is not part of
    the checkpoint. `outputs` are references, or None for an output that is None.
    """

    inputs: tuple[Input, ...]
    tensors: Mapping[str, str]
    constants: Mapping[str, str]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref | None, ...]

    def node(self, name: str) -> Node:
        """Return the node that makes the value called `name`."""
        return next(node for node in self.nodes if node.name == name)


def refs_in(argument: Argument) -> Iterator[str]:
    """Yield the value names inside a (nested) argument."""
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from refs_in(item)


def map_refs(argument: Argument, replace: Callable[[Ref], Any]) -> Argument:
    """Return the argument with every reference replaced; lists and tuples become tuples."""
    if isinstance(argument, Ref):
        return replace(argument)
    if isinstance(argument, (tuple, list)):
        return tuple(map_refs(item, replace) for item in argument)
    return argument


# --- JSON -----------------------------------------------------------------------------------------------------------

_TORCH_KINDS = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory"}


def to_json(graph: Graph) -> dict[str, Any]:
    """Return the graph as JSON-ready values; `from_json` gives back an equal graph."""
    return {
        "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": _name(i.dtype)} for i in graph.inputs],
        "tensors": dict(graph.tensors),
        "constants": dict(graph.constants),
        "nodes": [[n.name, n.op, _encode(n.args), {k: _encode(v) for k, v in n.kwargs.items()}] for n in graph.nodes],
        "outputs": [None if ref is None else ref.name for ref in graph.outputs],
    }


def from_json(payload: Mapping[str, Any]) -> Graph:
    """Rebuild a graph from `to_json`."""
    return Graph(
        inputs=tuple(Input(i["name"], tuple(i["shape"]), getattr(torch, i["dtype"])) for i in payload["inputs"]),
        tensors=dict(payload["tensors"]),
        constants=dict(payload["constants"]),
        nodes=tuple(Node(name, op, _decode(args), {k: _decode(v) for k, v in kwargs.items()})
                    for name, op, args, kwargs in payload["nodes"]),
        outputs=tuple(None if name is None else Ref(name) for name in payload["outputs"]),
    )


def _name(kind: Any) -> str:
    return str(kind).removeprefix("torch.")


def _encode(argument: Argument) -> Any:
    if isinstance(argument, Ref):
        return {"ref": argument.name}
    if isinstance(argument, (tuple, list)):
        return [_encode(item) for item in argument]
    if type(argument) in _TORCH_KINDS:
        return {_TORCH_KINDS[type(argument)]: _name(argument)}
    if isinstance(argument, float) and argument - argument != 0:  # inf and nan have no JSON form
        return {"float": repr(argument)}
    assert argument is None or isinstance(argument, (bool, int, float, str)), type(argument)
    return argument


def _decode(item: Any) -> Argument:
    if isinstance(item, list):
        return tuple(_decode(part) for part in item)
    if not isinstance(item, dict):
        return item
    (kind, value), = item.items()
    if kind == "ref":
        return Ref(value)
    if kind == "float":
        return float(value)
    return torch.device(value) if kind == "device" else getattr(torch, value)
