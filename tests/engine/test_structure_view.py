"""What the symmetry page reads: the condensed graph, its tree of modules, and the facts in figures and words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import discover_groups
from cipm.testing.models import cnn_residual, huggingface, mlp
from cipm.trace import from_exported
from cipm.trace.graph import Graph, Input, Node, Ref
from cipm.views.condense import condense
from cipm.views.facts import SINGLE, structure, symmetry_facts
from cipm.views.nesting import MOST_CHILDREN, MOST_DEPTH, build_tree, module_paths
from cipm.views.structure import describe_graph, write_structure
from cipm.views.text import symmetry_lines


def trace(module: nn.Module, *args: torch.Tensor) -> Checkpoint:
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(module.eval(), args, dynamic_shapes=[{0: batch}] * len(args), strict=False)
    return Checkpoint("pt2", *from_exported(program.run_decompositions({})))


def drawing(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (graph, symmetry JSON with every group taken as proved)."""
    symmetry = discover_groups(checkpoint).to_json()
    for group in symmetry["groups"]:
        group["proved"] = True
    return describe_graph(checkpoint.graph, symmetry, shapes(checkpoint)), symmetry


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()}


def chain(ops: list[tuple[str, str, list[str]]], tensors: dict[str, str] | None = None) -> Graph:
    """Return a graph of nodes (name, op, references) on one input x, whose last node is the output."""
    nodes = tuple(Node(name, f"aten.{op}.default", tuple(Ref(ref) for ref in refs)) for name, op, refs in ops)
    return Graph((Input("x", (2, 4), torch.float32),), tensors or {}, {}, nodes, (Ref(ops[-1][0]),))


# ---------------------------------------------------------------- boxes
def test_ops_that_only_move_positions_are_part_of_the_edge() -> None:
    graph = chain([("a", "relu", ["x"]), ("v", "view", ["a"]), ("t", "transpose", ["v"]), ("b", "linear", ["t", "w"])],
                  {"w": "fc.weight"})
    boxes = condense(graph)
    assert [(box.kind, box.ops) for box in boxes] == [("input", ["input"]), ("op", ["relu"]), ("op", ["linear"]),
                                                      ("output", ["output"])]
    assert boxes[2].reads == {"t": (1,)} and boxes[2].tensors == ["fc.weight"]


def test_a_gelu_in_steps_is_one_box_and_a_value_that_others_read_ends_one() -> None:
    steps = [("p", "pow", ["x"]), ("m", "mul", ["p"]), ("s", "add", ["x", "m"]), ("t", "tanh", ["s"]), ("g", "mul", ["x", "t"])]
    assert [box.ops for box in condense(chain(steps))] == [["input"], ["pow", "mul", "add", "tanh", "mul"], ["output"]]
    residual = [("a", "add", ["x", "x"]), ("n", "tanh", ["a"]), ("b", "add", ["a", "n"]), ("c", "add", ["a", "b"])]
    assert [box.ops for box in condense(chain(residual))] == [["input"], ["add"], ["tanh", "add", "add"], ["output"]]


def test_a_norm_in_steps_is_one_box_with_its_weight() -> None:
    steps = [("p", "pow", ["x"]), ("m", "mean", ["p"]), ("r", "rsqrt", ["m"]), ("n", "mul", ["x", "r"]),
             ("o", "mul", ["w", "n"])]
    boxes = condense(chain(steps, {"w": "norm.weight"}))
    assert [(box.ops, box.tensors) for box in boxes[1:2]] == [(["pow", "mean", "rsqrt", "mul", "mul"], ["norm.weight"])]


def test_masks_made_of_nothing_are_left_out_and_nodes_to_keep_stay() -> None:
    ops = [("i", "arange", []), ("j", "unsqueeze", ["i"]), ("v", "view", ["x"]), ("a", "add", ["v", "j"])]
    assert [box.nodes for box in condense(chain(ops))] == [["x"], ["a"], ["a"]]
    assert [box.nodes for box in condense(chain(ops), {"v"})] == [["x"], ["v"], ["a"], ["a"]]


def test_a_long_chain_and_a_dead_branch_are_no_trouble() -> None:
    ops = [("n0", "relu", ["x"])] + [(f"n{i}", "relu", [f"n{i - 1}"]) for i in range(1, 3000)] + [("dead", "view", ["n7"])]
    boxes = condense(chain([*ops, ("end", "relu", ["n2999"])]), {"dead"})
    assert sum(len(box.nodes) for box in boxes if box.kind == "op") == 3002
    assert all(source < at for at, box in enumerate(boxes) for source in box.sources)


# ---------------------------------------------------------------- modules
def test_an_activation_belongs_to_what_is_around_it_and_a_residual_sum_to_the_block_before() -> None:
    checkpoint = trace(cnn_residual(width=4), torch.randn(2, 1, 8, 8))
    found, _ = drawing(checkpoint)
    homes = {(box["module"], box["op"]) for box in found["boxes"] if not box["tensors"] and box["kind"] == "op"}
    assert ("block1", "relu") in homes and ("block2", "relu") in homes
    assert [module["path"] for module in found["modules"]] == ["block1", "block2", "block2.shortcut"]
    blocks = drawing(trace(nn.Sequential(Residual(), Residual(), nn.Linear(4, 2)), torch.randn(2, 4)))[0]
    sums = [box["module"] for box in blocks["boxes"] if box["op"] == "add"]
    assert sums == ["0", "1"]


