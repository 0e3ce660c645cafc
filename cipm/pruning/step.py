"""One node of a graph that is made smaller: what its operands were and are, and how its constants may be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch

from cipm.errors import OptionError, UnsupportedModel
from cipm.pruning.kept import Kept, Uneven
from cipm.rules import bind
from cipm.symmetry.shapes import Observed, observe_node
from cipm.trace.graph import Node, Ref
from cipm.trace.interpret import resolve


@dataclass
class Smaller:
    """The graph so far: its new nodes, and what is known of their values. The only mutable value of shrinking.

    `before` are the shapes and known contents of the whole graph as it was, `driven` the values that depend on inputs,
    `carried` the groups on each value, `source` the value that an inserted one was cut from, `reached` the values that
    depend on units that go.
    """

    kept: Kept
    before: Observed
    driven: frozenset[str]
    carried: Mapping[str, tuple[str, ...]]
    metas: dict[str, Any]
    contents: dict[str, Any]
    varying: set[str]
    nodes: list[Node] = field(default_factory=list)
    source: dict[str, str] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    def add(self, node: Node) -> None:
        """Append a node, its value observed on the meta device. What was laid out otherwise is copied where it is reshaped."""
        self.reached.update([node.name] if self.kept.touches(node.name) or not self.reached.isdisjoint(node.refs()) else [])
        if node.op == "aten.view.default" and node.name in self.reached:
            node = replace(node, op="aten.reshape.default")
        observe_node(node, self.metas, self.contents, self.varying)
        self.nodes.append(node)


@dataclass(frozen=True)
class Step:
    """One node with its arguments by the names of its schema (references kept as they are)."""

    node: Node
    bound: Mapping[str, Any]
    graph: Smaller

    @classmethod
    def of(cls, node: Node, graph: Smaller) -> Step:
        """Return the step of a node."""
        return cls(node, bind(node, {name: Ref(name) for name in node.refs()}), graph)

    def __getitem__(self, name: str) -> Any:
        return self.bound.get(name)

    @property
    def kept(self) -> Kept:
        """What stays."""
        return self.graph.kept

    @property
    def operand(self) -> Ref:
        """The first tensor among the arguments."""
        return next(argument for argument in self.bound.values() if isinstance(argument, Ref))

    def old(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape that a value had."""
        return tuple(self.graph.before.shape(self._source(ref.name)))

    def new(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape that a value has now."""
        return tuple(getattr(self.graph.metas[ref.name], "shape", ()))

    def size(self, ref: Ref, dim: int) -> int | None:
        """Return what the labels of a value say of the size of an axis now; None where they say nothing."""
        return self.kept.size(self._source(ref.name), dim)

    def out(self, dim: int) -> int | None:
        """Return the same for the result of the node."""
        return self.kept.size(self.node.name, dim)

    def goes(self, ref: Ref, dims: Sequence[int]) -> bool:
        """Tell whether anything of these axes of a value goes."""
        return any(self.kept.mask(self._source(ref.name), dim) is not None for dim in dims)

    def changed(self, /, **arguments: Any) -> Node:
        """Return the node with other values for some of its arguments."""
        names = [argument.name for argument in resolve(self.node.op)._schema.arguments]
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        for name, value in arguments.items():
            at = names.index(name)
            if name in kwargs or resolve(self.node.op)._schema.arguments[at].kwarg_only:
                kwargs[name] = value
                continue
            args.extend(self.bound[other] for other in names[len(args):at + 1])
            args[at] = value
        return replace(self.node, args=tuple(args), kwargs=kwargs)

    def insert(self, op: str, *args: Any) -> Ref:
        """Add a node of our own before this one; return its value."""
        number = sum(node.name.startswith(f"{self.node.name}_kept") for node in self.graph.nodes)
        node = Node(f"{self.node.name}_kept{number}", op, args)
        self.graph.add(node)
        return Ref(node.name)

    def fitted(self, ref: Ref, sizes: Mapping[int, int], *, numbers: bool = False) -> Ref:
        """Return a value cut to these sizes along axes on which it is the same everywhere (or, with `numbers`, counts
        0, 1, …). Refuses where it is neither."""
        for dim, size in sizes.items():
            if self.new(ref)[dim] == size:
                continue
            name = self._source(ref.name)
            if not (self.uniform(ref, dim) or numbers and self._counts(name, dim)) or self.new(ref)[dim] < size:
                self.refuse(f"it meets a table of {self.new(ref)[dim]} fixed numbers along that axis")
            ref = self.insert("aten.slice.Tensor", ref, dim, 0, size)
            self.graph.source[ref.name] = name
        return ref

    def note(self, text: str) -> None:
        """Say in words what is changed beside sizes."""
        self.graph.notes[text] = None

    def refuse(self, reason: str) -> NoReturn:
        """Raise UnsupportedModel: the groups that stand here cannot be made smaller in this graph, only masked."""
        names = self.groups()
        which = f"Group {names[0]}" if len(names) == 1 else f"Groups {', '.join(names)}"
        raise UnsupportedModel(f"{which} cannot be made smaller in this graph, only masked: at {self.node.op} "
                               f"({self.node.name}) {reason}.", where=self.node.name,
                               fix=f"Keep all units of {names[0]}, or keep the file whole and mask them.")

    def uneven(self) -> NoReturn:
        """Raise OptionError: blocks must keep equally many units."""
        names = ", ".join(self.groups())
        raise OptionError(f"What is kept of {names} differs from block to block, but {self.node.op} ({self.node.name}) needs "
                          "equally many units in each.", where=self.node.name,
                          fix="Keep the same number of units in every block (each head, each gate, each layer of a stack).")

    def groups(self) -> list[str]:
        """Return the names of the groups that lose units and stand on what this node reads or makes."""
        here = {name for value in (self.node.name, *self.node.refs())
                for name in self.graph.carried.get(self._source(value), ())}
        found = [name for name in self.kept.removed if name in here or name.split(".part")[0] in here]
        return found or list(self.kept.removed)

    def _source(self, name: str) -> str:
        return self.graph.source.get(name, name)

    def uniform(self, ref: Ref, dim: int) -> bool:
        """Tell whether a value is the same all along an axis."""
        name = self._source(ref.name)
        content = self.graph.before.contents.get(name)
        if isinstance(content, torch.Tensor):
            return bool((content == content.narrow(dim, 0, 1)).all())
        return self.kept.uniform(name, dim)

    def _counts(self, name: str, dim: int) -> bool:
        content = self.graph.before.contents.get(name)
        return isinstance(content, torch.Tensor) and content.numel() == content.shape[dim] \
            and content.flatten().tolist() == list(range(content.numel()))


Rewrite = Callable[[Step], Node]


def rewritten(node: Node, graph: Smaller, rewrite: Rewrite | None) -> None:
    """Add one node that removed units touch; raises where it has no rewrite, or makes another shape than the labels say."""
    step = Step.of(node, graph)
    if rewrite is None:
        step.refuse("no rule says how to change its constants")
    try:
        made = rewrite(step)
        graph.add(made)
        _check(step)
    except Uneven:
        step.uneven()
    except UnsupportedModel as error:
        if error.message.startswith("The model cannot run on these inputs"):
            step.refuse("what is left of its operands does not fit together")
        raise


def _check(step: Step) -> None:
    """Refuse where the node makes another shape than the labels of its result say."""
    value = step.kept.values.get(step.node.name)
    if value is None:
        return
    shape = step.new(Ref(step.node.name))
    for dim, size in enumerate(value.shape):
        wanted = step.out(dim)
        free = wanted is None and step.kept.uniform(step.node.name, dim)
        if len(shape) != len(value.shape) or not free and shape[dim] != (size if wanted is None else wanted):
            step.refuse(f"axis {dim} would have {shape[dim] if dim < len(shape) else 'no'} positions, not "
                        f"{size if wanted is None else wanted}")
