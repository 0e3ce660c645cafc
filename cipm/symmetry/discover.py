"""Graph × rules → symmetry groups with their places, taps and pins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import View
from cipm.rules import RANKED, Consumer, Fixed, Value
from cipm.symmetry.groups import Pin, Place, Symmetry, SymmetryGroup
from cipm.symmetry.probing import probe_notes
from cipm.symmetry.refine import find_candidates, told_apart
from cipm.symmetry.shapes import Observed, observe
from cipm.symmetry.structure import Family, Structure, Table, build_structure, find_families, unique_pairs, unit_places
from cipm.symmetry.taps import Chosen, Tap
from cipm.symmetry.unread import without_unread
from cipm.symmetry.walk import Spot, Walk, example_inputs, walk
from cipm.trace.graph import Graph

ROUNDS = 4
"""How often the graph is walked again, without what could not be told apart."""


def discover_groups(checkpoint: Checkpoint, *, seed: int = 0) -> Symmetry:
    """Find every permutation symmetry that the rules can see, not yet proved.

    Returns: a Symmetry without certificate; groups are listed inner levels first.
    Raises: UnsupportedModel where the graph does not run.
    Source: labels and union-find as in docs/design.md; for MLPs and ResNets the result equals the hand-written
    specifications of Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023).
    """
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed))
    walked, structure, families, left_out = _finest(checkpoint, inputs)
    names = _names(structure, families, _read_axes(walked), checkpoint)
    carried = _carried(families, names, structure, walked)
    parents = _parents(families, names, structure)
    groups = _with_kinds(tuple(_group(family, names[family], parents[family], structure, walked, checkpoint, carried)
                               for family in families))
    notes = (*checkpoint.origin.get("notes", ()), *probe_notes(walked.book.probed), *left_out)
    pins = _pins(checkpoint, structure, groups, families, walked)
    return Symmetry(groups, pins, None, _movable_share(checkpoint, groups), notes, carried)


def _finest(checkpoint: Checkpoint,
            inputs: Mapping[str, torch.Tensor]) -> tuple[Walk, Structure, list[Family], list[str]]:
    """Walk, and walk again with finer labels where units may be told apart for every slice of a stack."""
    observed = observe(checkpoint, inputs)
    first = walked, structure, families, unread = _walked(checkpoint, inputs, observed, {})
    candidates, many = find_candidates(checkpoint, walked, structure, families, _filters(checkpoint.graph))
    notes = [f"{many} stack{'s' * (many > 1)} of tensors {'have' if many > 1 else 'has'} too many units to tell those of "
             "its slices apart: they move alike"] if many else []
    for _ in range(ROUNDS):
        if not candidates:
            break
        views = {spot: view for candidate in candidates for spot, view in candidate.views.items()}
        made = _walked(checkpoint, inputs, observed, views)
        held = [found for candidate in candidates if (found := told_apart(candidate, *made[:3]))]
        if held == candidates:
            return *made[:3], notes + unread
        candidates = held
    return *first[:3], notes + unread


def _walked(checkpoint: Checkpoint, inputs: Mapping[str, torch.Tensor], observed: Observed,
            views: Mapping[Spot, View]) -> tuple[Walk, Structure, list[Family], list[str]]:
    walked = walk(checkpoint, inputs, views=views, observed=observed)
    structure = build_structure(walked)
    return walked, structure, *without_unread(checkpoint.graph, walked, structure, find_families(structure))


def _carried(families: Sequence[Family], names: Mapping[Family, str], structure: Structure,
             walked: Walk) -> dict[str, tuple[str, ...]]:
    """Return for every value the groups whose units, or what they carry, stand on its axes."""
    pairs = [(structure.members(family.units)[1], number) for number, family in enumerate(families)]
    owners = Table.of(np.concatenate([np.zeros(0, np.int64), *(classes for classes, _ in pairs)]),
                      np.concatenate([np.zeros(0, np.int64), *(np.full(classes.size, number) for classes, number in pairs)]),
                      structure.pin.size)
    number, behind = owners.gather(structure.routed[1])
    chosen = unique_pairs(np.stack([structure.routed[0][number], behind]))
    owners = Table.of(np.concatenate([owners.classes, chosen[0]]), np.concatenate([owners.rows, chosen[1]]), structure.pin.size)
    order = list(names.values())
    known: dict[int, tuple[np.ndarray, list[int]]] = {}

    def groups_on(axis: np.ndarray) -> list[int]:
        if id(axis) not in known:  # many values share an axis; holding it keeps its id
            known[id(axis)] = axis, np.unique(owners.gather(np.unique(structure.class_of[axis]))[1]).tolist()
        return known[id(axis)][1]

    found = {value.name: [g for axis in (*value.axes, value.codes) if isinstance(axis, np.ndarray) for g in groups_on(axis)]
             for value in walked.values}
    return {name: tuple(order[g] for g in dict.fromkeys(groups)) for name, groups in found.items() if groups}


def _parents(families: Sequence[Family], names: Mapping[Family, str], structure: Structure) -> dict[Family, str | None]:
    """Return the innermost of the families that carry the units of each."""
    home = np.full(structure.pin.size, len(families))
    for number, family in enumerate(families):
        home[family.units] = number
    order = [*names.values(), None]
    return {family: order[home[list(family.carriers)].min(initial=len(families))] for family in families}


def _group(family: Family, name: str, parent: str | None, structure: Structure, walked: Walk, checkpoint: Checkpoint,
           carried: Mapping[str, Sequence[str]]) -> SymmetryGroup:
    places = tuple(_place(structure, number, index, checkpoint)
                   for number, index in unit_places(structure, family.units).items())
    owner, classes = structure.members(family.units)
    unit_of = np.full(structure.pin.size, -1)
    unit_of[classes] = owner
    unit_of = unit_of[structure.class_of]
    taps = _taps(unit_of, family.units.size, name, walked, carried)
    chosen = any(value.codes is not None and (unit_of[value.codes] >= 0).any() for value in walked.values)
    kind = "experts" if chosen and parent is None else _kind(family, structure, checkpoint, places, taps)
    return SymmetryGroup(name, kind, family.units.size, family.blocks, parent, places, taps)


def _place(structure: Structure, number: int, index: np.ndarray, checkpoint: Checkpoint) -> Place:
    (key, axis), view = structure.axes[number], structure.views[number]
    return Place(key, axis, checkpoint.meta(key).shape[axis] if view is None else view.length, index, view)


def _with_kinds(groups: tuple[SymmetryGroup, ...]) -> tuple[SymmetryGroup, ...]:
    """Say of units inside experts that they are that, and of other slices of a stack that they are heads."""
    experts = {group.name for group in groups if group.kind == "experts"}
    plain = {group.name for group in groups if group.kind in ("units", "residual stream")}
    slices = {group.parent for group in groups if group.stacked} & plain
    kinds = {group.name: "heads" for group in groups if group.name in slices}
    kinds |= {group.name: "units in experts" for group in groups
              if group.parent in experts and group.kind == "units in heads"}
    return tuple(replace(group, kind=kinds.get(group.name, group.kind)) for group in groups)


def _taps(unit_of: np.ndarray, size: int, name: str, walked: Walk, carried: Mapping[str, Sequence[str]]) -> tuple[Tap, ...]:
    """Return where the group is read by weights; where none reads it, the last value that shows every unit alone.

    `unit_of[label]` is the unit of a label, −1 for none.
    """
    readers: dict[tuple[str, int], tuple[Tap, list[tuple[str, int]]]] = {}
    owner = walked.owners()
    for consumer in walked.consumers:
        if name not in carried.get(consumer.value.name, (name,)):
            continue
        tap = _tap(consumer.value, consumer.axis, unit_of, size) or _chosen_tap(consumer, unit_of, size, walked)
        if tap is not None and (place := _stored_axis(consumer.operand, consumer.operand_axis, walked, owner)):
            readers.setdefault((consumer.value.name, consumer.axis), (tap, []))[1].append(place)
    taps = tuple(replace(tap, consumers=tuple(dict.fromkeys(places))) for tap, places in readers.values())
    return taps or _fallback_tap(unit_of, size, [value for value in walked.values if name in carried.get(value.name, ())])


def _fallback_tap(unit_of: np.ndarray, size: int, values: Sequence[Value]) -> tuple[Tap, ...]:
    deeper = None
    for value in reversed(values):
        for axis in range(len(value.axes)):
            tap = _tap(value, axis, unit_of, size)
            if tap is not None and tap.index.shape[1] == 1:
                if tap.outer is None:
                    return (tap,)
                deeper = deeper or tap
    return (deeper,) if deeper else ()


def _tap(value: Value, axis: int, unit_of: np.ndarray, size: int) -> Tap | None:
    """Return the tap of the units on this axis, or None where they do not all stand there alike.

    Where they depend on another axis too, that is the tap's `outer`: positions are those of both, taken as one.
    """
    labels = value.axes[axis]
    wide = [other for other, n in enumerate(labels.shape) if other != axis and n > 1] if isinstance(labels, np.ndarray) else []
    if not isinstance(labels, np.ndarray) or len(wide) > 1 or labels.shape[axis] != value.shape[axis]:
        return None
    outer = wide[0] if wide else None
    index = _index(labels if outer is None else np.moveaxis(labels, (outer, axis), (-2, -1)), unit_of, size)
    return None if index is None else Tap(value.name, axis, index, (), outer)


def _chosen_tap(consumer: Consumer, unit_of: np.ndarray, size: int, walked: Walk) -> Tap | None:
    """Return the tap of units of slices that an index chooses, where what reads them is gathered by the same index."""
    value, axis = consumer.value, consumer.axis
    found = walked.book.chosen(value.axes[axis])
    read = walked.book.chosen(consumer.operand.axes[consumer.operand_axis])
    if found is None or read is None or found[0] != read[0] or value.axes[axis].size != value.shape[axis]:
        return None
    by, positions = walked.indices[found[0]], np.cumprod([n for i, n in enumerate(value.shape) if i != axis])
    index = _index(found[1], unit_of, size)
    if index is None or np.prod(by.shape) not in positions:
        return None
    among = tuple(i for i, own in enumerate(by.axes) if isinstance(own, Fixed) and own.reason == RANKED)
    return Tap(value.name, axis, index, (), None, Chosen(by.name, len(found[1]), among))


def _index(labels: np.ndarray, unit_of: np.ndarray, size: int) -> np.ndarray | None:
    """Return [units, elements] positions of the units among these labels, or None where they do not all stand there alike."""
    units = unit_of[labels.ravel()]
    counts = np.bincount(units[units >= 0], minlength=size)
    if counts[0] == 0 or (counts != counts[0]).any():
        return None
    return np.argsort(np.where(units < 0, size, units), kind="stable")[:size * counts[0]].reshape(size, counts[0])


def _stored_axis(operand: Value, axis: int, walked: Walk, owner: Mapping[int, Spot]) -> Spot | None:
    """Return the stored axis whose labels stand on this axis of a value, as they are or chosen by an index."""
    labels = operand.axes[axis]
    if not isinstance(labels, np.ndarray):
        return None
    chosen = walked.book.chosen(labels)
    return owner.get(int(labels.flat[0] if chosen is None else chosen[1].flat[0]))


def _kind(family: Family, structure: Structure, checkpoint: Checkpoint, places: Sequence[Place],
          taps: Sequence[Tap]) -> str:
    """Return a word for people. Writers are the matrices whose axis no tap reads."""
    read = {consumer for tap in taps for consumer in tap.consumers}
    writers = {p.tensor for p in places if (p.tensor, p.axis) not in read and checkpoint.meta(p.tensor).ndim > 1}
    convolved = not writers.isdisjoint(_filters(checkpoint.graph))
    if family.blocks > 1:
        inner = ("channel groups", "heads") if _carries(structure, family) else ("channels", "units")
        return f"{inner[0]} in groups" if convolved else f"{inner[1]} in {'groups' if inner[1] == 'heads' else 'heads'}"
    if _carries(structure, family):
        return "channel groups" if convolved else "heads"
    if len(writers) > 1 and len(taps) > 1:
        return "residual stream"
    return "channels" if convolved else "units"


def _filters(graph: Graph) -> set[str]:
    """Return the keys of the tensors that convolutions slide, as they are or after a function of weights alone."""
    driven = {i.name for i in graph.inputs}
    keys = {name: {key} for name, key in graph.tensors.items()}
    found: set[str] = set()
    for node in graph.nodes:
        made = set().union(*(keys.get(name, set()) for name in node.refs()))
        if "conv" in node.op:
            found |= made
        if driven.isdisjoint(node.refs()):
            keys[node.name] = made
        else:
            driven.add(node.name)
    return found


def _carries(structure: Structure, family: Family) -> bool:
    """Tell whether the units are nothing but the smaller ones they carry, which are no fixed positions: heads."""
    unit = family.units[0]
    return not structure.where[unit].size and not structure.role[structure.below[unit]].all()


def _read_axes(walked: Walk) -> set[tuple[str, int]]:
    """Return the stored axes that contractions read."""
    owner = walked.owners()
    return {place for c in walked.consumers if (place := _stored_axis(c.operand, c.operand_axis, walked, owner)) is not None}


def _names(structure: Structure, families: Sequence[Family], read: set[tuple[str, int]],
           checkpoint: Checkpoint) -> dict[Family, str]:
    """Name each family after the first module that writes it; a second family of one module gets a number."""
    taken: dict[str, int] = {}
    names: dict[Family, str] = {}
    for family in families:
        name = _base_name(structure, family, read, checkpoint)
        taken[name] = taken.get(name, 0) + 1
        names[family] = name if taken[name] == 1 else f"{name}.{taken[name]}"
    return names


def _base_name(structure: Structure, family: Family, read: set[tuple[str, int]], checkpoint: Checkpoint) -> str:
    keys = [structure.axes[axis] for axis in unit_places(structure, family.units[:1])]
    matrices = [(key, axis) for key, axis in keys if checkpoint.meta(key).numel() > checkpoint.meta(key).shape[axis]]
    writers = [key for key, axis in matrices or keys if (key, axis) not in read] or [key for key, _ in keys]
    base = re.sub(r"[^A-Za-z0-9._-]", "_", writers[0]).removesuffix(".weight").removesuffix(".bias")
    if family.blocks > 1:
        return f"{base}.units"
    return f"{base}.heads" if _carries(structure, family) else base


def _pins(checkpoint: Checkpoint, structure: Structure, groups: Sequence[SymmetryGroup], families: Sequence[Family],
          walked: Walk) -> tuple[Pin, ...]:
    moving = {(place.tensor, place.axis) for group in groups for place in group.places}
    pins = [Pin(key, axis, "none", "", "no op reads this tensor") for key in checkpoint.tensors
            if (key, 0) not in walked.atoms for axis in range(checkpoint.meta(key).ndim)]
    units = _marked(structure, [family.units for family in families])
    moves = _marked(structure, [structure.members(family.units)[1] for family in families])
    for (key, axis), labels in walked.atoms.items():
        classes = structure.class_of[labels.ravel()]
        if (key, axis) in moving:
            held = structure.held[classes[~units[classes]]]
            if (held >= 0).any():
                why = structure.reasons[held[held >= 0][0]]
                pins.append(Pin(key, axis, why.op, why.node, f"it moves, but not within its units: {why.reason}"))
            still = classes[~moves[classes]]
            if still.size:
                why = _first_reason(structure, still, _ALONE)
                pins.append(Pin(key, axis, why.op, why.node,
                                f"{still.size} of its {classes.size} positions may not move: {why.reason}"))
        elif labels.size > 1:
            why = _first_reason(structure, classes, _DISTINCT)
            pins.append(Pin(key, axis, why.op, why.node, why.reason))
    return tuple(pins)


def _marked(structure: Structure, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return for every class whether it is in one of the parts."""
    found = np.zeros(structure.pin.size, bool)
    found[np.concatenate([np.zeros(0, np.int64), *parts])] = True
    return found


def _first_reason(structure: Structure, classes: np.ndarray, otherwise: Fixed) -> Fixed:
    reasons = structure.pin[classes]
    return structure.reasons[reasons[reasons >= 0][0]] if (reasons >= 0).any() else otherwise


_DISTINCT = Fixed("none", "", "no two of its positions play the same role")
_ALONE = Fixed("none", "", "no other position plays the role of one of them")


def _movable_share(checkpoint: Checkpoint, groups: Sequence[SymmetryGroup]) -> float:
    moving = {place.tensor for group in groups for place in group.places} & set(checkpoint.parameter_keys)
    total = checkpoint.parameters
    return sum(checkpoint.meta(key).numel() for key in moving) / total if total else 0.0
