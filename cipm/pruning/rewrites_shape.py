"""How the constants of ops that move positions about follow from what stays: reshapes, slices, splits, concatenations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cipm.pruning.step import Step
from cipm.rules import find_rule, pointwise, select
from cipm.rules.reshape import pair_runs
from cipm.trace.graph import Node, Ref, map_refs, refs_in


def plain(step: Step) -> Node:
    """No constant of the op depends on what goes."""
    return step.node


# --- operands beside each other -----------------------------------------------------------------------------------------

def aligned(step: Step) -> Node:
    """Cut operands that are the same along an axis to what stays there; the node computes position by position."""
    refs = [Ref(name) for name in dict.fromkeys(step.node.refs()) if step.old(Ref(name))]
    ndim = max(len(step.old(ref)) for ref in refs)
    sizes = {}
    for dim in range(ndim):
        full = [ref for ref in refs if full_size(step, ref, dim, ndim) > 1]
        found = [step.new(ref)[dim - ndim] for ref in full]
        if len(set(found)) > 1:
            sizes[dim] = min(found)
    numbers = find_rule(step.node.op) is pointwise.equal
    changed = {ref.name: step.fitted(ref, {dim - ndim + len(step.old(ref)): size for dim, size in sizes.items()
                                           if full_size(step, ref, dim, ndim) > 1}, numbers=numbers) for ref in refs}
    return with_refs(step.node, changed)


def full_size(step: Step, ref: Ref, dim: int, ndim: int) -> int:
    """Return the old size of an operand along an axis of the result, 1 where it is broadcast."""
    at = dim - ndim + len(step.old(ref))
    return step.old(ref)[at] if at >= 0 else 1


def with_refs(node: Node, changed: Mapping[str, Ref]) -> Node:
    """Return a node that reads other values in the place of some."""
    def swap(argument: Any) -> Any:
        return map_refs(argument, lambda ref: changed.get(ref.name, ref))
    return Node(node.name, node.op, tuple(map(swap, node.args)), {key: swap(value) for key, value in node.kwargs.items()})


def products(step: Step) -> Node:
    """Cut operands that are the same along the axes that are summed over or run side by side."""
    one, two = [Ref(name) for name in step.node.refs()][-2:]
    if min(len(step.old(one)), len(step.old(two))) < 2:
        return step.node
    shared = [(-1, -2), *((dim, dim) for dim in range(-min(len(step.old(one)), len(step.old(two))), -2))]
    changed = {}
    for first, second in shared:
        sizes = step.new(one)[first], step.new(two)[second]
        if sizes[0] != sizes[1] and step.old(one)[first] == step.old(two)[second]:
            for ref, dim, size in ((one, first, sizes[1]), (two, second, sizes[0])):
                if step.new(ref)[dim] > size:
                    cut = step.fitted(changed.get(ref.name, ref), {dim % len(step.old(ref)): size})
                    changed[ref.name] = cut
    return with_refs(step.node, changed)


def joined(step: Step) -> Node:
    """Cut the parts of a concatenation to what stays of them."""
    parts = list(step["tensors"])
    ndim = len(step.old(parts[0]))
    dim = step["dim"] % ndim
    start, made = 0, []
    for part in parts:
        end = start + step.old(part)[dim]
        here = step.kept.before(step.node.name, dim, end) - step.kept.before(step.node.name, dim, start)
        sizes = {dim: here} if step.out(dim) is not None else {}
        others = {other: min(step.new(p)[other] for p in parts) for other in range(ndim) if other != dim}
        made.append(step.fitted(part, sizes | others))
        start = end
    return step.changed(tensors=tuple(made))


def stacked(step: Step) -> Node:
    """Cut the parts of a stack to the same sizes."""
    parts = step["tensors"]
    sizes = {dim: min(step.new(part)[dim] for part in parts) for dim in range(len(step.old(parts[0])))}
    return step.changed(tensors=tuple(step.fitted(part, sizes) for part in parts))


# --- shapes -------------------------------------------------------------------------------------------------------------

def viewed(step: Step) -> Node:
    """Rewrite the sizes of a reshape; axes of copies (the query heads of a group) are cut before it."""
    if "squeeze" in step.node.op:
        return _squeezed(step)
    name = next((name for name in ("size", "shape") if step[name] is not None), None)
    if name is None:
        return step.node
    x, out = step.operand, tuple(step.graph.before.shape(step.node.name))
    sizes: list[int] = [0] * len(out)
    cut = x
    for old, new in pair_runs(step.old(x), out):
        cut = _run(step, cut, list(old), list(new), sizes)
    return with_refs(step.changed(**{name: _asked(step, step[name], sizes)}), {x.name: cut})


def _run(step: Step, x: Ref, old: Sequence[int], new: Sequence[int], sizes: list[int]) -> Ref:
    """Fill in the new sizes of one run of axes; return the operand, cut where it holds copies that go."""
    shape = step.graph.before.shape(step.node.name)
    unknown = []
    for dim in new:
        size = step.out(dim)
        if size is None and step.kept.uniform(step.node.name, dim) and shape[dim] > 1:
            unknown.append(dim)
        sizes[dim] = shape[dim] if size is None else size
    have = math.prod(step.new(x)[dim] for dim in old)
    if have == math.prod(sizes[dim] for dim in new):
        return x
    if len(unknown) == 1:
        rest = math.prod(sizes[dim] for dim in new if dim != unknown[0])
        sizes[unknown[0]] = have // rest
        return x
    copies = [dim for dim in old if step.old(x)[dim] > 1 and step.uniform(x, dim)]
    want = math.prod(sizes[dim] for dim in new)
    if len(copies) == 1 and want * step.new(x)[copies[0]] % have == 0:
        return step.fitted(x, {copies[0]: want * step.new(x)[copies[0]] // have})
    return step.refuse(f"{have} positions cannot be laid out as {' × '.join(str(sizes[dim]) for dim in new)}")


def _asked(step: Step, asked: Sequence[Any], sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return the argument of a reshape: numbers where they were, sizes of inputs where these still say the right one."""
    made: list[Any] = []
    for item, size in zip(asked, sizes, strict=True):
        stale = isinstance(item, Ref) and step.graph.contents[item.name] != size
        made.append(-1 if stale or item == -1 else item if isinstance(item, Ref) else size)
    if made.count(-1) > 1:
        step.refuse("its sizes depend on the sizes of the inputs in more than one place")
    return tuple(made)


