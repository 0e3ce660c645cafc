"""A traced program → functional operators, node by node, where every operator in it has a known functional form.

`ExportedProgram.run_decompositions({})` gives the same graph for any program, by tracing it twice more: for a transformer of
32 blocks that takes longer than its first trace. Most programs hold a few views and identities beside operators that stay
whole; those are written here as what torch makes of them. One operator that is not known here, or that changes its argument,
and the program is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SCATTERS = {aten.select.int: aten.select_scatter.default, aten.slice.Tensor: aten.slice_scatter.default}


def rewrite(program: torch.export.ExportedProgram) -> bool:
    """Make the program's graph functional, a node at a time; return whether it is so now. It computes the same in any case.

    Cost: linear in the nodes.
    """
    graph = program.graph
    try:
        while regions := [node for node in graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]:
            for node in regions:
                _inline(node)
        for node in [node for node in graph.nodes if node.op == "call_function"]:
            _rewrite(node)
    except _Unknown:
        program.graph_module.recompile()
        return False
    return True


class _Unknown(Exception):
    """The program holds what has no form here."""


def _inline(node: Node) -> None:
    """Put the body of a region with gradients or autocast turned off in its place."""
    flags = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(node.target.name())
    if flags is None or (flags == 4 and node.args[2]):
        raise _Unknown
    body, *inputs = node.args[flags:]
    inner = getattr(node.graph.owning_module, body.target).graph
    places = [item for item in inner.nodes if item.op == "placeholder"]
    with node.graph.inserting_before(node):
        results = _copied(inner, node.graph, dict(zip(places, inputs, strict=True)))
    for reader in list(node.users):
        reader.replace_all_uses_with(results[reader.args[1]])
        node.graph.erase_node(reader)
    node.graph.erase_node(node)
    if not body.users:
        body.graph.erase_node(body)


def _copied(inner: Graph, outer: Graph, values: dict[Node, Any]) -> Any:
    for item in inner.nodes:
        if item.op == "output":
            return torch.fx.map_arg(item.args[0], values.__getitem__)
        if item.op == "get_attr":  # the body of a region inside
            owner, root = inner.owning_module, outer.owning_module
            name = f"{item.target}_{len(list(root.named_children()))}"
            root.add_module(name, getattr(owner, item.target))
            values[item] = outer.get_attr(name)
        elif item.op != "placeholder":
            values[item] = outer.node_copy(item, values.__getitem__)
    raise AssertionError("a graph without an output")


def _rewrite(node: Node) -> None:
    """Replace a node by its functional form; one that is functional stays."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    form = _FORMS.get(node.target, _in_place if node.target._schema.is_mutable else None)
    if form:
        with node.graph.inserting_before(node):
            result = form(node.graph, node, **_arguments(node))
        node.replace_all_uses_with(result)
        node.graph.erase_node(node)
    elif not _whole(node.target):
        raise _Unknown


def _whole(op: torch._ops.OpOverload) -> bool:
    """Tell whether an operator stays: no composite of others, or one that gives none of its arguments back, or a reshape.

    A reshape is a view or a copy as the strides have it, which are not known well enough before the program runs.
    """
    if op is aten.reshape.default or not op.has_kernel_for_dispatch_key(_COMPOSITE):
        return True
    return not (torch.Tag.maybe_aliasing_or_mutating in op.tags or any(a.alias_info for a in op._schema.arguments))


def _arguments(node: Node) -> Mapping[str, Any]:
    """Return the arguments of a call by name, defaults included."""
    names = [argument.name for argument in node.target._schema.arguments]
    given = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    given |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {("x" if name in ("self", "input") else name): value for name, value in given.items()}


