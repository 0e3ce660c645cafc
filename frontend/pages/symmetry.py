"""The symmetry report of one analysis, the owner's and a share's: the model's graph, the chosen group, pins. Thin callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend.client import ApiError
from frontend.components import ModelGraph
from frontend.ids import Symmetry
from frontend.pages import account, early, symmetry_parts
from frontend.session import Site
from frontend.widgets import badge, empty, facts, power, problem

Json = Mapping[str, Any]
FOUND = ("done", "cached")
CONFLICT = 409


# ---------------------------------------------------------------- layout
async def layout(site: Site, analysis_id: str | None, share: str | None, query: Json) -> Component:
    """Return the page of an analysis's symmetry, by its id or by a share's token."""
    client = site.visit(share)
    try:
        analysis = await (client.shared(share) if share else client.analysis(analysis_id))
    except ApiError as error:
        return account.instead(error, analysis_id, share, "/symmetry")
    page = early.stored(analysis, share)
    view = sm.View.parse(query)
    return html.Main([dcc.Store(id=Symmetry.PAGE, data=page),
                      dcc.Store(id=Symmetry.VIEW, data={"group": view.group, "node": view.node}),
                      html.Div(await body(site, page, analysis, view), id=Symmetry.BODY)], className="page wide")


async def body(site: Site, page: Json, analysis: Json, view: sm.View) -> list[Any]:
    """Return the report where it is there, else how far the job is, else why there is none."""
    try:
        report = await site.symmetry(site.visit(page.get("share")), analysis)
    except ApiError as error:
        if error.status == CONFLICT:
            return [_plain_head(analysis, page), *_waiting(analysis, page, error.problem)]
        return [_plain_head(analysis, page),
                empty("There is no symmetry report", error.problem["message"], error.problem["fix"])]
    done = analysis["job"]["status"] == "done"
    return [head(analysis, report["symmetry"], page), _main(report, page, view, done), symmetry_parts.tables(report)]


def _waiting(analysis: Json, page: Json, error: Json) -> list[Any]:
    notice = empty("The symmetry is not found yet", error["message"], "It appears here by itself.")
    return early.waiting(notice, analysis, page, stream=Symmetry.STREAM, progress=Symmetry.PROGRESS)


def _plain_head(analysis: Json, page: Json) -> Component:
    line = [html.H1(analysis["title"]), html.Div(_back(page), className="actions")]
    return html.Header(html.Div(line, className="title-line"), className="analysis-head")


def _back(page: Json) -> Component:
    return dcc.Link("Analysis", href=sm.analysis_address(page), className="cipm-button", title="Modules, heatmaps, what-ifs")


def head(analysis: Json, found: Json, page: Json) -> Component:
    """Return the title, the proof and the figures."""
    proof = vm.proof(found["certificate"])
    tone = {True: "good", False: "bad", None: "plain"}[proof.passed]
    figure = f" · |Δ| ≤ {proof.figures[0][1]}" if proof.figures else ""
    product = html.Span(symmetry_parts.short(found["structure"]), className="structure")
    forms = html.Span([html.Span(power(found["log10_equivalents"])), product],
                      title=f"The proved group: {found['structure']} (S: all orders of so many units; ≀: units inside what "
                            "carries them, a wreath product)")
    return html.Header([
        html.Div([html.H1(analysis["title"]), badge(proof.badge + figure, tone, proof.sentence),
                  badge("read only", "plain", "You were given a link to look at this analysis") if page["read_only"] else None,
                  html.Div(_back(page), className="actions")], className="title-line"),
        facts([*sm.fact_list(found), ("Equivalent forms", forms)])], className="analysis-head")


def _main(report: Json, page: Json, view: sm.View, done: bool) -> Component:
    graph = ModelGraph(id=Symmetry.GRAPH, src=f"/api/analyses/{page['id']}/symmetry", share=page.get("share"))
    return html.Div([symmetry_parts.legend(report["symmetry"]), graph,
                     html.Aside(symmetry_parts.panel(report, page, view, done), id=Symmetry.PANEL, className="symmetry-panel",
                                **{"aria-label": "What is chosen"})], className="symmetry")


def _found(job: Json) -> bool:
    return any(stage["name"] == "discover" and stage["state"] in FOUND for stage in job["stages"])


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the page's callbacks."""

    @app.callback(Output(Symmetry.PANEL, "children"), Input(Symmetry.VIEW, "data"), State(Symmetry.PAGE, "data"),
                  prevent_initial_call=True)
    async def choose(view: Json, page: Json) -> Any:
        """Tell about the group and box that the address names."""
        client = site.visit(page.get("share"))
        try:
            analysis = await client.analysis(page["id"])
            report = await site.symmetry(client, analysis)
        except ApiError as error:
            return problem(error.problem)
        return symmetry_parts.panel(report, page, sm.View.parse(view), analysis["job"]["status"] == "done")

    @app.callback(Output(Symmetry.PROGRESS, "children"), Output(Symmetry.BODY, "children"), Input(Symmetry.STREAM, "job"),
                  State(Symmetry.PAGE, "data"), State(Symmetry.VIEW, "data"), prevent_initial_call=True)
    async def follow(job: Json | None, page: Json, view: Json) -> tuple[Any, Any]:
        """Repaint the stages; once the symmetry is found, or the job has ended, the whole page."""
        return await early.followed(site, job, page, _found, lambda analysis: body(site, page, analysis, sm.View.parse(view)))
