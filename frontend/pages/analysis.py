"""The page of one analysis, the owner's and a share's: progress, failure or the result. Layout and thin callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, Patch, State, dcc, html, no_update
from dash.development.base_component import Component

from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend import words
from frontend.client import ApiError
from frontend.components import JobStream
from frontend.figures import marker
from frontend.ids import Analysis, Sharing, WhatIf
from frontend.pages import account, group, progress, whatif
from frontend.session import Site
from frontend.widgets import badge, button, facts, power, problem

Json = Mapping[str, Any]


# ---------------------------------------------------------------- layout
async def layout(site: Site, analysis_id: str | None, share: str | None, query: Json) -> Component:
    """Return the page of an analysis, by its id or by a share's token."""
    client = site.visit(share)
    try:
        analysis = await (client.shared(share) if share else client.analysis(analysis_id))
        page = {"id": analysis["id"], "share": share, "read_only": bool(share) or analysis["read_only"],
                "keep": keep if (keep := query.get("keep") or "").isdecimal() else None}
        content = await body(site, page, analysis, query)
    except ApiError as error:
        return account.instead(error, analysis_id, share)
    view = vm.View.parse(query)
    return html.Main([dcc.Store(id=Analysis.PAGE, data=page),
                      dcc.Store(id=Analysis.VIEW, data={"group": view.group, "tab": view.tab, "matrix": view.matrix}),
                      html.Div(content, id=Analysis.BODY)], className="page wide")


async def body(site: Site, page: Json, analysis: Json, query: Json) -> list[Any]:
    """Return what stands under the header: the result where the job is done, else the job."""
    job = analysis["job"]
    if job["status"] != "done":
        address = f"/api/analyses/{analysis['id']}"
        token = f"?share={page['share']}" if page.get("share") else ""
        stream = JobStream(id=Analysis.STREAM, src=f"{address}/events{token}", fallback=f"{address}{token}")
        return [_plain_head(analysis, page), stream if job["status"] in vm.ACTIVE else None,
                html.Div(progress.panel(job, page["read_only"]), id=Analysis.PROGRESS)]
    client = site.visit(page.get("share"))
    report = await site.report(client, analysis)
    measured = await client.measurements(analysis["id"])
    return [_head(analysis, report, page), _details(report),
            html.Div([_groups(report), html.Section(group.panel(report, vm.View.parse(query), page, measured),
                                                    id=Analysis.GROUP)], className="analysis")]


def ways(page: Json) -> list[Component]:
    """Return the ways to the symmetry report and to the what-if session."""
    return [dcc.Link("Symmetry", href=sm.symmetry_address(page), className="cipm-button",
                     title="Groups and pins on the model's graph"),
            dcc.Link("What-ifs", href=sm.whatif_address(page), className="cipm-button",
                     title="What the whole model would lose at every size")]


def _plain_head(analysis: Json, page: Json) -> Component:
    line = [html.H1(analysis["title"]), html.Div(ways(page), className="actions")]
    return html.Header([html.Div(line, className="title-line"),
                        facts([("Model", analysis["model"]["name"]), ("Size", words.size(analysis["model"]["size"])),
                               ("Probe data", (analysis.get("probe") or {}).get("name") or words.NONE)])],
                       className="analysis-head")


def _head(analysis: Json, report: Json, page: Json) -> Component:
    proof = vm.proof(report.get("certificate"))
    tone = {True: "good", False: "bad", None: "plain"}[proof.passed]
    figure = f" \u00b7 |Δ| ≤ {proof.figures[0][1]}" if proof.figures else ""
    owner = [] if page["read_only"] else [button("Share", Sharing.SHARE_OPEN), button("Export", Sharing.EXPORT_OPEN, "filled")]
    members = [("Equivalent forms", power(report.get("log10_equivalents")))]
    return html.Header([
        html.Div([html.H1(analysis["title"]), badge(proof.badge + figure, tone, proof.sentence),
                  badge("read only", "plain", "You were given a link to look at this analysis") if page["read_only"] else None,
                  html.Div([*ways(page), button("Details", Analysis.DETAILS_OPEN), *owner], className="actions")],
                 className="title-line"),
        facts(vm.fact_list(report) + members)], className="analysis-head")


