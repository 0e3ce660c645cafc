"""Operators over positions: pooling, resizing, sampling on a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cipm.load.onnx.ops_linear import interleaved, paddings, spatial_rank
from cipm.load.onnx.values import Call, Result, constant, operator

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _window(call: Call) -> tuple[list[int], list[int], list[int], list[Any], list[Any]]:
    """Return kernel, strides, dilations, and the padding before and after."""
    rank = spatial_rank(call, call[0])
    kernel = list(call.list("kernel_shape", ()))
    if len(kernel) != rank:
        raise call.damaged(f"has a kernel of {len(kernel)} axes over {rank}")
    strides, dilations = (list(call.list(name, (1,) * rank)) for name in ("strides", "dilations"))
    return kernel, strides, dilations, *paddings(call, call[0], kernel, strides, dilations)


@operator("MaxPool")
def max_pool(call: Call) -> Result:
    """The largest value under a window."""
    call.one_output()
    x = call[0]
    kernel, strides, dilations, before, after = _window(call)
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        x, before = F.pad(x, interleaved(before, after), value=-math.inf), [0] * len(kernel)
    return _MAX[len(kernel)](x, kernel, strides, before, dilations, bool(call.int("ceil_mode", 0)))


@operator("AveragePool")
def average_pool(call: Call) -> Result:
    """The mean under a window, with padding counted or not."""
    x = call[0]
    kernel, strides, dilations, before, after = _window(call)
    ceil, counted = bool(call.int("ceil_mode", 0)), bool(call.int("count_include_pad", 0))
    if any(d != 1 for d in dilations):
        raise call.unsupported("has a dilated window")
    average = _AVERAGE[len(kernel)]
    if before == after and not any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        return average(x, kernel, strides, before, ceil, counted)
    padded = average(F.pad(x, interleaved(before, after)), kernel, strides, 0, ceil)
    if counted:
        return padded
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    return padded / average(F.pad(ones, interleaved(before, after)), kernel, strides, 0, ceil)


@operator("LpPool")
def lp_pool(call: Call) -> Result:
    """The p-norm under a window."""
    kernel, strides, dilations, before, after = _window(call)
    if any(d != 1 for d in dilations) or call.int("ceil_mode", 0):
        raise call.unsupported("has a dilated window or rounds up")
    x, p = F.pad(call[0].abs().pow(call.int("p", 2)), interleaved(before, after)), call.int("p", 2)
    return (_AVERAGE[len(kernel)](x, kernel, strides) * math.prod(kernel)).pow(1 / p)


@operator("Col2Im", host=(1, 2))
def columns_to_image(call: Call) -> Result:
    """Columns of patches are added up where they overlap."""
    size, block = call.whole(1), call.whole(2)
    if len(size) != 2 or len(block) != 2:
        raise call.unsupported(f"makes an image of {len(size)} axes")
    strides, dilations = (call.list(name, (1, 1)) for name in ("strides", "dilations"))
    top, left, bottom, right = call.list("pads", (0, 0, 0, 0))
    whole = F.fold(call[0], (size[0] + top + bottom, size[1] + left + right), block, dilations, 0, strides)
    return whole[:, :, top:top + size[0], left:left + size[1]]


# --- resizing -------------------------------------------------------------------------------------------------------

@operator("Upsample", host=(1,))
def upsample(call: Call) -> Result:
    """Resize of opset 7 to 9: positions are counted from the corner."""
    scales = call.numbers(1) if call.has(1) else list(call.list("scales", ()))
    x = call[0]
    sizes = [_floor(n * s) for n, s in zip(x.shape, scales, strict=True)]
    mode = call.one_of("mode", "nearest", ("nearest", "linear", "bilinear"))
    return _resized(call, x, sizes, scales, "nearest" if mode == "nearest" else "linear", "asymmetric", "floor")


@operator("Resize", host=(1, 2, 3))
def resize(call: Call) -> Result:
    """Interpolate to other sizes along any axes."""
    call.refuse("antialias", "exclude_outside")
    x, place = call[0], call.opset >= 11
    mode = call.one_of("mode", "nearest", ("nearest", "linear", "cubic"))
    where = call.one_of("coordinate_transformation_mode", "half_pixel" if place else "asymmetric",
                        ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"))
    rounding = call.one_of("nearest_mode", "round_prefer_floor" if place else "floor",
                           ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.unsupported("keeps the aspect ratio")
    axes = [a % x.ndim for a in call.list("axes", tuple(range(x.ndim)))]
    sizes, scales = list(x.shape), [1.0] * x.ndim
    given = call.numbers(2 if place else 1) if call.has(2 if place else 1) else []
    wanted = call.numbers(3) if not given and call.has(3) else []
    for i, axis in enumerate(axes if given or wanted else ()):
        sizes[axis] = wanted[i] if wanted else _floor(x.shape[axis] * given[i])
        scales[axis] = given[i] if given else sizes[axis] / x.shape[axis]
    return _resized(call, x, sizes, scales, mode, where, rounding)


def _floor(value: Any) -> Any:
    return value if isinstance(value, int) else math.floor(value)


def _resized(call: Call, x: torch.Tensor, sizes: list[Any], scales: list[Any], mode: str, where: str,
             rounding: str) -> torch.Tensor:
    axes = [a for a in range(x.ndim) if not (isinstance(sizes[a], int) and sizes[a] == x.shape[a] and scales[a] == 1)]
    if not axes:
        return x
    call.bounded(math.prod(sizes) if all(isinstance(n, int) for n in sizes) else 0)
    if min(axes) >= 2 and x.ndim <= 5 and (fast := _by_torch(x, axes, sizes, scales, mode, where, rounding)) is not None:
        return fast
    for axis in axes:
        if not all(isinstance(n, (int, float)) for n in (x.shape[axis], sizes[axis], scales[axis])):
            raise call.unsupported(f"resizes an axis of varying size ({mode}, {where})")
        positions = _positions(x.shape[axis], sizes[axis], scales[axis], where)
        x = _along(call, x, axis, positions, mode, rounding)
    return x


def _by_torch(x: torch.Tensor, axes: list[int], sizes: list[Any], scales: list[Any], mode: str, where: str,
              rounding: str) -> torch.Tensor | None:
    """Return the result by torch's own interpolation where that is the same, else None."""
    rank, size = x.ndim - 2, sizes[2:]
    whole = all(isinstance(s, (int, float)) and s >= 1 and s == int(s) for s in scales[2:])
    same = (where, rounding) == ("asymmetric", "floor") or where == "half_pixel" and rounding.startswith("round")
    if mode == "nearest" and whole and same:
        return F.interpolate(x, size=size, mode="nearest")
    if mode == "linear" and where in ("half_pixel", "align_corners") and _exact(x.shape[2:], size, scales[2:]):
        return F.interpolate(x, size=size, mode=_LINEAR[rank], align_corners=where == "align_corners")
    return None