class Residual(nn.Module):
    """Two layers around a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(x)))


class Shared(nn.Module):
    """One layer used three times, with another between."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same(self.other(self.same(self.other(self.same(x)))))


def test_a_module_used_again_stands_once_per_use_and_the_drawing_runs_one_way() -> None:
    found, _ = drawing(trace(Shared(), torch.randn(2, 6)))
    assert [module["name"] for module in found["modules"]] == ["same", "same (use 2)", "same (use 3)"]
    parts = [box["parent"] if box["parent"] >= 0 else f"box {at}" for at, box in enumerate(found["boxes"])]
    order = list(dict.fromkeys(parts))
    assert all(order.index(parts[one]) <= order.index(parts[two]) for one, two, *_ in found["edges"])


def test_a_model_without_modules_is_cut_into_parts() -> None:
    ops, keys = [], {}
    for i in range(2 * MOST_CHILDREN):
        keys[f"w{i}"] = f"onnx::{i}"
        ops.append((f"n{i}", "linear", ["x" if i == 0 else f"n{i - 1}", f"w{i}"]))
    boxes = condense(chain(ops, keys))
    root = build_tree(boxes, module_paths(boxes, {}))
    assert 2 < len(root.children) <= MOST_CHILDREN and root.children[0].name == "part 1"
    assert sum(len(part.children) for part in root.children) == len(boxes)


def test_names_with_very_many_dots_make_a_tree_of_bounded_depth() -> None:
    graph = chain([("a", "linear", ["x", "w"]), ("b", "linear", ["a", "v"]), ("c", "relu", ["b"]), ("d", "linear", ["c", "u"])],
                  {"w": "a." * 5000 + "weight", "v": "a." * 5000 + "b.weight", "u": "weight"})
    boxes = condense(graph)
    assert max(len(path) for path in module_paths(boxes, {})) == MOST_DEPTH
    assert len(build_tree(boxes, module_paths(boxes, {})).children) == 5


