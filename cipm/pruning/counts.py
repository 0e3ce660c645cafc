"""Quantities of a model (parameters, FLOPs, bytes) as functions of what its groups keep."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cipm.allocation import Count
from cipm.load.checkpoint import Checkpoint
from cipm.pruning.cells import axis_terms, tensor_terms
from cipm.pruning.kept import Labels
from cipm.pruning.work import Product, parts
from cipm.symmetry import Place, Symmetry


def count_of(checkpoint: Checkpoint, symmetry: Symmetry, weights: Mapping[str, float], fixed: float = 0.0) -> Count:
    """Return the quantity that is `fixed` plus weights[key] for each stored tensor, in proportion to its numbers.

    Where groups stand inside or across one another on one axis (heads and the units in them) all of them shrink it.
    """
    axes: dict[str, dict[tuple[int, ...], list[tuple[str, Place]]]] = {key: {} for key in weights}
    for group in symmetry.groups:
        for place in group.places:
            if place.tensor in axes:
                axes[place.tensor].setdefault(place.axes, []).append((group.name, place))
    merged: dict[tuple[tuple[tuple[str, float], ...], ...], float] = {}
    for key, size in weights.items():
        for share, factors in tensor_terms([axis_terms(places[0][1].length, places) for places in axes[key].values()]):
            alike = tuple(tuple(factor.items()) for factor in factors)
            merged[alike] = merged.get(alike, 0.0) + size * share
    fixed += merged.pop((), 0.0)
    terms = tuple((size, tuple(dict(axis) for axis in alike)) for alike, size in merged.items())
    return Count(fixed, terms, {group.name: group.size for group in symmetry.groups})


def flop_count(labels: Labels, inputs: Mapping[str, torch.Tensor]) -> Count:
    """Return the FLOPs of one row, counted on these inputs, as a function of what groups keep.

    Products of two activations (attention) shrink with what stands on them; what else reads no weight counts as it is.
    Cost: one run of the model, and what stays for each group that stands on such a product.
    """
    weights, products, rest = parts(labels.checkpoint, inputs)
    count = count_of(labels.checkpoint, labels.symmetry, weights, rest)
    cores: dict[tuple[tuple[str, float], ...], float] = {}
    for product in products:
        shares = tuple(_shares(labels, product).items())
        cores[shares] = cores.get(shares, 0.0) + product.flops
    fixed = count.fixed + cores.pop((), 0.0)
    return Count(fixed, (*count.terms, *((flops, tuple({name: share} for name, share in shares))
                                         for shares, flops in cores.items())), count.sizes)


def _shares(labels: Labels, product: Product) -> dict[str, float]:
    """Return which share of a product goes with a group, by its name."""
    values = [product.value] + ([product.axis[0]] if product.axis else [])
    names = dict.fromkeys(name for value in values for name in labels.symmetry.carried.get(value, ()))
    found = {}
    for group in (labels.symmetry.group(name) for name in names if name in {g.name for g in labels.symmetry.groups}):
        width = group.size // group.blocks
        if width > 1:
            kept = labels.what_stays({group.name: [unit for unit in range(group.size) if (unit + 1) % width]})
            left = kept.share(product.value) * (kept.share(*product.axis) if product.axis else 1.0)
            found |= {group.name: round((1 - left) * width, 9)} if left < 1 else {}
    return found


def parameter_count(checkpoint: Checkpoint, symmetry: Symmetry) -> Count:
    """Return the number of parameters as a function of what groups keep."""
    return count_of(checkpoint, symmetry, {key: checkpoint.meta(key).numel() for key in checkpoint.parameter_keys})


def byte_count(checkpoint: Checkpoint, symmetry: Symmetry) -> Count:
    """Return the bytes of all stored tensors (parameters and buffers) as a function of what groups keep."""
    metas = {key: checkpoint.meta(key) for key in checkpoint.tensors}
    return count_of(checkpoint, symmetry, {key: meta.numel() * meta.element_size() for key, meta in metas.items()})
