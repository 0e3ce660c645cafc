"""Positions that no op reads: rows of a table beyond the longest index. They may hold anything, and are no group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cipm.rules import Value
from cipm.symmetry.structure import Family, Structure
from cipm.symmetry.walk import Spot, Walk
from cipm.trace.graph import Graph


def without_unread(graph: Graph, walked: Walk, structure: Structure,
                   families: Sequence[Family]) -> tuple[list[Family], list[str]]:
    """Return the families that some op reads, and a note on the others.

    Those stand on one stored axis alone, every op that reads it gives other positions of it on, and no value of the graph has
    theirs.
    """
    alone = {family: structure.axes[spots[0]] for family in families if (spots := _axes(structure, family)).size == 1}
    if not alone:
        return list(families), []
    shown = {value.name: _classes(value, structure) for value in walked.values}
    read = np.zeros(structure.pin.size, bool)
    for classes in shown.values():
        read[classes] = True
    read[structure.routed[1][read[structure.routed[0]]]] = True
    unread = {family: spot for family, spot in alone.items() if not read[structure.members(family.units)[1]].any()
              and _given_on(graph, walked, structure, shown, spot)}
    return [family for family in families if family not in unread], _said(walked, unread)


def _said(walked: Walk, unread: dict[Family, Spot]) -> list[str]:
    named = [f"{family.units.size} of {walked.atoms[spot].size} of {spot[0]!r} (axis {spot[1]})"
             for family, spot in unread.items()]
    more = f" and of {len(named) - 3} more axes" if len(named) > 3 else ""
    return [f"Positions that no op reads may hold anything, and are no group: {', '.join(named[:3])}{more}."] if named else []


def _axes(structure: Structure, family: Family) -> np.ndarray:
    """Return the numbers of the stored axes on which the units stand, with all that they carry."""
    _, rows = structure.where.gather(structure.members(family.units)[1])
    return np.unique(rows[:, 0])


def _classes(value: Value, structure: Structure) -> np.ndarray:
    axes = [axis.ravel() for axis in (*value.axes, value.codes) if isinstance(axis, np.ndarray)]
    return structure.class_of[np.concatenate([np.zeros(0, np.int64), *axes])]


def _given_on(graph: Graph, walked: Walk, structure: Structure, shown: dict[str, np.ndarray], spot: Spot) -> bool:
    """Tell whether every op that reads the tensor of an axis has some of its positions in what it gives."""
    own = structure.class_of[walked.atoms[spot].ravel()]
    names = {name for name, key in graph.tensors.items() if key == spot[0]}
    readers = {node.name for node in graph.nodes if not names.isdisjoint(node.refs())}
    parts = {node.name: node.args[0].name for node in graph.nodes if node.op == "getitem"}
    given = {parts.get(name, name) for name, classes in shown.items()
             if (name in readers or parts.get(name) in readers) and np.isin(classes, own).any()}
    return bool(readers) and readers <= given