# ---------------------------------------------------------------- the whole drawing
def test_the_drawing_of_an_mlp() -> None:
    checkpoint = trace(mlp((6, 8, 5, 3)), torch.randn(2, 6))
    found, symmetry = drawing(checkpoint)
    names = [group["name"] for group in symmetry["groups"]]
    labels = [(box["label"], [names[g] for g in box["groups"]]) for box in found["boxes"]]
    assert labels == [("x", []), ("layers.0", ["layers.0"]), ("relu", ["layers.0"]), ("layers.1", ["layers.1", "layers.0"]),
                      ("relu", ["layers.1"]), ("layers.2", ["layers.1"]), ("output", [])]
    assert [(one, two, [names[g] for g in groups]) for one, two, groups, quiet in found["edges"] if groups and not quiet] == [
        (1, 2, ["layers.0"]), (2, 3, ["layers.0"]), (3, 4, ["layers.1"]), (4, 5, ["layers.1"])]
    weight = next(tensor for tensor in found["tensors"] if tensor["name"] == "layers.1.weight")
    assert weight["shape"] == [5, 8] and sorted((axis, names[g]) for axis, g in weight["groups"]) == [(0, "layers.1"),
                                                                                                    (1, "layers.0")]
    pinned = {symmetry["pins"][pin]["tensor"] for pin in found["boxes"][-1]["pinning"]}
    assert pinned == {"layers.2.weight", "layers.2.bias"} and found["boxes"][0]["pinning"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_place_of_every_group_and_every_pin_is_in_the_drawing(kind: str) -> None:
    model = huggingface(kind)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.model(tokens, use_cache=False).logits

    found, symmetry = drawing(trace(Logits(), torch.zeros(2, 9, dtype=torch.int64)))
    drawn = {(tensor["name"], axis, group) for tensor in found["tensors"] for axis, group in tensor["groups"]}
    assert drawn == {(p["tensor"], p["axis"], g) for g, group in enumerate(symmetry["groups"]) for p in group["places"]}
    named = {number for number, pin in enumerate(symmetry["pins"]) if pin["node"]}  # others: tensors that no op reads
    assert named == {pin for box in found["boxes"] for pin in box["pins"]}
    assert named == {pin for box in found["boxes"] for pin in box["pinning"]}
    assert all(one < two for one, two, *_ in found["edges"])
    assert len(found["boxes"]) < 50 and all(box["parent"] < len(found["modules"]) for box in found["boxes"])


def test_a_mask_that_every_layer_reads_is_quiet() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            weight = mask.exp()
            for layer in self.layers:
                x = F.relu(layer(x)) * weight
            return x

    found, _ = drawing(trace(Masked(), torch.randn(2, 4), torch.randn(2, 4)))
    quiet = [(one, two) for one, two, _, quiet in found["edges"] if quiet]
    assert len(quiet) == 12 and len({one for one, _ in quiet}) == 1


# ---------------------------------------------------------------- facts
def group(name: str, size: int, blocks: int = 1, parent: str | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "units", "size": size, "blocks": blocks, "parent": parent, "proved": True, "places": [],
            "taps": [], **more}


@pytest.mark.parametrize(("groups", "text"), [
    ([], "1"), ([group("a", 5), group("b", 12), group("c", 5)], "S₁₂ × S₅²"),
    ([group("units", 48, 4, "heads"), group("heads", 4)], "S₁₂ ≀ S₄"),
    ([group("qk", 48, 4, "h"), group("vo", 24, 4, "h"), group("h", 4), group("h2", 4)], "S₄ × ((S₁₂ × S₆) ≀ S₄)"),
    ([group("u", 24, 4, "q"), group("q", 4, 2, "kv"), group("kv", 2)], "(S₆ ≀ S₂) ≀ S₂"),
    ([group("u", 12, 4)], "S₃⁴"), ([group("a", 5, proved=False)], "1"),
    ([group("a", 3, 1, "b"), group("b", 3, 1, "a"), group("c", 2)], "S₂")])
def test_the_group_as_a_product(groups: list[dict[str, Any]], text: str) -> None:
    assert structure(groups) == text


def test_every_parameter_counts_once_as_movable_or_under_a_reason() -> None:
    pins = [{"tensor": "free", "axis": 1, "op": "input", "node": "x", "reason": "it is an input"},
            {"tensor": "held", "axis": 0, "op": "aten.sort", "node": "s", "reason": "it is sorted"},
            {"tensor": "held", "axis": 1, "op": "input", "node": "x", "reason": "it is an input"}]
    place = {"tensor": "free", "axis": 0, "length": 3, "index": [[0], [1], [2]]}
    symmetry = {"groups": [group("g", 3, places=[place])], "pins": pins, "movable_share": 6 / 15, "log10_equivalents": 0.778,
                "certificate": None, "notes": []}
    facts = symmetry_facts(symmetry, {"free": (3, 2), "held": (4, 2), "one": (), "buffer": (9,)}, ["free", "held", "one"])
    assert (facts["parameters"], facts["movable"]) == (15, 6)
    assert [(r["reason"], r["pins"], r["ops"], r["parameters"]) for r in facts["reasons"]] == [
        ("it is sorted", [1], ["aten.sort"], 8), (SINGLE, [], [], 1), ("it is an input", [0, 2], ["input"], 0)]
    assert facts["movable"] + sum(reason["parameters"] for reason in facts["reasons"]) == facts["parameters"]
    assert facts["groups"][0]["places"] == [{"tensor": "free", "axis": 0, "length": 3, "elements": 1}]
    assert facts["groups"][0]["log10_members"] == pytest.approx(math.log10(6))


def test_the_report_in_lines() -> None:
    pins = [{"tensor": f"t{at}", "axis": 0, "op": "output", "node": "", "reason": "it is an output"} for at in range(20)]
    groups = [group("units", 48, 4, "heads"), group("heads", 4), group("loose", 3, proved=False)]
    symmetry = {"groups": groups, "pins": pins, "movable_share": 0.0, "log10_equivalents": 1.0, "certificate": None,
                "notes": []}
    lines = symmetry_lines(symmetry_facts(symmetry, {f"t{at}": (5,) for at in range(20)}, ["t0"]))
    assert lines[0] == "3 groups, 2 of them proved: S₁₂ ≀ S₄"
    assert [line.split()[0] for line in lines[1:4]] == ["heads", "units", "loose"] and "NOT proved" in lines[3]
    assert "; 24 members;" in lines[1] and "; 10^35 members;" in lines[2]
    assert lines[5] == "0 of 5 parameters can move. What may not, and why:"
    assert lines[6] == "  it is an output (output): 20 axes; holds 5 parameters (100.0%)"
    assert len(lines) == 20 and lines[-1] == "    and 8 more (--json lists all)"
    bare = symmetry_facts({**symmetry, "groups": [], "pins": []}, {}, [])
    assert symmetry_lines(bare)[-1] == "0 of 0 parameters can move; no axis is pinned."


def test_what_is_written_is_one_json_file_that_others_can_read(tmp_path) -> None:
    checkpoint = trace(mlp((6, 8, 3)), torch.randn(2, 6))
    symmetry = discover_groups(checkpoint).to_json()
    write_structure(tmp_path, checkpoint.graph, symmetry, shapes(checkpoint), checkpoint.parameter_keys)
    written = json.loads((tmp_path / "structure.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["structure.json"]
    assert written["schema_version"] == 1 and written["symmetry"]["groups"][0]["places"][0]["length"] == 8
    assert written["symmetry"]["log10_equivalents"] == 0 and written["symmetry"]["structure"] == "1"  # nothing is proved yet
