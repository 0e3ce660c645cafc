"""How the constants of each op follow from what stays of its operands: one function for each rule of discovery.

An op whose rule is not listed here cannot lose units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cipm.pruning import rewrites_shape as shape
from cipm.pruning.rewrites_shape import full_size, plain, with_refs
from cipm.pruning.step import Rewrite, Step
from cipm.rules import FAMILIES, find_rule
from cipm.rules.reduce import dimensions
from cipm.trace.graph import Node, Ref

contraction, recurrent, norm, pointwise, reduce, order, reshape, select, gather, spatial, spectral = FAMILIES
CHOICES = (reduce.softmax, order.ranking)
"""Rules of ops that weigh or rank units: a unit that goes is left out, as if its score were −∞."""


def find_rewrite(op: str) -> Rewrite | None:
    """Return how to change a node of this op, or None where nothing is known."""
    return _REWRITES.get(find_rule(op))


def convolved(step: Step) -> Node:
    """Rewrite the number of groups; every group keeps equally many channels and filters."""
    groups = step["groups"] or 1
    if groups == 1:
        return step.node
    x, weight = step.operand, step["weight"]
    at = len(step.old(x)) - len(step.old(weight)) + 1
    filters = _groups(step, weight, 0, groups)
    channels = _groups(step, x, at, groups)
    if (filters > 0).sum() != (channels > 0).sum():
        step.refuse("groups of channels and of filters differ")
    return step.changed(groups=int((channels > 0).sum()))


def _groups(step: Step, ref: Ref, dim: int, groups: int) -> np.ndarray:
    """Return how many positions of each group stay on an axis; those that stay at all keep equally many."""
    name = ref.name
    counts = step.kept.line(name, dim).reshape(groups, -1).sum(1)
    if np.unique(counts[counts > 0]).size > 1:
        step.uneven()
    return counts


def attended(step: Step) -> Node:
    """Keep the scale of the scores where query and key units go, and cut a mask that is the same for all heads."""
    query, mask = step["query"], step["attn_mask"]
    width = step.old(query)[-1]
    node = step.node
    if step.goes(query, [len(step.old(query)) - 1]) and step["scale"] is None:
        node = step.changed(scale=width ** -0.5)
    if isinstance(mask, Ref):
        ndim = len(step.old(query))
        sizes = {dim - ndim + len(step.old(mask)): step.new(query)[dim] for dim in range(ndim - 2)
                 if full_size(step, mask, dim, ndim) > 1}
        node = with_refs(node, {mask.name: step.fitted(mask, sizes)})
    return node


def layer_normed(step: Step) -> Node:
    """Statistics over units that go are taken over as many as before, those that go being zero."""
    x, shape = step["input"], step["normalized_shape"]
    dims = tuple(range(len(step.old(x)) - len(shape), len(step.old(x))))
    if not step.goes(x, dims):
        return step.node
    sizes = step.new(x)[dims[0]:]
    share = math.prod(sizes) / math.prod(shape)
    if step.node.op.startswith("aten.rms_norm."):
        step.note("An RMS norm over units that go stands between two factors, so that those that stay keep their values.")
        scaled = step.insert("aten.mul.Tensor", x, share ** 0.5)
        inner = step.insert("aten.rms_norm.default", scaled, tuple(sizes), step["weight"], step["eps"])
        return Node(step.node.name, "aten.mul.Tensor", (inner, share ** -0.5))
    if not step.node.op.startswith("aten.layer_norm."):
        step.refuse("its mean and variance are taken over these units, so that those that stay would change")
    return _weighted(step, _normalised(step, x, dims, share), step["weight"], step["bias"])


def _normalised(step: Step, x: Ref, dims: tuple[int, ...], share: float) -> Ref:
    """Return x with mean 0 and variance 1 over these axes and the zeros that went; `share` is what stays of them."""
    step.note("A norm over units that go is written out, with mean and variance over as many as before.")
    mean = step.insert("aten.mul.Tensor", step.insert("aten.mean.dim", x, dims, True), share)
    centred = step.insert("aten.sub.Tensor", x, mean)
    own = step.insert("aten.mean.dim", step.insert("aten.mul.Tensor", centred, centred), dims, True)
    gone = step.insert("aten.mul.Tensor", step.insert("aten.mul.Tensor", mean, mean), 1 - share)
    variance = step.insert("aten.add.Tensor", step.insert("aten.mul.Tensor", own, share), gone)
    eps = 1e-5 if step["eps"] is None else step["eps"]
    return step.insert("aten.mul.Tensor", centred, step.insert("aten.rsqrt.default",
                                                               step.insert("aten.add.Tensor", variance, eps)))


def _weighted(step: Step, value: Ref, weight: Ref | None, bias: Ref | None) -> Node:
    """Return the node that ends a norm written out: value × weight + bias."""
    scaled = step.insert("aten.mul.Tensor", value, weight) if weight is not None else value
    return Node(step.node.name, "aten.add.Tensor", (scaled, 0.0 if bias is None else bias))


def group_normed(step: Step) -> Node:
    """Whole groups of channels may go; within a group statistics are taken over as many channels as before."""
    x, name = step["input"], "num_groups" if step["num_groups"] is not None else "group"
    if not step.goes(x, [1]):
        return step.node
    groups = step[name]
    counts = _groups(step, x, 1, groups)
    whole, left = step.old(x)[1] // groups, int((counts > 0).sum())
    if counts.max() == whole:
        return step.changed(**{name: left}, **({"C": int(counts.sum())} if step["C"] is not None else {}))
    if not step.node.op.startswith("aten.group_norm."):
        step.refuse("the statistics of each group are taken over these units, so that those that stay would change")
    ndim = len(step.old(x))
    apart = step.insert("aten.unflatten.int", x, 1, (left, int(counts.max())))
    value = _normalised(step, apart, tuple(range(2, ndim + 1)), int(counts.max()) / whole)
    upright = (-1, *(1,) * (ndim - 2))
    weight, bias = (None if part is None else step.insert("aten.reshape.default", part, upright)
                    for part in (step["weight"], step["bias"]))
    return _weighted(step, step.insert("aten.flatten.using_ints", value, 1, 2), weight, bias)


def reduced(step: Step) -> Node:
    """Sums do not notice what is zero, a mean takes a factor; whatever else is computed over units that go would change."""
    x = step.operand
    dims = dimensions(step, len(step.old(x)))
    if not step.goes(x, dims):
        return step.node
    op = step.node.op.split(".")[1]
    if x.name not in step.graph.driven:
        step.refuse("it is computed from the weights of the units that go")
    if op in ("sum", "nansum", "linalg_vector_norm", "frobenius_norm"):
        return step.node
    if op != "mean":
        step.refuse(f"its {op} is taken over these units, so that those that stay would change")
    share = math.prod(step.new(x)[dim] for dim in dims) / math.prod(step.old(x)[dim] for dim in dims)
    step.note("A mean over units that go takes a factor, so that it is the mean over as many as before.")
    inner = step.insert(step.node.op, *step.node.args, **step.node.kwargs)
    return Node(step.node.name, "aten.mul.Tensor", (inner, share))


def softened(step: Step) -> Node:
    """A unit that goes is left out of the choice."""
    x = step.operand
    dim = (step["dim"] if step["dim"] is not None else -1) % max(len(step.old(x)), 1)
    if step.goes(x, [dim]) and (step["k"] or 0) > step.new(x)[dim]:
        step.refuse(f"it chooses {step['k']} of {step.new(x)[dim]} units")
    return step.node


def weight_normed(step: Step) -> Node:
    """The length of a slice of a weight is taken over the other axes: what reads units that go would change."""
    value = step["v"]
    dim = step["dim"] if step["dim"] is not None else 0
    if step.goes(value, [other for other in range(len(step.old(value))) if other != dim % len(step.old(value))]):
        step.refuse("the length of each weight is taken over these units, so that those that stay would change")
    return step.node


def rearranged(step: Step) -> Node:
    """Positions that are rolled by a fixed number keep all of them; a reversed axis may lose some."""
    dims = dimensions(step, len(step.old(step.operand)))
    if "flip" not in step.node.op and step.goes(step.operand, dims):
        step.refuse("positions are moved by a fixed number along it")
    return step.node


def shuffled(step: Step) -> Node:
    """Every group of channels keeps equally many."""
    if (counts := _groups(step, step.operand, 1, step["groups"])).min() == 0:
        return step.changed(groups=int((counts > 0).sum()))
    return step.node


def recurrent_states(step: Step) -> Node:
    """Cut first states that are the same for all units to the units that stay; all layers keep equally many."""
    params = step["params"]
    states = step["hx"] if isinstance(step["hx"], tuple) else (step["hx"],)
    rows, columns = step.old(params[1])
    width = 2 + 2 * bool(step["has_biases"]) + ("lstm" in step.node.op and rows != 4 * columns)
    cells = [params[i:i + width] for i in range(0, len(params), width)]
    outs = {step.new(cell[1])[1] for cell in cells}
    units = {step.new(cell[1])[0] // recurrent.GATES[step.node.op.split(".")[1]] for cell in cells}
    if len(outs) > 1 or len(units) > 1:
        step.uneven()
    sizes = (outs.pop(), units.pop())
    made = tuple(step.fitted(state, {len(step.old(state)) - 1: size}) for state, size in zip(states, sizes, strict=False))
    return step.changed(hx=made if isinstance(step["hx"], tuple) else made[0])


_REWRITES: dict[Any, Rewrite] = {
    **dict.fromkeys((pointwise.copies, pointwise.constant, contraction.products, contraction.bilinear, contraction.distances,
                     contraction.linear, contraction.einsum, contraction.diagonals, contraction.diag_embed, gather.embedding,
                     gather.embedding_bag, gather.gather, gather.take_along_dim, norm.batch_norm, norm.prelu,
                     norm.quantize_channels, order.sequential, order.triangle, order.bins, reshape.permute,
                     reshape.repeat_interleave, select.glu, select.spatial_pad, spatial.pooling, spatial.unpooling,
                     spatial.grid_sampler, spatial.pixel_shuffle, spatial.pixel_unshuffle, spatial.im2col, spatial.col2im,
                     spatial.unfold, spatial.affine_grid, spectral.fourier, spectral.as_real, spectral.as_complex,
                     recurrent.cell), plain),
    **dict.fromkeys((pointwise.pointwise, pointwise.equal), shape.aligned),
    **dict.fromkeys((contraction.addmm, contraction.matmul), shape.products),
    **dict.fromkeys((gather.scatter, gather.index_write, gather.index_put), shape.written),
    **dict.fromkeys((gather.index, gather.index_select), shape.chosen),
    **dict.fromkeys((norm.weight_norm, norm.norm_except_dim), weight_normed),
    **dict.fromkeys(CHOICES, softened),
    contraction.convolution: convolved, contraction.attention: attended, select.cat: shape.joined,
    select.stack: shape.stacked, reshape.view: shape.viewed, reshape.expand: shape.expanded,
    select.slice_axis: shape.sliced, select.narrow: shape.narrowed, select.select: shape.selected,
    select.split: shape.parted, select.unbind: shape.unbound, select.pad: shape.padded, gather.one_hot: shape.numbered,
    norm.layer_norm: layer_normed, norm.group_norm: group_normed, reduce.reduction: reduced,
    order.rearrangement: rearranged, spatial.channel_shuffle: shuffled, recurrent.layers: recurrent_states,
}
