"""Slices, concatenation, gathers and embeddings: parts of axes and rows chosen by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cipm.rules.labels import FIXED_OUTER, Axis, Fixed, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, rule


@rule("slice")
def slice_axis(call: Call) -> list[Axis]:
    """x[…, a:b:s, …]: labels inside the slice play another role than those outside."""
    value = call["self"]
    size = value.shape[dim := (call["dim"] or 0) % len(value.shape)]
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(size)
    return take(call, value, dim, np.arange(start, stop, step), drop=False)


@rule("select")
def select(call: Call) -> list[Axis]:
    """x[…, i, …]: the axis goes; the label chosen has a role of its own."""
    value = call["self"]
    dim = call["dim"] % len(value.shape)
    return take(call, value, dim, np.array([call["index"] % value.shape[dim]]), drop=True)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def split(call: Call) -> list[list[Axis]]:
    """Cut an axis into parts."""
    value = call["self"]
    dim = (call["dim"] or 0) % len(value.shape)
    ends = np.cumsum([shape[dim] for shape in call.shapes])
    return [take(call, value, dim, np.arange(end - shape[dim], end), drop=False)
            for end, shape in zip(ends, call.shapes, strict=True)]


@rule("unbind")
def unbind(call: Call) -> list[list[Axis]]:
    """x[…, i, …] for every i."""
    value = call["self"]
    dim = (call["dim"] or 0) % len(value.shape)
    return [take(call, value, dim, np.array([i]), drop=True) for i in range(value.shape[dim])]


def take(call: Call, value: Value, dim: int, index: np.ndarray, *, drop: bool) -> list[Axis]:
    """Return the axes of value.take(index, dim); what is taken is coloured unless it is everything in order."""
    own = value.axes[dim]
    whole = np.array_equal(index, np.arange(value.shape[dim]))
    if isinstance(own, np.ndarray) and not whole:
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


@rule("cat", "concat")
def cat(call: Call) -> list[Axis]:
    """Join parts along an axis; the other axes are tied over the parts."""
    parts = [value for value in call.values() if 0 not in value.shape or len(value.shape) == len(call.shape)]
    ndim = len(call.shape)
    dim = (call["dim"] or 0) % ndim
    letters = LETTERS[:ndim]
    names = [letters[:dim] + LETTERS[ndim + i] + letters[dim + 1:] for i in range(len(parts))]
    others = call.join(list(zip(parts, names, strict=True)), letters[:dim] + letters[dim + 1:])
    axes = [np.expand_dims(axis, dim) if isinstance(axis, np.ndarray) else axis for axis in others]
    return [*axes[:dim], _concatenated(call, parts, dim), *axes[dim:]]


@rule("stack")
def stack(call: Call) -> list[Axis]:
    """Join parts along a new axis, whose positions stay where they are."""
    parts = call.values()
    dim = (call["dim"] or 0) % len(call.shape)
    letters = LETTERS[:len(parts[0].shape)]
    axes = [np.expand_dims(axis, dim) if isinstance(axis, np.ndarray) else axis
            for axis in call.join([(part, letters) for part in parts], letters)]
    return [*axes[:dim], call.fixed("parts were stacked along it"), *axes[dim:]]


def _concatenated(call: Call, parts: Sequence[Value], dim: int) -> Axis:
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


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> list[Axis]:
    """Add constant positions at the ends of axes; what is added is nobody's unit."""
    value, amounts = call["self"], call["pad"]
    if call["mode"] not in (None, "constant"):
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


@rule("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def spatial_pad(call: Call) -> list[Axis]:
    """Pad by copies of positions: the padded axes are pinned."""
    value = call.values()[0]
    count = len(call["padding"] or call["pad"]) // 2
    fixed = call.fixed("padding copies positions along it")
    for axis in value.axes[-count:]:
        call.book.pin(axis, fixed)
    return [*value.axes[:-count], *[fixed] * count]


@rule("embedding")
def embedding(call: Call) -> list[Axis]:
    """(v d), … → … d: rows are chosen by the values of the index, so they stay where they are."""
    weight, index = call["weight"], call["indices"]
    call.pin(weight.axes[0], "rows are chosen by the values of an index")
    last = weight.axes[1]
    lead = [axis[..., None] if isinstance(axis, np.ndarray) else axis for axis in index.axes]
    return [*lead, last.reshape((1,) * len(index.shape) + (-1,)) if isinstance(last, np.ndarray) else last]


@rule("index_select", "gather", "index")
def index(call: Call) -> list[Axis]:
    """Choose positions by an index: known indices carry labels along, others pin the axis they choose from."""
    value = call["self"]
    indices = call["indices"] if call["indices"] is not None else call["index"]
    single = _single_index(call, indices)
    if single is not None and single[1].ndim == 1 and not call.node.op.startswith("aten.gather"):
        return take(call, value, single[0], single[1], drop=False)
    if not isinstance(indices, tuple):
        return _pin_all(call)
    return _advanced(call, value, indices)


def _single_index(call: Call, indices: object) -> tuple[int, np.ndarray] | None:
    """Return (axis, positions) where one axis is indexed by a constant."""
    if isinstance(indices, Value) and isinstance(call["dim"], int):
        indices = (None,) * (call["dim"] % len(call["self"].shape)) + (indices,)
    if not isinstance(indices, tuple):
        return None
    used = [(i, v) for i, v in enumerate(indices) if v is not None]
    if len(used) != 1 or not isinstance(used[0][1].content, torch.Tensor) or used[0][1].content.dtype is torch.bool:
        return None
    positions = used[0][1].content.cpu().numpy()
    return used[0][0], positions % call["self"].shape[used[0][0]]


def _advanced(call: Call, value: Value, indices: Sequence[Value | None]) -> list[Axis]:
    chosen = [i for i, item in enumerate(indices) if item is not None]
    for i in chosen:
        call.pin(value.axes[i], "positions are chosen by the values of an index")
    adjacent = chosen == list(range(chosen[0], chosen[-1] + 1))
    kept = [i for i in range(len(value.shape)) if i not in chosen]
    if any(isinstance(value.axes[k], np.ndarray) and any(value.axes[k].shape[c] > 1 for c in chosen) for k in kept):
        return _pin_all(call)
    width = len(call.shape) - len(kept)
    at = chosen[0] if adjacent else 0
    fixed = call.fixed("positions were chosen by an index")
    result: list[Axis] = [fixed] * len(call.shape)
    targets = [i for i in range(len(call.shape)) if not at <= i < at + width]
    for source, target in zip(kept, targets, strict=True):
        axis = value.axes[source]
        result[target] = axis
        if isinstance(axis, np.ndarray):
            dims = [1] * len(call.shape)
            for k, t in zip(kept, targets, strict=True):
                dims[t] = axis.shape[k]
            result[target] = axis.reshape(dims)
    return result


def _pin_all(call: Call) -> list[Axis]:
    for value in call.values():
        for axis in value.axes:
            call.pin(axis, "positions are chosen by the values of an index")
    return [call.fixed("positions were chosen by an index")] * len(call.shape)


