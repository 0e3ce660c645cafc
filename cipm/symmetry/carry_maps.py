"""Ops that compute: contractions, sums and products, norms, reductions, and functions of one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

from cipm.rules.actions import (
    ACTIONS,
    AVERAGES_OVER_POSITIONS,
    EXTREMES_OVER_POSITIONS,
    HOMOGENEOUS,
    NONE,
    ODD,
    POWERS,
    action_of,
)
from cipm.rules.pointwise import LETTERS
from cipm.symmetry.carry import Held, Op, handles, reshape
from cipm.symmetry.carry_shapes import repeat_heads
from cipm.symmetry.fields import Field, Term, aligned

Numeric = Held | int | float


# --- sums of products --------------------------------------------------------------------------------------------------


@handles("linear")
def linear(op: Op) -> Held:
    """…i, oi, o → …o."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    lead = LETTERS[:len(x.shape) - 1]
    made = op.held(_contract(op, [(x, lead + "y"), (weight, "zy")], lead + "z", "y"))
    return made if bias is None else _sum(op, made, bias)


@handles("addmm", "baddbmm")
def addmm(op: Op) -> Held:
    """…mk, …kn, broadcast …mn → …mn."""
    one, two = op["mat1"] or op["batch1"], op["mat2"] or op["batch2"]
    lead = LETTERS[:len(one.shape) - 2]
    assert op["beta"] in (None, 1)
    made = op.held(_contract(op, [(one, lead + "xy"), (two, lead + "yz")], lead + "xz", "y"))
    return _sum(op, made, op["self"])


@handles("mm", "bmm", "matmul", "dot", "mv")
def matmul(op: Op) -> Held:
    """…mk, …kn → …mn."""
    one, two = op.operands()
    lead = max(len(one.shape), len(two.shape), 2) - 2
    left = LETTERS[lead - max(len(one.shape) - 2, 0):lead] + ("xy" if len(one.shape) > 1 else "y")
    right = LETTERS[lead - max(len(two.shape) - 2, 0):lead] + ("yz" if len(two.shape) > 1 else "y")
    out = LETTERS[:lead] + ("x" if len(one.shape) > 1 else "") + ("z" if len(two.shape) > 1 else "")
    return op.held(_contract(op, [(one, left), (two, right)], out, "y"))


@handles("einsum")
def einsum(op: Op) -> Held:
    """The equation as written."""
    left, _, out = op["equation"].replace(" ", "").partition("->")
    names, operands = left.split(","), list(op["tensors"])
    assert "." not in left and len(names) < 3 and all(len(set(n)) == len(n) for n in names)
    return op.held(_contract(op, list(zip(operands, names, strict=True)), out, ""))


def _contract(op: Op, operands: Sequence[tuple[Held, str]], out: str, summed: str) -> Field:
    return op.system.contract([(held.field, names, held.extents) for held, names in operands], out, summed)


