"""The share and export dialogs of an analysis's owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, html, no_update
from dash.development.base_component import Component

from frontend import group_words as gw
from frontend import view_models as vm
from frontend import words
from frontend.client import ApiError
from frontend.components import JobStream
from frontend.ids import Analysis, Sharing
from frontend.session import Site
from frontend.widgets import badge, button, problem

Json = Mapping[str, Any]


# ---------------------------------------------------------------- layout
def dialogs() -> list[Component]:
    """Return both dialogs, closed."""
    share = dmc.Modal([
        html.P("Whoever has the link can look at this analysis, and at nothing else. No sign-in; until you revoke it."),
        button("Create a link", Sharing.SHARE_CREATE, "filled"),
        html.Div(id=Sharing.SHARE_NEW), html.H3("Links"), html.Div(id=Sharing.SHARE_LIST)],
        id=Sharing.SHARE, title="Share", size="lg", centered=True)
    export = dmc.Modal([
        html.P("The model you uploaded, in the same format, with every group's units in the chosen order. It computes the "
               "same function; plan and certificate travel inside, so that it can be restored bit for bit."),
        html.Div([dmc.Select(id=Sharing.EXPORT_ORDER, data=[], value=None, label="Order", allowDeselect=False, size="xs",
                             w=220),
                  button("Export", Sharing.EXPORT_START, "filled")], className="dialog-row"),
        JobStream(id=Sharing.EXPORT_STREAM), html.H3("Files"), html.Div(id=Sharing.EXPORT_LIST)],
        id=Sharing.EXPORT, title="Export", size="lg", centered=True)
    return [share, export]


def new_link(url: str, token_note: str = "It is shown once: copy it now.") -> Component:
    """Return a fresh link with its copy button."""
    return html.Div([html.Code(url, className="link-field"),
                     html.Button("Copy", type="button", className="cipm-button", **{"data-copy": url}),
                     html.P(token_note, className="quiet")], className="new-link", role="status")


def share_list(shares: list[Json]) -> Component:
    """Return the links that were made, newest first."""
    if not shares:
        return html.P("No link was made yet.", className="quiet")
    newest = sorted(shares, key=lambda share: share["created"], reverse=True)
    return html.Ul([html.Li([html.Span(f"Made {words.ago(share['created'])}"),
                             badge("revoked") if share.get("revoked") else
                             button("Revoke", {"type": Sharing.SHARE_REVOKE, "id": share["id"]}, "subtle", color="red")])
                    for share in newest], className="rows")


def export_list(exports: list[Json]) -> Component:
    """Return the exports: those that run, those to download, those that failed. Smaller ones are listed with their what-ifs."""
    whole = [export for export in exports if export.get("order")]
    if not whole:
        return html.P("Nothing was exported yet.", className="quiet")
    newest = sorted(whole, key=lambda export: export["job"]["created"], reverse=True)
    return html.Ul([html.Li(_export(export)) for export in newest], className="rows exports")


def _export(export: Json) -> list[Any]:
    job, order = export["job"], gw.ORDER_WORDS.get(export["order"], export["order"])
    if job["status"] in vm.ACTIVE:
        return [html.Span(f"{order}: writing…"), badge(words.percent(job.get("progress"), 0))]
    if job["status"] != "done":
        return [html.Div([html.Span(order), problem(job.get("error")) or badge(job["status"])])]
    proof = vm.proof(export.get("certificate"))
    tone = {True: "good", False: "bad", None: "plain"}[proof.passed]
    return [html.Div([html.Span([export["filename"], " ", html.Span(words.size(export["size"]), className="quiet")]),
                      html.P(proof.sentence if proof.figures else None, className="quiet")]),
            badge(proof.badge, tone),
            html.A("Download", href=f"/api/exports/{export['id']}/file", download="", className="cipm-button")]


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the dialogs' callbacks."""
    _register_share(app, site)
    _register_export(app, site)


