"""Operators along axes: sums and their relatives, softmax, cumulative sums, positions of extremes, Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cipm.load.onnx.values import Call, Result, operator

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _largest(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.amax(x, axes, keepdim=keep)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep), "ReduceSum": _sum, "ReduceMax": _largest,
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep), "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reduction(function: Reduction) -> Callable[[Call], Result]:
    def run(call: Call) -> Result:
        axes = call.axes("axes", 1)
        if not axes:
            if call.int("noop_with_empty_axes", 0):
                raise call.unsupported("reduces along no axis")
            axes = list(range(call[0].ndim))
        return function(call[0], axes, bool(call.int("keepdims", 1))) if axes else call[0]
    return run


for _name, _function in _REDUCTIONS.items():
    operator(_name, host=(1,))(_reduction(_function))


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Result:
    """The position of the largest or smallest element along an axis, the first or the last of equals."""
    find = torch.argmax if call.node.op == "ArgMax" else torch.argmin
    axis, keep, x = call.int("axis", 0), bool(call.int("keepdims", 1)), call[0]
    if call.int("select_last_index", 0):
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return find(x, axis, keepdim=keep)


@operator("CumSum", host=(1,))
def cumulative_sum(call: Call) -> Result:
    """Sums of what stands before, each with its own element or without, from either end."""
    axis, x, back = call.number(1), call[0], call.int("reverse", 0)
    x = x.flip(axis) if back else x
    total = x.cumsum(axis, dtype=x.dtype)
    if call.int("exclusive", 0):
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if back else total


@operator("DFT", host=(1, 2))
def fourier(call: Call) -> Result:
    """The discrete Fourier transform along an axis of numbers [..., 1] or pairs of real and imaginary parts [..., 2]."""
    x, inverse, half = call[0], bool(call.int("inverse", 0)), bool(call.int("onesided", 0))
    if x.ndim < 2 or x.shape[-1] not in (1, 2):
        raise call.damaged(f"transforms values of shape {list(x.shape)}, whose last axis holds neither one part nor two")
    if half and (inverse or x.shape[-1] == 2):
        raise call.unsupported("gives one side of an inverse transform, or of one of pairs")
    axis = (call.int("axis", 1) if call.opset < 20 else call.number(2) if call.has(2) else -2) % x.ndim
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if axis >= values.ndim:
        raise call.damaged("transforms along the axis of its parts")
    length = call.number(1) if call.has(1) else None
    transform = torch.fft.rfft if half else torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(transform(values, length, axis))


@operator("TopK", host=(1,))
def top_k(call: Call) -> Result:
    """The k largest or smallest elements along an axis, and where they stand."""
    k = call.number(1) if len(call) > 1 else call.int("k")
    return list(torch.topk(call[0], k, call.int("axis", -1), bool(call.int("largest", 1)), bool(call.int("sorted", 1))))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call) -> Result:
    """Softmax along an axis; until opset 12 over that axis and all after it, taken together."""
    x = call[0]
    axis = call.int("axis", 1 if call.opset < 13 else -1)
    joined = call.opset < 13 and axis % max(x.ndim, 1) != x.ndim - 1
    flat = x.flatten(axis % x.ndim) if joined else x
    along = -1 if joined else axis
    if call.node.op == "Hardmax":
        result = torch.zeros_like(flat).scatter(along, flat.argmax(along, keepdim=True), 1.0)
    else:
        result = (torch.softmax if call.node.op == "Softmax" else torch.log_softmax)(flat, along)
    return result.reshape(x.shape) if joined else result


@operator("LpNormalization")
def lp_normalization(call: Call) -> Result:
    """x / ‖x‖ along an axis, and 0 where the norm is 0."""
    x, axis = call[0], call.int("axis", -1)
    norm = x.abs().sum(axis, keepdim=True) if call.int("p", 2) == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Result:
    """The mean over all positions."""
    return call[0].mean(list(range(2, call[0].ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Result:
    """The largest value over all positions."""
    return torch.amax(call[0], list(range(2, call[0].ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call) -> Result:
    """The p-norm over all positions."""
    p = call.int("p", 2)
    return call[0].abs().pow(p).sum(list(range(2, call[0].ndim)), keepdim=True).pow(1 / p)


@operator("Det")
def determinant(call: Call) -> Result:
    """The determinant of each matrix."""
    return torch.linalg.det(call[0])
