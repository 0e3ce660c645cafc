"""Arithmetic on sizes that vary: what exporters put between Shape and Reshape, done on symbolic integers."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cipm.load.onnx.tensor import DTYPES
from cipm.load.onnx.values import Call, Const, Sizes, contents, known_sizes

Table = dict[str, Callable[[Call, list[np.ndarray]], np.ndarray]]


def apply_sizes(call: Call) -> Const | Sizes | None:
    """Return the result of a node whose operands are constants and sizes, or None where this is not done here."""
    rule = _RULES.get(call.node.op)
    if rule is None or call.outputs != 1:
        return None
    arrays = [_array(value) for value in call.operands if value is not None]
    try:
        items = rule(call, arrays)
    except (TypeError, ValueError, IndexError, NotImplementedError):
        return None  # a form that is left to tensors
    return known_sizes(items, _dtype(call))


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Sizes):
        return value.items
    array = np.empty(tuple(value.tensor.shape), dtype=object)
    array[...] = contents(value.tensor)
    return array


def _dtype(call: Call) -> torch.dtype:
    if call.node.op == "Cast":
        return DTYPES[call.int("to")]
    if call.node.op in _COMPARISONS:
        return torch.bool
    kinds = [value.dtype if isinstance(value, Sizes) else value.tensor.dtype for value in call.operands if value is not None]
    return kinds[1] if call.node.op == "Where" else kinds[0]


def _each(function: Callable[..., Any]) -> Callable[[Call, list[np.ndarray]], np.ndarray]:
    def rule(_: Call, arrays: list[np.ndarray]) -> np.ndarray:
        return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), dtype=object)
    return rule


def _divide(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    whole = not _dtype(call).is_floating_point
    return _each((lambda a, b: a // b) if whole else (lambda a, b: a / b))(call, arrays)


def _cast(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    dtype = DTYPES[call.int("to")]
    if dtype is torch.bool:
        raise TypeError("left to tensors")
    return _each(torch.sym_float if dtype.is_floating_point else torch.sym_int)(call, arrays)


def _gather(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0].take(arrays[1].astype(np.int64), axis=call.int("axis", 0))


def _slice(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        starts, ends, axes, steps = call.list("starts"), call.list("ends"), call.list("axes"), None
    else:
        starts, ends, axes, steps = (*(a.tolist() for a in arrays[1:]), None, None)[:4]
    if arrays[0].ndim != 1 or len(starts) != 1 or tuple(axes or (0,)) not in ((0,), (-1,)):
        raise ValueError("left to tensors")
    return arrays[0][slice(int(starts[0]), int(ends[0]), int((steps or [1])[0]))]


def _squeeze(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0].reshape(()) if arrays[0].size == 1 else arrays[0]


def _unsqueeze(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    axes = arrays[1].tolist() if len(arrays) > 1 else call.list("axes")
    return np.expand_dims(arrays[0], tuple(int(axis) for axis in axes))


def _reshape(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0].reshape([int(size) for size in arrays[1].tolist()])


def _concat(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays, axis=call.int("axis"))


def _reduce(function: Callable[[Any, Any], Any]) -> Callable[[Call, list[np.ndarray]], np.ndarray]:
    def rule(call: Call, arrays: list[np.ndarray]) -> np.ndarray:
        if arrays[0].ndim != 1:
            raise ValueError("left to tensors")
        total = arrays[0][0]
        for item in arrays[0][1:]:
            total = function(total, item)
        return np.array([total] if call.int("keepdims", 1) else total, dtype=object)
    return rule


_COMPARISONS = {"Equal": python.eq, "Less": python.lt, "Greater": python.gt, "LessOrEqual": python.le,
                "GreaterOrEqual": python.ge}
_RULES: Table = {
    "Identity": lambda call, arrays: arrays[0], "Cast": _cast, "Gather": _gather, "Slice": _slice, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Concat": _concat, "Div": _divide,
    "Add": _each(python.add), "Sub": _each(python.sub), "Mul": _each(python.mul), "Neg": _each(python.neg),
    "Mod": _each(python.mod), "Floor": _each(math.floor), "Ceil": _each(math.ceil),
    "Max": _each(lambda *items: _fold(torch.sym_max, items)), "Min": _each(lambda *items: _fold(torch.sym_min, items)),
    "Where": _each(lambda condition, a, b: a if condition else b),
    "ReduceProd": _reduce(python.mul), "ReduceSum": _reduce(python.add), "ReduceMax": _reduce(torch.sym_max),
    "ReduceMin": _reduce(torch.sym_min),
    **{name: _each(lambda a, b, test=test: bool(test(a, b))) for name, test in _COMPARISONS.items()},
}


def _fold(function: Callable[[Any, Any], Any], items: tuple[Any, ...]) -> Any:
    total = items[0]
    for item in items[1:]:
        total = function(total, item)
    return total
