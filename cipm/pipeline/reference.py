"""The whole model on held-out probe rows: how a smaller one is judged against it, and what a row costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.load.probe import Probe
from cipm.pipeline.context import Context, batches, fixed_rows
from cipm.pruning.shrink import Intervene
from cipm.trace import run

MEASURE_FLOPS = 1e13
"""Work spent on running models over held-out rows in one analysis: about a minute or two on two cores. A count, not a clock,
so that the same analysis always gives the same result."""
MEASURE_NUMBERS = 2**27
"""Most numbers of outputs held at once (512 MB): a language model's logits on many rows would not fit."""
FEWEST_ROWS = 16
LOSSES = ("loss", "kl", "agreement", "accuracy", "perplexity")


@dataclass(frozen=True)
class RowCost:
    """What one row costs the whole model: floating-point operations, numbers in its outputs and in its largest value."""

    flops: float
    outputs: float
    largest: float


def row_cost(context: Context) -> RowCost:
    """Count one batch of a few rows."""
    checkpoint, largest = context.checkpoint, [1]
    inputs = next(batches(rows_of(context.probe, np.arange(fixed_rows(checkpoint) or min(2, context.probe.used_rows))),
                          checkpoint, 2))

    def seen(value: object) -> None:
        largest[0] = max(largest[0], value.numel() if isinstance(value, torch.Tensor) else 0)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs,
                      observe={node.name: seen for node in checkpoint.graph.nodes})
    rows = len(next(iter(inputs.values())))
    return RowCost(counter.get_total_flops() / rows, sum(o.numel() for o in outputs if o is not None) / rows, largest[0] / rows)


def rows_of(probe: Probe, rows: np.ndarray) -> Probe:
    """Return the inputs of some rows of a probe set, without their labels; rows beyond the last begin at the first again."""
    chosen = torch.from_numpy(np.asarray(rows) % probe.used_rows)
    return Probe({name: t[chosen] for name, t in probe.inputs.items()}, None, len(rows), len(rows), ())


def spread(there: np.ndarray, wanted: int, fixed: int | None) -> np.ndarray:
    """Return `wanted` of the rows that are `there`, evenly; whole batches for a model with a fixed one, some rows twice where
    there are too few."""
    count = max(fixed, min(wanted, there.size) // fixed * fixed) if fixed else min(wanted, there.size)
    return there[np.arange(count) * there.size // count]


class Reference:
    """The whole model's outputs on the odd probe rows that smaller ones are measured on, and how loss is counted.

    `points` is how many models are to be measured, which bounds the rows; `rows` asks for this very number.
    """

    def __init__(self, context: Context, points: int = 1, *, rows: int | None = None):
        self.context = context
        probe, options = context.probe, context.options
        odd = np.arange(1, probe.used_rows, 2) if probe.used_rows > 1 else np.arange(1)
        wanted = min(options.measured_rows, odd.size)
        chosen = spread(odd, rows or self._affordable(points, wanted), fixed_rows(context.checkpoint))
        self.rows = len(chosen)
        self.notes = [] if self.rows >= wanted else [
            f"What-ifs were measured on {self.rows} of {wanted} rows, because each of {points} points runs the whole model."]
        self.inputs = list(batches(rows_of(probe, chosen), context.checkpoint, options.batch_rows))
        self.output = self._outputs(context.checkpoint, {})
        labels = None if probe.labels is None else probe.labels[torch.from_numpy(chosen)]
        self.labels, self.kind = _loss_kind(self.output, labels)
        self.baseline = {"loss_kind": self.kind, **self._judge(self.output)}

    def _affordable(self, points: int, wanted: int) -> int:
        cost = row_cost(self.context)
        most = int(min(MEASURE_FLOPS / max(points * cost.flops, 1), MEASURE_NUMBERS / max(cost.outputs, 1)))
        return min(wanted, max(FEWEST_ROWS, most))

    def measure(self, checkpoint: Checkpoint, interventions: Intervene | None = None) -> dict[str, Any]:
        """Return loss, accuracy, perplexity, agreement and KL of another checkpoint with the same inputs and outputs."""
        return self._judge(self._outputs(checkpoint, interventions or {}))

    def _outputs(self, checkpoint: Checkpoint, interventions: Intervene) -> torch.Tensor:
        device = self.context.device
        own = checkpoint is self.context.checkpoint
        constants = {key: tensor.to(device) for key, tensor in checkpoint.constants.items()}
        tensors: Mapping[str, torch.Tensor] = self.context.tensors if own else {
            key: tensor.to(device) for key, tensor in checkpoint.tensors.items()}
        with torch.no_grad():
            parts = [run(checkpoint.graph, tensors, constants, batch, intervene=interventions) for batch in self.inputs]
        first = next(i for i, value in enumerate(parts[0]) if value is not None)
        output = torch.cat([part[first].float().cpu() for part in parts])
        if not output.isfinite().all():
            whose = "model" if own else "smaller model"
            raise UnsupportedModel(f"On the held-out rows the {whose} gives outputs that are not finite, so that no loss can "
                                   "be measured.", fix="Keep more units, or take these rows out.")
        return output

    def _judge(self, output: torch.Tensor) -> dict[str, Any]:
        logits, whole = _as_rows(output), _as_rows(self.output)
        result: dict[str, Any] = {"accuracy": None, "perplexity": None, "agreement": None, "kl": None, "rows": self.rows}
        if _classes(self.output):
            result["agreement"] = float((logits.argmax(-1) == whole.argmax(-1)).float().mean())
            result["kl"] = max(0.0, float(F.kl_div(logits.log_softmax(-1), whole.log_softmax(-1), log_target=True,
                                                   reduction="batchmean")))
        if self.kind == "cross_entropy":
            labels = self.labels.reshape(-1)
            result["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
            loss = float(F.cross_entropy(logits, labels))
            result["perplexity"] = math.exp(loss) if output.ndim == 3 and loss < 700 else None  # beyond, no float holds it
        elif self.kind == "mean_squared_error":
            loss = float(F.mse_loss(output, self.labels.reshape(output.shape).float()))
        elif self.kind == "kl_to_original":
            loss = result["kl"]
        else:
            loss = float((output - self.output).square().mean()) / (float(self.output.square().mean()) or 1.0)
        return {"loss": loss, **result}


def _as_rows(output: torch.Tensor) -> torch.Tensor:
    return output.reshape(-1, output.shape[-1])


def _classes(output: torch.Tensor) -> bool:
    """Tell whether an output looks like logits: [rows, classes] or [rows, positions, vocabulary]."""
    return output.ndim in (2, 3) and output.shape[-1] > 1


def _loss_kind(output: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor | None, str]:
    if labels is not None and not labels.is_floating_point() and _classes(output) \
            and labels.numel() == output.numel() // output.shape[-1] and int(labels.min()) >= 0 \
            and int(labels.max()) < output.shape[-1]:
        return labels, "cross_entropy"
    if labels is not None and labels.numel() == output.numel():
        return labels, "mean_squared_error"
    return None, "kl_to_original" if _classes(output) else "relative_error"
