"""Stages `whatif` and `measure`: what it would cost to keep k of n units of a group, predicted and measured.

The kept units take over for the removed ones by least squares fitted on the even probe rows; the loss is measured on odd
rows, so that fitting cannot flatter it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.pipeline.collecting import Statistics, carried_by, read_statistics, why_not_collected
from cipm.pipeline.context import Context, batches
from cipm.pruning import Curve, calibrate, elimination_curve, reconstruction
from cipm.statistics import HalfSplit
from cipm.symmetry import SymmetryGroup, Tap
from cipm.trace import run

MEASURE_FLOPS = 1e13
"""Work spent on measuring what-ifs in one analysis: about a minute or two on two cores. A count, not a clock, so that the
same analysis always gives the same result."""
MEASURE_NUMBERS = 2**27
"""Most numbers of outputs held at once (512 MB): a language model's logits on many rows would not fit."""
FEWEST_ROWS = 16
Rebuild = Callable[[torch.Tensor], torch.Tensor]
Intervene = dict[str, Rebuild]


def whatif(context: Context, folder: Path) -> None:
    """Compute the curve of every group, measure a few points of each, and predict the loss at every size."""
    statistics = read_statistics(context)
    groups = [group for group in context.symmetry.groups if group.proved]
    points = sum(unavailable(context, group, statistics) is None for group in groups) * (context.options.measured_points + 1)
    reference = Reference(context, points)
    report = context.progress("whatif", len(groups), "groups")
    facts: dict[str, Any] = {"baseline": reference.baseline(), "notes": reference.notes, "groups": {}}
    for number, group in enumerate(groups):
        facts["groups"][group.name] = _whatif_of(context, group, statistics, reference)
        report(number + 1)
    (folder / "whatif.json").write_text(json.dumps(facts))


def measure(context: Context, folder: Path) -> None:
    """Measure one what-if: the request's `group` at `keep` units."""
    group = context.symmetry.group(context.request["group"])
    keep = context.request["keep"]
    if not isinstance(keep, int) or not 0 <= keep <= group.size:
        raise OptionError(f"Keep must be a whole number from 0 to {group.size}; it cannot be {keep!r}.", where="keep")
    known = context.read("whatif", "whatif.json")["groups"][group.name]
    if known["unavailable"]:
        raise OptionError(f"There is no what-if for {group.name}: {known['unavailable']}", where="group")
    removal = np.array(known["removal_order"])
    result = Reference(context).measure(_interventions(group, read_statistics(context), removal, keep))
    (folder / "measure.json").write_text(json.dumps({"group": group.name, "keep": keep, **result}))


def unavailable(context: Context, group: SymmetryGroup, statistics: Statistics) -> str | None:
    """Return why a group has no what-if, in words, or None."""
    inner = carried_by(context.symmetry.groups, group)
    if inner is not None:
        return f"Its units carry smaller ones; see the what-if of {inner.name}."
    if not any(tap.consumers for tap in group.taps):
        return "No weight reads these units linearly, so what is lost cannot be made up for by the others."
    if context.probe.used_rows < 4:
        return "A what-if needs at least 4 probe rows: half of them to fit on, half to measure on."
    if any(tap.key not in statistics for tap in group.taps):
        return why_not_collected(context, group) or "Its activations were not collected (the group is wider than max_width)."
    return None


def parameters_after(context: Context, group: SymmetryGroup) -> list[int]:
    """Return the parameters of the whole model [units + 1] when k units of this group are kept."""
    checkpoint, total = context.checkpoint, context.checkpoint.parameters
    axes: dict[str, list[float]] = {}
    for place in group.places:
        axes.setdefault(place.tensor, []).append(place.index.size / place.length)
    keep = np.arange(group.size + 1) / group.size
    saved = np.zeros(group.size + 1)
    for key, shares in ((key, axes[key]) for key in checkpoint.parameter_keys if key in axes):
        left = np.prod([1 - share * (1 - keep) for share in shares], axis=0)
        saved += checkpoint.tensors[key].numel() * (1 - left)
    return [int(round(total - s)) for s in saved]