def _details(report: Json) -> Component:
    proof = vm.proof(report.get("certificate"))
    pins = report.get("pins") or []
    notes = [*(report.get("notes") or []), *((report.get("probe") or {}).get("notes") or [])]
    rows = [html.Tr([html.Td(html.Code(pin["tensor"])), html.Td(str(pin["axis"])), html.Td(pin.get("op")),
                     html.Td(pin.get("reason"))]) for pin in pins]
    hashes = [(name.capitalize(), html.Code(str(value)[:16], title=str(value)))
              for name, value in (report.get("hashes") or {}).items() if isinstance(value, str)]
    timings = [(vm.STAGE_WORDS.get(name, name), words.seconds(value)) for name, value in (report.get("timings") or {}).items()]
    return dmc.Drawer([
        html.H3("Certificate"), html.P(proof.sentence), facts(proof.figures, "facts column"),
        html.H3(f"Pinned axes ({len(pins)})"),
        html.P("Axes that may not move, and the operation that pins them." if pins else "No axis is pinned."),
        html.Table([html.Thead(html.Tr([html.Th(t) for t in ("Tensor", "Axis", "Op", "Reason")])), html.Tbody(rows)],
                   className="pins") if pins else None,
        html.H3("Notes") if notes else None, html.Ul([html.Li(note) for note in notes]) if notes else None,
        html.H3("How it was made"), facts([*_versions(report), *hashes, *timings], "facts column")],
        id=Analysis.DETAILS, title="Details", position="right", size="lg", className="details")


def _versions(report: Json) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in (report.get("versions") or {}).items() if value]


def _groups(report: Json) -> Component:
    rows = vm.group_rows(report)
    chosen = vm.choose_group(report, None)
    return html.Nav([
        dmc.TextInput(id="group-filter", placeholder="Filter groups", size="xs", mb=8,
                      inputProps={"type": "search", "autoComplete": "off", "aria-label": "Filter groups"}),
        html.Div([_group_line(row) for row in rows], id="group-list", role="listbox", className="group-list",
                 **{"aria-label": "Symmetry groups", "data-default": chosen["name"] if chosen else ""}),
        html.P("No group matches.", id="group-none", className="quiet", hidden=True)],
        className="groups", **{"aria-label": "Symmetry groups"})


def _group_line(row: vm.GroupRow) -> Component:
    detail = row.unavailable or (words.plural(row.modules, "module") + (f" \u00b7 {words.percent(row.redundancy, 0)} removable"
                                                            if row.redundancy is not None else ""))
    return html.Button([
        html.Span(html.Bdi(row.path), className="group-path") if row.path else None,
        html.Span([html.Span(row.short, className="group-name"),
                   html.Span("✓", className="proved", title="Proved") if row.proved else None], className="group-line"),
        html.Span([html.Span(row.size_words), html.Span(detail)], className="group-note")],
        type="button", role="option", className="group-row", title=row.name, style={"--depth": str(row.depth)},
        **{"data-key": "group", "data-value": row.name, "data-search": row.search})


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the page's callbacks."""
    _register_job(app, site)
    _register_group(app, site)
    _register_whatif(app, site)


