"""What stands around the model's graph: the list of groups, the panel of what is chosen, the tables. Pure layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend import words
from frontend.figures import module_colour
from frontend.widgets import badge, empty, facts

Json = Mapping[str, Any]
MOST_ROWS, OPEN_ROWS, MOST_PLACES, STRUCTURE_SHOWN = 500, 40, 60, 44


def short(structure: str) -> str:
    """Return the group's product, or its beginning where it is long."""
    return structure if len(structure) <= STRUCTURE_SHOWN else f"{structure[:STRUCTURE_SHOWN]}…"


def _dot(group: int) -> html.I:
    return html.I(className="dot", style={"background": module_colour(group)})


# ---------------------------------------------------------------- the list of groups, which is the legend
def legend(found: Json) -> Component:
    """Return the groups with their colours; choosing one is in the address."""
    rows = sm.group_rows(found)
    if not rows:
        return html.Nav(empty("No group was found", "Every axis of this model is pinned; the reasons are below."),
                        className="groups", **{"aria-label": "Symmetry groups"})
    return html.Nav([
        dmc.TextInput(id="group-filter", placeholder="Filter groups", size="xs", mb=8,
                      inputProps={"type": "search", "autoComplete": "off", "aria-label": "Filter groups"}),
        html.Div([_line(number, row) for number, row in rows], id="group-list", role="listbox", className="group-list",
                 **{"aria-label": "Symmetry groups", "data-default": ""}),
        html.P("No group matches.", id="group-none", className="quiet", hidden=True)],
        className="groups", **{"aria-label": "Symmetry groups"})


def _line(number: int, row: vm.GroupRow) -> Component:
    return html.Button([
        html.Span(html.Bdi(row.path), className="group-path") if row.path else None,
        html.Span([html.Span([_dot(number), row.short], className="group-name"),
                   html.Span("✓", className="proved", title="Proved") if row.proved else None], className="group-line"),
        html.Span(row.size_words, className="group-note")],
        type="button", role="option", className="group-row", title=row.name, style={"--depth": str(row.depth)},
        **{"data-key": "group", "data-value": row.name, "data-search": row.search})


# ---------------------------------------------------------------- what is chosen
def panel(report: Json, page: Json, view: sm.View, done: bool) -> Component:
    """Return the chosen group, the chosen box, or how to choose."""
    group, box = sm.chosen_group(report["symmetry"], view.group), sm.chosen_box(report["graph"], view.node)
    if group is None and box is None:
        return empty("Choose a group", "Click a box, a line, or a name in the list: every place that moves with it stands out.")
    parts = [_group(report, *group, page, done)] if group else []
    return html.Div([*parts, *([_box(report, box)] if box else [])], **{"data-panel": view.group or view.node})


def _group(report: Json, number: int, group: Json, page: Json, done: bool) -> Component:
    name = group["name"]
    open_it = (dcc.Link("Open in the heatmap view", href=sm.analysis_address(page, group=name), className="cipm-button") if done
               else html.P("Its heatmaps come when the analysis is done.", className="quiet"))
    rows: list[tuple[str, Any]] = [
        ("Kind", group["kind"]), ("Size", _size(group)),
        ("Members", [*_members(group), f": {sm.members_words(group)}"]), ("Structure", group["structure"]),
        *([("Inside", _choose(group["parent"], group=group["parent"]))] if group["parent"] else []),
        ("Parameters", words.integer(group["parameters"])),
        ("Stands on", words.plural(len(sm.readers(report["graph"], number)), "op"))]
    proof = sm.group_proof(report["symmetry"], name)
    return html.Section([
        html.H2([_dot(number), name]),
        badge("proved", "good", "Reordering this group was proved to preserve the function") if group["proved"]
        else badge("not proved", "warn", "No certificate covers this group"), html.Div(open_it, className="symmetry-open"),
        facts(rows, "facts column"), *([html.H3("Proof"), facts(proof, "facts column")] if proof else []),
        html.H3(f"Moves together ({len(group['places'])})"), _places(group["places"]),
        html.H3(f"Read by ({sum(len(tap['consumers']) for tap in group['taps'])})"), _taps(group["taps"])])