def _call(graph: Graph, like: Any, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Add a call whose value is described by `like`."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = like
    return node


# ------------------------------------------------- forms: (graph, node, its arguments by name) → the node to read instead
def _same(graph: Graph, node: Node, x: Node, **_: Any) -> Node:
    return x


def _in_place(graph: Graph, node: Node, **_: Any) -> Node:
    """Compute a value anew where its operator overwrites it, or a part of one (a chain of slices); what reads the value later
    reads the new one. Left to torch where a view that was taken before is read after."""
    base, parts, op = node.args[0], [], node.target
    while base.op == "call_function" and base.target in _SCATTERS:
        parts.append(base)
        base = base.args[0]
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    if packet is None or op._overloadname not in packet.overloads() or _promotes(node) or not _fresh(base) or (
            parts and any(map(_gives_back, node.users))) or any(
            user > node for view in _views(base, node) for user in view.users):
        raise _Unknown
    result = whole = _call(graph, node.meta["val"], getattr(packet, op._overloadname), *node.args, **node.kwargs)
    for part in parts:
        source = part.args[0]
        whole = _call(graph, source.meta["val"], _SCATTERS[part.target], source, whole, *part.args[1:], **part.kwargs)
    base.replace_all_uses_with(whole, delete_user_cb=lambda user: user > node)
    return result


def _promotes(node: Node) -> bool:
    """Tell whether the functional operator might give another type than the value that is overwritten has."""
    own, *others = (value.meta["val"] for value in node.all_input_nodes if isinstance(value.meta["val"], torch.Tensor))
    return torch.Tag.pointwise in node.target.tags and any(other.dtype not in (own.dtype, torch.bool) for other in others)


def _views(x: Node, end: Node) -> set[Node]:
    """Return the values made of a value before some node that may share memory with it."""
    found, waiting = set(), [x]
    while waiting:
        more = {user for user in waiting.pop().users if user < end and _gives_back(user)} - found
        found |= more
        waiting.extend(more)
    return found


def _fresh(x: Node) -> bool:
    """Tell whether a value has memory of its own that no other value shares."""
    if x.target is getitem:
        x = x.args[0]
    return x.op == "call_function" and isinstance(x.target, torch._ops.OpOverload) and not _gives_back(x)


def _gives_back(node: Node) -> bool:
    """Tell whether what a node gives may share memory with what it takes."""
    op = node.target
    return not isinstance(op, torch._ops.OpOverload) or torch.Tag.maybe_aliasing_or_mutating in op.tags or any(
        a.alias_info for a in op._schema.arguments)


def _dropout(graph: Graph, node: Node, x: Node, p: float, train: bool) -> Node:
    if train and p:
        raise _Unknown
    return x


def _copy(graph: Graph, node: Node, x: Node, **_: Any) -> Node:
    return _call(graph, node.meta["val"], aten.clone.default, x)


def _contiguous(graph: Graph, node: Node, x: Node, **_: Any) -> Node:
    return _call(graph, node.meta["val"], aten.clone.default, x, **{"memory_format": torch.contiguous_format} | node.kwargs)


def _flatten(graph: Graph, node: Node, x: Node, start_dim: int, end_dim: int) -> Node:
    rank = x.meta["val"].dim()
    start, end = start_dim % rank, end_dim % rank
    sizes = _sizes(graph, x)
    return _call(graph, node.meta["val"], aten.reshape.default, x, [*sizes[:start], -1, *sizes[end + 1:]])


def _unflatten(graph: Graph, node: Node, x: Node, dim: int, sizes: Any) -> Node:
    before = _sizes(graph, x)
    dim %= len(before)
    return _call(graph, node.meta["val"], aten.reshape.default, x, [*before[:dim], *sizes, *before[dim + 1:]])


def _turned(graph: Graph, node: Node, x: Node) -> Node:
    return _call(graph, node.meta["val"], aten.permute.default, x, list(reversed(range(x.meta["val"].dim()))))


def _expand_as(graph: Graph, node: Node, x: Node, other: Node) -> Node:
    return _call(graph, node.meta["val"], aten.expand.default, x, _sizes(graph, other))


def _reshape_as(graph: Graph, node: Node, x: Node, other: Node) -> Node:
    return _call(graph, node.meta["val"], aten.reshape.default, x, _sizes(graph, other))


def _broadcast_to(graph: Graph, node: Node, x: Node, size: Any) -> Node:
    return _call(graph, node.meta["val"], aten.expand.default, x, size)


def _real(graph: Graph, node: Node, x: Node) -> Node:
    value = x.meta["val"]
    if not value.is_complex():
        return x
    pairs = _call(graph, torch.view_as_real(value), aten.view_as_real.default, x)
    return _call(graph, node.meta["val"], aten.select.int, pairs, -1, 0)


def _sizes(graph: Graph, x: Node) -> list[Any]:
    """Return the sizes of a value: numbers, and nodes where they vary."""
    return [size if isinstance(size, int) else _call(graph, size, aten.sym_size.int, x, axis)
            for axis, size in enumerate(x.meta["val"].shape)]


def _to(graph: Graph, node: Node, x: Node, dtype: torch.dtype | None = None, device: torch.device | None = None,
        layout: torch.layout | None = None, **_: Any) -> Node:
    before, after = x.meta["val"], node.meta["val"]
    if before.device != after.device or before.layout != after.layout:
        raise _Unknown
    return x if before.dtype == after.dtype else _call(graph, after, aten._to_copy.default, x, dtype=after.dtype)


def _chunk(graph: Graph, node: Node, x: Node, chunks: int, dim: int) -> Node:
    size = x.meta["val"].shape[dim]
    if not isinstance(size, int):
        raise _Unknown
    return _call(graph, node.meta["val"], aten.split.Tensor, x, -(-size // chunks), dim)


def _batch_norm(graph: Graph, node: Node, x: Node, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
                momentum: float, eps: float, cudnn_enabled: bool) -> Node:
    if training:
        raise _Unknown
    triple = _call(graph, (node.meta["val"],), aten._native_batch_norm_legit_no_training.default, x, weight, bias, running_mean,
                   running_var, momentum, eps)
    return _call(graph, node.meta["val"], getitem, triple, 0)


_FORMS: dict[Any, Callable[..., Node]] = {
    aten.alias.default: _same, aten.detach.default: _same, aten.detach_.default: _same, aten.dropout.default: _dropout,
    aten.lift_fresh_copy.default: _copy, aten.contiguous.default: _contiguous, aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten, aten.expand_as.default: _expand_as, aten.numpy_T.default: _turned,
    aten.reshape_as.default: _reshape_as, aten.broadcast_to.default: _broadcast_to, aten.real.default: _real,
    aten.to.dtype: _to, aten.to.dtype_layout: _to, aten.to.device: _to, aten.to.other: _to,
    aten.chunk.default: _chunk, aten.batch_norm.default: _batch_norm,
}
