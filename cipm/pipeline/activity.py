"""What each unit does by itself, for the report: idle units, distributions, and the classes that move it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from cipm.pipeline.stored import StoredStatistics
from cipm.statistics import RANGES, ActivationRange
from cipm.symmetry import Tap
from cipm.trace import Graph, Node

MOST_CLASSES = 1000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BOUNDED = {"aten.relu.default": "relu", "aten.relu6.default": "relu6", "aten.sigmoid.default": "sigmoid",
           "aten.tanh.default": "tanh", "aten.hardsigmoid.default": "hardsigmoid", "aten.elu.default": "elu",
           "aten.softplus.default": "softplus", "aten.softmax.int": "softmax", "aten._softmax.default": "softmax"}
"""Operators of which every result lies in a range."""
MOVING = frozenset(("view", "reshape", "_unsafe_view", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand",
                    "clone", "contiguous", "dropout", "slice", "select", "index_select", "max_pool1d", "max_pool2d",
                    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean", "alias", "detach"))
"""Operators of which every result lies among, or between, the values that they read."""


def activity_facts(statistics: StoredStatistics, tap: Tap) -> dict[str, Any] | None:
    """Return what the units of a tap do by themselves, or None where nothing was collected there.

    {rows, samples, range: [lower|null, upper|null], dead, never_active, saturated: [unit], extreme: [share] (of samples at an
    end of the range), mean, sd, low, high: [number], quantiles: {"0.05": [number], …}, classes: null | {count, rows,
    selectivity: [η²], preferred: [class], chance}}. Means and deviations are over all samples; low, high, quantiles and
    `extreme` over one sample of every row; classes over the rows' means.
    """
    if tap.key not in statistics:
        return None
    whole, profile = statistics[tap.key].whole, statistics.profile(tap.key)
    idle, ends = profile.finalise(), profile.activity.range
    deviation = np.sqrt(whole.variance) if whole.samples > 1 else np.zeros(whole.units)
    return {"rows": statistics[tap.key].rows, "samples": profile.samples, "range": [ends.lower, ends.upper],
            "dead": _units(whole.dead), "never_active": _units(idle.never_active & whole.dead),
            "saturated": _units(idle.saturated), "extreme": idle.extreme.tolist(),
            "mean": whole.mean.tolist(), "sd": deviation.tolist(),
            "low": profile.histogram.low.tolist(), "high": profile.histogram.high.tolist(),
            "quantiles": {str(share): profile.histogram.quantile(share).tolist() for share in QUANTILES},
            "classes": _classes(profile.classes)}


def class_means(statistics: StoredStatistics, tap: Tap) -> np.ndarray | None:
    """Return the mean activation [classes, units] of each class over its rows, or None where rows have no classes.

    A class without rows has zeros.
    """
    classes = statistics.profile(tap.key).classes if tap.key in statistics else None
    return None if classes is None or not classes.samples else classes.finalise()


def class_labels(labels: torch.Tensor | None) -> np.ndarray | None:
    """Return the class [rows] of each row (negative: none), or None where the labels are not one class for each row."""
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        return None
    return labels.numpy() if 0 <= int(labels.max()) < MOST_CLASSES else None


def activation_ranges(graph: Graph, values: Iterable[str]) -> dict[str, ActivationRange]:
    """Return the range of each of these values that has one: what made it is bounded, and only moved or pooled since."""
    made = {node.name: node for node in graph.nodes}
    found = {value: _range(made, value) for value in values}
    return {value: ends for value, ends in found.items() if ends is not None}


def _range(made: Mapping[str, Node], value: str) -> ActivationRange | None:
    while (node := made.get(value)) is not None:
        if node.op in BOUNDED:
            return RANGES[BOUNDED[node.op]]
        if node.op == "aten.hardtanh.default":
            return ActivationRange(*(float(node.args[at]) if len(node.args) > at else default
                                     for at, default in ((1, -1.0), (2, 1.0))))
        if not node.op.startswith("aten.") or node.op.split(".")[1] not in MOVING:
            return None
        value = next(node.refs())
    return None


def _classes(classes: Any) -> dict[str, Any] | None:
    if classes is None or not classes.samples:
        return None
    present = int((classes.counts > 0).sum())
    return {"count": present, "rows": classes.samples, "selectivity": classes.selectivity().tolist(),
            "preferred": classes.preferred().tolist(), "chance": min(1.0, (present - 1) / max(classes.samples - 1, 1))}


def _units(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()
