"""Walk the graph once: run it on a small example to learn shapes and constants, and let each op's rule state its facts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import View
from cipm.rules import FREE, Consumer, Fixed, LabelBook, Value, gathers
from cipm.symmetry.apply import apply_rule
from cipm.symmetry.shapes import Observed, observe
from cipm.trace.graph import Graph, Input, Node

SYMBOL_SIZES = (3, 12)
"""Example size of the first symbolic dimension (the batch) and of any other (a sequence)."""

Spot = tuple[str, int]
"""A stored tensor's key and one of its axes."""


@dataclass(frozen=True)
class Summed:
    """The axes of a stored tensor that are summed over in some value, and those that stay there."""

    tensor: str
    axes: frozenset[int]
    rest: frozenset[int]


@dataclass(frozen=True)
class Walk:
    """What the walk learned: the facts, the labels of every stored axis, who reads what, and the values computed.

    An axis with a view has labels [outer, size of the axis]: others for every position of the view's other axes. `indices`
    are the values whose numbers choose units of slices.
    """

    book: LabelBook
    atoms: Mapping[Spot, np.ndarray]
    consumers: tuple[Consumer, ...]
    values: tuple[Value, ...]
    views: Mapping[Spot, View] = field(default_factory=dict)
    summed: frozenset[Summed] = frozenset()
    indices: Mapping[str, Value] = field(default_factory=dict)

    def owners(self) -> dict[int, Spot]:
        """Return the stored axis of each first label."""
        return {int(labels.flat[0]): spot for spot, labels in self.atoms.items() if labels.size}

    def stored(self, name: str, tensor: torch.Tensor, key: str) -> Value:
        """Return a stored tensor with the labels of its axes."""
        return _stored(name, tensor, key, self.atoms, self.views)


def example_inputs(checkpoint: Checkpoint, *, generator: torch.Generator,
                   sizes: tuple[int, int] = SYMBOL_SIZES) -> dict[str, torch.Tensor]:
    """Return random inputs the model accepts: normal floats, and integers below the rows of the embeddings they index."""
    limits = index_limits(checkpoint)
    symbols = symbol_sizes(checkpoint, sizes)
    return {i.name: _example(i, [symbols[d] if isinstance(d, str) else d for d in i.shape], limits.get(i.name, 2),
                             generator) for i in checkpoint.graph.inputs}


def symbol_sizes(checkpoint: Checkpoint, sizes: tuple[int, int]) -> dict[str, int]:
    """Return an example size for every symbolic dimension: sizes[0] for leading ones, sizes[1] for the others, within
    the bounds that the model was exported with; derived dimensions ("2*batch") follow."""
    named = [(axis, d) for i in checkpoint.graph.inputs for axis, d in enumerate(i.shape) if isinstance(d, str)]
    leading = {d for axis, d in named if axis == 0}
    bounds = {name: (low, high) for sample in checkpoint.origin.get("samples", {}).values()
              for name, low, high in sample.get("dynamic", {}).values()}
    found: dict[str, int] = {}
    for _, d in named:
        for name in re.findall(r"[A-Za-z_]\w*", d):
            low, high = bounds.get(name, (None, None))
            size = sizes[0] if name in leading else sizes[1]
            found[name] = max(low or 1, min(size, high or size))
    return found | {d: _derived(d, found) for _, d in named}


def _derived(expression: str, sizes: Mapping[str, int]) -> int:
    """Return the value of a product or sum of sizes and integers, such as "2*batch + 1"."""
    return sum(math.prod(sizes[part] if part in sizes else int(part) for part in term.replace(" ", "").split("*"))
               for term in expression.split("+"))


