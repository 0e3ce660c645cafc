"""What a model computes for one row: floating-point operations, by the stored weight that is multiplied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.fold import TURNS, base_name
from cipm.trace import run


def work(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], float]:
    """Return (FLOPs of one row by the key of the weight, FLOPs of one row that read no weight), counted on these inputs.

    Counted as torch does: a multiply-add of linear maps, convolutions and attention is two, everything else nothing.
    """
    graph, seen = checkpoint.graph, [0]
    spent: dict[str, float] = {}
    with FlopCounterMode(display=False) as counter:
        def note(name: str) -> None:
            total = counter.get_total_flops()
            spent[name], seen[0] = float(total - seen[0]), total

        run(graph, checkpoint.tensors, checkpoint.constants, inputs,
            observe={node.name: lambda _, name=node.name: note(name) for node in graph.nodes})
    rows = len(next(iter(inputs.values())))
    weights, turned = dict.fromkeys(checkpoint.tensors, 0.0), dict(graph.tensors)
    fixed = 0.0
    for node in graph.nodes:
        keys = [turned[name] for name in node.refs() if name in turned]
        if base_name(node) in TURNS and keys:
            turned[node.name] = keys[0]
        matrices = [key for key in keys if len(checkpoint.meta(key).shape) > 1]
        if matrices:
            weights[max(matrices, key=lambda key: checkpoint.meta(key).numel())] += spent[node.name] / rows
        else:
            fixed += spent[node.name] / rows
    return {key: flops for key, flops in weights.items() if flops}, fixed