def _size(group: Json) -> str:
    blocks = f" in {words.integer(group['blocks'])} blocks" if group["blocks"] > 1 else ""
    return words.plural(group["size"], "unit") + blocks


def _members(group: Json) -> list[Any]:
    number, exponent = sm.members_number(group)
    return [number, html.Sup(exponent)] if exponent else [number]


def _choose(text: str, **chosen: str | None) -> html.Button:
    """Return a link that chooses a group or a box of the graph."""
    marks = {f"data-graph-{name}": value for name, value in chosen.items()}
    return html.Button(text, type="button", className="cipm-link", **marks)


def _items(items: Sequence[Any]) -> html.Ul:
    """Return a plain list, its end said in words where it is long."""
    more = len(items) - MOST_PLACES
    end = [html.Li(f"and {words.integer(more)} more", className="quiet")] if more > 0 else []
    return html.Ul([*map(html.Li, items[:MOST_PLACES]), *end], className="places")


def _quiet(text: str | None) -> html.Span:
    return html.Span(text, className="quiet")


def _places(places: Sequence[Json]) -> Component:
    return _items([[html.Code(p["tensor"]), f" axis {p['axis']}",
                    _quiet(f" · {words.integer(p['elements'])} positions a unit" if p["elements"] != 1 else None)]
                   for p in places])


def _taps(taps: Sequence[Json]) -> Component:
    read = [[html.Code(tensor), f" axis {axis}"] for tap in taps for tensor, axis in tap["consumers"]]
    return _items(read) if read else html.P(_quiet("No weight reads this group's activations."))


def _box(report: Json, box: Json) -> Component:
    """Return a box's op, tensors with the groups on their axes, groups and pins."""
    found, graph = report["symmetry"], report["graph"]
    tensors = [graph["tensors"][at] for at in box["tensors"]]
    pins = [found["pins"][at] for at in dict.fromkeys([*box["pins"], *box["pinning"]])]
    parts = {"Tensors": [[html.Code(tensor["name"]), " ", _shape(found, tensor)] for tensor in tensors],
             "Groups here": [_choose_group(found, at) for at in box["groups"]],
             "Pinned": [[html.Code(pin["tensor"]), f" axis {pin['axis']}: {pin['reason']}"] for pin in pins]}
    lists = [part for title, items in parts.items() if items for part in (html.H3(title), _items(items))]
    return html.Section([html.H2(box["label"]), html.P([html.Code(box["module"]), " ", _quiet(box["op"])]), *lists],
                        className="chosen-box")


def _choose_group(found: Json, number: int) -> list[Any]:
    name = found["groups"][number]["name"]
    return [_dot(number), _choose(name, group=name)]


def _shape(found: Json, tensor: Json) -> html.Span:
    """Return a tensor's shape with the colours of the groups on its axes."""
    on = {axis: [group for at, group in tensor["groups"] if at == axis] for axis in range(len(tensor["shape"]))}
    parts: list[Any] = []
    for axis, length in enumerate(tensor["shape"]):
        names = ", ".join(found["groups"][group]["name"] for group in on[axis]) or "No group on this axis"
        parts += [" × " if axis else None, html.Span([*map(_dot, on[axis]), words.integer(length)], title=names)]
    return html.Span(parts or "one number", className="shape")


# ---------------------------------------------------------------- tables
def tables(report: Json) -> Component:
    """Return everything as tables: reasons, pins, groups, symmetries beyond permutations, the proof."""
    found = report["symmetry"]
    return html.Div([_reasons(found), _pins(found, report["graph"]), _groups(found), _continuous(found), _proof(found)],
                    className="symmetry-tables")


