"""Pointwise family: the same function at every position, operands broadcast against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.rules.labels import FREE, Axis, Coded, Value
from cipm.rules.registry import Call, pin_codes, rule

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@rule("pointwise", "max.other", "min.other", "__and__", "__or__", "_conj", "_neg_view", "_prelu_kernel", "absolute", "arccos",
      "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "chalf", "complex", "conj", "divide",
      "fake_quantize_per_tensor_affine", "fix", "floor_divide", "greater", "greater_equal", "hardswish", "imag", "isclose",
      "isreal", "less", "less_equal", "log_sigmoid", "log_sigmoid_forward", "masked_fill", "multiply", "native_dropout",
      "negative", "not_equal", "polar", "real",
      "resolve_conj", "resolve_neg", "rsub", "special_digamma", "special_erf", "special_erfc", "special_erfinv",
      "special_exp2", "special_expit", "special_expm1", "special_gammainc", "special_gammaincc", "special_gammaln",
      "special_i0", "special_log1p", "special_logit", "special_ndtr", "special_polygamma", "special_psi", "special_round",
      "special_sinc", "special_xlogy", "subtract", "true_divide", "where")
def pointwise(call: Call) -> list[Axis] | list[list[Axis]]:
    """y[i…] = f(x[i…], z[i…], …): equal positions are tied, axes are not otherwise told apart."""
    axes = broadcast(call, call.values(), len(call.shape))
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]


@rule("clone", "_to_copy", "to", "alias", "alias_copy", "detach", "detach_copy", "contiguous", "dropout", "alpha_dropout",
      "feature_dropout", "feature_alpha_dropout", "lift", "lift_fresh", "lift_fresh_copy", "type_as", codes="move")
def copies(call: Call) -> list[Axis]:
    """y = x."""
    return list(call["self" if call["self"] is not None else "input"].axes)


@rule("remainder.Scalar", codes="read")
def wrapped(call: Call) -> list[Axis] | Coded:
    """y = x mod n: the numbers of n units stay what they are (how an index from the end is counted from the start)."""
    value, divisor = call["self"], call["other"]
    axes = broadcast(call, [value], len(call.shape))
    if value.codes is None or divisor == value.codes.size:
        return Coded(axes, value.codes)
    pin_codes(call)
    return axes


@rule("copy", "broadcast_tensors")
def aligned(call: Call) -> list[Axis] | list[list[Axis]]:
    """Values laid over each other: equal positions are tied; what is copied over is read no more."""
    if call["src"] is not None:
        return broadcast(call, [call["src"]], len(call.shape))
    return [broadcast(call, [value], len(call.shape)) for value in call.values()]


@rule("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "full", "fill",
      "zero", codes="read")
def constant(call: Call) -> list[Axis]:
    """The same number everywhere: nothing is tied."""
    return [FREE] * len(call.shape)


@rule("eq", "ne", codes="read")
def equal(call: Call) -> list[Axis]:
    """x[i…] = z[i…]; an index beside the numbers 0, 1, … along an axis ties that axis with the units it chooses from."""
    values = call.values()
    coded = next((value for value in values if value.codes is not None), None)
    if coded is None:
        return broadcast(call, values, len(call.shape))
    numbers = [_numbered(value, coded.codes) for value in values if value is not coded]
    if len(numbers) != 1 or numbers[0] is None:
        pin_codes(call)
        return broadcast(call, values, len(call.shape))
    return broadcast(call, [coded, numbers[0]], len(call.shape))


def _numbered(value: Value, codes: np.ndarray) -> Value | None:
    """Return the constant 0, 1, … as a value whose axis bears the units that the numbers name."""
    known = value.content.flatten().tolist() if isinstance(value.content, torch.Tensor) else None
    if codes.ndim != 1 or known != list(range(codes.size)):
        return None
    at = value.shape.index(codes.size)
    axis = codes.reshape([-1 if i == at else 1 for i in range(len(value.shape))])
    return replace(value, axes=tuple(axis if i == at else FREE for i in range(len(value.shape))))


def broadcast(call: Call, values: Sequence[Value], ndim: int) -> list[Axis]:
    """Tie operands aligned at their last axis."""
    return call.join([(value, LETTERS[ndim - len(value.shape):ndim]) for value in values], LETTERS[:ndim])
