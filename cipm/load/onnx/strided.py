"""Indices that are sums of multiples of positions: what exporters write for a view by strides, and what it is a view of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from cipm.load.onnx.values import Call, Const, Sizes, Strided, Value, contents, unrecorded

LARGEST = 2**20
"""A constant of more elements is not looked at."""


def apply_strides(call: Call) -> Strided | None:
    """Return the result of a node on such an index, or None where it is none."""
    rule = _RULES.get(call.node.op)
    return rule(call, *call.operands) if rule and all(value is not None for value in call.operands) else None


def contiguous(index: Strided, length: Any) -> bool:
    """Tell whether an index lists the positions 0 … length − 1 in order, whatever the sizes that vary are."""
    expected: list[Any] = [math.prod(index.sizes[axis + 1:]) for axis in range(len(index.sizes))]
    return (index.offset == 0 and _same(math.prod(index.sizes), length)
            and all(_same(n, 1) or _same(own, wanted)
                    for n, own, wanted in zip(index.sizes, index.strides, expected, strict=True)))


def _same(one: Any, other: Any) -> bool:
    return statically_known_true(one == other)


def _add(_: Call, one: Value, other: Value) -> Strided | None:
    one, other = _strided(one), _strided(other)
    if one is None or other is None or one.dtype != other.dtype:
        return None
    rank = max(len(one.sizes), len(other.sizes))
    (sizes, strides), (others, more) = (_padded(value, rank) for value in (one, other))
    if not all(_same(a, b) or _same(a, 1) or _same(b, 1) for a, b in zip(sizes, others, strict=True)):
        return None
    return Strided(tuple(b if _same(a, 1) else a for a, b in zip(sizes, others, strict=True)),
                   tuple(a + b for a, b in zip(strides, more, strict=True)), one.offset + other.offset, one.dtype)


def _multiply(_: Call, one: Value, other: Value) -> Strided | None:
    index, factor = (one, other) if isinstance(one, Strided) else (other, one)
    factor = _number(factor)
    return None if factor is None else Strided(index.sizes, tuple(n * factor for n in index.strides), index.offset * factor,
                                               index.dtype)


def _unsqueeze(call: Call, index: Value, *_: Value) -> Strided:
    axes = call.axes("axes", 1)
    rank = len(index.sizes) + len(axes)
    sizes, strides = iter(index.sizes), iter(index.strides)
    new = {axis % rank for axis in axes}
    return Strided(tuple(1 if axis in new else next(sizes) for axis in range(rank)),
                   tuple(0 if axis in new else next(strides) for axis in range(rank)), index.offset, index.dtype)


_RULES: dict[str, Callable[..., Strided | None]] = {
    "Add": _add, "Mul": _multiply, "Unsqueeze": _unsqueeze, "Identity": lambda _, index: index}


def _number(value: Value) -> Any:
    if isinstance(value, Const) and value.tensor.numel() == 1 and value.tensor.ndim == 0:
        return contents(value.tensor)
    return value.items.item() if isinstance(value, Sizes) and value.items.ndim == 0 else None


def _padded(index: Strided, rank: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return sizes and strides with leading axes of size 1; an axis of size 1 has the stride 0."""
    lead = rank - len(index.sizes)
    strides = tuple(0 if _same(n, 1) else stride for n, stride in zip(index.sizes, index.strides, strict=True))
    return (1,) * lead + index.sizes, (0,) * lead + strides


def _strided(value: Value) -> Strided | None:
    """Return a constant as such an index where it is one."""
    if not isinstance(value, Const):
        return value if isinstance(value, Strided) else None
    tensor = value.tensor
    if tensor.is_floating_point() or tensor.dtype is torch.bool or not 0 < tensor.numel() <= LARGEST:
        return None
    with unrecorded():
        first = tensor.flatten()[0]
        strides = [tensor.select(axis, 1).flatten()[0] - first if n > 1 else first * 0 for axis, n in enumerate(tensor.shape)]
        made = Strided(tuple(tensor.shape), tuple(int(n) for n in strides), int(first), tensor.dtype)
        return made if torch.equal(made.tensor(), tensor) else None