def _whatif_of(context: Context, group: SymmetryGroup, statistics: Statistics, reference: Reference) -> dict[str, Any]:
    facts = {"keep": list(range(group.size + 1)), "parameters": parameters_after(context, group), "predicted": [],
             "predicted_cost": [], "removal_order": [], "measured": [], "notes": [],
             "unavailable": unavailable(context, group, statistics)}
    if facts["unavailable"]:
        return facts
    curve = _curve(context, group, statistics)
    points = [round(group.size * i / (context.options.measured_points + 1)) for i in range(context.options.measured_points + 1)]
    measured = [{"keep": keep, **reference.measure(_interventions(group, statistics, curve.removal_order, keep))}
                for keep in dict.fromkeys(points)]
    base = reference.baseline()["loss"]
    rises = [(m["keep"], m["loss"] - base) for m in measured]
    for number, point in enumerate(measured):  # what the other points alone say about this one
        others = rises[:number] + rises[number + 1:]
        point["predicted"] = float(base + calibrate(curve.cost, others)[point["keep"]]) if others else None
    return facts | {"predicted": (base + calibrate(curve.cost, rises)).tolist(), "measured": measured,
                    "predicted_cost": (curve.cost / max(curve.cost[0], np.finfo(float).tiny)).tolist(),
                    "removal_order": curve.removal_order.tolist(), "notes": list(curve.notes)}


def _curve(context: Context, group: SymmetryGroup, statistics: Statistics) -> Curve:
    read = [tap for tap in group.taps if tap.consumers]
    halves = [statistics[tap.key] for tap in read]
    return elimination_curve([half.whole.covariance() for half in halves], [_gram(context, group, tap) for tap in read],
                             samples=min(half.samples for half in halves))


def _gram(context: Context, group: SymmetryGroup, tap: Tap) -> np.ndarray:
    """Return WᵀW [units, units] summed over a tap's consumers; several elements of a unit add up, as if uncorrelated."""
    gram = np.zeros((group.size, group.size))
    for key, axis in tap.consumers:
        place = next(p for p in group.places if (p.tensor, p.axis) == (key, axis))
        weight = context.checkpoint.tensors[key].double().movedim(axis, 0).reshape(place.length, -1).numpy()
        elements = weight[place.index]
        gram += np.einsum("ier,jer->ij", elements, elements, optimize=True)
    return gram


def _interventions(group: SymmetryGroup, statistics: Statistics, removal: np.ndarray, keep: int) -> Intervene:
    """Return, for every tapped value, the function that replaces the removed units by their least-squares prediction."""
    kept = np.sort(removal[group.size - keep:])
    found: dict[str, list[Rebuild]] = {}
    for tap in group.taps:
        if tap.consumers:
            found.setdefault(tap.value, []).append(_rebuild(tap, statistics[tap.key], kept))
    return {value: _chain(steps) for value, steps in found.items()}


def _chain(steps: list[Rebuild]) -> Rebuild:
    return lambda value: reduce(lambda seen, step: step(seen), steps, value)


def _rebuild(tap: Tap, half: HalfSplit, kept: np.ndarray) -> Rebuild:
    weights, offset = reconstruction(half.even.covariance(), half.even.mean, kept)
    removed = np.setdiff1d(np.arange(len(tap.index)), kept)
    to, source = torch.from_numpy(tap.index[removed].copy()), torch.from_numpy(tap.index[kept].copy())

    def rebuild(value: torch.Tensor) -> torch.Tensor:
        last = value.movedim(tap.axis, -1).clone()
        mix, shift = (torch.from_numpy(a).to(last) for a in (weights, offset))
        seen = last[..., source.to(last.device)]  # [..., kept, elements]
        last[..., to.to(last.device)] = torch.einsum("rk,...ke->...re", mix, seen) + shift[:, None]
        return last.movedim(-1, tap.axis)

    return rebuild