def _exact(before: Any, after: Any, scales: list[Any]) -> bool:
    """Tell whether the scales are the ratios of the sizes, which is what torch takes them for."""
    numbers = all(isinstance(n, (int, float)) for n in (*before, *after, *scales))
    return not numbers or all(abs(n * s - m) < 1e-6 * m for n, m, s in zip(before, after, scales, strict=True))


def _positions(size: int, wanted: int, scale: float, where: str) -> np.ndarray:
    """Return where every new position lies among the old ones, in the float32 of ONNX runtimes: ties depend on it."""
    new, half = np.arange(wanted, dtype=np.float32), np.float32(0.5)
    if where == "align_corners":
        return new * np.float32(size - 1) / np.float32(max(wanted - 1, 1))
    if where == "asymmetric":
        return new / np.float32(scale)
    if where == "pytorch_half_pixel" and wanted == 1:
        return new * 0
    return (new + half) / np.float32(scale) - half


def _along(call: Call, x: torch.Tensor, axis: int, positions: np.ndarray, mode: str, rounding: str) -> torch.Tensor:
    size = x.shape[axis]
    if mode == "nearest":
        index = {"floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda p: np.ceil(p - np.float32(0.5)),
                 "round_prefer_ceil": lambda p: np.floor(p + np.float32(0.5))}[rounding](positions)
        return x.index_select(axis, constant(np.clip(index, 0, size - 1).astype(np.int64)))
    weights = np.zeros((len(positions), size))
    first = np.floor(positions)
    for offset, share in _taps(positions - first, mode, call.float("cubic_coeff_a", -0.75)):
        np.add.at(weights, (np.arange(len(positions)), np.clip(first + offset, 0, size - 1).astype(np.int64)), share)
    return (x.movedim(axis, -1) @ constant(weights.T, x.dtype)).movedim(-1, axis)


def _taps(part: np.ndarray, mode: str, a: float) -> list[tuple[int, np.ndarray]]:
    """Return (offset from the position below, its weight) of linear or cubic interpolation."""
    if mode == "linear":
        return [(0, 1 - part), (1, part)]
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731
    return [(-1, far(part + 1)), (0, near(part)), (1, near(1 - part)), (2, far(2 - part))]


@operator("GridSample")
def grid_sample(call: Call) -> Result:
    """Values at the points of a grid."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(text := call.text("mode", "linear"), text)
    padding = call.one_of("padding_mode", "zeros", ("zeros", "border", "reflection"))
    return F.grid_sample(call[0], call[1], mode, padding, bool(call.int("align_corners", 0)))
