"""Contractions: sums over an axis that two operands share, as equations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cipm.rules.labels import FREE, Axis, Value
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


@rule("addmm", "baddbmm", "_addmm_activation", "addmv", "addbmm", "addr")
def addmm(call: Call) -> list[Axis]:
    """…mk, …kn, broadcast …mn → …mn; matrix and vector, and outer product, likewise."""
    bias, one, two = call.values()[:3]
    names = {"addmv": ("xy", "y", "x"), "addr": ("x", "z", "xz"), "addbmm": ("axy", "ayz", "xz")}
    lead = LETTERS[:len(one.shape) - 2]
    left, right, out = names.get(call.node.op.split(".")[1], (lead + "xy", lead + "yz", lead + "xz"))
    return call.equation([(one, left), (two, right), (bias, out[len(out) - len(bias.shape):])], out,
                         contracted="y" if "y" in left else "")


@rule("mm", "bmm", "matmul", "linalg_matmul", "dot", "vdot", "mv")
def matmul(call: Call) -> list[Axis]:
    """…mk, …kn → …mn, with the leading axes broadcast and one-dimensional operands as vectors."""
    one, two = call.values()
    lead = max(len(one.shape), len(two.shape), 2) - 2
    left = LETTERS[lead - max(len(one.shape) - 2, 0):lead] + ("xy" if len(one.shape) > 1 else "y")
    right = LETTERS[lead - max(len(two.shape) - 2, 0):lead] + ("yz" if len(two.shape) > 1 else "y")
    out = LETTERS[:lead] + ("x" if len(one.shape) > 1 else "") + ("z" if len(two.shape) > 1 else "")
    return call.equation([(one, left), (two, right)], out, contracted="y")


@rule("outer", "ger", "inner", "tensordot")
def products(call: Call) -> list[Axis]:
    """m, n → mn; …k, …k → … …; sums over named axes of two tensors."""
    one, two = call.values()
    left = LETTERS[:len(one.shape)]
    right = LETTERS[len(left):len(left) + len(two.shape)]
    name = call.node.op.split(".")[1]
    none, last = ((), ()), ((-1,), (-1,))
    dims = {"outer": none, "ger": none, "inner": last}.get(name) or (call["dims_self"], call["dims_other"])
    for i, j in zip(*dims, strict=True):
        right = right.replace(right[j], left[i])
    shared = "".join(left[i] for i in dims[0])
    return call.equation([(one, left), (two, right)], "".join(c for c in left + right if c not in shared), contracted=shared)


@rule("bilinear")
def bilinear(call: Call) -> list[Axis]:
    """…i, …j, oij, o → …o."""
    one, two, weight, bias = call["input1"], call["input2"], call["weight"], call["bias"]
    lead = LETTERS[:len(one.shape) - 1]
    terms = [(one, lead + "x"), (two, lead + "y"), (weight, "zxy"), *([(bias, "z")] if bias is not None else [])]
    return call.equation(terms, lead + "z")


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> list[Axis]:
    """…mk, …nk → …mn."""
    one, two = call["x1"], call["x2"]
    out = len(call.shape)
    lead = LETTERS[:out - 2]
    return call.equation([(one, lead[out - len(one.shape):] + "xy"), (two, lead[out - len(two.shape):] + "zy")], lead + "xz")


@rule("einsum")
def einsum(call: Call) -> list[Axis]:
    """The equation as written; `…` stands for leading axes, a letter twice in one operand for its diagonal."""
    operands = list(call["tensors"])
    names, out = _letters(call["equation"].replace(" ", ""), [len(value.shape) for value in operands])
    terms = [_diagonal(call, value, letters) for value, letters in zip(operands, names, strict=True)]
    joined = "".join(letters for _, letters in terms)
    shared = [letter for letter in dict.fromkeys(joined) if letter not in out and joined.count(letter) > 1]
    return call.equation(terms, out, contracted="".join(shared))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of every operand and of the result, with letters in the place of `...`."""
    left, arrow, out = equation.partition("->")
    spare = [letter for letter in LETTERS if letter not in equation]
    widths = [rank - len(part.replace("...", "")) for part, rank in zip(left.split(","), ranks, strict=True)]
    lead = "".join(spare[:max(widths)])
    names = [part.replace("...", lead[len(lead) - width:]) for part, width in zip(left.split(","), widths, strict=True)]
    once = sorted(letter for letter in set("".join(names)) - set(lead) if "".join(names).count(letter) == 1)
    return names, out.replace("...", lead) if arrow else lead + "".join(once)


