"""Operators on each element: activations, arithmetic with broadcasting, comparisons, casts."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from cipm.load.onnx.tensor import dtype_of
from cipm.load.onnx.values import Call, Result, operator

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Log": torch.log,
    "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "Sub": python.sub, "Equal": python.eq, "Greater": python.gt, "Less": python.lt, "GreaterOrEqual": python.ge,
    "LessOrEqual": python.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}
_LOGICAL = ("And", "Or", "Xor")


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Call], Result]:
    return lambda call: function(call[0])


def _binary(name: str, function: Callable[[Any, Any], torch.Tensor]) -> Callable[[Call], Result]:
    def run(call: Call) -> Result:
        if call.node.attributes.get("broadcast"):
            raise call.unsupported("uses the broadcasting of opset 6")
        return function(call[0], call[1] if name in _LOGICAL else call.scalar(1))
    return run


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))
for _name, _function in _BINARY.items():
    operator(_name)(_binary(_name, _function))


@operator("Add", "Mul")
def arithmetic(call: Call) -> Result:
    """a + b, a · b: a constant number on either side is written as one."""
    a, b = call.scalar(0), call.scalar(1)
    a, b = (a, b) if isinstance(a, torch.Tensor) else (b, a)
    a = a if isinstance(a, torch.Tensor) else call[0]
    return a + b if call.node.op == "Add" else a * b


@operator("Div")
def div(call: Call) -> Result:
    """a / b; integers are cut towards zero."""
    a, b = call[0], call.scalar(1)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(call: Call) -> Result:
    """a ** b in the type of a."""
    return torch.pow(call[0], call.scalar(1)).to(call[0].dtype)


@operator("Mod")
def mod(call: Call) -> Result:
    """The remainder with the sign of the divisor, or with fmod = 1 of the dividend."""
    return torch.fmod(call[0], call.scalar(1)) if call.int("fmod", 0) else torch.remainder(call[0], call.scalar(1))


@operator("BitShift")
def bit_shift(call: Call) -> Result:
    """Shift bits by as many places as the second input says."""
    left = call.one_of("direction", "", ("LEFT", "RIGHT")) == "LEFT"
    return torch.bitwise_left_shift(call[0], call[1]) if left else torch.bitwise_right_shift(call[0], call[1])


def _several(pair: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Call], Result]:
    def run(call: Call) -> Result:
        total, *rest = call.tensors()
        for item in rest:
            total = pair(total, item)
        return total / len(call) if call.node.op == "Mean" else total
    return run


operator("Max")(_several(torch.maximum))
operator("Min")(_several(torch.minimum))
operator("Sum", "Mean")(_several(python.add))


@operator("Where")
def where(call: Call) -> Result:
    """Choose between two values element by element."""
    return torch.where(call[0], call[1], call[2])


@operator("Identity")
def identity(call: Call) -> Result:
    """The value itself."""
    return call.operands[0] if call.operands[0] is not None else call[0]


@operator("Dropout")
def dropout(call: Call) -> Result:
    """The value itself: models are read in evaluation mode."""
    if call.has(2) and call.number(2):
        raise call.unsupported("is in training mode")
    return [call[0], torch.ones_like(call[0], dtype=torch.bool)] if call.outputs > 1 else call[0]


@operator("Cast")
def cast(call: Call) -> Result:
    """The values in another dtype."""
    return call[0].to(dtype_of(call.int("to", 0), call.node.label))


@operator("CastLike")
def cast_like(call: Call) -> Result:
    """The values in the dtype of the second input."""
    return call[0].to(call[1].dtype)


@operator("Clip")
def clip(call: Call) -> Result:
    """Limit from below and above, by attributes until opset 10 and by inputs after."""
    low = call.scalar(1) if call.has(1) else call.float("min")
    high = call.scalar(2) if call.has(2) else call.float("max")
    if low is None and high is None:
        return call[0]
    if isinstance(low, torch.Tensor) != isinstance(high, torch.Tensor) and None not in (low, high):
        low, high = (value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=call[0].dtype)
                     for value in (low, high))
    return torch.clamp(call[0], low, high)


@operator("IsInf")
def is_inf(call: Call) -> Result:
    """Tell which elements are infinite, of one sign or both."""
    found = torch.isinf(call[0])
    if not call.int("detect_negative", 1):
        found = found & (call[0] > 0)
    return found if call.int("detect_positive", 1) else found & (call[0] < 0)


# --- activations with numbers ---------------------------------------------------------------------------------------

@operator("LeakyRelu")
def leaky_relu(call: Call) -> Result:
    """max(x, 0) + α min(x, 0)."""
    return F.leaky_relu(call[0], call.float("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call) -> Result:
    """max(x, 0) + slope · min(x, 0), the slope broadcast."""
    return torch.where(call[0] > 0, call[0], call[0] * call[1])


@operator("ThresholdedRelu")
def thresholded_relu(call: Call) -> Result:
    """x above α, else 0."""
    return F.threshold(call[0], call.float("alpha", 1.0), 0.0)


@operator("Elu")
def elu(call: Call) -> Result:
    """x above 0, else α (exp x − 1)."""
    return F.elu(call[0], call.float("alpha", 1.0))


@operator("Celu")
def celu(call: Call) -> Result:
    """x above 0, else α (exp(x / α) − 1)."""
    return F.celu(call[0], call.float("alpha", 1.0))


@operator("Selu")
def selu(call: Call) -> Result:
    """γ · elu(x, α)."""
    alpha, gamma = call.float("alpha", 1.67326319217681884765625), call.float("gamma", 1.05070102214813232421875)
    return F.elu(call[0], alpha) * gamma


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Result:
    """α x + β between 0 and 1."""
    return torch.clamp(call[0] * call.float("alpha", 0.2) + call.float("beta", 0.5), 0, 1)


@operator("Gelu")
def gelu(call: Call) -> Result:
    """x Φ(x), or its approximation by tanh."""
    return F.gelu(call[0], approximate=call.one_of("approximate", "none", ("none", "tanh")))


@operator("Swish")
def swish(call: Call) -> Result:
    """x σ(α x)."""
    alpha = call.float("alpha", 1.0)
    return F.silu(call[0]) if alpha == 1 else call[0] * torch.sigmoid(call[0] * alpha)


@operator("Shrink")
def shrink(call: Call) -> Result:
    """x pulled towards 0 by the bias where |x| exceeds λ, else 0."""
    x, bias, threshold = call[0], call.float("bias", 0.0), call.float("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, zero))
