"""Number the unknowns: one for every position of every axis of every stored tensor that the graph computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry.fields import ONE, Field, Term
from cipm.trace.graph import Graph, Node, Ref

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Source:
    """The unknowns of one axis: `size` numbers from `start`.

    With `blocks` > 1 there are unknowns for each of so many equal runs of axis 0 (the groups of a convolution). `offset`
    says that the model reads the tensor plus this number, and transforms the sum.
    """

    tensor: str
    axis: int
    start: int
    size: int
    blocks: int = 1
    offset: float = 0.0


@dataclass(frozen=True)
class Unknowns:
    """All sources, and the field of every stored tensor. `shifted` maps a node that adds a number to the tensor's key."""

    sources: tuple[Source, ...]
    fields: Mapping[str, Field]
    shifted: Mapping[str, str]

    @property
    def count(self) -> int:
        """Return the number after the last unknown."""
        return self.sources[-1].start + self.sources[-1].size if self.sources else 1

    @cached_property
    def starts(self) -> np.ndarray:
        return np.array([source.start for source in self.sources], dtype=np.int64)

    def source_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of the source of every id."""
        return np.searchsorted(self.starts, ids, side="right") - 1


def number_unknowns(checkpoint: Checkpoint) -> Unknowns:
    """Number the unknowns in the order in which the graph first reads the tensors: writers come before what they feed."""
    graph = checkpoint.graph
    used = dict.fromkeys(graph.tensors[name] for node in graph.nodes for name in node.refs() if name in graph.tensors)
    grouped, shifted = _grouped(graph, checkpoint), _shifted(graph)
    offsets = {graph.tensors[name]: offset for name, offset in shifted.values()}
    sources: list[Source] = []
    fields: dict[str, Field] = {}
    start = 1
    for key in used:
        meta = checkpoint.meta(key)
        terms: list[Term] = []
        for axis in _axes(meta) if meta.dtype in FLOATS else ():
            blocks = grouped.get(key, 1) if axis == 1 else 1
            source = Source(key, axis, start, blocks * meta.shape[axis], blocks, offsets.get(key, 0.0))
            terms.append(Term(ONE, _layout(source, meta.shape)))
            sources.append(source)
            start += source.size
        fields[key] = tuple(terms)
    return Unknowns(tuple(sources), fields, {node: graph.tensors[name] for node, (name, _) in shifted.items()})


def _axes(meta: torch.Tensor) -> list[int]:
    """Return the axes with unknowns: a factor on an axis of one position is a factor on any other."""
    longer = [axis for axis, size in enumerate(meta.shape) if size > 1]
    return longer if longer or not meta.ndim or 0 in meta.shape else [0]


def _layout(source: Source, shape: Sequence[int]) -> np.ndarray:
    ids = np.arange(source.start, source.start + source.size, dtype=np.int64)
    if source.blocks == 1:
        return ids.reshape([-1 if axis == source.axis else 1 for axis in range(len(shape))])
    return ids.reshape(source.blocks, -1).repeat(shape[0] // source.blocks, axis=0).reshape(shape[:2] + (1,) * (len(shape) - 2))


def _grouped(graph: Graph, checkpoint: Checkpoint) -> dict[str, int]:
    """Return the groups of every convolution whose filters share axis 1 of a stored weight."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        name = node.op.split(".")[1] if node.op.startswith("aten.") else ""
        if name.startswith("conv") and isinstance(node.args[1], Ref) and node.args[1].name in graph.tensors:
            groups = _groups(node, name)
            key = graph.tensors[node.args[1].name]
            if groups > 1 and checkpoint.meta(key).shape[1] > 1:
                found[key] = groups
    return found


def _groups(node: Node, name: str) -> int:
    at = {"convolution": 8}.get(name, 7 if "transpose" in name else 6)
    if name.startswith("conv_transpose"):
        at = 6
    groups = node.kwargs.get("groups", node.args[at] if len(node.args) > at else 1)
    return groups if isinstance(groups, int) else 1


def _shifted(graph: Graph) -> dict[str, tuple[str, float]]:
    """Return {node: (stored value, number)} where all that reads a stored tensor adds a number to it ("1 + weight")."""
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.refs():
            readers.setdefault(name, []).append(node)
    names: dict[str, int] = {}
    for key in graph.tensors.values():
        names[key] = names.get(key, 0) + 1
    found: dict[str, tuple[str, float]] = {}
    for name, key in graph.tensors.items():
        value = name
        while len(readers.get(value, ())) == 1 and readers[value][0].op.startswith(("aten._to_copy", "aten.to.")):
            value = readers[value][0].name
        adds = readers.get(value, [])
        numbers = {_added(node) for node in adds}
        if names[key] == 1 and adds and len(numbers) == 1 and None not in numbers:
            found |= {node.name: (name, next(iter(numbers))) for node in adds}
    return found


def _added(node: Node) -> float | None:
    if not node.op.startswith("aten.add.") or node.kwargs or len(node.args) != 2:
        return None
    other = [argument for argument in node.args if not isinstance(argument, Ref)]
    return float(other[0]) if len(other) == 1 and isinstance(other[0], int | float) else None
