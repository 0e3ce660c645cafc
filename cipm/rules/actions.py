"""How ops of one operand act on what transforms it: a positive factor, a sign, a matrix along an axis. Unknown: nothing passes.

A factor (or sign, or matrix) on the operand is *kept* (the result transforms the same way), *dropped* (the result does not
notice), or *stopped* (the function would change, so the factor has to be 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

KEEP, DROP, STOP = "keep", "drop", "stop"


@dataclass(frozen=True)
class Action:
    """What becomes of a positive factor s, a sign and a matrix on the operand: f(s x), f(−x), f(M x)."""

    scale: str
    sign: str
    matrix: str = STOP


LINEAR = Action(KEEP, KEEP, KEEP)
HOMOGENEOUS = Action(KEEP, STOP)
ODD = Action(STOP, KEEP)
ABSOLUTE = Action(KEEP, DROP)
EVEN = Action(STOP, DROP)
SIGN = Action(DROP, KEEP)
NONE = Action(STOP, STOP)

_OPS: dict[Action, tuple[str, ...]] = {
    LINEAR: ("neg", "negative", "positive", "clone", "_to_copy", "to", "alias", "alias_copy", "detach", "detach_copy",
             "contiguous", "dropout", "alpha_dropout", "feature_dropout", "lift", "lift_fresh", "lift_fresh_copy", "type_as",
             "native_dropout", "_conj", "resolve_conj", "resolve_neg", "deg2rad", "rad2deg"),
    HOMOGENEOUS: ("relu", "leaky_relu", "rrelu", "_prelu_kernel", "prelu"),
    ODD: ("tanh", "sin", "erf", "asinh", "atan", "asin", "atanh", "sinh", "tan", "erfinv", "hardshrink", "softshrink", "arctan",
          "arcsin", "arcsinh", "arctanh", "special_erf", "special_erfinv", "round", "trunc", "fix"),
    ABSOLUTE: ("abs", "absolute"),
    EVEN: ("cos", "cosh", "sinc", "special_sinc", "i0", "special_i0"),
    SIGN: ("sign", "sgn"),
}
ACTIONS: dict[str, Action] = {op: action for action, ops in _OPS.items() for op in ops}

POWERS: dict[str, Fraction] = {"square": Fraction(2), "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2),
                               "reciprocal": Fraction(-1)}
"""Ops that raise to a power: f(s x) = sᵖ f(x)."""

AVERAGES_OVER_POSITIONS = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
                           "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest1d",
                           "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
                           "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
                           "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d",
                           "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d")
"""Linear maps along the positions of each channel by itself; channels come second."""

EXTREMES_OVER_POSITIONS = ("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
                           "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
"""Positively homogeneous functions of the positions of each channel by itself."""


def action_of(op: str) -> Action:
    """Return how an op of one operand acts, by its qualified name; NONE where it is not known."""
    name = op.removeprefix("aten.")
    return ACTIONS.get(name) or ACTIONS.get(name.split(".")[0], NONE)
