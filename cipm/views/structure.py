"""The artefact of the symmetry page: the facts of the symmetry, and the model's graph with the groups that stand on it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cipm.trace.graph import Graph
from cipm.views.condense import Box, condense, ops_word
from cipm.views.facts import STRUCTURE_FILE, Json, symmetry_facts
from cipm.views.nesting import Leaf, Module, build_tree, module_paths

SCHEMA_VERSION = 1
MOST_READERS = 8
"""A value that no group stands on and that more boxes read (a mask, positions) is drawn on request only."""
Shapes = Mapping[str, tuple[int, ...]]


def write_structure(folder: Path, graph: Graph, symmetry: Json, shapes: Shapes, parameters: tuple[str, ...]) -> None:
    """Write structure.json from the JSON of a Symmetry, the shapes of all stored tensors and the names of the parameters."""
    facts = symmetry_facts(symmetry, shapes, parameters)
    drawing = describe_graph(graph, symmetry, shapes)
    payload = {"schema_version": SCHEMA_VERSION, "symmetry": facts, "graph": drawing}
    (folder / STRUCTURE_FILE).write_text(json.dumps(payload, allow_nan=False))


def describe_graph(graph: Graph, symmetry: Json, shapes: Shapes) -> dict[str, Any]:
    """Return the drawing: modules, boxes, edges and stored tensors, by number; groups and pins by their place in `symmetry`.

    `modules` are listed parents first, as [{path, name, parent}], `parent` −1 at the top. `boxes` are
    [{kind, label, op, module, parent, tensors, groups, pins, pinning}] in an order in which each follows what it reads;
    `pins` are those of its tensors, `pinning` those that it is the reason for. `edges` are [from, to, [groups], quiet].
    """
    boxes = condense(graph, {pin["node"] for pin in symmetry["pins"] if pin["node"]})
    sizes = {key: math.prod(shape) for key, shape in shapes.items()}
    paths = module_paths(boxes, sizes)
    largest = [max(box.tensors, key=lambda key: sizes[key], default="") for box in boxes]
    modules: list[dict[str, Any]] = []
    leaves: dict[int, tuple[int, str]] = {}
    _list(build_tree(boxes, paths), -1, modules, leaves)
    tensors = {key: at for at, key in enumerate(dict.fromkeys(key for box in boxes for key in box.tensors))}
    numbers = {group["name"]: at for at, group in enumerate(symmetry["groups"])}
    carried = {value: [numbers[name] for name in names if name in numbers] for value, names in symmetry["carried"].items()}
    listed = _tensors(tensors, symmetry, shapes)
    pinning = _pinning(boxes, symmetry)
    return {"modules": modules, "tensors": listed, "edges": _edges(boxes, carried),
            "boxes": [{"kind": box.kind, "label": _label(box, leaves[at][1], largest[at]), "op": " · ".join(box.ops),
                       "module": ".".join(path), "parent": leaves[at][0], "tensors": [tensors[key] for key in box.tensors],
                       "groups": _groups_of(box, carried, [listed[tensors[key]] for key in box.tensors]),
                       "pins": [pin for key in box.tensors for pin in listed[tensors[key]]["pins"]],
                       "pinning": pinning[at]}
                      for at, (box, path) in enumerate(zip(boxes, paths, strict=True))]}


def _list(module: Module, at: int, modules: list[dict[str, Any]], leaves: dict[int, tuple[int, str]]) -> None:
    """List the modules inside, parents first, and for every box its module's number and the name it has from there."""
    for child in module.children:
        if isinstance(child, Leaf):
            leaves[child.number] = (at, child.name)
        else:
            modules.append({"path": child.path, "name": child.name, "parent": at})
            _list(child, len(modules) - 1, modules, leaves)


def _tensors(numbers: Mapping[str, int], symmetry: Json, shapes: Shapes) -> list[dict[str, Any]]:
    """Return every tensor of the drawing: its name, shape, [axis, group] pairs and pins."""
    groups: dict[str, list[list[int]]] = defaultdict(list)
    pins: dict[str, list[int]] = defaultdict(list)
    for at, group in enumerate(symmetry["groups"]):
        for place in group["places"]:
            groups[place["tensor"]].append([place["axis"], at])
    for at, pin in enumerate(symmetry["pins"]):
        pins[pin["tensor"]].append(at)
    return [{"name": key, "shape": list(shapes[key]), "groups": groups[key], "pins": pins[key]} for key in numbers]


def _pinning(boxes: list[Box], symmetry: Json) -> list[list[int]]:
    """Return, per box, the pins that its nodes are the reason for; a pin by the output belongs to the output."""
    homes = {name: at for at, box in enumerate(boxes) for name in box.nodes if box.kind == "op"}
    outputs = {name: at for at, box in enumerate(boxes) for name in box.nodes if box.kind != "op"}
    found: list[list[int]] = [[] for _ in boxes]
    for number, pin in enumerate(symmetry["pins"]):
        places = (outputs, homes) if pin["op"] in ("output", "input") else (homes, outputs)
        at = next((place[pin["node"]] for place in places if pin["node"] in place), None)
        if at is not None:
            found[at].append(number)
    return found


def _groups_of(box: Box, carried: Mapping[str, list[int]], tensors: list[dict[str, Any]]) -> list[int]:
    """Return the groups on what a box makes first, then those on the axes of its tensors."""
    made = [group for name in reversed(box.nodes) for group in carried.get(name, ())]
    return list(dict.fromkeys([*made, *(group for tensor in tensors for _, group in tensor["groups"])]))


def _edges(boxes: list[Box], carried: Mapping[str, list[int]]) -> list[list[Any]]:
    readers: dict[int, int] = defaultdict(int)
    found: dict[tuple[int, int], dict[int, None]] = {}
    for at, box in enumerate(boxes):
        for source in box.sources:
            readers[source] += 1
        for value, sources in box.reads.items():
            for source in sources:
                found.setdefault((source, at), {}).update(dict.fromkeys(carried.get(value, ())))
    return [[one, two, list(groups), not groups and readers[one] > MOST_READERS] for (one, two), groups in found.items()]


def _label(box: Box, name: str, largest: str) -> str:
    """Return what is written on a box: its module's name where it is the only box there, else its tensor's, else its op."""
    if box.kind != "op":
        return box.nodes[0] if box.kind == "input" else "output"
    if not box.tensors or name:
        return name if box.tensors else ops_word(box.ops)
    *module, last = largest.split(".")
    if not module or last in ("weight", "bias"):
        return ops_word(box.ops)
    return f"{module[-1]}.{last}" if last.isdigit() else last
