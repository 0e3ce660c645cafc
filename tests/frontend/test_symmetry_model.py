"""The rows and words of the symmetry page, and that its parts render whatever a report holds."""

from __future__ import annotations

import json
from typing import Any

import plotly.utils
import pytest

from frontend import symmetry_model as sm
from frontend.pages import symmetry, symmetry_parts

CONV = "aten.conv2d.default"
PAGE = {"id": "abc", "share": None, "read_only": False}


def group(name: str, size: int = 8, blocks: int = 1, parent: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "units", "size": size, "blocks": blocks, "parent": parent, "proved": True,
            "log10_members": 4.6, "structure": "S₈", "parameters": 72, "taps": [],
            "places": [{"tensor": "fc.weight", "axis": 0, "length": 8, "elements": 1}], **fields}


def report(**changes: Any) -> dict[str, Any]:
    pins = [{"tensor": "conv.weight", "axis": axis, "length": 3, "op": CONV, "node": "conv", "reason": "it slides"}
            for axis in (2, 3)]
    pins += [{"tensor": "lost", "axis": 0, "length": 5, "op": "none", "node": "", "reason": "nothing reads it"}]
    facts = {"parameters": 100, "movable": 95, "movable_share": 0.95, "log10_equivalents": 9.2, "structure": "S₈²",
             "groups": [group("units", 12, 4, "heads"), group("heads", 4), group("fc")], "pins": pins,
             "reasons": [{"reason": "nothing reads it", "pins": [2], "ops": [], "parameters": 5, "share": 0.05},
                         {"reason": "it slides", "pins": [0, 1], "ops": [CONV], "parameters": 0, "share": 0.0}],
             "certificate": None, "continuous": [], "notes": []} | changes
    boxes = [{"kind": "op", "label": "conv", "op": "conv2d", "module": "net.conv", "parent": -1, "tensors": [0], "groups": [2],
              "pins": [0, 1], "pinning": [0, 1]}]
    tensors = [{"name": "conv.weight", "shape": [8, 4, 3, 3], "groups": [[0, 2]], "pins": [0, 1]}]
    return {"schema_version": 1, "symmetry": facts, "graph": {"modules": [], "boxes": boxes, "edges": [], "tensors": tensors}}


def said(component: Any) -> str:
    """Return a component as the browser gets it; lists inside lists, which React refuses, are told from children."""
    payload = json.loads(json.dumps(component.to_plotly_json(), cls=plotly.utils.PlotlyJSONEncoder))
    _no_nested_lists(payload)
    return json.dumps(payload, ensure_ascii=False)


def _no_nested_lists(payload: Any) -> None:
    if isinstance(payload, dict):
        children = (payload.get("props") or {}).get("children")
        assert not (isinstance(children, list) and any(isinstance(child, list) for child in children)), children
        for value in payload.values():
            _no_nested_lists(value)
    elif isinstance(payload, list):
        for value in payload:
            _no_nested_lists(value)


def test_an_address_gives_a_view_whatever_it_says() -> None:
    assert sm.View.parse({"group": "fc", "node": "b3", "junk": "1"}) == sm.View("fc", "b3")
    assert sm.View.parse(None) == sm.View()
    found = report()
    assert sm.chosen_group(found["symmetry"], "nosuch") is None and sm.chosen_group(found["symmetry"], "fc")[0] == 2
    assert [sm.chosen_box(found["graph"], key) for key in (None, "", "m0", "b1", "b-1", "bx", "b²", "b")] == [None] * 8
    assert sm.chosen_box(found["graph"], "b0")["label"] == "conv"


def test_addresses_lead_between_the_pages_of_an_owner_and_of_a_share() -> None:
    assert sm.symmetry_address(PAGE, group="a b&c") == "/a/abc/symmetry?group=a+b%26c"
    assert sm.analysis_address({**PAGE, "share": "tok"}, group=None) == "/s/tok"