def _diagonal(call: Call, value: Value, letters: str) -> tuple[Value, str]:
    """Return an operand without repeated letters: axes of one letter are tied, and read along their diagonal."""
    for letter in letters:
        if letters.count(letter) > 1:
            first, last = letters.index(letter), letters.rindex(letter)
            value = diagonal(call, value, first, last)
            letters = letters[:last] + letters[last + 1:]
    return value, letters


def diagonal(call: Call, value: Value, first: int, last: int) -> Value:
    """Return x[…, i, …, i, …]: two axes tied and read as one, in the place of the first."""
    one, two = (Value("", (value.shape[dim],), (_along(value.axes[dim], dim),)) for dim in (first, last))
    tied, = call.equation([(one, "i"), (two, "i")], "i")
    axes: list[Axis] = []
    for dim, axis in enumerate(value.axes):
        if isinstance(axis, np.ndarray) and dim not in (first, last):
            if axis.shape[first] > 1 or axis.shape[last] > 1:
                raise ValueError("an axis that depends on a diagonal")
            axis = axis.squeeze(last)
        axes.append(axis)
    if isinstance(tied, np.ndarray):
        tied = tied.reshape([-1 if dim == first else 1 for dim in range(len(value.shape) - 1)])
    axes[first] = tied
    return Value(value.name, value.shape[:last] + value.shape[last + 1:], tuple(a for i, a in enumerate(axes) if i != last))


def _along(axis: Axis, dim: int) -> Axis:
    if isinstance(axis, np.ndarray) and axis.size != axis.shape[dim]:
        raise ValueError("an axis that depends on others")
    return _flat(axis)


@rule("diagonal", "diagonal_copy", "linalg_diagonal")
def diagonals(call: Call) -> list[Axis]:
    """…i…i… → ……i: the two axes are tied."""
    value = call.values()[0]
    ndim = len(value.shape)
    first, last = sorted(d % ndim for d in ((0, 1) if call["dim1"] is None else (call["dim1"], call["dim2"])))
    if call["offset"] or value.shape[first] != value.shape[last]:
        raise ValueError("a diagonal beside the main one")
    axes = list(diagonal(call, value, first, last).axes)
    order = [i for i in range(ndim - 1) if i != first] + [first]
    return [axes[i].transpose(order) if isinstance(axes[i], np.ndarray) else axes[i] for i in order]


@rule("diag_embed")
def diag_embed(call: Call) -> list[Axis]:
    """…i → …ii."""
    value, ndim = call["self"], len(call.shape)
    if call["offset"] or sorted(d % ndim for d in (call["dim1"], call["dim2"])) != [ndim - 2, ndim - 1]:
        raise ValueError("a diagonal beside the main one")
    wide = [axis[..., None] if isinstance(axis, np.ndarray) else axis for axis in value.axes]
    last = wide[-1].swapaxes(-1, -2) if isinstance(wide[-1], np.ndarray) else wide[-1]
    call.book.touch(value, len(value.shape) - 1)
    return [*wide, last]


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "_convolution_mode", "conv_transpose1d",
      "conv_transpose2d", "conv_transpose3d", "conv_depthwise3d", "thnn_conv2d", "slow_conv_dilated2d", "slow_conv3d",
      "slow_conv_transpose2d", "slow_conv_transpose3d")