def index_limits(checkpoint: Checkpoint) -> dict[str, int]:
    """Return for each integer input the fewest rows of an embedding it chooses from, through any integer arithmetic."""
    graph = checkpoint.graph
    sources: dict[str, set[str]] = {i.name: {i.name} for i in graph.inputs if not i.dtype.is_floating_point}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        found = set().union(*(sources.get(name, set()) for name in node.refs()))
        if node.op.startswith("aten.embedding."):
            key = graph.tensors.get(node.args[0].name)
            rows = checkpoint.meta(key).shape[0] if key else 2
            for name in sources.get(node.args[1].name, ()):
                limits[name] = min(rows, limits.get(name, rows))
        elif found and not node.op.startswith("aten.sym_size"):
            sources[node.name] = found
    return limits


def read_tensors(graph: Graph) -> set[str]:
    """Return the keys of the stored tensors that some op reads."""
    used = {name for node in graph.nodes for name in node.refs()} | {ref.name for ref in graph.outputs if ref}
    return {key for name, key in graph.tensors.items() if name in used}


def walk(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor], *, views: Mapping[Spot, View] | None = None,
         observed: Observed | None = None) -> Walk:
    """Run the graph on example inputs and collect what every op says about labels.

    `views` are the stored axes whose positions have labels of their own for every position of other axes: the last axis of a
    view is the stored one. `observed` saves running the graph again.
    """
    graph, views = checkpoint.graph, views or {}
    observed = observed or observe(checkpoint, inputs)
    contents = observed.contents
    book, consumers = LabelBook(), []
    read = read_tensors(graph)
    atoms = {(key, axis): book.mint(*_outer(views.get((key, axis))), size)
             for key in dict.fromkeys(graph.tensors.values()) if key in read
             for axis, size in enumerate(checkpoint.meta(key).shape)}
    _tell_apart(book, atoms, views)
    values: dict[str, Any] = {name: _stored(name, checkpoint.meta(key), key, atoms, views)
                              for name, key in graph.tensors.items() if key in read}
    for i in graph.inputs:
        fixed = Fixed("input", i.name, f"it is an axis of the model's input {i.name!r}")
        values[i.name] = Value(i.name, tuple(inputs[i.name].shape), (fixed,) * inputs[i.name].ndim, dtype=i.dtype)
    for name in graph.constants:
        values[name] = _constant(name, contents[name])
    for node in graph.nodes:
        values[node.name] = (_constant(node.name, contents[node.name]) if node.name in contents
                             else _apply(node, values, book, observed.metas[node.name], consumers))
    for ref in graph.outputs:
        value = values[ref.name] if ref is not None else None
        for axis in (*value.axes, *([value.codes] if value.codes is not None else [])) if value else ():
            book.pin(axis, Fixed("output", ref.name, "it is an axis of the model's output, which keeps its order"))
    made = (values[node.name] for node in graph.nodes if node.name not in contents)
    found = tuple(value for value in made if isinstance(value, Value))
    indices = {name: values[name] for name, _ in book.routes}
    walked = Walk(book, atoms, tuple(_reading_weights(graph, book, consumers)), found, views, indices=indices)
    return replace(walked, summed=_summed(consumers, walked.owners()))


def _reading_weights(graph: Graph, book: LabelBook, consumers: Sequence[Consumer]) -> Iterator[Consumer]:
    """Yield the contractions of an activation with a weight, or with the weights of slices that an index chose; two activations
    (queries and keys) are none."""
    driven, gathered = {i.name for i in graph.inputs}, set(graph.tensors)
    for node in graph.nodes:
        if any(name in driven for name in node.refs()):
            driven.add(node.name)
        if gathers(node, gathered):
            gathered.add(node.name)

    def chosen(value: Value, axis: int) -> bool:
        return value.name in gathered and book.chosen(value.axes[axis]) is not None

    for c in consumers:
        weights = [c.value.name not in driven, c.operand.name not in driven]
        if not any(weights):
            weights = [chosen(c.value, c.axis), chosen(c.operand, c.operand_axis)]
        if weights == [False, True]:
            yield c
        elif weights == [True, False]:
            yield Consumer(c.operand, c.operand_axis, c.value, c.axis)


