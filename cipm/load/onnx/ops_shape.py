"""Operators that change shapes: reshape, transpose, slice, join, pad, repeat, and values made from shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from cipm.load.onnx.tensor import dtype_of
from cipm.load.onnx.values import MAX_VALUE, Call, Result, Strided, constant, flat_contents, known_sizes, operator

_FAR = 2**31  # how exporters say: to the end


@operator("Shape")
def shape(call: Call) -> Result:
    """The sizes of the axes from start to end."""
    return known_sizes(list(call[0].shape)[slice(call.int("start", 0), call.int("end"))])


@operator("Size")
def size(call: Call) -> Result:
    """The number of elements."""
    return known_sizes(math.prod(call[0].shape))


@operator("Reshape", host=(1,))
def reshape(call: Call) -> Result:
    """The elements in another shape: 0 copies a size, −1 takes the rest."""
    x, copies = call[0], not call.int("allowzero", 0)
    return x.reshape([x.shape[i] if copies and isinstance(n, int) and n == 0 else n for i, n in enumerate(call.numbers(1))])


@operator("Flatten")
def flatten(call: Call) -> Result:
    """A matrix: the axes before `axis` joined, and those from it on."""
    x = call[0]
    axis = call.int("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@operator("Transpose")
def transpose(call: Call) -> Result:
    """The axes in another order."""
    return call[0].permute(call.list("perm", tuple(reversed(range(call[0].ndim)))))


@operator("Squeeze", host=(1,))
def squeeze(call: Call) -> Result:
    """Without these axes of size 1, or without all of them."""
    axes = call.axes("axes", 1)
    return call[0].squeeze() if axes is None else call[0].squeeze(axes)


@operator("Unsqueeze", host=(1,))
def unsqueeze(call: Call) -> Result:
    """With new axes of size 1 at these places of the result."""
    x, axes = call[0], call.axes("axes", 1) or []
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call) -> Result:
    """Parts joined along an axis."""
    return torch.cat(call.tensors(), call.int("axis", 1))


@operator("Split", host=(1,))
def split(call: Call) -> Result:
    """An axis cut into parts of given sizes, or into equal ones."""
    axis, x = call.int("axis", 0), call[0]
    parts = call.axes("split", 1)
    if parts is None:
        count = call.int("num_outputs", len(call.node.outputs))
        size = x.shape[axis]
        if not isinstance(size, int):
            raise call.unsupported("cuts an axis of varying size into equal parts")
        each = -(-size // max(count, 1))
        parts = [each] * (count - 1) + [size - each * (count - 1)]
    return list(torch.split(x, parts, axis))


@operator("Slice", host=(1, 2, 3, 4))
def slice_axes(call: Call) -> Result:
    """x[start:end:step] along some axes."""
    x = call[0]
    starts, ends = ((call.numbers(i) for i in (1, 2)) if call.has(1) else (call.list("starts", ()), call.list("ends", ())))
    axes = call.axes("axes", 3) or list(range(len(starts)))
    steps = call.whole(4) if call.has(4) else (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _sliced(call, x, axis, start, end, step)
    return x


def _sliced(call: Call, x: torch.Tensor, axis: int, start: Any, end: Any, step: int) -> torch.Tensor:
    if step > 0:
        start, end = (max(min(n, _FAR), -_FAR) if isinstance(n, int) else n for n in (start, end))
        return x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
    if step == 0:
        raise call.damaged("has the step 0")
    if not all(isinstance(n, int) for n in (x.shape[axis], start, end)):
        raise call.unsupported("runs backwards along an axis of varying size")
    end = None if end < -x.shape[axis] else end
    return x.index_select(axis, constant(range(x.shape[axis])[start:end:step]))


@operator("Expand", host=(1,))
def expand(call: Call) -> Result:
    """Broadcast against a shape, in both directions."""
    x, wanted = call[0], call.numbers(1)
    have = [1] * (len(wanted) - x.ndim) + list(x.shape)
    wanted = [1] * (len(have) - len(wanted)) + wanted
    sizes = [w if isinstance(h, int) and h == 1 else h for h, w in zip(have, wanted, strict=True)]
    call.bounded(_count(sizes), MAX_VALUE)
    return x.expand(sizes)


@operator("Tile", host=(1,))
def tile(call: Call) -> Result:
    """Copies along every axis."""
    call.bounded(_count([*call.numbers(1), *call[0].shape]), MAX_VALUE)
    return call[0].repeat(call.numbers(1))


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(call: Call) -> Result:
    """One value everywhere."""
    value = call.attribute("value", torch.Tensor)
    if value is not None and value.numel() != 1:
        raise call.damaged("fills with a value that is not one number")
    dtype = torch.float32 if value is None else value.dtype
    call.bounded(_count(call.numbers(0)))
    return torch.full(call.numbers(0), 0 if value is None else flat_contents(value)[0], dtype=dtype)


def _count(sizes: Any) -> Any:
    return math.prod(sizes) if all(isinstance(n, int) for n in sizes) else 0


@operator("Range", host=(0, 1, 2))
def arange(call: Call) -> Result:
    """start, start + step, … below the limit."""
    start, limit, step = (call.number(i) for i in range(3))
    if all(isinstance(n, (int, float)) for n in (start, limit, step)):
        if not step or any(n != n for n in (start, limit, step)):
            raise call.damaged("has the step 0")
        call.bounded(int(min(max((limit - start) / step, 0), 2**62)))
    if isinstance(limit, torch.SymInt) and isinstance(start, int) and isinstance(step, int) and step == 1:
        return Strided((limit - start,), (1,), start, call[0].dtype)
    return torch.arange(start, limit, step, dtype=call[0].dtype)


@operator("EyeLike")
def eye_like(call: Call) -> Result:
    """Ones on a diagonal, in the shape of the input."""
    rows, columns = call[0].shape
    dtype = dtype_of(call.int("dtype"), call.node.label) if "dtype" in call.node.attributes else call[0].dtype
    where = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    return (where == call.int("k", 0)).to(dtype)


@operator("Trilu", host=(1,))
def trilu(call: Call) -> Result:
    """The upper or lower triangle, zero elsewhere."""
    k = call.number(1) if call.has(1) else 0
    return torch.triu(call[0], k) if call.int("upper", 1) else torch.tril(call[0], k)


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Result:
    """Blocks of channels become blocks of positions."""
    x, n = call[0], call.int("blocksize", 0)
    b, c, h, w = x.shape
    if call.one_of("mode", "DCR", ("DCR", "CRD")) == "DCR":
        return x.reshape(b, n, n, c // n**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // n**2, h * n, w * n)
    return F.pixel_shuffle(x, n)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Result:
    """Blocks of positions become blocks of channels."""
    x, n = call[0], call.int("blocksize", 0)
    b, c, h, w = x.shape
    return x.reshape(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4).reshape(b, c * n**2, h // n, w // n)


@operator("Pad", host=(1, 2, 3))
def pad(call: Call) -> Result:
    """Positions added (or with negative numbers taken away) at both ends of axes."""
    x, mode = call[0], call.one_of("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    pads = call.numbers(1) if call.has(1) else list(call.list("pads", ()))
    axes = [axis % x.ndim for axis in call.axes("axes", 3) or range(x.ndim)]
    if len(pads) != 2 * len(axes):
        raise call.damaged(f"gives {len(pads)} amounts for {len(axes)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    call.bounded(_count([n + a + b for n, a, b in zip(x.shape, before, after, strict=True)]), MAX_VALUE)
    if mode == "constant":
        value = call.number(2) if call.has(2) else call.float("value", 0.0)
        return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value)
    for axis in range(x.ndim):
        x = _copied(call, x, axis, (before[axis], after[axis]), mode)
    return x


def _copied(call: Call, x: torch.Tensor, axis: int, amounts: tuple[Any, Any], mode: str) -> torch.Tensor:
    """Pad one axis by copies of its own positions."""
    if amounts == (0, 0):
        return x
    n = x.shape[axis]
    if not all(isinstance(a, int) for a in (*amounts, n)) or n < 1:
        raise call.unsupported(f"pads an axis of varying size by {mode}")
    places = range(-amounts[0], n + amounts[1])
    turn = max(2 * (n - 1), 1)
    index = {"edge": lambda i: min(max(i, 0), n - 1), "wrap": lambda i: i % n,
             "reflect": lambda i: (turn - i % turn) if i % turn >= n else i % turn}[mode]
    return x.index_select(axis, constant([index(i) for i in places]))
