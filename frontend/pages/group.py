"""The panel of one symmetry group: toolbar, tabs, viewers, modules, redundancy, orders. Pure layout from the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from frontend import group_words as gw
from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend import words
from frontend.components import Heatmap
from frontend.figures import module_colour
from frontend.ids import Analysis
from frontend.pages import whatif
from frontend.widgets import badge, big, choice, copy_button, empty, meter, tabs

Json = Mapping[str, Any]
MOST_MODULES = 400


def panel(report: Json, view: vm.View, page: Json, measurements: list[Json]) -> Component:
    """Return the panel of the group that the view names."""
    group = vm.choose_group(report, view.group)
    if group is None:
        return empty("No symmetry group was found", "Every axis of this model is pinned by an operation.",
                     "Details lists which, and why.")
    group = vm.with_measurements(group, measurements)
    return html.Div([_head(group, view, page), tabs(vm.TABS, "What to see of this group"),
                     html.Div([html.Div(_main(report, group, view, page), className="group-main"), _aside(report, group)],
                              className="group-body")],
                    className="group", **{"data-group": group["name"], "data-tab": view.tab})


def _head(group: Json, view: vm.View, page: Json) -> Component:
    orders = gw.order_names(group)
    size = vm.size_words(group["size"], group.get("kind") or "units", group.get("blocks") or 1)
    marks = [badge("proved", "good", "Reordering this group was proved to preserve the function")
             if group.get("proved") else badge("not proved", "warn", "No certificate covers this group"),
             dcc.Link("in the graph", href=sm.symmetry_address(page, group=group["name"]),
                      title="Where it stands in the model")]
    tools = _tools(orders) if view.tab in vm.KINDS and orders else None
    return html.Header([html.Div([html.H2(group["name"]), html.Span(size, className="group-size"), *marks],
                                 className="group-title"),
                        html.Div(tools, className="toolbar")], className="group-head")


def _tools(orders: list[str]) -> list[Component]:
    return [choice("order", {name: gw.ORDER_WORDS.get(name, name) for name in orders}, orders[0], "Order of the units"),
            choice("show", {"original": "Original", "reordered": "Reordered", "both": "Side by side"}, "reordered",
                   "What to show", "Key o: original or reordered"),
            choice("stat", {"mean": "Mean", "maxabs": "Max |x|"}, "mean", "Zoomed out, a cell shows",
                   "What a cell shows where it stands for several entries"),
            html.Button("Show all", type="button", className="cipm-button subtle", **{"data-zoom-all": "1"})]


def _main(report: Json, group: Json, view: vm.View, page: Json) -> Any:
    if view.tab == "redundancy":
        return _redundancy(group)
    if view.tab == "whatif":
        return whatif.panel(group, report.get("baseline") or {}, page)
    if view.tab == "orders":
        return _orders(report, group)
    if view.tab == "classes":
        return _classes(report, group, view, page)
    return _matrices(report, group, view, page)


# ---------------------------------------------------------------- matrices
def _matrices(report: Json, group: Json, view: vm.View, page: Json) -> Any:
    matrices = vm.matrices_of(report, group, vm.KINDS[view.tab])
    matrix = vm.choose_matrix(matrices, view.matrix)
    if matrix is None:
        what = "correlation matrix" if view.tab == "correlation" else "weight matrix"
        return empty(f"No {what} for this group", group.get("unavailable") or "Nothing reads this group's activations.")
    chooser = html.Div(dmc.Select(
        id=Analysis.MATRIX, data=[{"value": m["id"], "label": vm.matrix_words(m)} for m in matrices], value=matrix["id"],
        searchable=len(matrices) > 8, allowDeselect=False, size="xs", w=320, **{"aria-label": "Matrix"}),
        className="matrix-choice")
    return [chooser if len(matrices) > 1 else None, _panes(matrix, group, page)]


def _panes(matrix: Json, group: Json, page: Json) -> Component:
    orders = gw.order_names(group)
    return html.Div([_pane(matrix, pane, orders, page) for pane in ("original", "reordered")], className="panes",
                    **{"data-kind": matrix["kind"]})


def _pane(matrix: Json, pane: str, orders: list[str], page: Json) -> Heatmap:
    return Heatmap(id=f"heatmap-{pane}", src=f"/api/analyses/{page['id']}/matrices/{matrix['id']}", share=page.get("share"),
                   kind=matrix["kind"], pane=pane, order=orders[0] if orders else "original", orders=orders,
                   caption=", ".join(filter(None, ("Correlation", vm.class_words(matrix))))
                   if matrix["kind"] == "correlation" else matrix["title"])


# ---------------------------------------------------------------- classes
def _classes(report: Json, group: Json, view: vm.View, page: Json) -> Any:
    rows, notes = gw.class_rows(group), gw.class_notes(group)
    if not rows:
        return empty("Nothing by class for this group", *notes)
    head = html.Tr([html.Th("Class"), html.Th("Samples"), html.Th("Units", title="Units that are most active in this class"),
                    html.Th("Clearest units", title="In brackets the share of the unit's variance that the class explains")])
    lines = [html.Tr([html.Th(str(row.label), scope="row"), html.Td(words.integer(row.samples)),
                      html.Td(words.integer(row.units)), html.Td(row.clearest or words.NONE)]) for row in rows]
    return [html.Ul([html.Li(note) for note in notes], className="quiet"), *_matrices(report, group, view, page),
            html.Div(html.Table([html.Thead(head), html.Tbody(lines)], className="scores"), className="wide-table")]


# ---------------------------------------------------------------- modules
def _aside(report: Json, group: Json) -> Component:
    rows = gw.module_rows(group, report)
    if not rows:
        return html.Aside(empty("No modules", group.get("unavailable") or "No units of this group act together."),
                          className="modules", **{"aria-label": "Modules"})
    heads = [html.Th("Module", **{"data-sort": "1"}), html.Th("Units", **{"data-sort": "1"}),
             html.Th("Coherence", title="Mean correlation of the module's units", **{"data-sort": "1"}),
             html.Th("Stability", title="Agreement of the module between the two halves of the probe data",
                     **{"data-sort": "1"})]
    more = len(rows) - MOST_MODULES
    return html.Aside([html.H3(["Modules ", html.Span(words.integer(len(rows)), className="quiet")]),
                       html.Div(html.Table([html.Thead(html.Tr(heads)),
                                            html.Tbody([_module(row, group) for row in rows[:MOST_MODULES]])]),
                                className="module-table"),
                       html.P(f"{more} smaller modules are not listed.", className="quiet") if more > 0 else None,
                       html.P(levels, className="quiet") if (levels := gw.level_words(group)) else None],
                      className="modules", **{"aria-label": "Modules"})


def _module(row: gw.ModuleRow, group: Json) -> html.Tr:
    go = html.Button([html.I(className="dot", style={"background": module_colour(row.id)}), str(row.id)], type="button",
                     className="module-go", title="Zoom the matrices to this module",
                     **{"data-module": str(row.id), "data-group": group["name"]})
    units = html.Details([html.Summary(words.integer(row.size), title="Show the units"),
                          html.Div([html.Span(row.ranges), copy_button(", ".join(map(str, row.units))),
                                    *[html.P(note) for note in row.notes]], className="module-units")])
    return html.Tr([html.Td(go, **{"data-value": str(row.id)}), html.Td(units, **{"data-value": str(row.size)}),
                    html.Td(words.fixed(row.coherence), **{"data-value": str(row.coherence or 0)}),
                    html.Td(words.fixed(row.stability), **{"data-value": str(row.stability or 0)})])


# ---------------------------------------------------------------- redundancy
DIMENSIONS = {"participation_ratio": ("Participation ratio", "(Σλ)² / Σλ² of the correlation's eigenvalues"),
              "spectral_edge": ("Above the noise", "eigenvalues beyond the Marchenko–Pastur edge"),
              "variance_95": ("95 % of the variance", "leading eigenvalues that carry 95 % of it"),
              "nearest_neighbour": ("Nearest neighbours", "from the distances of rows to their two nearest others (TwoNN)")}


def _redundancy(group: Json) -> Any:
    redundancy, dimension = group.get("redundancy") or {}, group.get("effective_dimension") or {}
    if not redundancy and not dimension:
        return empty("Redundancy is not known for this group", group.get("unavailable") or
                     "It is not measured for groups of this kind.")
    activity = group.get("activity")
    shares = html.Div([
        big(words.percent(redundancy.get("removable")), "removable units",
            f"while their readers lose at most {words.percent(redundancy.get('removable_loss', 0.01), 0)} of input variance"),
        big(words.percent(redundancy.get("share")), "predictable units",
            "with R² ≥ 0.9 from the others; " + (redundancy.get("how") or "")),
        big(words.number(redundancy.get("r2_median"), 2), "median R²", "of a unit, explained by the others"),
        _units("dead units", group.get("dead") or [], "every unit varies over the probe data"),
        _units("saturated units", activity["saturated"], "no unit stays at an end of its range") if activity else None,
        big(words.integer(group.get("samples")), "samples", "rows × positions that the figures rest on")], className="bigs")
    bars = [_dimension_row(key, found, group["size"]) for key in DIMENSIONS
            if (found := gw.dimension_of(dimension, key)) is not None]
    return [shares, html.H3("Effective dimension"),
            html.P("How many independent directions the units span, by several measures; in brackets, the values of the two "
                   "halves of the probe data.", className="quiet"),
            html.Table(html.Tbody(bars), className="dimension")]


def _units(title: str, units: list[int], none: str) -> Component:
    """Return a count of units with their numbers, or what it means that there are none."""
    shown = gw.compact_ranges(units[:60]) + ("…" if len(units) > 60 else "")
    return big(words.integer(len(units)), title, [shown, " ", copy_button(", ".join(map(str, units)))] if units else none)


def _dimension_row(key: str, found: tuple[float, tuple[float, float] | None], size: int) -> html.Tr:
    (title, note), (value, halves) = DIMENSIONS[key], found
    between = f" ({words.number(halves[0], 3)} – {words.number(halves[1], 3)})" if halves else ""
    return html.Tr([html.Th(title, scope="row", title=note), html.Td(words.number(value, 3) + between),
                    html.Td(meter(value / size, f"{title} as a share of the units")),
                    html.Td(f"of {words.integer(size)}", className="quiet")])


# ---------------------------------------------------------------- orders
def _orders(report: Json, group: Json) -> Any:
    rows = gw.score_rows(group)
    if not rows:
        return empty("No orders were computed for this group", group.get("unavailable"))
    best = gw.best_scores(rows)
    head = html.Tr([html.Th("Order", rowSpan=2), *[html.Th([name, html.Span(sense)], colSpan=2)
                                                  for name, sense in gw.SCORES.values()]])
    sub = html.Tr([html.Th(text) for _ in gw.SCORES for text in ("in sample", "held out")])
    body = [html.Tr([html.Th(gw.ORDER_WORDS.get(name, name), scope="row"),
                     *[cell for i, pair in enumerate(cells) for cell in _score(pair, best[i] == name)]])
            for name, cells in rows]
    chance = gw.chance_row(group)
    by_chance = html.Tr([html.Th("By chance", scope="row", title="Mean ± standard deviation over random orders, held out"),
                         *[cell for text in chance or () for cell in (html.Td(), html.Td(text))]], className="quiet")
    return [html.P("Scores of the correlation matrix in each order. Held-out figures are of the half of the probe data "
                   "that the order was not made from; the best is marked.", className="quiet"),
            html.Div(html.Table([html.Thead([head, sub]), html.Tbody([*body, by_chance if chance else None])],
                                className="scores"), className="wide-table"),
            html.Ul([html.Li(text) for text in gw.order_notes(report, group)], className="quiet")]


def _score(pair: tuple[float | None, float | None], best: bool) -> list[html.Td]:
    return [html.Td(words.number(pair[0])), html.Td(words.number(pair[1]), className="best" if best else None)]
