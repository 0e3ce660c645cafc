"""What computes with a stored tensor, and which stored vector takes a constant part of what that gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cipm.load.checkpoint import Checkpoint
from cipm.rules import bind
from cipm.trace import Graph, Node, Ref

TURNS = ("t", "transpose", "permute", "numpy_T", "mT")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class Constant:
    """A stored vector that takes what is constant of a consumer's change: a bias, or the mean of the batch norm behind it."""

    key: str
    sign: int


def constant_of(checkpoint: Checkpoint, nodes: Sequence[Node]) -> Constant | None:
    """Return the stored vector that takes a constant, where all nodes that read the weight share it and nothing else does."""
    found = {_constant_of(checkpoint.graph, node) for node in nodes}
    target = found.pop() if len(found) == 1 else None
    if target is None:
        return None
    names = {name for name, key in checkpoint.graph.tensors.items() if key == target.key}
    uses = sum(any(name in names for name in node.refs()) for node in checkpoint.graph.nodes)
    return target if uses == len(nodes) else None


def _constant_of(graph: Graph, node: Node) -> Constant | None:
    bound = bind(node, {name: Ref(name) for name in node.refs()})
    own = bound["self"] if base_name(node) in ("addmm", "baddbmm") else bound.get("bias")
    if isinstance(own, Ref):
        return Constant(graph.tensors[own.name], 1) if own.name in graph.tensors else None
    users = [other for other in graph.nodes if node.name in other.refs()]
    if len(users) != 1:
        return None
    if base_name(users[0]) == "add":
        added = [name for name in users[0].refs() if name in graph.tensors]
        return Constant(graph.tensors[added[0]], 1) if added else None
    if "batch_norm" in users[0].op:
        mean = bind(users[0], {name: Ref(name) for name in users[0].refs()}).get("running_mean")
        return Constant(graph.tensors[mean.name], -1) if isinstance(mean, Ref) and mean.name in graph.tensors else None
    return None


def readers_of(graph: Graph, key: str) -> list[Node]:
    """Return the nodes that compute with a stored tensor, as it is or transposed."""
    names = {name for name, stored in graph.tensors.items() if stored == key}
    found = []
    for node in graph.nodes:
        if any(name in names for name in node.refs()):
            if base_name(node) in TURNS:
                names.add(node.name)
            else:
                found.append(node)
    return found


def base_name(node: Node) -> str:
    """Return the name of an op without family and overload."""
    return node.op.removeprefix("aten.").split(".")[0]
