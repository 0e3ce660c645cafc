"""Reshape family: split an axis in two, merge two into one, and any view made of those.

Within this file a *run* is the group of neighbouring axes that is reshaped by itself; label arrays are laid out with one
dimension for every other run and one for each axis of their own run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cipm.rules.labels import FIXED_FACTOR, FIXED_OUTER, FREE, FREE_FACTOR, UNKNOWN, Axis, Fixed, LabelBook, Value
from cipm.rules.registry import Call, rule

Run = tuple[range, range]


def reshape(book: LabelBook, value: Value, shape: Sequence[int]) -> list[Axis]:
    """Return the axes of the value viewed in another shape of the same size.

    Axes are split as far as both shapes ask for and then merged, so that (batch, heads × units) → (batch × heads, units)
    keeps its heads.
    """
    finer = refinement(value.shape, shape)
    if finer not in (tuple(value.shape), tuple(shape)):
        value = Value(value.name, finer, tuple(reshape(book, value, finer)))
    runs = pair_runs(value.shape, shape)
    result: list[Axis] = []
    for number, (old, new) in enumerate(runs):
        axes = [_gather(value.axes[axis], value.shape, [run[0] for run in runs], number) for axis in old]
        merged = merge_run(book, axes, [value.shape[axis] for axis in old], number)
        for labels in split_run(book, merged, [shape[axis] for axis in new], number):
            result.append(_scatter(labels, shape, [run[1] for run in runs], number))
    result = [_independent(axis, own) for own, axis in enumerate(result)]
    for _, new in runs:
        for own in new[:-1]:
            _nest(book, result, own, [axis for axis in range(len(shape)) if axis not in new])
    return result


def _nest(book: LabelBook, axes: Sequence[Axis], own: int, others: Sequence[int]) -> None:
    """Blocks that were cut out of the elements of other units (pairs within heads) move with those."""
    blocks = axes[own]
    for other in others:
        if isinstance(blocks, np.ndarray) and isinstance(axes[other], np.ndarray) and blocks.shape[other] > 1:
            pairs = np.unique(np.stack([a.ravel() for a in np.broadcast_arrays(blocks, axes[other])]), axis=1)
            if np.unique(pairs[0]).size == pairs.shape[1]:
                book.child(*pairs, soft=True)


def refinement(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Return the coarsest shape that refines both by splits alone, or `after` where there is none."""
    sizes: list[int] = []
    for old, new in pair_runs(before, after):
        ends = {int(np.prod(part[k:])) for part in ([before[i] for i in old], [after[j] for j in new])
                for k in range(len(part))}
        chain = sorted(ends | {1})
        if any(large % small for small, large in zip(chain, chain[1:], strict=False)):
            return tuple(after)
        finer = [large // small for small, large in zip(chain, chain[1:], strict=False)][::-1]
        longest = max(([before[i] for i in old], [after[j] for j in new]), key=len)
        sizes.extend(finer if len(finer) > sum(n > 1 for n in longest) else longest)
    return tuple(sizes)


def pair_runs(before: Sequence[int], after: Sequence[int]) -> list[Run]:
    """Pair the shortest runs of old and new axes with equal products."""
    found: list[Run] = []
    i = j = 0
    while i < len(before) and j < len(after):
        start, left, right = (i, j), before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        found.append((range(start[0], i), range(start[1], j)))
    if i < len(before) or j < len(after):  # trailing axes of size 1
        found.append((range(i, len(before)), range(j, len(after))))
    return found


def merge_run(book: LabelBook, axes: Sequence[Axis], sizes: Sequence[int], at: int) -> Axis:
    """Merge the dimensions at, at + 1, … into one, last two first."""
    axes, sizes = list(axes), list(sizes)
    while len(axes) > 1:
        dim, pair = at + len(axes) - 2, (sizes[-2], sizes[-1])
        merged = _collapse(_merge_pair(book, axes[-2], axes[-1], pair, dim), pair, dim, full=True)
        axes = [_collapse(axis, pair, dim, full=False) for axis in axes[:-2]] + [merged]
        sizes = [*sizes[:-2], pair[0] * pair[1]]
    return axes[0] if axes else FREE


def split_run(book: LabelBook, axis: Axis, sizes: Sequence[int], at: int) -> list[Axis]:
    """Split dimension `at` into dimensions of these sizes; return the axis of each, laid out over all of them."""
    if not sizes:
        return []
    result: list[Axis] = []
    rest = axis
    for step, size in enumerate(sizes[:-1]):
        outer, rest = _split_pair(book, rest, size, int(np.prod(sizes[step + 1:])), at + step)
        result = [_expand(done, at + step + 1) for done in result] + [outer]
    return [*result, rest]


def _merge_pair(book: LabelBook, outer: Axis, inner: Axis, sizes: tuple[int, int], at: int) -> Axis:
    if sizes[0] == 1 or sizes[1] == 1:
        return outer if sizes[1] == 1 else inner
    if isinstance(outer, np.ndarray) and isinstance(inner, np.ndarray):
        return _pair_labels(book, outer, inner, at)
    if isinstance(inner, np.ndarray):
        return _pair_positions(book, inner, outer, sizes[0], at, inner_is_label=True)
    if isinstance(outer, np.ndarray):
        return _pair_positions(book, outer, inner, sizes[1], at + 1, inner_is_label=False)
    return next((axis for axis in (outer, inner) if isinstance(axis, Fixed)), FREE)


def _pair_labels(book: LabelBook, outer: np.ndarray, inner: np.ndarray, at: int) -> np.ndarray:
    a, b = np.broadcast_arrays(outer, inner)
    if inner.shape[at] > 1 and np.unique(b).size == b.size:  # elements that depend on the outer axis are its children
        book.child(b, a, soft=True)
        book.factor(b, a, b)
        return b
    if outer.shape[at + 1] > 1 and np.unique(a).size == a.size:
        book.child(a, b, soft=True)
        return a
    key = (a.tobytes(), b.tobytes())
    if key not in book.products:
        pairs = book.products[key] = book.mint(*a.shape)
        book.child(pairs, a)
        book.child(pairs, b)
        book.factor(pairs, a, b)
    return book.products[key].reshape(a.shape)


def _pair_positions(book: LabelBook, labels: np.ndarray, other: Axis, size: int, at: int, *,
                    inner_is_label: bool) -> np.ndarray:
    """Return labels of the pairs (label, position on an unlabelled axis); a fixed position gives its pair a role."""
    shape = tuple(size if dim == at else n for dim, n in enumerate(labels.shape))
    spread = np.broadcast_to(labels, shape)
    fixed = isinstance(other, Fixed)
    after = math.prod(shape[at + 1:])  # with the size, which entries of the flat array have the same position
    key = (spread.tobytes(), b"%d %d %d %d" % (fixed, size, inner_is_label, after))
    if key not in book.products:
        pairs = book.products[key] = book.mint(*shape)
        book.child(pairs, spread)
        if fixed:
            positions = np.broadcast_to(np.arange(size).reshape([-1 if d == at else 1 for d in range(len(shape))]), shape)
            book.roles.append((pairs.ravel(), positions.ravel()))
        if not inner_is_label:
            book.factor(pairs, spread, FIXED_FACTOR if fixed else FREE_FACTOR)
        elif fixed:
            book.factor(pairs, FIXED_OUTER - positions, spread)
    return book.products[key].reshape(shape)


def _split_pair(book: LabelBook, axis: Axis, outer: int, inner: int, at: int) -> tuple[Axis, Axis]:
    """Split dimension `at` into (outer, inner).

    Where the axis was merged from such a pair, the pair comes back. Else the outer axis gets new labels, softly the
    parents of the elements: blocks that may be permuted, and elements within each.
    """
    if not isinstance(axis, np.ndarray):
        return axis, axis
    rows = axis.reshape(*axis.shape[:at], outer, inner, *axis.shape[at + 1:])
    if outer == 1 or inner == 1:
        return (FREE, rows) if outer == 1 else (rows, FREE)
    blocks = book.factors[0, rows]
    first = blocks.take([0], axis=at + 1)
    known = (blocks != UNKNOWN).all() and (blocks == first).all() and np.unique(first).size == first.size
    if known and (first <= FIXED_OUTER).all():
        return Fixed("view", "", "its positions were fixed before it was merged"), _inner_factor(book, rows, at)
    if known and (first >= 0).all():
        return first, _inner_factor(book, rows, at)
    blocks = book.mint(*first.shape)
    book.child(rows, np.broadcast_to(blocks, rows.shape), soft=True)
    book.factor(rows, np.broadcast_to(blocks, rows.shape), rows)
    return blocks, rows


def _inner_factor(book: LabelBook, rows: np.ndarray, at: int) -> Axis:
    inner = book.factors[1, rows]
    if (inner == FREE_FACTOR).all():
        return FREE
    if (inner == FIXED_FACTOR).all():
        return Fixed("view", "", "its positions were fixed before it was merged into another axis")
    if (inner < 0).any():
        return rows
    first = inner.take([0], axis=at)
    return first if (inner == first).all() else inner


def _gather(axis: Axis, shape: Sequence[int], runs: Sequence[range], number: int) -> Axis:
    """Lay a label array out with one dimension for each other run."""
    if not isinstance(axis, np.ndarray):
        return axis
    dims: list[int] = []
    full = list(axis.shape)
    for i, run in enumerate(runs):
        if i == number:
            dims.extend(axis.shape[a] for a in run)
        elif all(axis.shape[a] == 1 for a in run):
            dims.append(1)
        else:
            full[run.start:run.stop] = [shape[a] for a in run]
            dims.append(int(np.prod([shape[a] for a in run])))
    return np.broadcast_to(axis, full).reshape(dims)


def _scatter(axis: Axis, shape: Sequence[int], runs: Sequence[range], number: int) -> Axis:
    """Lay a label array with one dimension for each other run out over the new shape."""
    if not isinstance(axis, np.ndarray):
        return axis
    sizes = iter(axis.shape)
    dims: list[int] = []
    for i, run in enumerate(runs):
        if i == number:
            dims.extend(next(sizes) for _ in run)
        else:
            dims.extend([1] * len(run) if next(sizes) == 1 else [shape[a] for a in run])
    return axis.reshape(dims)


def _collapse(axis: Axis, sizes: tuple[int, int], at: int, *, full: bool) -> Axis:
    """Flatten dimensions at and at + 1 into one; an array that depends on neither keeps size 1 unless `full`."""
    if not isinstance(axis, np.ndarray):
        return axis
    if not full and axis.shape[at] == axis.shape[at + 1] == 1:
        return axis.squeeze(at + 1)
    shape = (*axis.shape[:at], *sizes, *axis.shape[at + 2:])
    return np.broadcast_to(axis, shape).reshape(*axis.shape[:at], sizes[0] * sizes[1], *axis.shape[at + 2:])


def _independent(axis: Axis, own: int) -> Axis:
    """Drop the dependence on every axis along which the labels are all the same."""
    if isinstance(axis, np.ndarray):
        for dim, size in enumerate(axis.shape):
            if dim != own and size > 1 and (axis == (first := axis.take([0], axis=dim))).all():
                axis = first
    return axis


def _expand(axis: Axis, at: int) -> Axis:
    return np.expand_dims(axis, at) if isinstance(axis, np.ndarray) else axis


@rule("view", "view_copy", "reshape", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as", "flatten", "ravel",
      "unflatten", "squeeze", "squeeze_copy", "unsqueeze", "unsqueeze_copy", "atleast_1d", "atleast_2d", "atleast_3d",
      codes="move")
def view(call: Call) -> list[Axis]:
    """Any reshape: axes are split and merged; nothing is used yet."""
    value = call.values()[0]
    return reshape(call.book, value, call.shape)


@rule("permute", "permute_copy", "transpose", "transpose_copy", "t", "t_copy", "numpy_T", "mT", "mH", "adjoint", "matrix_H",
      "swapaxes", "swapdims", "movedim", "moveaxis", codes="move")
def permute(call: Call) -> list[Axis]:
    """Reorder axes; every label array goes along."""
    value = call.values()[0]
    order = _axis_order(call, len(value.shape))
    return [axis.transpose(order) if isinstance(axis := value.axes[a], np.ndarray) else axis for a in order]


def _axis_order(call: Call, ndim: int) -> list[int]:
    if call["dims"] is not None:
        return [d % ndim for d in call["dims"]]
    if call["source"] is not None:
        return _moved(*([d % ndim for d in (dims if isinstance(dims, tuple) else (dims,))]
                        for dims in (call["source"], call["destination"])), ndim)
    order = list(range(ndim))
    if call.node.op.startswith("aten.numpy_T"):
        return order[::-1]
    one, two = next(((call[a], call[b]) for a, b in (("dim0", "dim1"), ("axis0", "axis1")) if call[a] is not None), (-1, -2))
    if ndim > 1:
        order[one % ndim], order[two % ndim] = order[two % ndim], order[one % ndim]
    return order


def _moved(source: Sequence[int], destination: Sequence[int], ndim: int) -> list[int]:
    """Return the order of axes after moving some to new places, the others keeping their order."""
    rest = iter([axis for axis in range(ndim) if axis not in source])
    placed = dict(zip(destination, source, strict=True))
    return [placed[axis] if axis in placed else next(rest) for axis in range(ndim)]


@rule("expand", "expand_copy", "expand_as", "broadcast_to", "repeat", "tile", codes="move")
def expand(call: Call) -> list[Axis]:
    """Copy along axes of size 1 (their positions are interchangeable) and new leading axes; `repeat` tiles an axis."""
    value, shape = call.values()[0], call.shape
    lead = len(shape) - len(value.shape)
    padded = Value(value.name, (1,) * lead + value.shape, (FREE,) * lead + tuple(
        axis.reshape((1,) * lead + axis.shape) if isinstance(axis, np.ndarray) else axis for axis in value.axes))
    if all(old in (1, new) for old, new in zip(padded.shape, shape, strict=True)):
        return [FREE if old == 1 < new else axis for axis, old, new in zip(padded.axes, padded.shape, shape, strict=True)]
    return _copies(call, padded, shape, outside=True)


@rule("repeat_interleave.self_int", codes="move")
def repeat_interleave(call: Call) -> list[Axis]:
    """Repeat every position of an axis in place: an inner axis of copies merged with the axis (grouped-query heads)."""
    value = call["self"]
    if call["dim"] is None:
        flat = Value(value.name, (int(np.prod(value.shape)),), tuple(reshape(call.book, value, (int(np.prod(value.shape)),))))
        return _copies(call, flat, call.shape, outside=False)
    return _copies(call, value, call.shape, outside=False)


@rule("meshgrid")
def meshgrid(call: Call) -> list[list[Axis]]:
    """i, j, … → ij…: every vector along its own axis, the others copied."""
    vectors, found = call.values(), []
    ndim = len(vectors)
    for number, vector in enumerate(vectors):
        at = 1 - number if call["indexing"] == "xy" and ndim > 1 and number < 2 else number
        axes: list[Axis] = [FREE] * ndim
        axis = vector.axes[0] if vector.axes else FREE
        axes[at] = axis.reshape([-1 if i == at else 1 for i in range(ndim)]) if isinstance(axis, np.ndarray) else axis
        found.append(axes)
    return found


def _copies(call: Call, value: Value, shape: Sequence[int], *, outside: bool) -> list[Axis]:
    """Merge every axis with a free axis of copies before it (`outside`) or after it."""
    places = [2 * i + int(outside) for i in range(len(value.shape))]
    axes: list[Axis] = [FREE] * (2 * len(places))
    sizes = [1] * len(axes)
    for place, size, target, axis in zip(places, value.shape, shape, value.axes, strict=True):
        dims = [1] * len(axes)
        if isinstance(axis, np.ndarray):
            for other, n in zip(places, axis.shape, strict=True):
                dims[other] = n
            axis = axis.reshape(dims)
        axes[place], sizes[place], sizes[place ^ 1] = axis, size, target // size
    return reshape(call.book, Value(value.name, tuple(sizes), tuple(axes)), shape)
