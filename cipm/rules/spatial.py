"""Spatial family: pooling, resizing, patches, and channels that become positions or come from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cipm.rules.labels import Axis, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, rule
from cipm.rules.reshape import reshape
from cipm.rules.select import take


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d",
      "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
      "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
      "max_pool3d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
      "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
      "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa")
def pooling(call: Call) -> list[list[Axis]] | list[Axis]:
    """bc… → bc…: channels pass, positions stay where they are."""
    value = call.values()[0]
    axes = _slide(call, value, _spatial(call, value), "pooling or resizing slides along it")
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


def _spatial(call: Call, value: Value) -> int:
    """Return how many of the last axes are positions, which the op's name says (`max_pool2d`)."""
    digits = [int(c) for c in call.node.op.split(".")[1] if c.isdigit()]
    return digits[-1] if digits else len(value.shape) - 2


def _slide(call: Call, value: Value, count: int, reason: str) -> list[Axis]:
    """Keep the positions of the last axes."""
    first = len(value.shape) - count
    return [axis if i < first else call.hold(value, i, reason) for i, axis in enumerate(value.axes)]


@rule("max_unpool2d", "max_unpool3d")
def unpooling(call: Call) -> list[Axis]:
    """bc…, bc… → bc…: values go back to the positions that their indices name."""
    count = _spatial(call, call["self"])
    letters = LETTERS[:len(call.shape)]
    lead = len(letters) - count
    for value in (call["self"], call["indices"]):
        _slide(call, value, count, "pooling slides along it")
    axes = call.equation([(call["self"], letters), (call["indices"], letters)], letters)
    if any(isinstance(axis, np.ndarray) and any(n > 1 for n in axis.shape[lead:]) for axis in axes[:lead]):
        raise ValueError("channels that depend on positions")
    return [*axes[:lead], *[call.fixed("pooling slides along it")] * count]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> list[Axis]:
    """bc…, b…x → bc…: channels pass; positions, and coordinates, stay where they are."""
    value, grid = call["input"], call["grid"]
    _slide(call, value, len(value.shape) - 2, "it is sampled along it")
    _slide(call, grid, len(grid.shape) - 1, "it holds coordinates")
    batch, channels = call.equation([(Value("", value.shape[:2], _lead(value, 2)), "bc"),
                                     (Value("", grid.shape[:1], _lead(grid, 1)), "b")], "bc")
    spatial = [1] * (len(call.shape) - 2)
    axes = [axis.reshape(*axis.shape, *spatial) if isinstance(axis, np.ndarray) else axis for axis in (batch, channels)]
    return [*axes, *[call.fixed("it was sampled along it")] * len(spatial)]


def _lead(value: Value, count: int) -> tuple[Axis, ...]:
    """Return the first axes, as those of a value without the others, of which they must not depend."""
    found: list[Axis] = []
    for axis in value.axes[:count]:
        if isinstance(axis, np.ndarray) and any(n > 1 for n in axis.shape[count:]):
            raise ValueError("an axis that depends on positions")
        found.append(axis.reshape(axis.shape[:count]) if isinstance(axis, np.ndarray) else axis)
    return tuple(found)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[Axis]:
    """…(crs)hw → …c(hr)(ws): channels in blocks, whose channels become positions."""
    value, factor = call["self"], call["upscale_factor"]
    channels = value.shape[-3] // factor ** 2
    split = _reshaped(call, value, (*value.shape[:-3], channels, factor ** 2, *value.shape[-2:]))
    for dim in (-3, -2, -1):
        call.hold(split, len(split.shape) + dim, "it becomes positions")
    return [*_without(call, split, 3), *[call.fixed("channels became positions")] * 2]


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> list[Axis]:
    """…c(hr)(ws) → …(crs)hw: positions become channels, in a block for every channel."""
    value, factor = call["self"], call["downscale_factor"]
    _slide(call, value, 2, "its positions become channels")
    return _patches(call, value, factor ** 2, len(value.shape) - 3, 2)


@rule("im2col")
def im2col(call: Call) -> list[Axis]:
    """bchw → b(ck)l: the k positions of a patch become channels, in a block for every channel."""
    value = call["self"]
    _slide(call, value, 2, "patches slide along it")
    return _patches(call, value, int(np.prod(call["kernel_size"])), len(value.shape) - 3, 1)


def _patches(call: Call, value: Value, size: int, at: int, rest: int) -> list[Axis]:
    """Return …(c k)…: the channels with `size` fixed positions in each, then `rest` fixed axes."""
    fixed = call.fixed("it was made of positions")
    kept = [axis.reshape((*axis.shape[:at + 1], *[1] * (rest + 1))) if isinstance(axis, np.ndarray) else axis
            for axis in _lead(value, at + 1)]
    tail = call.shape[at + 1:]
    split = Value(value.name, (*value.shape[:at + 1], size, *tail), (*kept, fixed, *[fixed] * rest))
    return reshape(call.book, split, call.shape)


@rule("col2im")
def col2im(call: Call) -> list[Axis]:
    """b(ck)l → bchw: the channels of a block become the positions of a patch."""
    value, size = call["self"], int(np.prod(call["kernel_size"]))
    at = len(value.shape) - 2
    split = _reshaped(call, value, (*value.shape[:at], value.shape[at] // size, size, value.shape[-1]))
    for dim in (at + 1, at + 2):
        call.hold(split, dim, "it becomes positions")
    return [*_without(call, split, 2), *[call.fixed("it was made of patches")] * 2]


def _reshaped(call: Call, value: Value, shape: Sequence[int]) -> Value:
    return Value(value.name, tuple(shape), tuple(reshape(call.book, value, shape)))


def _without(call: Call, value: Value, count: int) -> list[Axis]:
    """Return the axes but the last `count`, laid out for two axes of positions in their place."""
    kept = _lead(value, len(value.shape) - count)
    return [axis.reshape(*axis.shape, 1, 1) if isinstance(axis, np.ndarray) else axis for axis in kept]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> list[Axis]:
    """b(gn)… → b(ng)…: every label goes along to its new place."""
    value = call["self"]
    order = np.arange(value.shape[1]).reshape(call["groups"], -1).T.ravel()
    return take(call, value, 1, order, drop=False)


@rule("unfold", "unfold_copy")
def unfold(call: Call) -> list[Axis]:
    """…n… → …w…k: windows of an axis, whose positions stay where they are."""
    value = call["self"]
    dim = call["dimension"] % len(value.shape)
    call.hold(value, dim, "windows slide along it")
    fixed = call.fixed("windows slide along it")
    axes: list[Axis] = []
    for i, axis in enumerate(value.axes):
        if isinstance(axis, np.ndarray) and i != dim and axis.shape[dim] > 1:
            raise ValueError("an axis that depends on the windows")
        axes.append(axis[..., None] if isinstance(axis, np.ndarray) and i != dim else fixed if i == dim else axis)
    return [*axes, fixed]


@rule("affine_grid_generator")
def affine_grid(call: Call) -> list[Axis]:
    """bij → b…i: coordinates stay where they are."""
    theta = call["theta"]
    _slide(call, theta, 2, "it holds coordinates")
    batch, = _lead(theta, 1)
    fixed = call.fixed("it holds coordinates")
    batch = batch.reshape(-1, *[1] * (len(call.shape) - 1)) if isinstance(batch, np.ndarray) else batch
    return [batch, *[fixed] * (len(call.shape) - 1)]