def _register_share(app: Dash, site: Site) -> None:
    @app.callback(Output(Sharing.SHARE, "opened"), Output(Sharing.SHARE_LIST, "children"),
                  Output(Sharing.SHARE_NEW, "children"),
                  Input(Sharing.SHARE_OPEN, "n_clicks"), State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def open_share(clicks: int | None, page: Json) -> tuple[Any, Any, Any]:
        """Open the dialog with the links there are."""
        if not clicks:
            return no_update, no_update, no_update
        return True, await _shares(site, page), None

    @app.callback(Output(Sharing.SHARE_NEW, "children", allow_duplicate=True),
                  Output(Sharing.SHARE_LIST, "children", allow_duplicate=True),
                  Input(Sharing.SHARE_CREATE, "n_clicks"), State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def create_share(clicks: int | None, page: Json) -> tuple[Any, Any]:
        """Make a link and show it once."""
        if not clicks:
            return no_update, no_update
        try:
            made = await site.visit().create_share(page["id"])
        except ApiError as error:
            return problem(error.problem), no_update
        return new_link(site.origin() + made["url"]), await _shares(site, page)

    @app.callback(Output(Sharing.SHARE_LIST, "children", allow_duplicate=True),
                  Input({"type": Sharing.SHARE_REVOKE, "id": ALL}, "n_clicks"), State(Analysis.PAGE, "data"),
                  prevent_initial_call=True)
    async def revoke(clicks: list[int | None], page: Json) -> Any:
        """Revoke the link whose button was pressed."""
        if not any(clicks):
            return no_update
        try:
            await site.visit().revoke_share(ctx.triggered_id["id"])
        except ApiError as error:
            return problem(error.problem)
        return await _shares(site, page)


async def _shares(site: Site, page: Json) -> Any:
    try:
        return share_list(await site.visit().shares(page["id"]))
    except ApiError as error:
        return problem(error.problem)


def _register_export(app: Dash, site: Site) -> None:
    @app.callback(Output(Sharing.EXPORT, "opened"), Output(Sharing.EXPORT_LIST, "children"),
                  Output(Sharing.EXPORT_ORDER, "data"), Output(Sharing.EXPORT_ORDER, "value"),
                  Input(Sharing.EXPORT_OPEN, "n_clicks"), State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def open_export(clicks: int | None, page: Json) -> tuple[Any, Any, Any, Any]:
        """Open the dialog with the orders and the files there are."""
        if not clicks:
            return no_update, no_update, no_update, no_update
        client = site.visit()
        report = await site.report(client, await client.analysis(page["id"]))
        orders = gw.export_orders(report)
        data = [{"value": name, "label": gw.ORDER_WORDS.get(name, name)} for name in orders]
        return True, await _exports(site, page), data, orders[0] if orders else None

    @app.callback(Output(Sharing.EXPORT_LIST, "children", allow_duplicate=True), Output(Sharing.EXPORT_STREAM, "src"),
                  Input(Sharing.EXPORT_START, "n_clicks"), State(Sharing.EXPORT_ORDER, "value"),
                  State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def start_export(clicks: int | None, order: str | None, page: Json) -> tuple[Any, Any]:
        """Queue an export and follow it."""
        if not clicks or not order:
            return no_update, no_update
        try:
            made = await site.visit().create_export(page["id"], order)
        except ApiError as error:
            return problem(error.problem), no_update
        return await _exports(site, page), f"/api/analyses/{page['id']}/events?job={made['job']['id']}"

    @app.callback(Output(Sharing.EXPORT_LIST, "children", allow_duplicate=True), Input(Sharing.EXPORT_STREAM, "job"),
                  State(Analysis.PAGE, "data"), prevent_initial_call=True)
    async def follow_export(job: Json | None, page: Json) -> Any:
        """Repaint the files as the export goes on."""
        return await _exports(site, page) if job else no_update


async def _exports(site: Site, page: Json) -> Any:
    try:
        return export_list(await site.visit().exports(page["id"]))
    except ApiError as error:
        return problem(error.problem)