@pytest.mark.parametrize(("made", "number", "text"), [
    (group("g", 4, log10_members=1.38), ("24", ""), "4! orders"),
    (group("g", 192, log10_members=356.9), ("10", "357"), "192! orders"),
    (group("g", 48, 4, log10_members=34.7), ("10", "35"), "12! orders within each of 4 blocks"),
    (group("g", 4, 2, log10_members=0.6), ("4", ""), "2! orders within each of 2 blocks"),
    (group("g", 4, 4, log10_members=0.0), ("1", ""), "1! orders within each of 4 blocks")])
def test_members_of_a_group(made: dict[str, Any], number: tuple[str, str], text: str) -> None:
    assert (sm.members_number(made), sm.members_words(made)) == (number, text)


def test_pins_and_reasons_as_lines() -> None:
    found = report()
    rows = sm.pin_rows(found["symmetry"], found["graph"])
    assert [(row.tensor, row.op, row.box) for row in rows] == [("conv.weight", "conv2d", "b0")] * 2 + [("lost", "–", None)]
    assert "conv.weight axis 3 3 conv2d it slides" in rows[1].search
    first, second = sm.reason_rows(found["symmetry"], examples=1)
    assert (first.reason, first.ops, first.parameters, first.examples) == ("Nothing reads it", "–", 5, "lost axis 0")
    assert (second.axes, second.examples) == (2, "conv.weight axis 2 and 1 more")


def test_groups_keep_their_number_and_so_their_colour_in_reading_order() -> None:
    assert [(number, row.name, row.depth) for number, row in sm.group_rows(report()["symmetry"])] == [
        (1, "heads", 0), (0, "units", 1), (2, "fc", 0)]


def test_the_proof_of_a_group_where_the_certificate_has_one() -> None:
    proofs = [{"name": "fc", "max_abs": 1e-16, "max_rel": 2e-16, "negative_control": 0.3, "passed": True}]
    facts = report(certificate={"passed": True, "groups": proofs})["symmetry"]
    assert sm.group_proof(facts, "fc") == [("Relative", "2.0e−16"), ("Negative control", "0.3"), ("Passed", "yes")]
    assert sm.group_proof(facts, "heads") == [] == sm.group_proof(report()["symmetry"], "fc")


FREEDOM = {"kind": "scale", "name": "fc", "group": "fc", "units": 8, "blocks": 2, "dimension": 8, "conditions": ["positive"],
           "proved": True, "certificate": {"max_rel": 1e-15, "passed": True}, "places": []}


@pytest.mark.parametrize("changes", [
    {}, {"groups": [], "structure": "1", "log10_equivalents": 0.0}, {"pins": [], "reasons": []}, {"continuous": [FREEDOM]},
    {"certificate": {"passed": True, "draws": 2, "max_rel": 1e-16, "max_abs": 1e-15, "tolerance": 1e-10, "dtype": "float64",
                     "inputs": "x", "negative_control": 0.1, "groups": []}, "notes": ["a note"]}])
def test_every_part_renders(changes: dict[str, Any]) -> None:
    found = report(**changes)
    if changes:
        found["graph"]["boxes"], found["graph"]["tensors"] = [], []
    assert "Symmetry groups" in said(symmetry_parts.legend(found["symmetry"]))
    assert "Equivalent forms" in said(symmetry.head({"title": "t"}, found["symmetry"], PAGE))
    text = said(symmetry_parts.tables(found))
    assert "What may not move, and why" in text and ("Beyond permutations" in text) == bool(changes.get("continuous"))
    assert "Choose a group" in said(symmetry_parts.panel(found, PAGE, sm.View("nosuch", "b99"), True))


def test_the_panel_of_a_group_and_of_a_box() -> None:
    done = said(symmetry_parts.panel(report(), PAGE, sm.View("units", "b0"), True))
    assert "/a/abc?group=units" in done and "Open in the heatmap view" in done and "conv.weight" in done and "it slides" in done
    assert '"data-graph-group": "heads"' in done  # the group that it is inside of
    early = said(symmetry_parts.panel(report(), PAGE, sm.View("units", None), False))
    assert "Open in the heatmap view" not in early and "come when the analysis is done" in early