def _table(heads: Sequence[str], rows: Sequence[Any], className: str, **props: Any) -> html.Table:
    return html.Table([html.Thead(html.Tr([html.Th(text, scope="col") for text in heads])), html.Tbody(rows, **props)],
                      className=className)


def _reasons(found: Json) -> Component:
    rows = [_row([[row.reason, html.Div(row.examples, className="quiet")], html.Code(row.ops), words.integer(row.axes),
                  words.integer(row.parameters), words.percent(row.share)]) for row in sm.reason_rows(found)]
    free = _row(["Can move", None, None, words.integer(found["movable"]), words.percent(found["movable_share"])])
    return html.Section([html.H2("What may not move, and why"),
                         html.P(_quiet("A parameter can move when some axis of its tensor does. Each is counted once.")),
                         _table(["Reason", "Ops", "Axes", "Parameters held", "Share"], [free, *rows], "pins reasons")])


def _row(cells: Sequence[Any], **props: Any) -> html.Tr:
    return html.Tr([html.Td(cell) for cell in cells], **props)


def _pins(found: Json, graph: Json) -> Component:
    rows = sm.pin_rows(found, graph)
    if not rows:
        return html.Section([html.H2("Pinned axes"), html.P(_quiet("No axis is pinned."))])
    lines = [_row([_choose(row.tensor, node=row.box) if row.box else row.tensor, str(row.axis), words.integer(row.length),
                   html.Code(row.op), row.reason], **{"data-search": row.search}) for row in rows[:MOST_ROWS]]
    more = len(rows) - MOST_ROWS
    return html.Section([
        html.Div([html.H2(f"Pinned axes ({words.integer(len(rows))})"),
                  dmc.TextInput(id="pin-filter", placeholder="Filter by tensor, op or reason", size="xs", w=260,
                                inputProps={"type": "search", "autoComplete": "off", "aria-label": "Filter pinned axes"})],
                 className="table-head"),
        _table(["Tensor", "Axis", "Length", "Op", "Reason"], lines, "pins", id="pin-rows"),
        html.P("No pin matches.", id="pin-none", className="quiet", hidden=True),
        html.P(_quiet(f"{words.integer(more)} more are in the answer of the API.")) if more > 0 else None])


def _groups(found: Json) -> Component:
    rows = [_row([[_dot(number), _choose(row.name, group=row.name)], row.kind, words.integer(group["size"]),
                  words.integer(group["blocks"]), group["parent"] or words.NONE, _members(group),
                  words.integer(group["parameters"]), "yes" if row.proved else "no"])
            for number, row in sm.group_rows(found)[:MOST_ROWS] for group in [found["groups"][number]]]
    heads = ["Group", "Kind", "Units", "Blocks", "Inside", "Members", "Parameters", "Proved"]
    return html.Section(html.Details([
        html.Summary(html.H2(f"Groups ({words.integer(len(found['groups']))})")),
        _table(heads, rows, "pins") if rows else html.P(_quiet("No group was found."))], open=len(rows) <= OPEN_ROWS))


def _continuous(found: Json) -> Component | None:
    rows = [_row(cells) for cells in sm.continuous_rows(found)]
    if not rows:
        return None
    more = len(rows) - MOST_ROWS
    return html.Section(html.Details([
        html.Summary(html.H2(f"Beyond permutations ({words.integer(len(rows))})")),
        _table(["Kind", "Name", "Units", "Dimension", "Conditions", "Proof"], rows[:MOST_ROWS], "pins"),
        html.P(_quiet(f"{words.integer(more)} more are in the answer of the API.")) if more > 0 else None],
        open=len(rows) <= OPEN_ROWS))


def _proof(found: Json) -> Component:
    proof = vm.proof(found["certificate"])
    notes = found["notes"]
    return html.Section([html.H2("Proof"), html.P(proof.sentence), facts(proof.figures, "facts column"),
                         html.H3("Notes") if notes else None,
                         html.Ul([html.Li(note) for note in notes], className="places") if notes else None])
