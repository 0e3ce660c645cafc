"""Choice by index: rows of tables, gathers and scatters. An index that was made by ranking units ties the axis it chooses
from with those units; any other index pins it. Units that depend on that axis (the hidden units of each expert) are then
those of whatever was chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.rules.labels import Axis, Coded, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, codes_of, find_rule, rule
from cipm.rules.select import take
from cipm.trace.graph import Node

CHOSEN = "positions are chosen by the values of an index"
GATHERS = frozenset(("embedding", "index_select", "gather", "take_along_dim", "index", "_unsafe_index"))
Term = tuple[Value, str]


def units_named(call: Call, index: Value, value: Value, dim: int) -> Value | None:
    """Return the units that an index names, as a value of one axis; without any, the axis it chooses from is pinned."""
    codes = index.codes
    if codes is not None and codes.ndim == 1 and codes.size == value.shape[dim]:
        return Value(index.name, (codes.size,), (codes,))
    if codes is not None:
        call.pin(codes, "their numbers are an index into something else")
    call.hold(value, dim, CHOSEN)
    return None


def gathers(node: Node, values: Collection[str]) -> bool:
    """Tell whether a node gives numbers of one of these values as they are: moved about, or those that an index chooses."""
    moves = node.op == "getitem" or node.op.split(".")[1] in GATHERS or codes_of(find_rule(node.op)) == "move"
    return moves and next(iter(node.refs()), None) in values


def chosen_by(call: Call, value: Value, index: Value, dim: int) -> Value:
    """Return a value whose axes that depend on `dim` have the labels of what the index chooses there."""
    axes = [call.book.route(axis, dim, index.name) if i != dim and isinstance(axis, np.ndarray) and axis.shape[dim] > 1
            else axis for i, axis in enumerate(value.axes)]
    return replace(value, axes=tuple(axes))


@rule("embedding", codes="read")
def embedding(call: Call) -> list[Axis]:
    """(v d), … → … d: rows are chosen by the values of the index; unless units chose them, they stay where they are."""
    weight, index = call["weight"], call["indices"]
    lead = LETTERS[:len(index.shape)]
    named = units_named(call, index, weight, 0)
    weight = chosen_by(call, weight, index, 0)
    return call.equation([(index, lead), (weight, "yz"), *([(named, "y")] if named else [])], lead + "z")


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[list[Axis]]:
    """(v d), … → … d: rows stay where they are, and so do the bags."""
    weight = call["weight"]
    for value in call.values():
        for dim in range(len(value.shape)):
            if value is not weight or dim == 0:
                call.hold(value, dim, CHOSEN)
    fixed = call.fixed("rows were summed into bags")
    return [[fixed, weight.axes[1]], *([fixed] * len(shape) for shape in call.shapes[1:])]


@rule("one_hot", codes="read")
def one_hot(call: Call) -> list[Axis]:
    """… → …c: the new axis has a position for every unit that the index names."""
    index, classes = call["self"], call.shape[-1]
    lead = [axis[..., None] if isinstance(axis, np.ndarray) else axis for axis in index.axes]
    codes = index.codes
    if codes is None or codes.ndim > 1 or codes.size > classes:
        if codes is not None:
            call.pin(codes, "their numbers become positions")
        return [*lead, call.fixed("its positions are numbers")]
    rest = call.book.mint(classes - codes.size)
    call.pin(rest, "no unit has these numbers")
    return [*lead, np.concatenate([codes, rest]).reshape((1,) * len(index.shape) + (-1,))]


@rule("index_select", codes="read")
def index_select(call: Call) -> list[Axis] | Coded:
    """x[…, j[n], …] → …n…."""
    value, index = call["self"], call["index"]
    dim = call["dim"] % len(value.shape)
    if isinstance(index.content, torch.Tensor):
        return Coded(take(call, value, dim, index.content.cpu().numpy(), drop=False), value.codes)
    return _gathered(call, value, index, dim, LETTERS[dim] if len(index.shape) else "")


@rule("gather", codes="read")
def gather(call: Call) -> list[Axis] | Coded:
    """x[i…, j[i… n k…], k…] → i…n k…: axes beside the one that is chosen from are tied."""
    value, index = call["self"], call["index"]
    return _gathered(call, value, index, call["dim"] % len(value.shape), LETTERS[:len(value.shape)])


@rule("take_along_dim", codes="read")
def take_along_dim(call: Call) -> list[Axis] | Coded:
    """As gather, the other axes broadcast."""
    value, index = call["self"], call["indices"]
    if call["dim"] is None or len(index.shape) != len(value.shape):
        raise ValueError("a choice from all positions")
    return _gathered(call, value, index, call["dim"] % len(value.shape), LETTERS[:len(value.shape)])


def _gathered(call: Call, value: Value, index: Value, dim: int, names: str) -> Coded:
    """`names` are the letters of the index; its letter at `dim` is the axis of the choices."""
    letters = LETTERS[:len(value.shape)]
    named = units_named(call, index, value, dim)
    value = chosen_by(call, value, index, dim)
    own = letters[:dim] + "Z" + letters[dim + 1:]
    terms: list[Term] = [_cut(call, value, own, index, names), (index, names), *([(named, "Z")] if named else [])]
    return Coded(call.equation(terms, letters), value.codes)


def _cut(call: Call, value: Value, own: str, index: Value, names: str) -> Term:
    """Return the operand with its own letters; an axis of which the index reads only the first positions is pinned."""
    letters = list(own)
    for at, letter in enumerate(own):
        if letter in names and 1 != index.shape[names.index(letter)] < value.shape[at]:
            call.hold(value, at, "an op reads its first positions only")
            letters[at] = "XYWV"[at % 4]
    return value, "".join(letters)


@rule("scatter", "scatter_add", "scatter_reduce", codes="read")
def scatter(call: Call) -> list[Axis]:
    """x[i…, j[i… n k…], k…] = y[i… n k…]: axes beside the one that is written to are tied."""
    value, index, src = call["self"], call["index"], call["src"]
    dim = call["dim"] % len(value.shape)
    letters = LETTERS[:len(value.shape)]
    names = letters[:dim] + "Z" + letters[dim + 1:]
    operands = [index, *([src] if isinstance(src, Value) and src.shape else [])]
    if any(operand.shape[i] != value.shape[i] for operand in operands for i in range(len(value.shape)) if i != dim):
        raise ValueError("a scatter into a part")
    if src is not None and len(operands) == 2 and src.shape != index.shape:
        raise ValueError("a scatter of a part")
    return _written(call, value, index, dim, [(operand, names) for operand in operands], letters)


@rule("index_add", "index_copy", "index_fill", "index_reduce", codes="read")
def index_write(call: Call) -> list[Axis]:
    """x[…, j[n], …] = y[… n …]: axes beside the one that is written to are tied."""
    value, index, src = call["self"], call["index"], call["source"]
    dim = call["dim"] % len(value.shape)
    letters = LETTERS[:len(value.shape)]
    terms: list[Term] = [(index, "Z")] if index.shape else []
    if isinstance(src, Value) and src.shape:
        terms.append((src, letters[:dim] + "Z" + letters[dim + 1:]))
    return _written(call, value, index, dim, terms, letters)


def _written(call: Call, value: Value, index: Value, dim: int, terms: Sequence[Term], letters: str) -> list[Axis]:
    _keep_numbers(call, value, call["src"], call["source"])
    named = units_named(call, index, value, dim)
    extra: list[Term] = [(named, letters[dim])] if named else []
    axes = call.equation([(value, letters), *terms, *extra], letters)
    return axes if named else [call.fixed(CHOSEN) if i == dim else axis for i, axis in enumerate(axes)]


@rule("index", "_unsafe_index", codes="read")
def index(call: Call) -> list[Axis] | Coded:
    """x[j[n…], k[n…], :] → n…: (the choices keep the axes of the index)."""
    value, indices = call["self"], call["indices"]
    chosen = [i for i, item in enumerate(indices) if item is not None]
    known = indices[chosen[0]].content
    if len(chosen) == 1 and isinstance(known, torch.Tensor) and known.ndim == 1 and known.dtype is not torch.bool:
        return Coded(take(call, value, chosen[0], known.cpu().numpy() % value.shape[chosen[0]], drop=False), value.codes)
    names, out = _advanced(value, indices, chosen, len(call.shape))
    terms: list[Term] = []
    for i in chosen:
        width = len(indices[i].shape)
        terms.append((indices[i], _choices(indices, chosen)[-width:] if width else ""))
        named = units_named(call, indices[i], value, i)
        terms.extend([(named, names[i])] if named else [])
        value = chosen_by(call, value, indices[i], i)
    return Coded(call.equation([(value, names), *terms], out), value.codes)


@rule("index_put", "_unsafe_index_put", codes="read")
def index_put(call: Call) -> list[Axis]:
    """x[j[n…], k[n…], :] = y[n…, :]."""
    value, indices, src = call["self"], call["indices"], call["values"]
    _keep_numbers(call, value, src)
    chosen = [i for i, item in enumerate(indices) if item is not None]
    choices = _choices(indices, chosen)
    names, out = _advanced(value, indices, chosen, len(value.shape) - len(chosen) + len(choices))
    terms: list[Term] = [(value, names), *([(src, out[len(out) - len(src.shape):])] if src.shape else [])]
    named = {i: units_named(call, indices[i], value, i) for i in chosen}
    for i in chosen:
        width = len(indices[i].shape)
        terms.append((indices[i], choices[-width:] if width else ""))
        terms.extend([(named[i], names[i])] if named[i] else [])
    axes = call.equation(terms, names)
    return [call.fixed(CHOSEN) if i in chosen and not named[i] else axis for i, axis in enumerate(axes)]


def _keep_numbers(call: Call, *values: object) -> None:
    """Pin the units that numbers name which are written among others."""
    for value in values:
        if isinstance(value, Value) and value.codes is not None:
            call.pin(value.codes, "their numbers are written among others")


def _choices(indices: Sequence[Value | None], chosen: Sequence[int]) -> str:
    """Return the letters of the axes that the indices share."""
    if any(indices[i].dtype is torch.bool for i in chosen):
        raise ValueError("a mask as an index")
    return "NOPQRSTU"[:max(len(indices[i].shape) for i in chosen)]


def _advanced(value: Value, indices: Sequence[Value | None], chosen: Sequence[int], ndim: int) -> tuple[str, str]:
    """Return the letters of the value, and of the result of choosing from it."""
    names = LETTERS[:len(value.shape)]
    choices = _choices(indices, chosen)
    kept = [letter for i, letter in enumerate(names) if i not in chosen]
    at = chosen[0] if list(chosen) == list(range(chosen[0], chosen[-1] + 1)) else 0
    out = "".join(kept[:at]) + choices + "".join(kept[at:])
    assert len(out) == ndim, "an index of another shape"
    return names, out


