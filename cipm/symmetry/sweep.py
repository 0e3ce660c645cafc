"""Run a model once, and beside it any number of reordered variants, each only where it differs: the proof by parts.

The reference goes through the whole graph node by node. A variant of one group is computed where the group's units stand; where
they are gone again its value must equal the reference, and the reference takes over. So a group costs its own
layers alone, every tensor is read once, and a model larger than memory can be proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.permutation import Plan
from cipm.trace.graph import Node
from cipm.trace.interpret import call_node, cast, last_uses, read_stored, taken_in_parts

CPU = torch.device("cpu")
SMALL = 1e-6
"""A result this much smaller than its operands is compared on their scale: it is what cancellation left."""


@dataclass(frozen=True)
class Variant:
    """A plan, and the names of the values that its units stand on; None: compare at the model's outputs alone.

    A variant that comes further from the reference than `enough` (relative) is followed no more.
    """

    plan: Plan
    carried: AbstractSet[str] | None
    enough: float = float("inf")


@dataclass
class Difference:
    """The largest difference seen so far, absolute and relative; `count` values were compared."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    count: int = 0

    def add(self, absolute: float, relative: float) -> None:
        """Take one more comparison in; what is not a number counts as infinite."""
        self.max_abs = max(self.max_abs, absolute if absolute == absolute else float("inf"))
        self.max_rel = max(self.max_rel, relative if relative == relative else float("inf"))
        self.count += 1


@dataclass
class _Run:
    variant: Variant
    keys: frozenset[str]
    difference: Difference = field(default_factory=Difference)
    values: dict[str, Any] = field(default_factory=dict)

def sweep(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor], variants: Sequence[Variant], *,
          dtype: torch.dtype = torch.float64) -> list[Difference]:
    """Return how far each variant is from the reference on these inputs.

    Cost: one forward pass, and for each variant the nodes that it changes. Memory: the live values of both.
    Raises UnsupportedModel where the model itself cannot run.
    """
    graph = checkpoint.graph
    reference: dict[str, Any] = {n: cast(checkpoint.constants[key], dtype) for n, key in graph.constants.items()}
    reference |= {i.name: cast(inputs[i.name], dtype) for i in graph.inputs}
    runs = [_Run(variant, frozenset(key for key, _ in variant.plan.axes)) for variant in variants]
    last, parts = last_uses(graph), taken_in_parts(graph)
    with torch.no_grad():
        for step, node in enumerate(graph.nodes):
            for name in node.refs():
                if name not in reference:
                    reference[name] = read_stored(checkpoint.tensors, graph, name, dtype, parts)
            reference[node.name] = call_node(node, reference, dtype, CPU)
            for run in runs:
                _follow(run, node, reference, graph.tensors, dtype)
            for name in last.get(step, ()):
                for values in (reference, *(run.values for run in runs)):
                    values.pop(name, None)
        for ref in graph.outputs:
            for run in runs:
                if ref is not None and ref.name in run.values:
                    run.difference.add(*compare([reference[ref.name]], [run.values[ref.name]]))
    return [run.difference for run in runs]


def _follow(run: _Run, node: Node, reference: Mapping[str, Any], stored: Mapping[str, str], dtype: torch.dtype) -> None:
    """Compute one node of a variant where it reads what differs; compare where the result should differ no more."""
    names = list(node.refs())
    changed = {name: run.values[name] for name in names if name in run.values}
    moved = {name for name in names if stored.get(name) in run.keys}
    if run.difference.max_rel > run.variant.enough or not (changed or moved):
        return
    operands = {name: reference[name] for name in names} | changed
    operands |= {name: run.variant.plan.move(stored[name], reference[name]) for name in moved}
    try:
        result = call_node(node, operands, dtype, CPU)
    except UnsupportedModel:
        run.values.clear()
        run.difference.add(float("inf"), float("inf"))
        return
    if isinstance(result, tuple | list) or run.variant.carried is None or node.name in run.variant.carried:
        run.values[node.name] = result
    elif isinstance(result, torch.Tensor):
        run.difference.add(*_apart(reference[node.name], result, operands.values()))


def compare(first: Sequence[torch.Tensor | None], second: Sequence[torch.Tensor | None]) -> tuple[float, float]:
    """Return (largest absolute, largest relative) difference; relative to the largest output of the same sample."""
    max_abs = max_rel = 0.0
    for a, b in zip(first, second, strict=True):
        if a is None or b is None or a.numel() == 0:
            continue
        rows_a, rows_b = (_numbers(t).reshape(t.shape[0] if t.ndim else 1, -1) for t in (a, b))
        difference = _difference(rows_a, rows_b).amax(1)
        scale = torch.maximum(_finite(rows_a).amax(1), _finite(rows_b).amax(1)).clamp_min(torch.finfo(torch.float64).tiny)
        max_abs = max(max_abs, float(difference.max()))
        max_rel = max(max_rel, float((difference / scale).max()))
    return max_abs, max_rel


def _apart(reference: torch.Tensor, result: torch.Tensor, operands: Any) -> tuple[float, float]:
    """Return (absolute, relative) difference of a value inside the model, relative to its largest entry."""
    if reference.numel() == 0 or torch.equal(reference, result):
        return 0.0, 0.0
    absolute = float(_difference(_numbers(reference), _numbers(result)).max())
    largest = max((_largest(t) for t in operands if isinstance(t, torch.Tensor) and t.numel()), default=0.0)
    return absolute, absolute / max(float(_finite(_numbers(reference)).max()), SMALL * largest, torch.finfo(torch.float64).tiny)


def _largest(tensor: torch.Tensor) -> float:
    """Return the largest finite magnitude; without a copy where all are finite, as the weights of a large model are."""
    if tensor.is_floating_point():
        low, high = (float(end) for end in tensor.aminmax())
        if math.isfinite(low) and math.isfinite(high):
            return max(-low, high)
    return float(_finite(_numbers(tensor)).max())


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def _difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return |a − b|, where equal infinities and NaN in both count as equal, and anything beside NaN as infinite."""
    alike = (a == b) | (a.isnan() & b.isnan())
    distance = (a - b).abs()
    return distance.masked_fill(distance.isnan(), torch.inf).masked_fill(alike, 0.0)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return values.abs().masked_fill(~values.isfinite(), 0.0)
