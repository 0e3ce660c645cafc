"""What a model computes for one row: floating-point operations, by the stored weight that is multiplied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.readers import TURNS, base_name
from cipm.trace import Node, run

ATTENTION = "scaled_dot_product_attention"
PRODUCTS = ("bmm", "matmul")


@dataclass(frozen=True)
class Product:
    """FLOPs of one row that read no weight, in proportion to the size of a value, and of one axis of another if given."""

    flops: float
    value: str
    axis: tuple[str, int] | None = None


def work(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], float]:
    """Return (FLOPs of one row by the key of the weight, FLOPs of one row that read no weight), counted on these inputs.

    A multiply-add of linear maps, convolutions and attention is two, everything else nothing: as torch counts, which leaves out
    some of its kernels for attention; here all count alike, queries times keys and weights times values in full.
    """
    weights, products, rest = parts(checkpoint, inputs)
    return weights, rest + sum(product.flops for product in products)


def parts(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], list[Product], float]:
    """Return the same with what reads no weight taken apart: products of two activations, and the rest."""
    graph, turned = checkpoint.graph, dict(checkpoint.graph.tensors)
    spent, shapes = _spent(checkpoint, inputs)
    rows = len(next(iter(inputs.values())))
    weights, products, rest = dict.fromkeys(checkpoint.tensors, 0.0), [], 0.0
    for node in graph.nodes:
        keys = [turned[name] for name in node.refs() if name in turned]
        if base_name(node) in TURNS and keys:
            turned[node.name] = keys[0]
        matrices = [key for key in keys if len(checkpoint.meta(key).shape) > 1]
        flops = sum(spent[node.name]) / rows
        if matrices and flops:
            weights[max(matrices, key=lambda key: checkpoint.meta(key).numel())] += flops
        elif flops and base_name(node) == ATTENTION:
            names = (node.args[0].name, node.name)
            products += [Product(part / rows, name) for part, name in zip(spent[node.name], names, strict=True)]
        elif flops and base_name(node) in PRODUCTS:
            one, two = (ref.name for ref in node.args[:2])
            products.append(Product(flops, one, (two, len(shapes[two]) - 1)))
        else:
            rest += flops
    return {key: flops for key, flops in weights.items() if flops}, products, rest


def _spent(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, tuple[float, ...]], dict[str, Any]]:
    """Return the FLOPs of every node (of attention in two parts), and the shape of every value."""
    graph, seen = checkpoint.graph, [0]
    spent: dict[str, tuple[float, ...]] = {}
    shapes: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    shapes |= {name: tuple(checkpoint.meta(key).shape) for name, key in graph.tensors.items()}
    with FlopCounterMode(display=False) as counter:
        def note(node: Node, value: Any) -> None:
            total = counter.get_total_flops()
            shapes[node.name] = tuple(getattr(value, "shape", ()))
            spent[node.name] = _attended(node, shapes) if base_name(node) == ATTENTION else (float(total - seen[0]),)
            seen[0] = total

        run(graph, checkpoint.tensors, checkpoint.constants, inputs,
            observe={node.name: lambda value, node=node: note(node, value) for node in graph.nodes})
    return spent, shapes


def _attended(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """Return the FLOPs of queries [rows, heads, q, e] times keys [rows, any, k, e], and of the weights times values."""
    keys = 2.0 * shapes[node.args[1].name][-2]
    return keys * math.prod(shapes[node.args[0].name]), keys * math.prod(shapes[node.name])
