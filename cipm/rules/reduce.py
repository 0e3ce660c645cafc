"""Softmax and reductions: functions of the set of values along an axis."""

from __future__ import annotations

import numpy as np

from cipm.rules.labels import FREE, Axis, Value
from cipm.rules.registry import Call, rule


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin")
def softmax(call: Call) -> list[Axis]:
    """…n → …n along one axis; the normaliser does not depend on the order."""
    value = call.values()[0]
    call.book.touch(value, call["dim"] % len(value.shape))
    return list(value.axes)


@rule("mean", "sum", "prod", "amax", "amin", "max", "min", "any", "all", "logsumexp", "linalg_vector_norm", "norm",
      "var", "std", "var_mean", "std_mean")
def reduction(call: Call) -> list[list[Axis]] | list[Axis]:
    """…n → … : a sum, mean, extreme or norm over axes; what remains keeps its order."""
    value = call.values()[0]
    dims = _dims(call, len(value.shape))
    for dim in dims:
        call.book.touch(value, dim)
    results = [_drop(call, value, dims, len(shape) == len(value.shape)) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


@rule("argmax", "argmin", "cumsum", "cumprod", "sort", "topk", "argsort", "flip", "roll", "median", "cummax",
      "logcumsumexp", "diff")
def ordered(call: Call) -> list[list[Axis]] | list[Axis]:
    """Ops whose result depends on positions along an axis: that axis is pinned, the others pass."""
    value = call.values()[0]
    dims = _dims(call, len(value.shape))
    for dim in dims:
        call.pin(value.axes[dim], "this op depends on the order along the axis")
    fixed = call.fixed("an op that depends on order made it")
    kept = [fixed if i in dims else axis for i, axis in enumerate(value.axes)]
    results = [kept if len(shape) == len(value.shape) else _drop(call, value, dims, False) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool3d",
      "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
      "max_pool2d_with_indices", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d",
      "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_nearest3d")
def pooling(call: Call) -> list[list[Axis]] | list[Axis]:
    """bc… → bc…: channels pass, positions stay where they are."""
    value = call.values()[0]
    digits = [int(c) for c in call.node.op.split(".")[1] if c.isdigit()]
    spatial = digits[-1] if digits else len(value.shape) - 2
    fixed = call.fixed("pooling or resizing slides along it")
    for axis in value.axes[-spatial:]:
        call.book.pin(axis, fixed)
    axes = [*value.axes[:-spatial], *[fixed] * spatial]
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


def _dims(call: Call, ndim: int) -> list[int]:
    dims = call["dim"] if call["dim"] is not None else call["dims"]
    if dims is None or dims == ():
        return list(range(ndim)) if call["descending"] is None else [ndim - 1]
    return [d % max(ndim, 1) for d in (dims if isinstance(dims, tuple) else (dims,))]


def _drop(call: Call, value: Value, dims: list[int], keep: bool) -> list[Axis]:
    kept: list[Axis] = []
    for i, axis in enumerate(value.axes):
        if i in dims:
            kept.extend([FREE] if keep else [])
            continue
        if isinstance(axis, np.ndarray):
            if any(axis.shape[d] > 1 for d in dims):
                call.pin(axis, "its meaning depends on an axis that this op sums over")
                axis = call.fixed("it depends on an axis that was summed over")
            elif not keep:
                axis = axis.squeeze(tuple(dims))
        kept.append(axis)
    return kept
