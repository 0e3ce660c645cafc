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
    samples, of: "rows"|"positions", labels: [class], sizes: [samples of each], selectivity: [η²], preferred: [class],
    chance}, classes_words: [why there are none, or not of all rows]}. Means and deviations are over all samples; low, high,
    quantiles and `extreme` over one sample of every row; classes over the rows' means where rows have labels (`of`: `rows`
    of them), and over all samples where positions have (`rows` is null). Positions of a row are alike, so that `chance`
    (for independent samples) is then too low.
    """
    if tap.key not in statistics:
        return None
    whole, profile, labels = statistics[tap.key].whole, statistics.profile(tap.key), statistics.facts(tap.key)["labels"]
    idle, ends = profile.finalise(), profile.activity.range
    deviation = np.sqrt(whole.variance) if whole.samples > 1 else np.zeros(whole.units)
    return {"rows": statistics[tap.key].rows, "samples": profile.samples, "range": [ends.lower, ends.upper],
            "dead": _units(whole.dead), "never_active": _units(idle.never_active & whole.dead),
            "saturated": _units(idle.saturated), "extreme": idle.extreme.tolist(),
            "mean": whole.mean.tolist(), "sd": deviation.tolist(),
            "low": profile.histogram.low.tolist(), "high": profile.histogram.high.tolist(),
            "quantiles": {str(share): profile.histogram.quantile(share).tolist() for share in QUANTILES},
            "classes": _classes(profile.classes, labels["of"]), "classes_words": labels["words"]}


def class_means(statistics: StoredStatistics, tap: Tap) -> np.ndarray | None:
    """Return the mean activation [classes, units] of each class over its rows or positions, or None without classes.

    A class without samples has zeros.
    """
    classes = statistics.profile(tap.key).classes if tap.key in statistics else None
    return None if classes is None or not classes.samples else classes.finalise()


def class_correlations(statistics: StoredStatistics, tap: Tap) -> dict[str, tuple[np.ndarray, int]]:
    """Return {name: (correlation [units, units], samples)}: "within" classes, and of each class that has two samples by its
    number; nothing where they were not collected class by class."""
    found = statistics.by_class(tap.key)
    known = [] if found is None else np.flatnonzero(found.counts > 1).tolist()
    within = {"within": (found.within_correlation(), found.samples)} if known else {}
    return within | {str(label): (found.correlation_of(label), int(found.counts[label])) for label in known}


def class_labels(labels: torch.Tensor | None) -> np.ndarray | None:
    """Return the classes [rows] or [rows, positions…] (negative: none), or None where labels are no classes, or too many."""
    return None if labels is None or why_no_classes(labels) else labels.numpy()


def why_no_classes(labels: torch.Tensor) -> str | None:
    """Return in words why there are no statistics by class with these labels, or None where there are."""
    if labels.is_floating_point():
        return "There are no statistics by class: the labels are numbers, not classes."
    if not labels.numel() or int(labels.max()) < 0:
        return "There are no statistics by class: no label is 0 or more, and negative ones belong to no class."
    if int(labels.max()) >= MOST_CLASSES:
        return (f"There are no statistics by class: labels reach {int(labels.max()):,}, and classes are told apart up to "
                f"{MOST_CLASSES - 1:,}.")
    return None


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
        value = node.refs()[0]
    return None


def _classes(classes: Any, of: str | None) -> dict[str, Any] | None:
    if classes is None or not classes.samples:
        return None
    labels = np.flatnonzero(classes.counts)
    present = len(labels)
    return {"count": present, "rows": classes.samples if of == "rows" else None, "samples": classes.samples, "of": of,
            "labels": labels.tolist(), "sizes": classes.counts[labels].tolist(),
            "selectivity": classes.selectivity().tolist(), "preferred": classes.preferred().tolist(),
            "chance": min(1.0, (present - 1) / max(classes.samples - 1, 1))}


def _units(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()