def _summed(consumers: Sequence[Consumer], owners: Mapping[int, Spot]) -> frozenset[Summed]:
    values = {value.name: value for c in consumers for value in (c.value, c.operand)}
    dims: dict[str, set[int]] = {}
    for c in consumers:
        dims.setdefault(c.value.name, set()).add(c.axis)
        dims.setdefault(c.operand.name, set()).add(c.operand_axis)
    found = set()
    for name, value in values.items():
        spots = {i: owners.get(int(axis.flat[0])) for i, axis in enumerate(value.axes)
                 if isinstance(axis, np.ndarray) and axis.size}
        for key in {spot[0] for spot in spots.values() if spot}:
            own = {i: spot[1] for i, spot in spots.items() if spot and spot[0] == key}
            gone = frozenset(axis for i, axis in own.items() if i in dims[name])
            found.add(Summed(key, gone, frozenset(own.values()) - gone))
    return frozenset(found)


def _apply(node: Node, values: Mapping[str, Any], book: LabelBook, metas: Any, consumers: list[Consumer]) -> Any:
    if node.op == "getitem":
        return replace(values[node.args[0].name][node.args[1]], name=node.name)
    return apply_rule(node, values, book, metas, consumers)


def _outer(view: View | None) -> tuple[int, ...]:
    return (view.length // view.shape[view.axes[-1]],) if view is not None else ()


def _tell_apart(book: LabelBook, atoms: Mapping[Spot, np.ndarray], views: Mapping[Spot, View]) -> None:
    """Let the positions of an axis with a view move as those of its other axis do, where that is an axis of the tensor."""
    for (key, axis), view in views.items():
        outer = atoms.get((key, view.axes[0]))
        if outer is not None and outer.shape == atoms[key, axis].shape[:1]:
            book.child(atoms[key, axis], np.broadcast_to(outer[:, None], atoms[key, axis].shape))


def _stored(name: str, tensor: torch.Tensor, key: str, atoms: Mapping[Spot, np.ndarray], views: Mapping[Spot, View]) -> Value:
    shape = tuple(tensor.shape)
    axes = tuple(_laid_out(atoms[key, axis], axis, shape, views.get((key, axis))) for axis in range(len(shape)))
    return Value(name, shape, axes, dtype=tensor.dtype)


def _laid_out(labels: np.ndarray, axis: int, shape: Sequence[int], view: View | None) -> np.ndarray:
    if view is None:
        return labels.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    seen = labels.reshape([view.shape[i] for i in view.axes]).transpose(np.argsort(view.axes))
    sizes = iter(seen.shape)
    seen = seen.reshape([next(sizes) if i in view.axes else 1 for i in range(len(view.shape))])
    if len(view.shape) > len(shape):  # runs of the first axis: every position of a run has the labels of the run
        seen = np.repeat(seen, view.shape[1], axis=1)
        return seen.reshape(shape[0], *seen.shape[2:])
    return seen


def _constant(name: str, content: Any) -> Any:
    if isinstance(content, tuple | list):
        return tuple(_constant(f"{name}:{i}", item) for i, item in enumerate(content))
    if not isinstance(content, torch.Tensor):
        return Value(name, (), (), content)
    fixed = Fixed("constant", name, "it meets a constant of the graph that is not part of the checkpoint")
    axes = tuple(FREE if size > 1 and bool((content == content.narrow(axis, 0, 1)).all()) else fixed
                 for axis, size in enumerate(content.shape))
    return Value(name, tuple(content.shape), axes, content, dtype=content.dtype)


def _example(spec: Input, shape: list[int], limit: int, generator: torch.Generator) -> torch.Tensor:
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(spec.dtype)
    if spec.dtype is torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    return torch.randint(0, max(limit, 1), shape, generator=generator, dtype=spec.dtype)
