"""Norms: per-channel with buffers, over the last axes, over groups of channels, and of weights."""

from __future__ import annotations

from cipm.rules.labels import FREE, Axis, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.reduce import drop
from cipm.rules.registry import Call, rule
from cipm.rules.reshape import merge_run, split_run


@rule("_native_batch_norm_legit_no_training", "batch_norm", "instance_norm", "native_batch_norm",
      "_batch_norm_no_update", "_native_batch_norm_legit.no_stats")
def batch_norm(call: Call) -> list[list[Axis]] | list[Axis]:
    """bc…, c, c, c, c → bc…: scale, shift and running statistics move with the channels."""
    x, *vectors = call.values()
    letters = LETTERS[:len(x.shape)]
    axes = call.equation([(x, letters), *((v, letters[1]) for v in vectors)], letters)
    return axes if len(call.shapes) == 1 else [axes, *([FREE] * len(shape) for shape in call.shapes[1:])]


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> list[list[Axis]] | list[Axis]:
    """…n, n, n → …n: statistics over the last axes do not depend on their order; weights move with them."""
    x, *vectors = call.values()
    letters = LETTERS[:len(x.shape)]
    width = len(call["normalized_shape"])
    axes = call.equation([(x, letters), *((v, letters[-width:]) for v in vectors)], letters)
    rest = [[*axes[:-width], *[FREE] * width] for _ in call.shapes[1:]]
    return axes if len(call.shapes) == 1 else [axes, *(r[:len(s)] for r, s in zip(rest, call.shapes[1:], strict=True))]


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> list[list[Axis]] | list[Axis]:
    """b(gi)…, (gi), (gi) → b(gi)…: groups may be permuted, and channels within each group."""
    x, groups = call["input"], call["num_groups"] or call["group"]
    letters = LETTERS[:len(x.shape)]
    channels = x.axes[1]
    if groups not in (1, x.shape[1]) and not isinstance(channels, type(FREE)) and hasattr(channels, "ravel"):
        pair = split_run(call.book, channels.ravel(), (groups, x.shape[1] // groups), 0)
        split = Value(x.name, (groups, x.shape[1] // groups), tuple(pair))
        call.book.touch(split, 1)
        merged = merge_run(call.book, pair, split.shape, 0)
        shape = [-1 if i == 1 else 1 for i in range(len(x.shape))]
        x = Value(x.name, x.shape, (x.axes[0], merged.reshape(shape), *x.axes[2:]))
    vectors = [v for v in (call["weight"], call["bias"]) if isinstance(v, Value)]
    axes = call.equation([(x, letters), *((v, letters[1]) for v in vectors)], letters)
    return axes if len(call.shapes) == 1 else [axes, *([FREE] * len(shape) for shape in call.shapes[1:])]


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> list[list[Axis]] | list[Axis]:
    """i…, i → i…: every slice of a weight is scaled to a length of its own."""
    value, scale = call["v"], call["g"]
    letters = LETTERS[:len(value.shape)]
    results = [call.equation([(value, letters), (scale, letters)], letters) for _ in call.shapes]
    return results[0] if len(results) == 1 else [results[0], list(scale.axes)]


@rule("norm_except_dim")
def norm_except_dim(call: Call) -> list[Axis]:
    """i… → i1…: the length of every slice of a weight."""
    value, dim = call["v"], call["dim"]
    for axis in range(len(value.shape)):
        call.book.touch(value, axis)
    return drop(call, value, [axis for axis in range(len(value.shape)) if axis != dim % len(value.shape)], keep=True)


@rule("prelu")
def prelu(call: Call) -> list[Axis]:
    """bc…, c → bc…: a slope for every channel."""
    value, weight = call["self"], call["weight"]
    letters = LETTERS[:len(value.shape)]
    channel = letters[1] if len(letters) > 1 else letters
    terms = [(value, letters), *([(weight, channel)] if weight.shape and weight.shape[0] > 1 else [])]
    return call.equation(terms, letters)


@rule("fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask")
def quantize_channels(call: Call) -> list[Axis] | list[list[Axis]]:
    """…c…, c, c → …c…: a scale and a zero point for every channel."""
    value = call["self"]
    letters = LETTERS[:len(value.shape)]
    channel = letters[call["axis"] % len(letters)]
    axes = call.equation([(value, letters), (call["scale"], channel), (call["zero_point"], channel)], letters)
    return axes if len(call.shapes) == 1 else [axes for _ in call.shapes]