def convolution(call: Call) -> list[Axis]:
    """bi…, oi…, o → bo…; positions stay where they are. Groups: blocks of channels, tied to blocks of filters."""
    x, weight, bias, groups = call["input"] or call["self"], call["weight"], call["bias"], call["groups"] or 1
    groups = x.shape[-4] if "depthwise3d" in call.node.op else groups
    transposed = bool(call["transposed"]) or "transpose" in call.node.op
    spatial = call.fixed("a convolution slides along it")
    batched = len(x.shape) == len(weight.shape)
    for value, first in ((x, 1 + batched), (weight, 2)):
        for dim in range(first, len(value.shape)):
            call.hold(value, dim, "a convolution slides along it")
    x_axis, out_axis, in_axis = int(batched), int(transposed), int(not transposed)
    if groups == 1:
        terms = [(_line(call, x, x_axis), "i"), (_plane(weight), "io" if transposed else "oi")]
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
    """g(i), g(o)i → g(o): one block of filters for each block of channels; they share the axis i of the weight, unless its
    labels are others for every block."""
    book, size = call.book, x.shape[x_axis] // groups
    rows = weight.shape[0] // groups
    x_block, x_inner = split_run(book, _flat(x.axes[x_axis]), (groups, size), 0)
    w_block, w_inner = split_run(book, _flat(weight.axes[0]), (groups, rows), 0)
    reader = Value(x.name, (groups, size), (x_block, x_inner))
    filters = Value(weight.name, (groups, rows), (w_block, w_inner))
    shared, letters = _shared(weight, rows)
    if weight.shape[1] > 1:
        book.offer(weight.axes[1], 0, groups)
    if out_axis == 0:
        block, out = call.equation([(reader, "gi"), (filters, "go"), (shared, letters + "i")], "go")
        return merge_run(book, [block, out], [groups, rows], 0)
    block, out = call.equation([(reader, "gi"), (filters, "gi"), (shared, letters + "o")], "go")
    return merge_run(book, [block, out], [groups, weight.shape[1]], 0)


def _shared(weight: Value, rows: int) -> tuple[Value, str]:
    """Return the second axis of grouped filters; with the letter of the groups where each block of `rows` has own labels."""
    labels = weight.axes[1]
    if isinstance(labels, np.ndarray) and labels.shape[0] > 1:
        own = labels.reshape(weight.shape[0], -1)[::rows]
        return Value(weight.name, own.shape, (FREE, own)), "g"
    return Value(weight.name, (weight.shape[1],), (_flat(labels),)), ""


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention")
def attention(call: Call) -> list[Axis] | list[list[Axis]]:
    """softmax(…le, …se → …ls) with …sv → …lv: query and key units are tied, heads are tied, value units are free."""
    query, key, value = call["query"], call["key"], call["value"]
    mask = call["attn_mask"] if call["attn_mask"] is not None else call["attn_bias"]
    lead = LETTERS[:len(query.shape) - 2]
    if call["enable_gqa"]:
        key, value = (_repeat_heads(call, v, query.shape[-3]) for v in (key, value))
    if call["is_causal"]:
        for operand in (query, key, value):
            call.hold(operand, len(operand.shape) - 2, "causal attention depends on the order of positions")
    terms = [(query, lead + "le"), (key, lead + "se"), (value, lead + "sv")]
    if isinstance(mask, Value):
        letters = lead + "ls"
        terms.append((mask, letters[len(letters) - len(mask.shape):]))
    outs = [lead + "lv", lead + ("ls" if "math" in call.node.op else "l")]
    results = [call.equation(terms, out) for out, _ in zip(outs, call.shapes, strict=False)]
    return results[0] if len(call.shapes) == 1 else [*results, *([FREE] * len(shape) for shape in call.shapes[2:])]


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


def _line(call: Call, value: Value, axis: int) -> Value:
    """Return the value as if it had this axis alone; an axis that depends on others is pinned."""
    labels = value.axes[axis]
    if isinstance(labels, np.ndarray) and labels.size != value.shape[axis]:
        call.pin(labels, "its meaning depends on another axis")
        labels = call.fixed("its meaning depends on another axis")
    return Value(value.name, (value.shape[axis],), (_flat(labels),))


def _plane(weight: Value) -> Value:
    return Value(weight.name, weight.shape[:2], tuple(
        a.reshape(a.shape[:2]) if isinstance(a, np.ndarray) else a for a in weight.axes[:2]))

