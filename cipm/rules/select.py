"""Slices, concatenation and padding: parts of axes that are known when the model is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cipm.rules.labels import FIXED_OUTER, FREE, Axis, Fixed, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, rule
from cipm.trace.graph import refs_in


@rule("slice", "slice_copy", codes="move")
def slice_axis(call: Call) -> list[Axis]:
    """x[…, a:b:s, …]: labels inside the slice play another role than those outside; bounds that vary with an input pin."""
    value = call["self"]
    dim = (call["dim"] or 0) % len(value.shape)
    _pin_where_sizes_vary(call, value, dim)
    return take(call, value, dim, sliced(call, value.shape[dim]), drop=False)


def _pin_where_sizes_vary(call: Call, value: Value, dim: int) -> None:
    """A longer input reads other places than the example did: a table of positions, cut to the length of the text."""
    if any(True for _ in refs_in((call.node.args[1:], tuple(v for k, v in call.node.kwargs.items() if k != "self")))):
        call.pin(value.axes[dim], "which part of it is read depends on the size of an input")


def sliced(call: Call, size: int) -> np.ndarray:
    """Return the positions that a slice of an axis names."""
    return np.arange(*slice(call["start"], call["end"], call["step"]).indices(size))


@rule("narrow", "narrow_copy", codes="move")
def narrow(call: Call) -> list[Axis]:
    """x[…, a:a+n, …], the start being known."""
    value = call["self"]
    dim = call["dim"] % len(value.shape)
    _pin_where_sizes_vary(call, value, dim)
    start = call["start"] % max(value.shape[dim], 1)
    return take(call, value, dim, np.arange(start, start + call["length"]), drop=False)


@rule("select", "select_copy", codes="move")
def select(call: Call) -> list[Axis]:
    """x[…, i, …]: the axis goes; the label chosen has a role of its own."""
    value = call["self"]
    dim = call["dim"] % len(value.shape)
    return take(call, value, dim, np.array([call["index"] % value.shape[dim]]), drop=True)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split",
      "split_copy", "split_with_sizes_copy", "hsplit", "vsplit", "dsplit", codes="move")
def split(call: Call) -> list[list[Axis]]:
    """Cut an axis into parts."""
    value = call["self"]
    named = {"hsplit": min(1, len(value.shape) - 1), "dsplit": 2}.get(call.node.op.split(".")[1])
    dim = (call["dim"] or 0) % len(value.shape) if named is None else named
    ends = np.cumsum([shape[dim] for shape in call.shapes])
    return [take(call, value, dim, np.arange(end - shape[dim], end), drop=False)
            for end, shape in zip(ends, call.shapes, strict=True)]


@rule("unbind", "unbind_copy", codes="move")
def unbind(call: Call) -> list[list[Axis]]:
    """x[…, i, …] for every i."""
    value = call["self"]
    dim = (call["dim"] or 0) % len(value.shape)
    return [take(call, value, dim, np.array([i]), drop=True) for i in range(value.shape[dim])]


def take(call: Call, value: Value, dim: int, index: np.ndarray, *, drop: bool) -> list[Axis]:
    """Return the axes of value.take(index, dim); what is taken is coloured unless it is everything."""
    own = value.axes[dim]
    whole = np.array_equal(index, np.arange(value.shape[dim]))
    if isinstance(own, np.ndarray) and not np.array_equal(np.sort(index), np.arange(value.shape[dim])):
        call.book.colour(own.take(index, axis=dim), (value.name, dim, index.tobytes()))
        if any(isinstance(a, np.ndarray) and a.shape[dim] > 1 for i, a in enumerate(value.axes) if i != dim):
            call.book.touch(value, dim)
    result: list[Axis] = []
    for i, axis in enumerate(value.axes):
        if i == dim and drop:
            continue
        if isinstance(axis, np.ndarray):
            axis = axis.take(index, axis=dim) if axis.shape[dim] > 1 or i == dim and not whole else axis
            axis = axis.squeeze(dim) if drop else axis
        result.append(axis)
    return result


@rule("cat", "concat", "concatenate", "hstack", codes="move")
def cat(call: Call) -> list[Axis]:
    """Join parts along an axis; the other axes are tied over the parts."""
    ndim = len(call.shape)
    return cat_axes(call, [value for value in call.values() if 0 not in value.shape or len(value.shape) == ndim],
                    min(1, ndim - 1) if call.node.op.startswith("aten.hstack") else (call["dim"] or 0) % ndim)


def cat_axes(call: Call, parts: Sequence[Value], dim: int) -> list[Axis]:
    """Return the axes of parts joined along an axis."""
    ndim = len(parts[0].shape)
    letters = LETTERS[:ndim]
    names = [letters[:dim] + LETTERS[ndim + i] + letters[dim + 1:] for i in range(len(parts))]
    rows = {own for part in parts for own, axis in enumerate(part.axes)
            if own != dim and isinstance(axis, np.ndarray) and axis.shape[dim] > 1}
    tied = [replace(part, axes=tuple(FREE if own in rows else axis for own, axis in enumerate(part.axes))) for part in parts]
    others = call.join(list(zip(tied, names, strict=True)), letters[:dim] + letters[dim + 1:])
    axes = [np.expand_dims(axis, dim) if isinstance(axis, np.ndarray) else axis for axis in others]
    axes = [*axes[:dim], concatenated(call, parts, dim), *axes[dim:]]
    return [_joined_rows(call, parts, own, dim) if own in rows else axis for own, axis in enumerate(axes)]


def _joined_rows(call: Call, parts: Sequence[Value], own: int, dim: int) -> Axis:
    """Return an axis whose labels differ along the joined one: every position keeps its own, and nothing is tied."""
    fixed = next((part.axes[own] for part in parts if isinstance(part.axes[own], Fixed)), None)
    if fixed is not None:
        for part in parts:
            call.hold(part, own, "it is joined to an axis that stays where it is")
        return fixed
    labels = [axis if isinstance(axis := part.axes[own], np.ndarray)
              else call.book.mint(*[n if i == own else 1 for i, n in enumerate(part.shape)]) for part in parts]
    shape = np.broadcast_shapes(*[tuple(1 if i == dim else n for i, n in enumerate(a.shape)) for a in labels])
    return np.concatenate([np.broadcast_to(a, tuple(part.shape[dim] if i == dim else n for i, n in enumerate(shape)))
                           for part, a in zip(parts, labels, strict=True)], axis=dim)


@rule("stack", "_stack", codes="move")
def stack(call: Call) -> list[Axis]:
    """Join parts along a new axis, whose positions stay where they are."""
    parts = call.values()
    dim = (call["dim"] or 0) % len(call.shape)
    letters = LETTERS[:len(parts[0].shape)]
    axes = [np.expand_dims(axis, dim) if isinstance(axis, np.ndarray) else axis
            for axis in call.join([(part, letters) for part in parts], letters)]
    return [*axes[:dim], call.fixed("parts were stacked along it"), *axes[dim:]]


def concatenated(call: Call, parts: Sequence[Value], dim: int) -> Axis:
    axes = [part.axes[dim] for part in parts]
    if not any(isinstance(axis, np.ndarray) for axis in axes):
        return next((axis for axis in axes if isinstance(axis, Fixed)), call.fixed("parts were joined along it"))
    rank = max(axis.ndim for axis in axes if isinstance(axis, np.ndarray))
    present = [np.unique(axis) for axis in axes if isinstance(axis, np.ndarray)]
    repeated = np.unique(np.concatenate(present)).size < sum(p.size for p in present)
    labels = []
    for number, (part, axis) in enumerate(zip(parts, axes, strict=True)):
        if repeated and isinstance(axis, np.ndarray):
            axis = _as_part(call, axis, number)
        if not isinstance(axis, np.ndarray):
            fresh = call.book.mint(*[part.shape[dim] if i == dim else 1 for i in range(rank)])
            if isinstance(axis, Fixed):
                call.book.pin(fresh, axis)
            axis = fresh
        labels.append(axis)
    shape = np.broadcast_shapes(*[tuple(1 if i == dim else n for i, n in enumerate(a.shape)) for a in labels])
    return np.concatenate([np.broadcast_to(a, tuple(a.shape[dim] if i == dim else n for i, n in enumerate(shape)))
                           for a in labels], axis=dim)


def _as_part(call: Call, labels: np.ndarray, part: int) -> np.ndarray:
    """Return labels of the pairs (part, label): parts that share labels hold different values, so they keep their places."""
    pairs = call.book.mint(*labels.shape)
    call.book.child(pairs, labels)
    call.book.factor(pairs, np.full(labels.shape, FIXED_OUTER - part), labels)
    call.book.roles.append((pairs.ravel(), np.full(labels.size, part)))
    return pairs


@rule("constant_pad_nd", "pad", "_pad_enum")
def pad(call: Call) -> list[Axis]:
    """Add constant positions at the ends of axes; what is added is nobody's unit."""
    value, amounts = call["self"], call["pad"]
    if call["mode"] not in (None, "constant", 0):
        return spatial_pad(call)
    axes = list(value.axes)
    for step in range(len(amounts) // 2):
        dim, before, after = len(axes) - 1 - step, amounts[2 * step], amounts[2 * step + 1]
        axis = axes[dim]
        if isinstance(axis, np.ndarray) and (before or after):
            lead, tail = (call.book.mint(*[n if i == dim else s for i, s in enumerate(axis.shape)])
                          for n in (max(before, 0), max(after, 0)))
            axes[dim] = np.concatenate([lead, axis, tail], axis=dim)
    return axes


@rule("glu")
def glu(call: Call) -> list[Axis]:
    """…(2n) → …n: the two halves of the axis are tied."""
    value = call["self"]
    dim = call["dim"] % len(value.shape)
    half = value.shape[dim] // 2
    parts = [tuple(take(call, value, dim, np.arange(half) + at, drop=False)) for at in (0, half)]
    letters = LETTERS[:len(value.shape)]
    return call.equation([(Value(value.name, call.shape, axes), letters) for axes in parts], letters)


@rule("slice_scatter", "select_scatter")
def overwrite(call: Call) -> list[Axis]:
    """x with x[…, a:b:s, …] or x[…, i, …] replaced: what is replaced is read no more, the rest keeps its place."""
    value, src = call["self"], call["src"]
    dim = (call["dim"] or 0) % len(value.shape)
    chosen = sliced(call, value.shape[dim]) if call["index"] is None else np.array([call["index"] % value.shape[dim]])
    if call["index"] is not None:
        axes = [np.expand_dims(axis, dim) if isinstance(axis, np.ndarray) else axis for axis in src.axes]
        src = Value(src.name, (*src.shape[:dim], 1, *src.shape[dim:]), (*axes[:dim], FREE, *axes[dim:]))
    rest = np.setdiff1d(np.arange(value.shape[dim]), chosen)
    if not rest.size:
        return list(src.axes)
    kept = Value(value.name, tuple(rest.size if i == dim else n for i, n in enumerate(value.shape)),
                 tuple(take(call, value, dim, rest, drop=False)))
    joined = Value(call.node.name, value.shape, tuple(cat_axes(call, [kept, src], dim)))
    return take(call, joined, dim, np.argsort(np.concatenate([rest, chosen])), drop=False)


@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
      "replication_pad3d", "_pad_circular")
def spatial_pad(call: Call) -> list[Axis]:
    """Pad by copies of positions: the padded axes are pinned."""
    value = call.values()[0]
    amounts = call["padding"] or call["pad"]
    axes = list(value.axes)
    for step in range(len(amounts) // 2):
        dim = len(axes) - 1 - step
        if amounts[2 * step] or amounts[2 * step + 1]:
            axes[dim] = call.hold(value, dim, "padding copies positions along it")
    return axes
