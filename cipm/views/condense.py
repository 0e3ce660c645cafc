"""A traced graph made small enough to read: what only moves positions about is left out, what computes one thing is one box."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cipm.trace.graph import Graph, Node

Path = tuple[str, ...]
PLUMBING = frozenset("""getitem view _unsafe_view reshape permute transpose t numpy_T movedim swapaxes expand clone contiguous
    alias detach lift_fresh_copy slice split split_with_sizes chunk unbind select narrow squeeze unsqueeze flatten unflatten
    to _to_copy dropout copy""".split())
"""Ops that hand positions on without computing: they become part of the edge."""
WORDS = {"addmm": "linear", "scaled_dot_product_attention": "attention", "convolution": "conv", "bmm": "matmul", "mm": "matmul",
         "_native_batch_norm_legit_no_training": "batch_norm"}
MOST_NODES = 64
"""Nodes that one box stands for at most."""
ARITHMETIC = frozenset(("add", "sub", "mul", "div", "pow", "neg", "cat", "mean", "sum", "copy_"))
SHAPE_ONLY = ("aten.sym_", "_operator.", "math.", "torch.sym_")


@dataclass
class Box:
    """One box of the drawing: the nodes it stands for, in order, and the stored tensors they read.

    `reads` maps every value that comes in to the boxes it comes from. `kind` is "op", "input" or "output".
    """

    kind: str
    nodes: list[str]
    ops: list[str]
    tensors: list[str] = field(default_factory=list)
    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def sources(self) -> set[int]:
        """Return the boxes that this one reads."""
        return {source for found in self.reads.values() for source in found}


def op_word(op: str) -> str:
    """Return an op's name without its namespace and overload: `aten.layer_norm.default` → `layer_norm`."""
    parts = op.split(".")
    name = parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]
    return WORDS.get(name, name)


def ops_word(ops: Sequence[str]) -> str:
    """Return a short name for a few ops: the one that is no arithmetic, else the first and the last."""
    telling = [op for op in dict.fromkeys(ops) if op not in ARITHMETIC]
    if len(ops) <= 2:
        return " · ".join(ops)
    return f"{telling[0]} …" if telling else f"{ops[0]} … {ops[-1]}"


def condense(graph: Graph, keep: Collection[str] = ()) -> list[Box]:
    """Return the boxes of a graph in an order in which each follows what it reads; `keep` names nodes to show as they are.

    A stored tensor belongs to the ops that compute with it. Ops without tensors that have the same sources and no
    other reader are one box (a GELU, a rotary embedding); a norm written out in steps is one box with its weight. What
    depends on neither an input's values nor a stored tensor (masks, positions) is left out, and so is what nothing reads.
    """
    builder = _Builder(_readers(graph, keep), frozenset(keep))
    for item in graph.inputs:
        builder.add_input(item.name)
    for name, key in graph.tensors.items():
        builder.pending[name] = (key,)
    for node in graph.nodes:
        builder.add(node)
    for number, ref in enumerate(graph.outputs):
        if ref is not None:
            builder.add_output(ref.name, number)
    return builder.finish()


def _readers(graph: Graph, keep: Collection[str]) -> Mapping[str, int]:
    """Return how many nodes that compute, or outputs, read each value; readers behind plumbing count for what they move."""
    counts: dict[str, int] = {}
    for ref in graph.outputs:
        if ref is not None:
            counts[ref.name] = counts.get(ref.name, 0) + 1
    for node in reversed(graph.nodes):
        weight = 1 if node.name in counts or node.name in keep else 0
        if op_word(node.op) in PLUMBING and node.name not in keep:
            weight = counts.get(node.name, 0)
        for name in set(node.refs()) if weight else ():
            counts[name] = counts.get(name, 0) + weight
    return counts