@handles("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(op: Op) -> Held:
    """b(gi)…, (go)i…, (go) → b(go)…: nothing acts along the positions."""
    x, weight, bias, groups = op["input"], op["weight"], op["bias"], op["groups"] or 1
    transposed = bool(op["transposed"]) or "transpose" in op.name
    if len(x.shape) < len(weight.shape):
        x = replace(x, shape=(1, *x.shape), extents=(1, *x.extents), field=aligned(x.field, len(weight.shape)))
    reader, filters = _without_positions(op, x), _without_positions(op, weight)
    rows = weight.shape[0] // groups
    split = reshape(op.system, reader, (x.shape[0], groups, x.shape[1] // groups))
    blocks = reshape(op.system, filters, (groups, rows, weight.shape[1]))
    field = _contract(op, [(split, "bgi"), (blocks, "gio" if transposed else "goi")], "bgo", "i")
    width = weight.shape[1] if transposed else rows
    made = reshape(op.system, Held("", (x.shape[0], groups, width), (x.extents[0], groups, width), field),
                   (x.shape[0], groups * width))
    tail = len(weight.shape) - 2
    out = op.held(tuple(Term(t.power, t.ids.reshape(t.ids.shape + (1,) * tail)) for t in made.field)
                  if len(op.shape) == len(weight.shape) else
                  tuple(Term(t.power, t.ids.reshape(t.ids.shape[1:] + (1,) * tail)) for t in made.field))
    if bias is None:
        return out
    lifted = Held("", (*bias.shape, *(1,) * tail), (*bias.extents, *(1,) * tail),
                  tuple(Term(t.power, t.ids.reshape(-1, *(1,) * tail)) for t in bias.field))
    return _sum(op, out, lifted)


def _without_positions(op: Op, held: Held) -> Held:
    places = frozenset(range(2, len(held.shape)))
    op.system.vanish(tuple(t for t in held.field if t.dims & places))
    field = tuple(Term(t.power, t.ids.reshape(t.ids.shape[:2])) for t in held.field if not t.dims & places)
    return Held(held.name, held.shape[:2], held.extents[:2], field)


@handles("scaled_dot_product_attention")
def attention(op: Op) -> Held:
    """softmax(…le, …se → …ls) with …sv → …lv."""
    query, key, value, mask = op["query"], op["key"], op["value"], op["attn_mask"]
    if op["enable_gqa"]:
        key, value = (repeat_heads(op, held, query.shape[-3]) for held in (key, value))
    lead = LETTERS[:len(query.shape) - 2]
    scores = _contract(op, [(query, lead + "le"), (key, lead + "se")], lead + "ls", "e")
    op.system.vanish(scores)
    if isinstance(mask, Held):
        op.system.vanish(mask.field)
    shape = (*query.shape[:-1], key.shape[-2])
    return op.held(_contract(op, [(Held("", shape, shape), lead + "ls"), (value, lead + "sv")], lead + "lv", "s"))


# --- sums and products at equal positions ------------------------------------------------------------------------------


@handles("add", "sub", "subtract", "rsub")
def add(op: Op) -> Held:
    """x ± z."""
    one, two = op["self"], op["other"]
    return _sum(op, one, two)


@handles("mul", "multiply")
def mul(op: Op) -> Held:
    """x z."""
    return _product(op, op["self"], op["other"])


@handles("div", "divide", "true_divide")
def div(op: Op) -> Held:
    """x / z."""
    assert op["rounding_mode"] is None
    one, two = op["self"], op["other"]
    if isinstance(two, Held):
        two = replace(two, field=op.system.power(two.field, Fraction(-1)))
    return _product(op, one, two)


@handles("addcmul")
def addcmul(op: Op) -> Held:
    """x + v y z."""
    return _sum(op, op["self"], _product(op, op["tensor1"], op["tensor2"]))


@handles("where")
def where(op: Op) -> Held:
    """One or the other: both transform alike, and the choice does not; a choice of nothing is a product."""
    condition, one, two = op["condition"], op["self"], op["other"]
    op.system.vanish(condition.field)
    if _is_zero(two) or _is_zero(one):
        return _product(op, one if _is_zero(two) else two, condition)
    return _product(op, _sum(op, one, two), condition)


@handles("masked_fill")
def masked_fill(op: Op) -> Held:
    """x, or a number where a mask says so."""
    return where(replace(op, bound={"condition": op["mask"], "self": op["self"], "other": op["value"]}))


@handles("maximum", "minimum", "max.other", "min.other")
def larger(op: Op) -> Held:
    """max(x, z), positively homogeneous in both."""
    return replace(made := _sum(op, op["self"], op["other"]), field=op.system.act(made.field, HOMOGENEOUS))


def _is_zero(value: Numeric) -> bool:
    content = value.content if isinstance(value, Held) else value
    return content is not None and bool((np.asarray(content) == 0).all())


def _as_held(value: Numeric) -> Held:
    return value if isinstance(value, Held) else Held("", (), ())


def _sum(op: Op, one: Numeric, two: Numeric) -> Held:
    first, second = _as_held(one), _as_held(two)
    extents = _extents(first, second)
    if _is_zero(one) or _is_zero(two):
        return op.held(aligned((second if _is_zero(one) else first).field, len(extents)), extents)
    return op.held(op.system.equal(first.field, second.field, (first.extents, second.extents)), extents)


def _product(op: Op, one: Numeric, two: Numeric) -> Held:
    first, second = _as_held(one), _as_held(two)
    extents = _extents(first, second)
    if first.name and first.name == second.name:
        return op.held(op.system.power(first.field, Fraction(2)), extents)
    return op.held(op.system.multiply(first.field, second.field, (first.extents, second.extents)), extents)


def _extents(one: Held, two: Held) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(one.extents, two.extents))


# --- functions of one value --------------------------------------------------------------------------------------------


@handles(*ACTIONS)
def function(op: Op) -> Held:
    """f(x[i…]) at every position."""
    x, *others = op.operands()
    for other in others:  # the slopes of a prelu
        op.system.vanish(other.field)
    whole = isinstance(op["dtype"], torch.dtype) and not (op["dtype"].is_floating_point or op["dtype"].is_complex)
    action = NONE if whole else action_of(op.node.op)
    return op.held(op.system.act(x.field, action), x.extents)


@handles("hardtanh", "clamp", "clamp_min", "relu6", "threshold")
def clamp(op: Op) -> Held:
    """min(max(x, a), b): positively homogeneous for [0, ∞), odd for [−a, a]."""
    x = op["self"]
    low, high = (op["min_val"], op["max_val"]) if op.name == "hardtanh" else (op["min"], op["max"])
    if op.name in ("relu6", "threshold"):
        action = NONE
    elif low == 0 and high is None:
        action = HOMOGENEOUS
    else:
        action = ODD if low is not None and high is not None and low == -high else NONE
    return op.held(op.system.act(x.field, action), x.extents)


@handles(*POWERS)
def power(op: Op) -> Held:
    """xᵖ for the powers that have a name."""
    x = op.operands()[0]
    return op.held(op.system.power(x.field, POWERS[op.name]), x.extents)


@handles("pow.Tensor_Scalar")
def exponent(op: Op) -> Held:
    """xᵖ."""
    return op.held(op.system.power(op["self"].field, Fraction(op["exponent"]).limit_denominator(1 << 20)), op["self"].extents)


# --- reductions and norms ----------------------------------------------------------------------------------------------


@handles("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "cumsum", "max.dim", "min.dim")
def reduction(op: Op) -> Held:
    """A sum, mean, extreme, variance or norm over axes."""
    x = op["self"]
    dims = _dims(op, len(x.shape))
    system = op.system
    if op.name in ("sum", "mean"):
        field = system.summed(x.field, dims)
    elif op.name in ("var", "std"):
        field = system.spread_of(x.field, dims)
        field = system.power(field, Fraction(1, 2)) if op.name == "std" else field
    elif op.name in ("linalg_vector_norm", "norm"):
        assert (op["ord"] if op["ord"] is not None else op["p"]) in (None, 2)
        field = system.length(x.field, dims)
    elif op.name == "cumsum":
        system.vanish(tuple(t for t in x.field if t.dims & dims))
        return op.held(tuple(t for t in x.field if not t.dims & dims), x.extents)
    else:
        field = system.extreme(x.field, dims)
    made = Held(op.node.name, x.shape, tuple(1 if d in dims else e for d, e in enumerate(x.extents)), field)
    return made if len(op.shape) == len(x.shape) else _squeezed(op, made, dims)


def _squeezed(op: Op, held: Held, dims: frozenset[int]) -> Held:
    kept = [d for d in range(len(held.shape)) if d not in dims]
    return op.held(tuple(Term(t.power, t.ids.squeeze(tuple(dims))) for t in held.field), [held.extents[d] for d in kept])


def _dims(op: Op, ndim: int) -> frozenset[int]:
    dims = op["dim"] if op["dim"] is not None else op["dims"]
    if dims is None or dims == ():
        return frozenset(range(ndim))
    return frozenset(d % max(ndim, 1) for d in (dims if isinstance(dims, tuple | list) else (dims,)))


@handles(*AVERAGES_OVER_POSITIONS)
def averages(op: Op) -> Held:
    """A linear map along positions."""
    x = op.operands()[0]
    places = _places(op, x)
    op.system.vanish(tuple(t for t in x.field if t.dims & places))
    return op.held(tuple(t for t in x.field if not t.dims & places))


@handles(*EXTREMES_OVER_POSITIONS)
def extremes(op: Op) -> list[Held]:
    """Maxima along positions."""
    x = op.operands()[0]
    return [op.held(op.system.extreme(x.field, _places(op, x)))]


def _places(op: Op, x: Held) -> frozenset[int]:
    count = 1 if "1d" in op.name else 3 if "3d" in op.name else 2
    return frozenset(range(len(x.shape) - count, len(x.shape)))


@handles("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(op: Op) -> list[Held]:
    """(x − mean) / deviation over the last axes, times a weight, plus a bias; without mean and bias for an RMS norm."""
    x, weight, bias = op["input"], op["weight"], op["bias"]
    ndim, width = len(x.shape), len(op["normalized_shape"])
    dims = frozenset(range(ndim - width, ndim))
    made = op.held(op.system.normalised(x.field, dims, centred="rms" not in op.name), x.shape)
    if weight is not None:
        made = _product(op, made, weight)
    return [made if bias is None else _sum(op, made, bias)]


@handles("batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "instance_norm")
def batch_norm(op: Op) -> list[Held]:
    """w (x − m) / √(v + ε) + b with stored m and v: a factor on x needs it on m and its inverse on w; v stays."""
    x = op["input"]
    mean, var = (op["running_mean"], op["running_var"])
    if op.name == "instance_norm" or op["training"]:
        assert mean is None
        made = op.held(op.system.normalised(x.field, frozenset(range(2, len(x.shape))), centred=True))
        made = made if op.name == "instance_norm" else None
    else:
        op.system.vanish(var.field)
        made = _product(op, _sum(op, x, _lifted(mean, x)), replace(_lifted(var, x), field=()))
    made = _product(op, made, _lifted(op["weight"], x)) if op["weight"] is not None else made
    return [_sum(op, made, _lifted(op["bias"], x)) if op["bias"] is not None else made]


def _lifted(held: Held, x: Held) -> Held:
    """Return a vector over channels, which come second."""
    tail = (1,) * (len(x.shape) - 2)
    return Held(held.name, (*held.shape, *tail), (*held.extents, *tail),
                tuple(Term(t.power, t.ids.reshape(-1, *tail)) for t in held.field))


@handles("group_norm", "native_group_norm")
def group_norm(op: Op) -> list[Held]:
    """Statistics over groups of channels: nothing acts on x, but a weight and bias may carry a factor."""
    x = op["input"]
    op.system.vanish(x.field)
    made = op.held(())
    made = _product(op, made, _lifted(op["weight"], x)) if op["weight"] is not None else made
    return [_sum(op, made, _lifted(op["bias"], x)) if op["bias"] is not None else made]