def _register_job(app: Dash, site: Site) -> None:
    @app.callback(Output(Analysis.PROGRESS, "children"), Output(Analysis.BODY, "children"), Input(Analysis.STREAM, "job"),
                  State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def follow(job: Json | None, page: Json) -> tuple[Any, Any]:
        """Repaint the progress; when the job ends, the whole page."""
        if not job:
            return no_update, no_update
        if job["status"] in vm.ACTIVE:
            return progress.panel(job, page["read_only"]), no_update
        return no_update, await _fresh(site, page)

    @app.callback(Output(Analysis.PROBLEM, "children"), Input(Analysis.CANCEL, "n_clicks"), State(Analysis.PAGE, "data"),
                  prevent_initial_call=True)
    async def cancel(clicks: int | None, page: Json) -> Any:
        """Ask the worker to stop; the event stream tells when it has."""
        if not clicks:
            return no_update
        try:
            await site.visit().cancel(page["id"])
        except ApiError as error:
            return problem(error.problem)
        return html.Span("Stopping…", className="quiet")

    @app.callback(Output(Analysis.BODY, "children", allow_duplicate=True), Input(Analysis.RERUN, "n_clicks"),
                  State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def rerun(clicks: int | None, page: Json) -> Any:
        """Queue the analysis again."""
        if not clicks:
            return no_update
        try:
            await site.visit().rerun(page["id"])
        except ApiError as error:
            return problem(error.problem)
        return await _fresh(site, page)


async def _fresh(site: Site, page: Json) -> Any:
    client = site.visit(page.get("share"))
    try:
        analysis = await (client.shared(page["share"]) if page.get("share") else client.analysis(page["id"]))
        return await body(site, page, analysis, {})
    except ApiError as error:
        return problem(error.problem)


async def _group_of(site: Site, page: Json, name: str | None) -> tuple[Json, Json, list[Json]]:
    """Return (report, group with its measurements, all measurements)."""
    client = site.visit(page.get("share"))
    report = await site.report(client, await client.analysis(page["id"]))
    measured = await client.measurements(page["id"])
    return report, vm.with_measurements(vm.choose_group(report, name) or {}, measured), measured


def _register_group(app: Dash, site: Site) -> None:
    @app.callback(Output(Analysis.GROUP, "children"), Input(Analysis.VIEW, "data"), State(Analysis.PAGE, "data"),
                  prevent_initial_call=True)
    async def show_group(view: Json, page: Json) -> Any:
        """Show the group, tab and matrix that the address names."""
        try:
            report, _, measured = await _group_of(site, page, view.get("group"))
        except ApiError as error:
            return problem(error.problem)
        return group.panel(report, vm.View.parse(view), {**page, "keep": None}, measured)

    @app.callback(Output(Analysis.DETAILS, "opened"), Input(Analysis.DETAILS_OPEN, "n_clicks"), prevent_initial_call=True)
    async def open_details(clicks: int | None) -> bool:
        """Open the drawer with certificate, pins and notes."""
        return bool(clicks)

    app.clientside_callback(ClientsideFunction("cipm", "patchMatrix"), Output(Analysis.MATRIX, "id"),
                            Input(Analysis.MATRIX, "value"), prevent_initial_call=True)
    app.clientside_callback(ClientsideFunction("cipm", "patchKeep"), Output(WhatIf.KEEP, "id"),
                            Input(WhatIf.KEEP, "value"), prevent_initial_call=True)


def _register_whatif(app: Dash, site: Site) -> None:
    @app.callback(Output(WhatIf.NUMBERS, "children"), Output(WhatIf.CURVE, "figure"), Input(WhatIf.KEEP, "value"),
                  State(Analysis.PAGE, "data"), State(Analysis.VIEW, "data"), prevent_initial_call=True)
    async def slide(keep: int, page: Json, view: Json) -> tuple[Any, Any]:
        """Show the numbers at the slider's place and move the line in the curve."""
        report, chosen, _ = await _group_of(site, page, view.get("group"))
        figure = Patch()
        figure["layout"]["shapes"][-1] = marker(keep)
        return whatif.numbers(chosen, report.get("baseline") or {}, keep), figure

    @app.callback(Output(WhatIf.STREAM, "src"), Output(WhatIf.STATE, "children"), Input(WhatIf.MEASURE, "n_clicks"),
                  State(WhatIf.KEEP, "value"), State(Analysis.PAGE, "data"), State(Analysis.VIEW, "data"),
                  prevent_initial_call=True)
    async def measure(clicks: int | None, keep: int, page: Json, view: Json) -> tuple[Any, Any]:
        """Ask a worker to prune the group and run the model."""
        if not clicks:
            return no_update, no_update
        try:
            _, chosen, _ = await _group_of(site, page, view.get("group"))
            job = await site.visit().measure(page["id"], {chosen["name"]: keep})
        except ApiError as error:
            return no_update, problem(error.problem)
        return f"/api/analyses/{page['id']}/events?job={job['id']}", f"Measuring {words.integer(keep)} units…"

    @app.callback(Output(Analysis.GROUP, "children", allow_duplicate=True),
                  Output(WhatIf.STATE, "children", allow_duplicate=True),
                  Input(WhatIf.STREAM, "job"), State(Analysis.PAGE, "data"), State(Analysis.VIEW, "data"),
                  State(WhatIf.KEEP, "value"), prevent_initial_call=True)
    async def measured(job: Json | None, page: Json, view: Json, keep: int) -> tuple[Any, Any]:
        """When the measurement is there, draw it; while it runs, say so; when it failed, say why."""
        if not job or job["status"] in vm.ACTIVE:
            return no_update, no_update
        if job["status"] != "done":
            return no_update, problem(job.get("error")) or "The measurement was stopped."
        report, _, points = await _group_of(site, page, view.get("group"))
        return group.panel(report, vm.View.parse(view), {**page, "keep": keep}, points), no_update