@dataclass
class _Builder:
    """Grow the boxes node by node: `home` maps a value to its boxes, `pending` to the tensors not yet computed with."""

    readers: Mapping[str, int]
    keep: frozenset[str]
    boxes: dict[int, Box] = field(default_factory=dict)
    home: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pending: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: dict[int, str] = field(default_factory=dict)
    count: int = 0

    def add_input(self, name: str) -> None:
        self._place(Box("input", [name], ["input"]), name)

    def add_output(self, name: str, number: int) -> None:
        self._place(Box("output", [name], ["output"], [], {name: self.home.get(name, ())}), f"output {number}")

    def add(self, node: Node) -> None:
        """Add one node: to an edge, to a box, or as a box of its own."""
        if node.op.startswith(SHAPE_ONLY) or not (self.readers.get(node.name) or node.name in self.keep):
            return
        refs = list(dict.fromkeys(node.refs()))
        tensors = tuple(dict.fromkeys(key for name in refs for key in self.pending.get(name, ())))
        reads = {name: self.home[name] for name in refs if self.home.get(name)}
        if op_word(node.op) in PLUMBING and node.name not in self.keep:
            self.home[node.name] = tuple(dict.fromkeys(source for found in reads.values() for source in found))
            self.pending[node.name] = tensors
        elif reads or tensors or node.name in self.keep:
            self._compute(node, list(tensors), reads)

    def _compute(self, node: Node, tensors: list[str], reads: dict[str, tuple[int, ...]]) -> None:
        box = Box("op", [node.name], [op_word(node.op)], tensors, reads)
        if node.name in self.keep:
            self._place(box, node.name)
            return
        for number in self._joined(box):
            part = self.boxes.pop(number)
            box.nodes, box.ops = [*part.nodes, *box.nodes], [*part.ops, *box.ops]
            others = {name: tuple(source for source in found if source != number) for name, found in box.reads.items()}
            box.reads = {**part.reads, **{name: found for name, found in others.items() if found}}
        self._place(box, node.name)

    def _joined(self, box: Box) -> list[int]:
        """Return the boxes that this one continues: without tensors, read by nothing else, and from its own sources."""
        parts = [number for number in sorted(box.sources) if self._open(number)]
        rest = box.sources - set(parts)
        outer = [self.boxes[number].sources for number in parts]
        alike = all(sources == outer[0] for sources in outer) and rest <= (outer[0] if outer else set())
        if box.tensors:  # a norm in steps: its weight multiplies what the steps made, and nothing else comes in
            return parts if len(parts) == 1 and not rest and box.ops[0] in ("mul", "add") else []
        return parts if alike else []

    def _open(self, number: int) -> bool:
        box, result = self.boxes[number], self.results[number]
        plain = box.kind == "op" and not box.tensors and result not in self.keep and len(box.nodes) < MOST_NODES
        return plain and self.readers.get(result, 0) == 1

    def _place(self, box: Box, result: str) -> None:
        self.boxes[self.count], self.results[self.count] = box, result
        self.home[result] = (self.count,)
        self.count += 1

    def finish(self) -> list[Box]:
        """Return the boxes that are left, numbered anew."""
        numbers = {old: new for new, old in enumerate(self.boxes)}
        for box in self.boxes.values():
            box.reads = {name: tuple(numbers[source] for source in found) for name, found in box.reads.items()}
        return list(self.boxes.values())


def between(boxes: Sequence[Box], modules: Sequence[Path | None]) -> Iterator[tuple[Path | None, Path | None]]:
    """Yield, per box, the module of the last box with one before it and of the first after it, along the edges."""
    before: list[int | None] = []
    for box in boxes:
        found = [number if modules[number] is not None else before[number] for number in box.sources]
        before.append(max((number for number in found if number is not None), default=None))
    after: list[int | None] = [None] * len(boxes)
    for number in range(len(boxes) - 1, -1, -1):
        mine = number if modules[number] is not None else after[number]
        for source in boxes[number].sources if mine is not None else ():
            after[source] = mine if after[source] is None else min(after[source], mine)
    for one, two in zip(before, after, strict=True):
        yield (None if one is None else modules[one]), (None if two is None else modules[two])
