"""Ops that move entries about: what acts on an entry goes where the entry goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.symmetry.carry import Held, Op, handles, reshape
from cipm.symmetry.fields import Field, Term, aligned, independent, tidy
from cipm.trace.interpret import resolve


@handles("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def view(op: Op) -> Held:
    """Any reshape."""
    return replace(reshape(op.system, op.operands()[0], op.shape), name=op.node.name)


@handles("permute", "transpose", "t", "numpy_T", "mT", "swapaxes", "movedim")
def permute(op: Op) -> Held:
    """Axes in another order."""
    held = op.operands()[0]
    ndim = len(held.shape)
    order = list(range(ndim))
    if op["dims"] is not None:
        order = [d % ndim for d in op["dims"]]
    elif ndim > 1:
        one, two = (op["dim0"], op["dim1"]) if op["dim0"] is not None else (-1, -2)
        order[one % ndim], order[two % ndim] = order[two % ndim], order[one % ndim]
    field = tuple(Term(term.power, term.ids.transpose(order)) for term in held.field)
    made = op.held(field, [held.extents[axis] for axis in order])
    assert [held.shape[axis] for axis in order] == list(made.shape)
    return made


@handles("expand", "expand_as", "broadcast_to")
def expand(op: Op) -> Held:
    """Copies along axes of size 1."""
    held = op.operands()[0]
    lead = len(op.shape) - len(held.shape)
    return op.held(aligned(held.field, len(op.shape)), (1,) * lead + held.extents)


@handles("repeat", "tile")
def repeat(op: Op) -> Held:
    """Tile axes: an outer axis of copies merged with each."""
    held = op.operands()[0]
    return _tiled(op, held, op.shape, outside=True)


@handles("repeat_interleave.self_int")
def repeat_interleave(op: Op) -> Held:
    """Repeat every position of an axis in place."""
    held = op["self"]
    if op["dim"] is None:
        held = reshape(op.system, held, (int(np.prod(held.shape)),))
    return _tiled(op, held, op.shape, outside=False)


def _tiled(op: Op, held: Held, shape: Sequence[int], *, outside: bool) -> Held:
    ndim = len(shape)
    own = (1,) * (ndim - len(held.shape)) + held.shape
    extents = (1,) * (ndim - len(held.shape)) + held.extents
    pairs = [(new // old, old) if outside else (old, new // old) for old, new in zip(own, shape, strict=True)]
    varies = [(1, e) if outside else (e, 1) for e in extents]
    terms = tuple(Term(t.power, t.ids.reshape([n for size in t.ids.shape for n in ((1, size) if outside else (size, 1))]))
                  for t in aligned(held.field, ndim))
    wide = Held(held.name, tuple(n for pair in pairs for n in pair), tuple(n for pair in varies for n in pair), terms)
    return replace(reshape(op.system, wide, shape), name=op.node.name)


def repeat_heads(op: Op, held: Held, heads: int) -> Held:
    """Lay key or value heads out once for every query head that reads them."""
    at = len(held.shape) - 3
    shape = (*held.shape[:at], heads, *held.shape[at + 1:])
    return held if shape == held.shape else _tiled(op, held, shape, outside=False)


@handles("slice")
def slice_axis(op: Op) -> Held:
    """x[…, a:b:s, …]."""
    held = op["self"]
    size = held.shape[dim := (op["dim"] or 0) % len(held.shape)]
    return _take(op, held, dim, np.arange(*slice(op["start"], op["end"], op["step"]).indices(size)))


@handles("narrow")
def narrow(op: Op) -> Held:
    """x[…, a:a + n, …]."""
    dim = op["dim"] % len(op["self"].shape)
    return _take(op, op["self"], dim, np.arange(op["start"], op["start"] + op["length"]))


@handles("select")
def select(op: Op) -> Held:
    """x[…, i, …]."""
    held = op["self"]
    dim = op["dim"] % len(held.shape)
    return _dropped(_take(op, held, dim, np.array([op["index"] % held.shape[dim]])), dim)


@handles("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def split(op: Op) -> list[Held]:
    """Parts of an axis."""
    held = op["self"]
    dim = (op["dim"] or 0) % len(held.shape)
    ends = np.cumsum([shape[dim] for shape in op.shapes])
    return [_take(op, held, dim, np.arange(end - shape[dim], end), number)
            for number, (end, shape) in enumerate(zip(ends, op.shapes, strict=True))]


@handles("unbind")
def unbind(op: Op) -> list[Held]:
    """x[…, i, …] for every i."""
    held = op["self"]
    dim = (op["dim"] or 0) % len(held.shape)
    return [_dropped(_take(op, held, dim, np.array([i])), dim) for i in range(held.shape[dim])]


@handles("index_select")
def index_select(op: Op) -> Held:
    """Positions chosen by a known index; by another one, nothing may act along the axis."""
    held, index = op["self"], op["index"]
    dim = op["dim"] % len(held.shape)
    if isinstance(index.content, torch.Tensor):
        return _take(op, held, dim, index.content.numpy())
    return _chosen(op, held, [dim])


@handles("index")
def index(op: Op) -> Held:
    """x[i, j, …]: what acts along the axes that are chosen from has to be nothing; the other axes go along."""
    held, indices = op["self"], op["indices"]
    chosen = [i for i, item in enumerate(indices) if item is not None]
    known = [indices[i].content for i in chosen]
    if len(chosen) == 1 and isinstance(known[0], torch.Tensor) and known[0].ndim == 1 and known[0].dtype is not torch.bool:
        return _take(op, held, chosen[0], known[0].numpy() % held.shape[chosen[0]])
    return _chosen(op, held, chosen)


def _chosen(op: Op, held: Held, chosen: list[int]) -> Held:
    for other in op.operands():
        if other is not held:
            op.system.vanish(other.field)
    op.system.vanish(tuple(term for term in held.field if term.dims & set(chosen)))
    kept = [i for i in range(len(held.shape)) if i not in chosen]
    width = len(op.shape) - len(kept)
    adjacent = chosen == list(range(chosen[0], chosen[-1] + 1))
    at = chosen[0] if adjacent else 0
    targets = [i for i in range(len(op.shape)) if not at <= i < at + width]
    assert [held.shape[k] for k in kept] == [op.shape[t] for t in targets]
    terms = []
    for term in held.field:
        if not term.dims & set(chosen):
            sizes = [1] * len(op.shape)
            for source, target in zip(kept, targets, strict=True):
                sizes[target] = term.ids.shape[source]
            terms.append(Term(term.power, term.ids.reshape(sizes)))
    return op.held(tuple(terms))


@handles("embedding")
def embedding(op: Op) -> Held:
    """Rows chosen by the values of an index."""
    weight, lead = op["weight"], len(op["indices"].shape)
    op.system.vanish(op["indices"].field)
    op.system.vanish(tuple(term for term in weight.field if 0 in term.dims))
    kept = (term for term in weight.field if 0 not in term.dims)
    return op.held(tuple(Term(t.power, t.ids.reshape((1,) * lead + t.ids.shape[1:])) for t in kept))


@handles("cat", "concat")
def cat(op: Op) -> Held:
    """Parts side by side: the k-th factor of the whole is made of the k-th factors of the parts."""
    parts = [held for held in op["tensors"] if held.shape != (0,)]
    ndim = len(op.shape)
    dim = (op["dim"] or 0) % ndim
    return op.held(_joined(parts, dim))


@handles("stack")
def stack(op: Op) -> Held:
    """Parts along a new axis."""
    dim = (op["dim"] or 0) % len(op.shape)
    parts = [replace(held, shape=_with_one(held.shape, dim), extents=_with_one(held.extents, dim),
                     field=tuple(Term(t.power, np.expand_dims(t.ids, dim)) for t in held.field)) for held in op["tensors"]]
    return op.held(_joined(parts, dim))


def _with_one(sizes: Sequence[int], at: int) -> tuple[int, ...]:
    return (*sizes[:at], 1, *sizes[at:])


def _joined(parts: Sequence[Held], dim: int) -> Field:
    powers = dict.fromkeys(term.power for held in parts for term in held.field)
    terms: list[Term] = []
    for power in powers:
        own = [[term.ids for term in held.field if term.power == power] for held in parts]
        for number in range(max(map(len, own))):
            layers = [ids[number] if number < len(ids) else np.zeros((1,) * len(held.shape), np.int64)
                      for ids, held in zip(own, parts, strict=True)]
            shape = np.broadcast_shapes(*(tuple(1 if i == dim else n for i, n in enumerate(a.shape)) for a in layers))
            wide = [np.broadcast_to(a, tuple(held.shape[dim] if i == dim else n for i, n in enumerate(shape)))
                    for a, held in zip(layers, parts, strict=True)]
            terms.append(Term(power, np.concatenate(wide, axis=dim)))
    return tidy(terms)


@handles("constant_pad_nd", "pad")
def pad(op: Op) -> Held:
    """Constant positions at the ends of axes, which nothing acts on."""
    held, amounts = op["self"], op["pad"]
    assert op["mode"] in (None, "constant")
    ndim = len(held.shape)
    padded = [(0, 0)] * ndim
    for step in range(len(amounts) // 2):
        padded[ndim - 1 - step] = (amounts[2 * step], amounts[2 * step + 1])
    assert all(min(pair) >= 0 for pair in padded)
    still = tuple(t for t in held.field if not any(t.ids.shape[d] == 1 and sum(padded[d]) for d in range(ndim)
                                                   if held.shape[d] > 1 and op["value"] not in (None, 0, 0.0)))
    op.system.vanish(tuple(t for t in held.field if t not in still))
    terms = tuple(Term(t.power, np.pad(t.ids, [p if n > 1 else (0, 0) for p, n in zip(padded, t.ids.shape, strict=True)]))
                  for t in still)
    return op.held(terms)


@handles("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "roll", "flip", "diagonal")
def moved(op: Op) -> Held:
    """Anything that only moves entries: it moves what acts on them."""
    held = op.operands()[0]
    terms = []
    for term in held.field:
        ids = torch.from_numpy(np.broadcast_to(term.ids, held.shape).astype(np.float64))
        args = [ids, *op.node.args[1:]]
        made = resolve(op.node.op)(*args, **op.node.kwargs).numpy().astype(np.int64)
        assert made.shape == op.shape
        terms.append(Term(term.power, independent(made)))
        op.system.taken(terms[-1].ids)
    return op.held(tuple(terms))


def _take(op: Op, held: Held, dim: int, positions: np.ndarray, number: int = 0) -> Held:
    """Return the value at these positions of an axis; a true part of it is used by itself."""
    terms = []
    for term in held.field:
        ids = term.ids.take(positions, axis=dim) if term.ids.shape[dim] > 1 else term.ids
        if term.ids.shape[dim] > 1 and not np.array_equal(positions, np.arange(held.shape[dim])):
            op.system.taken(ids)
        terms.append(Term(term.power, ids))
    shape = (*held.shape[:dim], len(positions), *held.shape[dim + 1:])
    extents = (*held.extents[:dim], len(positions) if held.extents[dim] > 1 else 1, *held.extents[dim + 1:])
    return Held(op.node.name, shape, extents, tidy(terms))


def _dropped(held: Held, dim: int) -> Held:
    field = tuple(Term(term.power, term.ids.squeeze(dim)) for term in held.field)
    return Held(held.name, (*held.shape[:dim], *held.shape[dim + 1:]), (*held.extents[:dim], *held.extents[dim + 1:]), field)

