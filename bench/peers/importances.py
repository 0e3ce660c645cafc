"""What others do without retraining: Torch-Pruning's importances, and neuron merging."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from peers.subjects import Subject, SwiGlu
from torch import Tensor, nn

TAUGHT = 200
"""Rows whose gradients Hessian importance squares, one by one."""
KINDS = {"L2": lambda: tp.importance.GroupMagnitudeImportance(p=2), "Taylor": tp.importance.GroupTaylorImportance,
         "Hessian": tp.importance.GroupHessianImportance}
SIMILAR = 0.45
"""From which cosine on a neuron is merged, as published for fully connected layers."""


def torch_pruning(subject: Subject, importance: str, removed: float, ignored: Sequence[str] = ()) -> nn.Module:
    """Return what Torch-Pruning makes of the model at this share; of a language model its gated layers alone are pruned."""
    model, kind = copy.deepcopy(subject.model), KINDS[importance]()
    _teach(kind, importance, model, subject)
    for part, example in _parts(model, subject.fit[0]):
        layers = [module for module in part.modules() if isinstance(module, nn.Linear)]
        names = dict(part.named_modules())
        pruner = tp.pruner.BasePruner(part, example, importance=kind, pruning_ratio=removed, round_to=None, num_heads={},
                                      ignored_layers=[layers[-1], *(names[name] for name in ignored)],
                                      in_channel_groups={}, out_channel_groups={})
        pruner.step()
    return model


def _parts(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    gated = [module for module in model.modules() if isinstance(module, SwiGlu)]
    return [(module, torch.zeros(2, module.up.in_features)) for module in gated] or [(model, x[:1])]


def _teach(kind: Any, importance: str, model: nn.Module, subject: Subject) -> None:
    """Leave the gradients that an importance wants."""
    x, y = subject.fit
    if importance == "Taylor":
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    if importance == "Hessian":
        for one, label in zip(x[:TAUGHT].split(1), y[:TAUGHT].split(1), strict=True):
            model.zero_grad()
            F.cross_entropy(model(one).flatten(0, -2), label.flatten()).backward()
            kind.accumulate_grad(model)


def merged(model: nn.Sequential, removed: float) -> nn.Sequential:
    """Return a chain of layers with ReLU between, whose weakest neurons (by L1 norm) were merged into the most similar kept
    ones: those at a cosine of 0.45 and more give their outgoing weights, scaled, to them.

    The others are only left out. Source: Kim, Kim, Park, Lee, "Neuron merging: compensating for pruned neurons" (2020).
    """
    model = copy.deepcopy(model)
    layers = [module for module in model if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer, reader in zip(layers, layers[1:], strict=False):
        rows = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
        order = layer.weight.flatten(1).abs().sum(1).argsort(descending=True)
        count = max(1, round(len(order) * (1 - removed)))
        kept, gone = order[:count].sort().values, order[count:]
        alike = F.cosine_similarity(rows[gone, None], rows[None, kept], dim=2)
        best, into = alike.max(1)
        scale = torch.where(best >= SIMILAR, rows[gone].norm(dim=1) / rows[kept[into]].norm(dim=1), 0.0)
        columns = reader.weight.data.unflatten(1, (len(order), -1))  # what reads one neuron, side by side
        taken = columns[:, kept].clone()
        taken.index_add_(1, into, columns[:, gone] * scale.view(1, -1, *[1] * (columns.ndim - 2)))
        layer.weight.data, layer.bias.data = layer.weight.data[kept], layer.bias.data[kept]
        reader.weight.data = taken.flatten(1, 2)
    return model
