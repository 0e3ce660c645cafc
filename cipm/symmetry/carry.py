"""Walk the graph once more: every op passes on what acts on its operands (factors, signs or matrices, by the system given)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cipm.rules.registry import bind
from cipm.symmetry.charges import Charges
from cipm.symmetry.fields import Field, extents_reshaped, independent, reshaped
from cipm.symmetry.fields import Term as FieldTerm
from cipm.symmetry.shapes import Observed
from cipm.symmetry.spaces import Spaces
from cipm.symmetry.unknowns import Unknowns
from cipm.trace.graph import Graph, Node

System = Charges | Spaces


@dataclass(frozen=True, eq=False)
class Held:
    """A value with what acts on it. `extents` is its shape with 1 for axes along which it does not vary."""

    name: str
    shape: tuple[int, ...]
    extents: tuple[int, ...]
    field: Field = ()
    content: Any = None


@dataclass(frozen=True)
class Op:
    """One node with its arguments by name, for a handler."""

    node: Node
    system: System
    bound: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, name: str) -> Any:
        return self.bound.get(name)

    @property
    def name(self) -> str:
        return self.node.op.removeprefix("aten.").split(".")[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    def operands(self) -> list[Held]:
        """Return every value among the arguments, in order."""
        return [held for argument in self.bound.values() for held in _held_in(argument)]

    def held(self, field: Field, extents: Sequence[int] | None = None, number: int = 0) -> Held:
        """Return a result of the node."""
        shape = self.shapes[number]
        return Held(self.node.name, shape, tuple(extents) if extents is not None else shape, field)


Handler = Callable[[Op], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*ops: str) -> Callable[[Handler], Handler]:
    """Register a handler for ops by their ATen name without overload, or with it where overloads differ."""
    def register(function: Handler) -> Handler:
        for op in ops:
            assert op not in HANDLERS, op
            HANDLERS[op] = function
        return function
    return register


def carry(graph: Graph, observed: Observed, unknowns: Unknowns, system: System) -> None:
    """Walk the graph; afterwards the system holds all that its ops demand."""
    values: dict[str, Any] = {}
    for name, key in graph.tensors.items():
        shape = tuple(observed.metas[name].shape)
        values[name] = Held(name, shape, shape, unknowns.fields.get(key, ()))
    for i in graph.inputs:
        shape = tuple(observed.metas[i.name].shape)
        values[i.name] = Held(i.name, shape, shape)
    for name in graph.constants:
        values[name] = _constant(name, observed.contents[name])
    for node in graph.nodes:
        if node.name in observed.contents:
            values[node.name] = _constant(node.name, observed.contents[node.name])
        elif node.name in unknowns.shifted:
            shape = tuple(observed.metas[node.name].shape)
            values[node.name] = Held(node.name, shape, shape, unknowns.fields[unknowns.shifted[node.name]])
        elif node.op == "getitem":
            values[node.name] = replace(values[node.args[0].name][node.args[1]], name=node.name)
        else:
            values[node.name] = _apply(node, values, observed.metas[node.name], system)
    for ref in graph.outputs:
        for held in _held_in(values[ref.name]) if ref is not None else ():
            system.vanish(held.field)


def _apply(node: Node, values: Mapping[str, Any], metas: Any, system: System) -> Any:
    results = list(metas) if isinstance(metas, list | tuple) else [metas]
    op = Op(node, system, bind(node, dict(values)), tuple(tuple(getattr(m, "shape", ())) for m in results))
    handler = HANDLERS.get(node.op.removeprefix("aten.")) or HANDLERS.get(op.name) or unknown
    try:
        made = handler(op)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        made = unknown(op)  # a form that the handler does not foresee; what it has said so far only takes freedom away
    if not isinstance(metas, list | tuple):
        return made[0] if isinstance(made, list) else made
    made = made if isinstance(made, list) else [made]
    return [*made, *(op.held((), None, number) for number in range(len(made), len(results)))]


def unknown(op: Op) -> Any:
    """An op of which nothing is known here: nothing may act on what it reads."""
    for held in op.operands():
        op.system.vanish(held.field)
    return [op.held((), None, number) for number in range(len(op.shapes))]


def reshape(system: System, held: Held, shape: Sequence[int]) -> Held:
    """Return a value viewed in another shape; entries that are copies of each other stay so."""
    terms = []
    for term in held.field:
        ids, repeated = reshaped(term.ids, held.shape, shape)
        if repeated and isinstance(system, Spaces):
            full = [held.shape[a] if a in repeated else n for a, n in enumerate(term.ids.shape)]
            ids, _ = reshaped(system.repeated(np.broadcast_to(term.ids, full), repeated), held.shape, shape)
        terms.append(FieldTerm(term.power, independent(ids)))
    return replace(held, shape=tuple(shape), extents=extents_reshaped(held.extents, held.shape, shape), field=tuple(terms))


def _constant(name: str, content: Any) -> Any:
    if isinstance(content, list | tuple):
        return [_constant(name, item) for item in content]
    if not isinstance(content, torch.Tensor):
        return content
    extents = tuple(1 if size > 1 and bool((content == content.narrow(axis, 0, 1)).all()) else size
                    for axis, size in enumerate(content.shape))
    return Held(name, tuple(content.shape), extents, (), content)


def _held_in(argument: Any) -> list[Held]:
    if isinstance(argument, Held):
        return [argument]
    return [held for item in argument for held in _held_in(item)] if isinstance(argument, list | tuple) else []
