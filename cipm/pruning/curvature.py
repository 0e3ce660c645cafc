"""How much what a consumer makes of its inputs matters to the predictions: its Gram, weighted by the Fisher information."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import Consumer
from cipm.pruning.sequence import Rows
from cipm.trace.interpret import call_node, last_uses

CURVATURE_ROWS = 512
"""Batches are taken until they have so many rows."""
ROWS_AT_ONCE = 32
"""Most rows that run together, where the model's batch is free: gradients need all activations."""
DRAWS = 4
"""Random vectors for each row."""
SAMPLES = 16_384
"""Most samples of one consumer, evenly spaced among its positions."""


def curvatures(checkpoint: Checkpoint, found: Sequence[Consumer], rows: Rows, *, seed: int = 0,
               labels: Sequence[torch.Tensor] | None = None) -> dict[str, np.ndarray]:
    """Return WᵀFW [features, features] of each consumer W, by its node: F = E[g gᵀ] over samples of its outputs.

    g = Jᵀ v for the Jacobian J of the model's outputs with respect to the consumer's, and random v whose covariance is the
    curvature of the loss at the model's outputs. Where these look like logits, that is the Fisher information of predictions:
    ½ E[xᵀ WᵀFW x] is what a small change x of the consumer's inputs adds to the KL divergence; else half the squared change of
    the outputs. Samples are rows × positions, each with DRAWS draws of v; the result is for a whole row (the mean over samples
    times the positions of a row), and F is pulled towards a multiple of the identity where samples are few for the outputs.
    Consumers that the outputs do not depend on, and those whose outputs are not laid out as expected, are left out; all of them
    are where an op of the model has no gradient.

    With `labels` (the class of every row or position, one tensor for each batch of `rows`) v is instead, once, the gradient of
    the cross-entropy: the empirical Fisher information, of what was right rather than of what the model holds to be likely.

    On rows that the model was trained on it is too small by a factor (predictions are too sure), which calibration undoes; that
    from labels goes to zero there, so give it rows that the model has not seen.

    Cost: a forward pass, DRAWS (with labels one) backward passes, samples × features × (outputs + features) for each consumer.
    Memory: all activations of one batch.

    Source: weighting by the Fisher information as in Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher
    pruning"; of predictions rather than of training labels: Kunstner, Balles, Hennig 2019, "Limitations of the empirical
    Fisher approximation".
    """
    generator = torch.Generator().manual_seed(seed)
    batches = _few(checkpoint, rows, labels)
    sums = {one.output: _Sum(one, checkpoint.tensors[one.key], SAMPLES // (DRAWS * max(len(batches), 1))) for one in found}
    try:
        for batch, classes in batches:
            for output, gradient in _gradients(checkpoint, sums, batch, classes, generator):
                sums[output].add(gradient, len(next(iter(batch.values()))))
    except (RuntimeError, UnsupportedModel):  # an op without a gradient (quantised, or one that writes in place)
        return {}
    return {one.node: sums[one.output].value() for one in found if sums[one.output].samples}


class _Sum:
    """The sum of (W g)(W g)ᵀ of one consumer."""

    def __init__(self, consumer: Consumer, weight: torch.Tensor, most: int):
        matrix = torch.from_numpy(consumer.matrix(weight)).float()
        slid = weight.ndim > 2 and consumer.routed is None
        self.kernel = weight.shape[2:].numel() if slid and not consumer.window else 1
        self.matrix = matrix.reshape(len(matrix), -1, self.kernel)  # [features, outputs, kernel positions]
        self.axis = weight.ndim - 1 if slid else 1  # of the outputs, from the end
        self.most, self.samples, self.positions, self.trace = max(most, 1), 0, 1, 0.0
        self.total = np.zeros((len(matrix), len(matrix)))

    def add(self, gradient: torch.Tensor, rows: int) -> None:
        """Add the gradients of a batch; they are left out where the outputs' axis is not where it should be."""
        outputs = self.matrix.shape[1]
        if gradient.ndim < self.axis or gradient.shape[-self.axis] != outputs:
            return
        g = gradient.movedim(-self.axis, -1).reshape(-1, outputs).float()
        self.positions = max(len(g) // rows, 1)
        g = g[torch.from_numpy(np.unique(np.linspace(0, len(g) - 1, min(self.most, len(g))).round().astype(np.int64)))]
        self.samples += len(g)
        self.trace += float(g.square().sum())
        for part in self.matrix.unbind(2):
            u = g @ part.T
            self.total += (u.T @ u).double().numpy()

    def value(self) -> np.ndarray:
        """Return WᵀFW of a whole row."""
        outputs = self.matrix.shape[1]
        flat = self.matrix.flatten(1).double().numpy()
        share = outputs / (outputs + self.samples)
        even = self.trace / self.samples / outputs
        return self.positions * ((1 - share) * self.total / self.samples + share * even * flat @ flat.T)


def _few(checkpoint: Checkpoint, rows: Rows, labels: Sequence[torch.Tensor] | None,
         ) -> list[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]]:
    """Return batches that are enough, each with its labels."""
    ends = np.cumsum([len(next(iter(batch.values()))) for batch in rows])
    few = rows[:int(np.searchsorted(ends, CURVATURE_ROWS)) + 1]
    pairs = list(zip(few, [None] * len(few) if labels is None else labels, strict=False))
    if not all(i.shape and isinstance(i.shape[0], str) for i in checkpoint.graph.inputs):
        return pairs
    return [({name: tensor[first:first + ROWS_AT_ONCE] for name, tensor in batch.items()},
             None if classes is None else classes[first:first + ROWS_AT_ONCE])
            for batch, classes in pairs for first in range(0, len(next(iter(batch.values()))), ROWS_AT_ONCE)]


def _gradients(checkpoint: Checkpoint, watched: Collection[str], batch: Mapping[str, torch.Tensor],
               labels: torch.Tensor | None, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (node, gradient of the loss with respect to its value) for every watched node and draw."""
    graph = checkpoint.graph
    values: dict[str, Any] = {name: checkpoint.constants[key] for name, key in graph.constants.items()}
    values |= {i.name: batch[i.name] for i in graph.inputs}
    last, shown = last_uses(graph), {}
    with torch.enable_grad():
        for step, node in enumerate(graph.nodes):
            for name in node.refs():
                if name not in values:
                    values[name] = checkpoint.tensors[graph.tensors[name]].detach()
            made = call_node(node, values, None, torch.device("cpu"))
            if node.name in watched:
                made = shown[node.name] = made if made.requires_grad else made.detach().requires_grad_()
            values[node.name] = made
            for name in last.get(step, ()):
                values.pop(name, None)
        outputs = next(values[ref.name] for ref in graph.outputs if ref is not None)
        draws = DRAWS if labels is None else 1
        for _ in range(draws if outputs.requires_grad else 0):
            loss = _loss(outputs, generator) if labels is None else F.cross_entropy(
                outputs.flatten(0, -2), labels.flatten(), reduction="sum")
            gradients = torch.autograd.grad(loss, list(shown.values()), retain_graph=True,
                                            allow_unused=True)
            yield from ((name, gradient) for name, gradient in zip(shown, gradients, strict=True) if gradient is not None)


def _loss(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return outputs × fixed random numbers whose covariance is the curvature of the loss at the outputs: for logits with
    predictions p that of the KL divergence, diag(p) − p pᵀ; else the identity."""
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    if outputs.ndim in (2, 3) and outputs.shape[-1] > 1:
        p = outputs.detach().softmax(-1)
        noise = p.sqrt() * noise
        noise = noise - p * noise.sum(-1, keepdim=True)
    return (outputs * noise).sum()


__all__ = ["CURVATURE_ROWS", "DRAWS", "ROWS_AT_ONCE", "SAMPLES", "curvatures"]
