"""Symmetry reports for tests of the page: that of the study's MLP, and of a deep model of equal blocks, by `cipm.views`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cipm.trace.graph import Graph, Input, Node, Ref
from cipm.views.structure import write_structure

PARAMETER = "aten.{}.default"
OUTPUT = "it is an axis of the model's output, which keeps its order"


def mlp_symmetry(folder: Path, study: Path) -> Path:
    """Write the report of the study's MLP into `folder`: its groups and proof are those of the study's own report."""
    report = json.loads((study / "report.json").read_text())
    shapes = {matrix["tensor"]: tuple(reversed(matrix["shape"])) for matrix in report["matrices"] if matrix["tensor"]}
    shapes |= {f"intercepts.{at}": (shapes[f"coefs.{at}"][1],) for at in range(3)}
    nodes, last = [], "x"
    for at in range(3):
        nodes.append(Node(f"linear{at}", PARAMETER.format("addmm"), (Ref(f"b{at}"), Ref(last), Ref(f"w{at}"))))
        last = f"linear{at}"
        if at < 2:
            nodes.append(Node(f"relu{at}", PARAMETER.format("relu"), (Ref(last),)))
            last = f"relu{at}"
    tensors = {f"w{at}": f"coefs.{at}" for at in range(3)} | {f"b{at}": f"intercepts.{at}" for at in range(3)}
    graph = Graph((Input("x", ("batch", shapes["coefs.0"][0]), torch.float32),), tensors, {}, tuple(nodes), (Ref(last),))
    carried = {f"{op}{at}": [f"hidden{at + 1}"] for at in range(2) for op in ("linear", "relu")}
    pins = [pin("coefs.0", 0, "input", "x", "it is an axis of the model's input 'x'"),
            pin("coefs.2", 1, "output", last, OUTPUT), pin("intercepts.2", 0, "output", last, OUTPUT)]
    symmetry = {"groups": [group(made["name"], made["size"], [(p["tensor"], p["axis"]) for p in made["places"]], shapes)
                           for made in report["groups"]],
                "pins": pins, "carried": carried, "notes": [], "continuous": [], "certificate": report["certificate"],
                "movable_share": report["movable_share"], "log10_equivalents": report["log10_equivalents"]}
    return write(folder, graph, symmetry, shapes)


def deep_symmetry(folder: Path, blocks: int) -> Path:
    """Write the report of a residual model with so many blocks of two layers."""
    nodes, tensors, shapes, places, carried = [], {}, {}, [], {}
    groups, last = [], "x"
    for at in range(blocks):
        for part, shape in (("up", (32, 8)), ("down", (8, 32))):
            key = f"blocks.{at}.{part}.weight"
            tensors[f"w_{at}_{part}"], shapes[key] = key, shape
        nodes += [Node(f"up{at}", PARAMETER.format("linear"), (Ref(last), Ref(f"w_{at}_up"))),
                  Node(f"act{at}", PARAMETER.format("gelu"), (Ref(f"up{at}"),)),
                  Node(f"down{at}", PARAMETER.format("linear"), (Ref(f"act{at}"), Ref(f"w_{at}_down"))),
                  Node(f"sum{at}", "aten.add.Tensor", (Ref(last), Ref(f"down{at}")))]
        carried |= {f"up{at}": [f"blocks.{at}.up"], f"act{at}": [f"blocks.{at}.up"]}
        carried |= {f"down{at}": ["stream"], f"sum{at}": ["stream"]}
        places += [(f"blocks.{at}.up.weight", 1), (f"blocks.{at}.down.weight", 0)]
        groups.append(group(f"blocks.{at}.up", 32, [(f"blocks.{at}.up.weight", 0), (f"blocks.{at}.down.weight", 1)], shapes))
        last = f"sum{at}"
    graph = Graph((Input("x", ("batch", 8), torch.float32),), tensors, {}, tuple(nodes), (Ref(last),))
    symmetry = {"groups": [*groups, group("stream", 8, places, shapes)], "pins": [], "carried": carried, "notes": [],
                "continuous": [], "certificate": None, "movable_share": 1.0, "log10_equivalents": 9.0}
    return write(folder, graph, symmetry, shapes)


def group(name: str, size: int, places: list[tuple[str, int]], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return a proved group on whole axes as a Symmetry's JSON has it."""
    standing = [{"tensor": key, "axis": axis, "length": shapes[key][axis], "index": [[unit] for unit in range(size)]}
                for key, axis in places]
    return {"name": name, "kind": "units", "size": size, "blocks": 1, "parent": None, "proved": True, "places": standing,
            "taps": [{"value": "v", "axis": 1, "index": [], "consumers": [list(places[-1])]}]}


def pin(tensor: str, axis: int, op: str, node: str, reason: str) -> dict[str, Any]:
    """Return a pin as a Symmetry's JSON has it."""
    return {"tensor": tensor, "axis": axis, "op": op, "node": node, "reason": reason}


def write(folder: Path, graph: Graph, symmetry: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write structure.json and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_structure(folder, graph, symmetry, shapes, tuple(shapes))
    return folder
