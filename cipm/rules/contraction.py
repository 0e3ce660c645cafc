"""Contractions: sums over an axis that two operands share, as equations."""

from __future__ import annotations

import numpy as np

from cipm.rules.labels import FREE, Axis, Fixed, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, Consumer, rule
from cipm.rules.reshape import merge_run, reshape, split_run


@rule("linear")
def linear(call: Call) -> list[Axis]:
    """…i, oi, o → …o."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    lead = LETTERS[:len(x.shape) - 1]
    terms = [(x, lead + "y"), (weight, "zy")] + ([(bias, "z")] if bias is not None else [])
    return call.equation(terms, lead + "z", contracted="y")


@rule("addmm", "baddbmm")
def addmm(call: Call) -> list[Axis]:
    """…mk, …kn, broadcast …mn → …mn."""
    one, two = call["mat1"] or call["batch1"], call["mat2"] or call["batch2"]
    lead = LETTERS[:len(one.shape) - 2]
    out = lead + "xz"
    bias = call["self"]
    return call.equation([(one, lead + "xy"), (two, lead + "yz"), (bias, out[len(out) - len(bias.shape):])], out,
                         contracted="y")


@rule("mm", "bmm", "matmul", "dot", "mv")
def matmul(call: Call) -> list[Axis]:
    """…mk, …kn → …mn, with the leading axes broadcast and one-dimensional operands as vectors."""
    one, two = call.values()
    lead = max(len(one.shape), len(two.shape), 2) - 2
    left = LETTERS[lead - max(len(one.shape) - 2, 0):lead] + ("xy" if len(one.shape) > 1 else "y")
    right = LETTERS[lead - max(len(two.shape) - 2, 0):lead] + ("yz" if len(two.shape) > 1 else "y")
    out = LETTERS[:lead] + ("x" if len(one.shape) > 1 else "") + ("z" if len(two.shape) > 1 else "")
    return call.equation([(one, left), (two, right)], out, contracted="y")


@rule("einsum")
def einsum(call: Call) -> list[Axis]:
    """The equation as written, without `…` and without a letter twice in one operand."""
    left, _, out = call["equation"].replace(" ", "").partition("->")
    names, operands = left.split(","), list(call["tensors"])
    if "." in left or not all(len(set(n)) == len(n) == len(v.shape) for n, v in zip(names, operands, strict=True)):
        raise ValueError("an equation with an ellipsis or a diagonal")
    shared = [letter for letter in dict.fromkeys(left.replace(",", "")) if letter not in out and left.count(letter) > 1]
    return call.equation(list(zip(operands, names, strict=True)), out, contracted="".join(shared))


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(call: Call) -> list[Axis]:
    """bi…, oi…, o → bo…; positions stay where they are. Groups: blocks of channels, tied to blocks of filters."""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    transposed = bool(call["transposed"]) or "transpose" in call.node.op
    spatial = call.fixed("a convolution slides along it")
    for value in (x, weight):
        for axis in value.axes[2:]:
            call.book.pin(axis, spatial)
    batched = len(x.shape) == len(weight.shape)
    x_axis, out_axis, in_axis = int(batched), int(transposed), int(not transposed)
    if groups == 1:
        terms = [(_line(x, x_axis), "i"), (_plane(weight), "io" if transposed else "oi")]
        channels, = call.equation([*terms, *([(bias, "o")] if bias is not None else [])], "o", contracted="i")
        call.consumers[-1] = Consumer(x, x_axis, weight, in_axis)  # recorded on the whole operands
    else:
        channels = _grouped(call, x, x_axis, weight, out_axis, groups)
        if bias is not None:
            channels, = call.equation([(Value("", (call.shape[x_axis],), (channels,)), "o"), (bias, "o")], "o")
    out: list[Axis] = [spatial] * len(call.shape)
    out[x_axis] = _stand(channels, x_axis, len(call.shape))
    if batched:
        out[0] = x.axes[0]
    return out


def _grouped(call: Call, x: Value, x_axis: int, weight: Value, out_axis: int, groups: int) -> Axis:
    """g(i), g(o)i → g(o): one block of filters for each block of channels; filters share the axis i of the weight."""
    book, size = call.book, x.shape[x_axis] // groups
    rows = weight.shape[0] // groups
    x_block, x_inner = split_run(book, _flat(x.axes[x_axis]), (groups, size), 0)
    w_block, w_inner = split_run(book, _flat(weight.axes[0]), (groups, rows), 0)
    reader = Value(x.name, (groups, size), (x_block, x_inner))
    filters = Value(weight.name, (groups, rows), (w_block, w_inner))
    shared = Value(weight.name, (weight.shape[1],), (_flat(weight.axes[1]),))
    if out_axis == 0:
        block, out = call.equation([(reader, "gi"), (filters, "go"), (shared, "i")], "go")
        return merge_run(book, [block, out], [groups, rows], 0)
    block, out = call.equation([(reader, "gi"), (filters, "gi"), (shared, "o")], "go")
    return merge_run(book, [block, out], [groups, weight.shape[1]], 0)


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
      "_scaled_dot_product_efficient_attention")
def attention(call: Call) -> list[Axis]:
    """softmax(…le, …se → …ls) with …sv → …lv: query and key units are tied, heads are tied, value units are free."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    lead = LETTERS[:len(query.shape) - 2]
    if call["enable_gqa"]:
        key, value = (_repeat_heads(call, v, query.shape[-3]) for v in (key, value))
    if call["is_causal"]:
        for operand in (query, key, value):
            call.pin(operand.axes[-2], "causal attention depends on the order of positions")
    terms = [(query, lead + "le"), (key, lead + "se"), (value, lead + "sv")]
    if isinstance(mask, Value):
        letters = lead + "ls"
        terms.append((mask, letters[len(letters) - len(mask.shape):]))
    return call.equation(terms, lead + "lv")


def _repeat_heads(call: Call, value: Value, heads: int) -> Value:
    """Lay key or value heads out once for every query head that reads them."""
    at, kv = len(value.shape) - 3, value.shape[-3]
    if kv == heads:
        return value
    shape = (*value.shape[:at], kv, heads // kv, *value.shape[at + 1:])
    axes = [np.expand_dims(a, at + 1) if isinstance(a, np.ndarray) else a for a in value.axes]
    axes.insert(at + 1, FREE)
    flat = (*value.shape[:at], heads, *value.shape[at + 1:])
    return Value(value.name, flat, tuple(reshape(call.book, Value(value.name, shape, tuple(axes)), flat)))


def _flat(axis: Axis) -> Axis:
    """Return a channel axis that depends on nothing else as a one-dimensional array."""
    return axis.ravel() if isinstance(axis, np.ndarray) else axis


def _stand(axis: Axis, at: int, ndim: int) -> Axis:
    return axis.reshape([-1 if i == at else 1 for i in range(ndim)]) if isinstance(axis, np.ndarray) else axis


def _line(value: Value, axis: int) -> Value:
    """Return the value as if it had this axis alone; an axis that depends on others is pinned by the caller's tie."""
    labels = value.axes[axis]
    if isinstance(labels, np.ndarray) and labels.size != value.shape[axis]:
        labels = Fixed("convolution", value.name, "its meaning depends on another axis")
    return Value(value.name, (value.shape[axis],), (_flat(labels),))


def _plane(weight: Value) -> Value:
    return Value(weight.name, weight.shape[:2], tuple(
        a.reshape(a.shape[:2]) if isinstance(a, np.ndarray) else a for a in weight.axes[:2]))

