"""What units cost that no weight reads linearly (experts behind a router, query–key units): masked, and the change measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cipm.pruning.consumers import MOST_FEATURES
from cipm.pruning.elimination import Curve, evenly
from cipm.pruning.kept import Kept, Labels
from cipm.pruning.readers import base_name
from cipm.pruning.sequence import Rows, walk_rows
from cipm.pruning.shrink import driven_by_inputs, left_out
from cipm.statistics.sampling import Padding
from cipm.symmetry import SymmetryGroup
from cipm.trace import Node
from cipm.trace.interpret import call_node, last_uses

MOST_UNITS = 256
"""Most units of a group that are masked one by one."""
ENOUGH_ROWS = 128
"""Batches are taken until they have so many rows."""


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a graph that a group changes: its nodes in order, up to the one where all that it changes comes together."""

    nodes: tuple[Node, ...]
    join: str


def masked_curve(labels: Labels, group: SymmetryGroup, rows: Rows) -> Curve:
    """Return the cost of keeping each number of units, measured where all that they change comes together again.

    Each unit is masked alone (zero wherever it is stored, −∞ for its scores where units are weighed against each other), which
    gives the order: the least change goes first. The cost of each size is then measured with all that go masked together, so
    a router's choice among the others counts; that others could take over for them does not. Units of groups in blocks go in
    rounds of one from each block; sizes between are interpolated, and fewer than can be kept cost as much as the fewest.

    cost[k] is the expected squared change per row, at the first sum after the group with what does not depend on it (the
    shortcut around the layer), or else at the outputs. Cost: 2 × units runs of the nodes in between on about ENOUGH_ROWS rows.

    Source: leaving out experts by what they give to the layer's output, as in Lu et al. 2024, "Not All Experts are Equal"
    (there by search over subsets, here nested).
    """
    batches = _few(rows)
    region = find_region(labels, group)
    outside = _recorded(labels, region, batches)
    whole = [_run(labels, region, None, values) for values in outside]
    padding = [Padding.of(batch) for batch in batches]
    count = sum(len(next(iter(batch.values()))) for batch in batches)

    def change(removed: np.ndarray) -> float:
        kept = labels.what_stays({group.name: np.setdiff1d(np.arange(group.size), removed)})
        made = (_run(labels, region, kept, values) for values in outside)
        return sum(_difference(one, other, real) for one, other, real in zip(made, whole, padding, strict=True)) / count

    alone = np.array([change(np.array([unit])) for unit in range(group.size)])
    order = np.array(evenly(np.argsort(alone, kind="stable"), group.size // group.blocks), dtype=np.int64)
    sizes = range(max(group.least, group.blocks), group.size, group.blocks)
    known = {size: change(order[:group.size - size]) for size in sizes} | {group.size: 0.0}
    cost = np.interp(np.arange(group.size + 1), list(known), list(known.values()))
    return Curve(order, np.maximum.accumulate(cost[::-1])[::-1], 0.0, _notes(alone, count))


def find_region(labels: Labels, group: SymmetryGroup) -> Region:
    """Return the nodes that a group changes, up to the first sum of all that with something else (else to the last node that
    everything goes through, or to the output)."""
    graph = labels.checkpoint.graph
    kept = labels.what_stays({group.name: range(0, group.size, group.size // group.blocks)})
    sources = {name for name, key in graph.tensors.items() if any(place.tensor == key for place in group.places)}
    sources |= set(left_out(graph, kept))
    last = {name: number for number, names in last_uses(graph).items() for name in names}
    driven, changed, nodes = driven_by_inputs(graph), set(sources), []
    cut = 0
    for number, node in enumerate(graph.nodes):
        if node.name not in changed and changed.isdisjoint(node.refs()):
            continue
        before = set(changed)
        changed.add(node.name)
        nodes.append(node)
        alive = {name for name in changed if last.get(name, len(graph.nodes)) > number}
        if alive != {node.name} or kept.touches(node.name) or node.name not in driven:
            continue
        cut = len(nodes)
        if base_name(node) == "add" and any(name in driven and name not in before for name in node.refs()):
            break
    cut = cut or len(nodes)
    return Region(tuple(nodes[:cut]), nodes[cut - 1].name)


def _few(rows: Rows) -> Rows:
    chosen, count = [], 0
    for batch in rows:
        if count < ENOUGH_ROWS:
            chosen.append(batch)
            count += len(next(iter(batch.values())))
    return chosen


def _recorded(labels: Labels, region: Region, batches: Rows) -> list[dict[str, Any]]:
    """Return what the region reads from outside of it, for each batch."""
    inside = {node.name for node in region.nodes}
    found: list[dict[str, Any]] = [{} for _ in batches]

    def note(node: Node, values: Mapping[str, list[Any]]) -> None:
        if node.name in inside:
            for name in node.refs():
                for batch, kept in enumerate(found):
                    if name not in inside:
                        kept[name] = values[name][batch]

    walk_rows(labels.checkpoint, batches, note)
    return found


def _run(labels: Labels, region: Region, kept: Kept | None, outside: Mapping[str, Any]) -> torch.Tensor:
    """Return the value of the region's join; with `kept` that of the masked model."""
    values, tensors = dict(outside), labels.checkpoint.graph.tensors
    masks = {} if kept is None else left_out(labels.checkpoint.graph, kept)
    if kept is not None:
        values |= {name: kept.zeroed(value, tensors[name]) for name, value in outside.items() if name in tensors}
    with torch.no_grad():
        for node in region.nodes:
            made = call_node(node, values, None, torch.device("cpu"))
            values[node.name] = masks[node.name](made) if node.name in masks else made
    return values[region.join]


def _difference(one: torch.Tensor, other: torch.Tensor, padding: Padding) -> float:
    """Return the sum of squares of a change, without the positions that are padding."""
    change = (one - other).double().square()
    mask = padding.about(tuple(change.shape), change.ndim - 1)[0]
    if mask is not None:
        change = change.flatten(2).sum(-1)[torch.from_numpy(mask)]
    return float(change.sum())


def _notes(alone: np.ndarray, rows: int) -> tuple[str, ...]:
    silent = int((alone == 0).sum())
    said = (f"No weight of at most {MOST_FEATURES:,} inputs reads these units linearly: what they cost was measured by masking "
            f"them, on {rows} rows.")
    return (said,) if not silent else (said, f"{silent} of {alone.size} units changed nothing on {rows} rows: other rows may "
                                       "show what they are for.")


__all__ = ["ENOUGH_ROWS", "MOST_UNITS", "Region", "find_region", "masked_curve"]