def _squeezed(step: Step) -> Node:
    """Take out the axes that had size 1, and no axis that has it now."""
    if "unsqueeze" in step.node.op:
        return step.node
    shape, dims = step.old(step.operand), step["dim"]
    asked = range(len(shape)) if dims is None else dims if isinstance(dims, tuple) else (dims,)
    single = tuple(dim % len(shape) for dim in asked if shape[dim] == 1)
    return Node(step.node.name, "aten.squeeze.dims", (step.operand, single))


def expanded(step: Step) -> Node:
    """Rewrite the sizes of an expansion."""
    asked = step["size"]
    if asked is None:
        return step.node
    old, new = step.old(step.operand), step.new(step.operand)
    lead = len(asked) - len(old)
    made = []
    for dim, item in enumerate(asked):
        size = step.out(dim)
        same = dim >= lead and old[dim - lead] != 1
        made.append(item if isinstance(item, Ref) or item == -1 and same else size if size is not None
                    else new[dim - lead] if same else item)
    return step.changed(size=tuple(made))


# --- parts --------------------------------------------------------------------------------------------------------------

def sliced(step: Step) -> Node:
    """Rewrite the bounds of a slice: as many positions as stay before them."""
    x, dim = step.operand, (step["dim"] or 0) % len(step.old(step.operand))
    if not step.goes(x, [dim]) or any(refs_in((step["start"], step["end"]))):
        return step.node
    first, last, stride = slice(step["start"], step["end"], step["step"]).indices(step.old(x)[dim])
    if stride == 1:
        return step.changed(start=step.kept.before(x.name, dim, first), end=step.kept.before(x.name, dim, max(first, last)))
    chosen = _ranks(step, x, dim, np.arange(first, last, stride))
    if not np.array_equal(chosen, np.arange(chosen.size) * stride + chosen[0]):
        step.refuse(f"what stays of it is not every {stride}th position any more")
    return step.changed(start=int(chosen[0]), end=int(chosen[-1]) + 1)


def _ranks(step: Step, x: Ref, dim: int, positions: np.ndarray) -> np.ndarray:
    """Return the new places of those of these positions that stay. Raises Uneven where they differ."""
    line = step.kept.line(x.name, dim)
    return (np.cumsum(line) - 1)[positions[line[positions]]]


