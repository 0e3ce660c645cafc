"""Pointwise family: the same function at every position, operands broadcast against each other."""

from __future__ import annotations

from collections.abc import Sequence

from cipm.rules.labels import Axis, Value
from cipm.rules.registry import Call, rule

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@rule("pointwise", "max.other", "min.other", "clone", "_to_copy", "to", "alias", "detach", "contiguous", "dropout",
      "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "full_like", "copy")
def pointwise(call: Call) -> list[Axis]:
    """y[i…] = f(x[i…], z[i…], …): equal positions are tied, axes are not otherwise told apart."""
    return broadcast(call, call.values(), len(call.shape))


def broadcast(call: Call, values: Sequence[Value], ndim: int) -> list[Axis]:
    """Tie operands aligned at their last axis."""
    return call.join([(value, LETTERS[ndim - len(value.shape):ndim]) for value in values], LETTERS[:ndim])
