"""Operators that choose by index: gather, scatter, embeddings, one-hot, and what counts elements of constants."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cipm.load.onnx.strided import contiguous
from cipm.load.onnx.values import Call, Const, Result, Strided, constant, contents, flat_contents, operator, unrecorded


@operator("Gather")
def gather(call: Call) -> Result:
    """x[…, index, …]: a number takes one position, a constant a fixed selection, an index into the rows of a matrix embeds."""
    x, index = call[0], call.operands[1] if len(call) > 1 else None
    axis = call.int("axis", 0) % max(x.ndim, 1)
    if isinstance(index, Const) and isinstance(x.shape[axis], int):
        return _fixed(call, x, axis, index.tensor)
    if isinstance(index, Strided) and x.ndim == 1 and contiguous(index, x.shape[0]):
        return x.reshape(index.sizes)
    index = call[1]
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(index, x)
    if index.ndim == 0:  # plain indexing would take its number out, which a trace cannot know
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    return x[(slice(None),) * axis + (index,)]


def _fixed(call: Call, x: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    if index.ndim == 0:
        return x.select(axis, contents(index))
    with unrecorded():
        flat = index.reshape(-1).to(torch.int64)
        flat = torch.where(flat < 0, flat + x.shape[axis], flat)
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < x.shape[axis]:
            raise call.damaged(f"chooses positions beyond the {x.shape[axis]} of its axis")
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1:]])


def _wrapped(index: torch.Tensor, size: int) -> torch.Tensor:
    """Return the index with −size … −1 as positions from the end; an index into units stays one for discovery."""
    return torch.remainder(index, size)


@operator("GatherElements")
def gather_elements(call: Call) -> Result:
    """x at index along one axis, element by element."""
    axis = call.int("axis", 0)
    return torch.gather(call[0], axis, _wrapped(call[1], call[0].shape[axis]).to(torch.int64))


@operator("GatherND")
def gather_nd(call: Call) -> Result:
    """x at points: the last axis of the index holds coordinates."""
    x, index, batch = call[0], call[1], call.int("batch_dims", 0)
    if not isinstance(index.shape[-1], int):
        raise call.unsupported("has points of a varying number of coordinates")
    points = [index.squeeze(-1)] if index.shape[-1] == 1 else list(index.unbind(-1))  # a copy that discovery sees through
    lead = [torch.arange(x.shape[i]).reshape([-1 if i == j else 1 for j in range(index.ndim - 1)]) for i in range(batch)]
    return x[tuple(lead + points)]


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Result:
    """x with some elements along an axis replaced or combined."""
    x, axis, how = call[0], call.int("axis", 0), call.one_of("reduction", "none", ("none", "add", "mul", "min", "max"))
    index = _wrapped(call[1], x.shape[axis]).to(torch.int64)
    if how == "none":
        return x.scatter(axis, index, call[2])
    reduce = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}[how]
    return x.scatter_reduce(axis, index, call[2], reduce)


@operator("ScatterND")
def scatter_nd(call: Call) -> Result:
    """x with the elements or slices at points replaced or added to."""
    x, index, how = call[0], call[1], call.one_of("reduction", "none", ("none", "add"))
    run = _run(call.operands[1])
    if run and how == "none" and isinstance(x.shape[0], int) and run.stop <= x.shape[0]:
        return torch.slice_scatter(x, call[2], 0, run.start, run.stop)
    return x.index_put(tuple(index.unbind(-1)), call[2], accumulate=how == "add")


def _run(index: object) -> range | None:
    """Return the positions that a constant index [n, 1] names where they follow one another: a slice is written to."""
    if not isinstance(index, Const) or index.tensor.ndim != 2 or index.tensor.shape[1] != 1 or not index.tensor.numel():
        return None
    found = flat_contents(index.tensor)
    run = range(found[0], found[0] + len(found))
    return run if run.start >= 0 and found == list(run) else None


@operator("OneHot", host=(1,))
def one_hot(call: Call) -> Result:
    """Two values: one where the position along a new axis is the index, another elsewhere."""
    index, depth, values = call[0].to(torch.int64), int(call.number(1)), call[2]
    axis = call.int("axis", -1)
    call.bounded(depth)
    places = constant(range(depth))
    hot = _wrapped(index, depth).unsqueeze(-1) == places
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("NonZero", counts=True)
def nonzero(call: Call) -> Result:
    """The coordinates of all elements that are not zero."""
    return torch.nonzero(call[0]).T


@operator("Compress", host=(1,))
def compress(call: Call) -> Result:
    """The positions of an axis where a constant condition holds."""
    kept = constant([i for i, flag in enumerate(call.numbers(1)) if flag])
    axis = call.int("axis")
    return call[0].reshape(-1).index_select(0, kept) if axis is None else call[0].index_select(axis, kept)


@operator("ReverseSequence", host=(1,))
def reverse_sequence(call: Call) -> Result:
    """The first positions of every row backwards; all rows must be turned by their whole constant length."""
    time, batch = call.int("time_axis", 0), call.int("batch_axis", 1)
    if any(length != call[0].shape[time] for length in call.whole(1)) or time == batch:
        raise call.unsupported("turns only parts of its rows")
    return call[0].flip(time)