class Reference:
    """The whole model's outputs on the rows that what-ifs are measured on, and how loss is counted."""

    def __init__(self, context: Context, points: int = 1):
        self.context = context
        probe, options = context.probe, context.options
        odd = np.arange(1, probe.used_rows, 2)
        wanted = min(options.measured_rows, odd.size)
        flops, numbers = _row_cost(context)
        most = int(min(MEASURE_FLOPS / max(points * flops, 1), MEASURE_NUMBERS / numbers))
        self.rows = min(wanted, max(FEWEST_ROWS, most))
        self.notes = [] if self.rows == wanted else [
            f"What-ifs were measured on {self.rows} of {wanted} rows, because each of {points} points runs the whole model."]
        chosen = torch.from_numpy(odd[np.arange(self.rows) * odd.size // self.rows])
        self.inputs = [batch for batch in batches(subset(probe, chosen), context.checkpoint, options.batch_rows)]
        self.output = self._outputs({})
        self.rows = len(self.output)
        labels = None if probe.labels is None else probe.labels[chosen][:self.rows]
        self.labels, self.kind = _loss_kind(self.output, labels)

    def baseline(self) -> dict[str, Any]:
        """Return the whole model's own loss."""
        return {"loss_kind": self.kind, **self._judge(self.output)}

    def measure(self, interventions: Intervene) -> dict[str, Any]:
        """Return loss, accuracy, agreement and KL of the model with these values replaced."""
        return self._judge(self._outputs(interventions))

    def measure_model(self, checkpoint: Checkpoint, interventions: Intervene | None = None) -> dict[str, Any]:
        """Return the same of another checkpoint with the same inputs and outputs."""
        return self._judge(self._outputs(interventions or {}, checkpoint))

    def _outputs(self, interventions: Intervene, other: Checkpoint | None = None) -> torch.Tensor:
        context, checkpoint = self.context, other or self.context.checkpoint
        constants = {key: tensor.to(context.device) for key, tensor in checkpoint.constants.items()}
        tensors = context.tensors if other is None else {k: t.to(context.device) for k, t in other.tensors.items()}
        parts = [run(checkpoint.graph, tensors, constants, batch, intervene=interventions) for batch in self.inputs]
        first = next(i for i, value in enumerate(parts[0]) if value is not None)
        return torch.cat([part[first].float().cpu() for part in parts])

    def _judge(self, output: torch.Tensor) -> dict[str, Any]:
        logits, whole = _as_rows(output), _as_rows(self.output)
        result: dict[str, Any] = {"accuracy": None, "agreement": None, "kl": None, "rows": self.rows}
        if _classes(self.output):
            result["agreement"] = float((logits.argmax(-1) == whole.argmax(-1)).float().mean())
            result["kl"] = float(F.kl_div(logits.log_softmax(-1), whole.log_softmax(-1), log_target=True,
                                          reduction="batchmean"))
        if self.kind == "cross_entropy":
            labels = self.labels.reshape(-1)
            result["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
            return {"loss": float(F.cross_entropy(logits, labels)), **result}
        if self.kind == "mean_squared_error":
            return {"loss": float(F.mse_loss(output, self.labels.reshape(output.shape).float())), **result}
        if self.kind == "kl_to_original":
            return {"loss": max(result["kl"], 0.0), **result}
        scale = float(self.output.square().mean()) or 1.0
        return {"loss": float((output - self.output).square().mean()) / scale, **result}


def _row_cost(context: Context) -> tuple[float, float]:
    """Return (floating-point operations, numbers in the outputs) of one row, counted on one batch of a few rows."""
    inputs = next(batches(subset(context.probe, torch.arange(min(2, context.probe.used_rows))), context.checkpoint, 2), None)
    if inputs is None:  # a model with a fixed batch: count a whole one
        inputs = next(batches(context.probe, context.checkpoint, 2))
    with FlopCounterMode(display=False) as counter:
        outputs = run(context.checkpoint.graph, context.checkpoint.tensors, context.checkpoint.constants, inputs)
    rows = len(next(iter(inputs.values())))
    return counter.get_total_flops() / rows, sum(o.numel() for o in outputs if o is not None) / rows


def subset(probe: Any, rows: torch.Tensor) -> Any:
    """Return the inputs of some rows of a probe set, without their labels."""
    return type(probe)({name: t[rows] for name, t in probe.inputs.items()}, None, len(rows), len(rows), ())


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
