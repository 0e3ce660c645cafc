"""Order along an axis: what ranks its units, and what depends on the places they stand at."""

from __future__ import annotations

import numpy as np

from cipm.rules.labels import Axis, Coded, Value
from cipm.rules.reduce import dimensions, drop
from cipm.rules.registry import Call, rule
from cipm.rules.select import take

RANKED = "units were ranked along it"


@rule("sort", "topk", "argsort", "msort", "argmax", "argmin", "max.dim", "min.dim", "median.dim", "nanmedian.dim", "kthvalue",
      "mode")
def ranking(call: Call) -> list[list[Axis] | Coded] | list[Axis] | Coded:
    """…n → …r: ranks do not depend on the order of the units; the indices are numbers that name units, and move with them."""
    value = call["self"]
    if call.node.op.startswith("aten.msort"):
        dim = 0
    elif call["dim"] is None and call.node.op.startswith(("aten.argmax", "aten.argmin")):
        return _of_all(call, value)
    else:
        dim = (call["dim"] if call["dim"] is not None else -1) % max(len(value.shape), 1)
    call.book.touch(value, dim)
    keep = len(call.shape) == len(value.shape)
    axes = drop(call, value, [dim], keep)
    if keep:
        axes[dim] = call.fixed(RANKED)
    indices = Coded(axes, _codes(value.axes[dim], dim))
    if len(call.shapes) == 1:
        return indices if call.node.op.startswith("aten.arg") else axes
    return [axes, indices]


def _codes(axis: Axis, dim: int) -> np.ndarray | None:
    """Return what an index along this axis names; where that depends on other axes, in more than one dimension."""
    if not isinstance(axis, np.ndarray):
        return None
    return axis.ravel() if axis.size == axis.shape[dim] else np.moveaxis(axis, dim, -1)


def _of_all(call: Call, value: Value) -> list[Axis]:
    for axis in value.axes:
        call.pin(axis, "the position of the extreme is a number")
    return list(drop(call, value, list(range(len(value.shape))), len(call.shape) == len(value.shape)))


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "_logcumsumexp", "diff")
def sequential(call: Call) -> list[list[Axis]] | list[Axis]:
    """Sums from the first position on and differences between neighbours: that axis stays as it is, the others pass."""
    value, = call.values()
    dims = [-1 % len(value.shape)] if call["dim"] is None else dimensions(call, len(value.shape))
    axes = [call.hold(value, i, "this op depends on the order along the axis") if i in dims else _apart(call, axis, dims)
            for i, axis in enumerate(value.axes)]
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


def _apart(call: Call, axis: Axis, dims: list[int]) -> Axis:
    """Return an axis beside fixed ones; where its meaning depends on those, it is pinned."""
    if isinstance(axis, np.ndarray) and any(axis.shape[d] > 1 for d in dims):
        call.pin(axis, "its meaning depends on an axis whose order matters")
        return call.fixed("it depends on an axis whose order matters")
    return axis


@rule("flip", "fliplr", "flipud", "roll", "fft_fftshift", "fft_ifftshift")
def rearrangement(call: Call) -> list[Axis]:
    """Move whole positions: every label goes along to its new place."""
    value = call["self"]
    name, ndim = call.node.op.split(".")[1], len(value.shape)
    if name == "roll" and not call["dims"]:
        return _rolled_flat(call, value)
    dims = {"fliplr": [1], "flipud": [0]}.get(name) or dimensions(call, ndim)
    for step, dim in enumerate(dims):
        positions = np.arange(value.shape[dim])
        moved = positions[::-1] if "flip" in name else np.roll(positions, _shift(call, name, step, positions.size))
        value = Value(value.name, value.shape, tuple(take(call, value, dim, moved, drop=False)))
    return list(value.axes)


def _shift(call: Call, name: str, step: int, size: int) -> int:
    if name == "roll":
        return call["shifts"][step] if isinstance(call["shifts"], tuple) else call["shifts"]
    return size // 2 if name == "fft_fftshift" else (size + 1) // 2


def _rolled_flat(call: Call, value: Value) -> list[Axis]:
    """Roll over all positions as if there were one axis: none keeps its meaning."""
    for dim in range(len(value.shape)):
        call.pin(value.axes[dim], "positions move from row to row")
    return [call.fixed("positions moved from row to row")] * len(value.shape)


@rule("tril", "triu")
def triangle(call: Call) -> list[Axis]:
    """A triangle of the last two axes: both stay as they are, the others pass."""
    value = call["self"]
    last = {len(value.shape) - 2, len(value.shape) - 1}
    return [call.hold(value, i, "a triangle is cut out of it") if i in last else _apart(call, axis, sorted(last))
            for i, axis in enumerate(value.axes)]


@rule("bucketize", "searchsorted.Scalar", "isin")
def bins(call: Call) -> list[Axis]:
    """f(x[i…]; bins): numbers are looked up one by one among bins that stay where they are."""
    names = ("elements", "test_elements") if call["elements"] is not None else ("self", "boundaries")
    value, table = (call[name] for name in names)
    if isinstance(table, Value):
        for dim in range(len(table.shape)):
            call.hold(table, dim, "numbers are looked up in it")
    return list(value.axes)
