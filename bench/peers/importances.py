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

from cipm.testing.networks_residual import PaddedBlock

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


def merged(model: nn.Module, removed: float) -> nn.Module:
    """Return a model whose weakest neurons (by L1 norm) were merged into the most similar kept ones: those at a cosine of 0.45
    and more give their outgoing weights, scaled, to them. The others are only left out.

    Of a chain of layers with ReLU between all hidden neurons; of a ResNet the channels inside its blocks, batch norms folded
    into the weights before they are compared (a residual stream has several writers, of which the method says nothing); of
    gated layers their units, gate and up side by side, scaled by the norms of up, in which alone the product is linear.

    Source: Kim, Kim, Park, Lee, "Neuron merging: compensating for pruned neurons" (2020).
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        if isinstance(model, nn.Sequential):
            layers = [module for module in model if isinstance(module, nn.Linear | nn.Conv2d)]
            for layer, reader in zip(layers, layers[1:], strict=False):
                rows = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
                kept, into, scale = _merging(layer.weight, rows, rows, removed)
                _take((layer,), reader, kept, into, scale)
        for module in model.modules():
            if isinstance(module, PaddedBlock):
                slope = module.bn1.weight / (module.bn1.running_var + module.bn1.eps).sqrt()
                offset = module.bn1.bias - slope * module.bn1.running_mean
                rows = torch.cat([slope[:, None] * module.conv1.weight.flatten(1), offset[:, None]], 1)
                _take((module.conv1, module.bn1), module.conv2, *_merging(rows[:, :-1], rows, rows, removed))
            if isinstance(module, SwiGlu):
                both = torch.cat([module.gate.weight, module.up.weight], 1)
                _take((module.gate, module.up), module.down, *_merging(both, both, module.up.weight, removed))
    return model


def _merging(weights: Tensor, rows: Tensor, scaled: Tensor, removed: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the neurons kept, for each neuron the kept one that it goes into (by its place), and by which factor: those kept
    go into themselves whole. Norms of `weights` rank, cosines of `rows` compare, norms of `scaled` scale."""
    order = weights.flatten(1).abs().sum(1).argsort(descending=True)
    kept = order[:max(1, round(len(order) * (1 - removed)))].sort().values
    best, into = F.cosine_similarity(rows[:, None], rows[None, kept], dim=2).max(1)
    scale = torch.where(best >= SIMILAR, scaled.norm(dim=1) / scaled[kept[into]].norm(dim=1), 0.0)
    into[kept], scale[kept] = torch.arange(len(kept)), 1.0
    return kept, into, scale


def _take(writers: Sequence[nn.Module], reader: nn.Module, kept: Tensor, into: Tensor, scale: Tensor) -> None:
    """Leave writers the neurons kept, and give the reader's columns of all neurons to them."""
    columns = reader.weight.data.unflatten(1, (len(into), -1))  # what reads one neuron, side by side
    taken = torch.zeros_like(columns[:, kept])
    taken.index_add_(1, into, columns * scale.view(1, -1, *[1] * (columns.ndim - 2)))
    reader.weight.data = taken.flatten(1, 2)
    for tensor in (tensor for writer in writers for tensor in (*writer.parameters(), *writer.buffers()) if tensor.ndim):
        tensor.data = tensor.data[kept]
