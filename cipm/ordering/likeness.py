"""Two models side by side: the steps of their graphs without names, and which tensor of one is which of the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.trace.graph import Graph, Input, Node, Ref, map_refs, to_json


def read_tensors(graph: Graph) -> tuple[str, ...]:
    """Return the keys of the stored tensors that the graph reads, in the order of their first use; tied ones once."""
    return tuple(dict.fromkeys(graph.tensors[name] for name in _used(graph) if name in graph.tensors))


def read_constants(graph: Graph) -> tuple[str, ...]:
    """Return the keys of the graph's own tensors that it reads, in the order of their first use."""
    return tuple(dict.fromkeys(graph.constants[name] for name in _used(graph) if name in graph.constants))


def nameless(graph: Graph) -> dict[str, Any]:
    """Return the graph as JSON-ready values with numbers for all names: equal for graphs that differ in names alone.

    Inputs, free sizes and values are numbered in the order in which they appear, stored tensors and constants in the order of
    their first use.
    """
    tensors, constants = ({key: f"{kind}{i}" for i, key in enumerate(keys)} for kind, keys in
                          (("tensor", read_tensors(graph)), ("constant", read_constants(graph))))
    values = {name: tensors[key] for name, key in graph.tensors.items() if key in tensors}
    values |= {name: constants[key] for name, key in graph.constants.items() if key in constants}
    values |= {item.name: f"input{i}" for i, item in enumerate(graph.inputs)}
    values |= {node.name: f"value{i}" for i, node in enumerate(graph.nodes)}
    nodes = tuple(_renamed(node, values) for node in graph.nodes)
    outputs = tuple(None if ref is None else Ref(values[ref.name]) for ref in graph.outputs)
    return to_json(Graph(_sizes(graph.inputs, values), {}, {}, nodes, outputs))


def counterparts(model: Checkpoint, reference: Checkpoint) -> Mapping[str, str]:
    """Return, for each stored tensor that the model's graph reads, the reference's key for it.

    Raises UnsupportedModel where the two differ in anything but names and values: the first difference is named.
    """
    pairs = list(zip(read_tensors(model.graph), read_tensors(reference.graph), strict=False))
    for key, other in pairs:
        shapes = [list(c.meta(k).shape) for c, k in ((model, key), (reference, other))]
        if shapes[0] != shapes[1]:
            raise UnsupportedModel(f"The two models differ in structure: tensor {key!r} is {shapes[0]}, and its counterpart "
                                   f"{other!r} in the reference {shapes[1]}.", where=key)
    one, two = nameless(model.graph), nameless(reference.graph)
    if one != two:
        raise UnsupportedModel(f"The two models differ in structure: {_difference(one, two, model.graph)}.")
    return dict(pairs)


def _difference(one: Mapping[str, Any], two: Mapping[str, Any], graph: Graph) -> str:
    """Say where two nameless graphs differ first."""
    if one["inputs"] != two["inputs"]:
        return "their inputs are not the same"
    for node, mine, other in zip(graph.nodes, one["nodes"], two["nodes"], strict=False):
        if mine != other:
            words = f"is {mine[1]} in the model and {other[1]} in the reference" if mine[1] != other[1] else (
                f"({mine[1]}) reads other values or has other settings in the reference")
            return f"step {node.name} {words}"
    if len(one["nodes"]) != len(two["nodes"]):
        return f"the model has {len(one['nodes'])} steps, the reference {len(two['nodes'])}"
    return "their outputs are not the same"


def _used(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        yield from node.refs()
    yield from (ref.name for ref in graph.outputs if ref is not None)


def _renamed(node: Node, values: Mapping[str, str]) -> Node:
    def rename(ref: Ref) -> Ref:
        return Ref(values[ref.name])
    kwargs = {name: map_refs(value, rename) for name, value in sorted(node.kwargs.items())}
    return replace(node, name=values[node.name], args=map_refs(node.args, rename), kwargs=kwargs)


def _sizes(inputs: tuple[Input, ...], values: Mapping[str, str]) -> tuple[Input, ...]:
    numbers: dict[str, str] = {}
    shapes = [tuple(size if isinstance(size, int) else numbers.setdefault(size, f"size{len(numbers)}") for size in item.shape)
              for item in inputs]
    return tuple(replace(item, name=values[item.name], shape=shape) for item, shape in zip(inputs, shapes, strict=True))