def narrowed(step: Step) -> Node:
    """Rewrite start and length."""
    x, dim = step.operand, step["dim"] % len(step.old(step.operand))
    if not step.goes(x, [dim]):
        return step.node
    start = step["start"] % step.old(x)[dim]
    first, last = (step.kept.before(x.name, dim, at) for at in (start, start + step["length"]))
    return step.changed(start=first, length=last - first)


def selected(step: Step) -> Node:
    """Rewrite the position that is chosen."""
    x, dim = step.operand, step["dim"] % len(step.old(step.operand))
    if not step.goes(x, [dim]):
        return step.node
    place = step["index"] % step.old(x)[dim]
    if not step.kept.line(x.name, dim)[place]:
        step.refuse("the position that it reads goes")
    return step.changed(index=step.kept.before(x.name, dim, place))


def parted(step: Step) -> Node:
    """Split by the sizes that stay of every part."""
    x = step.operand
    shapes = step.graph.before.shape(step.node.name)
    dim = (step["dim"] or 0) % len(step.old(x))
    if not step.goes(x, [dim]):
        return step.node
    if step.node.op.split(".")[1] in ("hsplit", "vsplit", "dsplit"):
        step.refuse("its parts must be equal")
    ends = np.cumsum([0, *(shape[dim] for shape in shapes)])
    bounds = [step.kept.before(x.name, dim, int(end)) for end in ends]
    sizes = tuple(int(size) for size in np.diff(bounds))
    return Node(step.node.name, "aten.split_with_sizes.default", (x, sizes, dim))


def unbound(step: Step) -> Node:
    """An axis that is taken apart position by position keeps all of them."""
    if step.goes(step.operand, [step["dim"] or 0]):
        step.refuse("it is taken apart position by position")
    return step.node


def padded(step: Step) -> Node:
    """Rewrite how many positions are added at the ends of axes (or cut off there)."""
    x, amounts = step.operand, list(step["pad"])
    if find_rule(step.node.op) is not select.pad or step["mode"] not in (None, "constant", 0):
        return step.node
    ndim = len(step.old(x))
    for at in range(len(amounts) // 2):
        dim, (before, after) = ndim - 1 - at, amounts[2 * at:2 * at + 2]
        total = step.graph.before.shape(step.node.name)[dim]
        if step.out(dim) is not None and before >= 0 and after >= 0:
            amounts[2 * at] = step.kept.before(step.node.name, dim, before)
            amounts[2 * at + 1] = step.out(dim) - step.kept.before(step.node.name, dim, total - after)
        elif step.goes(x, [dim]):
            step.refuse("it cuts positions off")
    return step.changed(pad=tuple(amounts))


def chosen(step: Step) -> Node:
    """Renumber an index that is a constant; one that units were ranked by is right as it is."""
    x, one = step.operand, step["index"]
    indices = [one] if one is not None else [item for item in step["indices"] if item is not None]
    dims = [step["dim"] % len(step.old(x))] if one is not None else [i for i, v in enumerate(step["indices"]) if v is not None]
    content = step.graph.before.contents.get(indices[0].name)
    if not isinstance(content, torch.Tensor) or not step.goes(x, dims):
        return step.node
    if len(dims) > 1 or content.ndim != 1 or content.dtype is torch.bool:
        step.refuse("it reads chosen positions of it")
    places = _ranks(step, x, dims[0], content.numpy() % step.old(x)[dims[0]])
    key = f"{step.node.name}_places"
    step.graph.constants[key] = torch.from_numpy(places)
    step.graph.contents[key] = step.graph.constants[key]
    step.graph.metas[key] = step.graph.constants[key].to("meta")
    return with_refs(step.node, {indices[0].name: Ref(key)})


def written(step: Step) -> Node:
    """Cut what is written into to the sizes that stay."""
    x = step["self"]
    sizes = {dim: size for dim in range(len(step.old(x))) if (size := step.out(dim)) is not None}
    return step.changed(self=step.fitted(x, sizes))


def numbered(step: Step) -> Node:
    """Rewrite the number of classes."""
    size = step.out(len(step.old(step.operand)))
    return step.node if size is None else step.changed(num_classes=size)
