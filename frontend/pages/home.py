"""The first page: upload, options, files to try, and the visitor's analyses. Layout and thin callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.development.base_component import Component

from frontend import view_models as vm
from frontend import words
from frontend.client import ApiError
from frontend.components import Uploader
from frontend.ids import Home
from frontend.options_form import OptionField, chosen, option_fields
from frontend.pages import account
from frontend.session import Site
from frontend.widgets import badge, button, meter, problem

Json = Mapping[str, Any]


# ---------------------------------------------------------------- layout
async def layout(site: Site) -> Component:
    """Return the page, or the way to sign in where the server asks for it."""
    client = site.visit()
    try:
        fields = option_fields(await client.openapi())
        samples, analyses, demo = await client.samples(), await client.analyses(), (await client.health())["demo"]
    except ApiError as error:
        if error.status == 401:
            return account.login("/")
        return html.Main(problem(error.problem), className="page narrow")
    return html.Main([_new(fields, samples), html.Section(
        [html.H2("Analyses"), html.Div(analysis_list(analyses, demo), id=Home.LIST)], className="list"), *_dialogs(),
        dcc.Interval(id=Home.CLOCK, interval=2000, disabled=not busy(analyses, demo)),
        dcc.Location(id=Home.GO, refresh="callback-nav"), dcc.Store(id=Home.CHOSEN)], className="page home")


def _new(fields: list[OptionField], samples: Sequence[Json]) -> Component:
    return html.Section([
        html.H1("See the modules in a trained network"),
        html.P("Drop a model and some probe data. Reordering never changes what the model computes.", className="lead"),
        Uploader(id=Home.UPLOADER), html.Div(_samples(samples), id=Home.SAMPLES),
        html.Div([dmc.TextInput(id=Home.TITLE, placeholder="Title (optional)", size="xs", className="title-input",
                                **{"aria-label": "Title"}),
                  button("Analyse", Home.ANALYSE, "filled", disabled=True)], className="start"),
        html.Details([html.Summary("Options"), html.Div([_control(field) for field in fields], className="options")]),
        html.Div(id=Home.PROBLEM)], className="new")


def _samples(samples: Sequence[Json]) -> Component | None:
    if not samples:
        return None
    def line(sample: Json) -> Component:
        return html.Li([html.Span([html.Span(sample["name"], className="sample-name"),
                                   html.Span(f"{sample['title']}, {words.size(sample['size'])}", className="sample-title")]),
                        html.Span([html.Button("Use this", type="button", className="cipm-link",
                                               **{"data-sample": sample["name"], "data-kind": sample["kind"]}),
                                   html.A("Download", href=f"/api/samples/{sample['name']}", download=sample["name"],
                                          className="cipm-link")], className="sample-actions")])

    columns = [html.Ul([line(sample) for sample in samples if sample["kind"] == kind], className="rows")
               for kind in ("model", "probe")]
    return html.Details([html.Summary("No model at hand? Files to try"), html.Div(columns, className="sample-columns")],
                        className="samples", open=True)


def _control(field: OptionField) -> Component:
    common = {"id": {"type": Home.OPTION, "name": field.name}, "label": field.title, "description": field.help, "size": "xs"}
    if field.kind == "choice":
        return dmc.Select(data=list(field.choices), value=field.default, allowDeselect=False, **common)
    return dmc.NumberInput(value=field.default, min=field.low, max=field.high, step=field.step, thousandSeparator=" ",
                           suffix="" if field.unit == field.name else f" {field.unit}", clampBehavior="none",
                           allowDecimal=field.kind != "integer", **common)


def busy(analyses: Sequence[Json], demo: Json | None) -> bool:
    """Tell whether anything waits, runs or is still to come, so that the list must be kept fresh."""
    return training(demo) or any(analysis["job"]["status"] in vm.ACTIVE for analysis in analyses)


def training(demo: Json | None) -> bool:
    """Tell whether the demo's sample models are being trained."""
    return bool(demo and demo["state"] == "training")


def analysis_list(analyses: Sequence[Json], demo: Json | None) -> list[Component | None]:
    """Return how the demo's samples stand, where there is anything to say, and the visitor's analyses."""
    note = None
    if training(demo):
        note = html.P("Sample models are being trained on this machine, about half a minute in all. Each appears here as "
                      f"soon as it is there. {demo['detail']}", className="quiet", role="status")
    elif demo and demo["state"] == "failed":
        note = problem({"message": demo["detail"]}, "The sample models are not there")
    return [note, None if training(demo) and not analyses else analysis_table(analyses)]


def analysis_table(analyses: Sequence[Json]) -> Component:
    """Return the visitor's analyses, newest first, or what this page is for."""
    if not analyses:
        return html.Ol([html.Li("Drop a trained model and data it understands."),
                        html.Li("See which units act together, and which are redundant."),
                        html.Li("Take home the same model, reordered, with its certificate.")], className="empty steps")
    head = html.Tr([html.Th(text) for text in ("Title", "Model", "Probe data", "State", "Made", "")])
    newest = sorted(analyses, key=lambda analysis: analysis["created"], reverse=True)
    return html.Table([html.Thead(head), html.Tbody([_row(analysis) for analysis in newest])], className="analyses")


def _row(analysis: Json) -> Component:
    act = {"id": analysis["id"], "title": analysis["title"]}
    tools = [] if analysis["read_only"] else [
        button("Rename", {"type": Home.ROW_RENAME, **act}, "subtle", color="gray", px=8),
        button("Delete", {"type": Home.ROW_DELETE, **act}, "subtle", color="gray", px=8)]
    return html.Tr([
        html.Td([dcc.Link(analysis["title"], href=f"/a/{analysis['id']}"),
                 badge("sample") if analysis.get("sample") else None], className="title-cell"),
        html.Td([analysis["model"]["name"], html.Span(f" {words.size(analysis['model']['size'])}", className="quiet")]),
        html.Td((analysis.get("probe") or {}).get("name") or words.NONE), html.Td(_state(analysis["job"])),
        html.Td(words.ago(analysis["created"]), className="quiet"), html.Td(tools, className="row-tools")])


def _state(job: Json) -> Any:
    if job["status"] == "running":
        stage = vm.STAGE_WORDS.get(job.get("stage") or "", "Starting")
        return html.Div([html.Span(stage), meter(job.get("progress"), stage)], className="state-running")
    tone = {"done": "good", "failed": "bad"}.get(job["status"], "plain")
    return badge({"queued": "waiting"}.get(job["status"], job["status"]), tone, (job.get("error") or {}).get("message"))


def _dialogs() -> list[Component]:
    rename = dmc.Modal([dmc.TextInput(id=Home.RENAME_TEXT, label="Title", size="xs", **{"data-autofocus": True}),
                        html.Div(button("Save", Home.RENAME_SAVE, "filled"), className="dialog-end")],
                       id=Home.RENAME, title="Rename", centered=True)
    delete = dmc.Modal([html.P("The analysis, its links and its exports are removed. This cannot be undone."),
                        html.Div(button("Delete", Home.DELETE_CONFIRM, "filled", color="red"), className="dialog-end")],
                       id=Home.DELETE, title="Delete this analysis?", centered=True)
    return [rename, delete]


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the page's callbacks."""
    _register_new(app, site)
    _register_list(app, site)


def _register_new(app: Dash, site: Site) -> None:
    @app.callback(Output(Home.ANALYSE, "disabled"), Input(Home.UPLOADER, "model"), Input(Home.UPLOADER, "probe"))
    async def ready(model: Json | None, probe: Json | None) -> bool:
        """Allow to start once both files are there."""
        return not (model and probe)

    @app.callback(Output(Home.GO, "href"), Output(Home.PROBLEM, "children"), Input(Home.ANALYSE, "n_clicks"),
                  State(Home.UPLOADER, "model"), State(Home.UPLOADER, "probe"), State(Home.TITLE, "value"),
                  State({"type": Home.OPTION, "name": ALL}, "value"), prevent_initial_call=True)
    async def analyse(clicks: int | None, model: Json, probe: Json, title: str | None, _: list[Any]) -> tuple[Any, Any]:
        """Create the analysis and go to it, or show what the API says is wrong."""
        if not clicks or not model or not probe:
            return no_update, no_update
        client = site.visit()
        values = {item["id"]["name"]: item.get("value") for item in ctx.states_list[3]}
        try:
            options = chosen(option_fields(await client.openapi()), values)
            made = await client.create_analysis(model["id"], probe["id"], title=title or None, options=options)
        except ApiError as error:
            return no_update, problem(error.problem)
        return f"/a/{made['id']}", None


def _register_list(app: Dash, site: Site) -> None:
    @app.callback(Output(Home.LIST, "children"), Output(Home.CLOCK, "disabled"), Input(Home.CLOCK, "n_intervals"),
                  prevent_initial_call=True)
    async def refresh(_: int) -> tuple[Any, bool]:
        """Keep the list fresh while anything runs."""
        return await _list(site)

    @app.callback(Output(Home.SAMPLES, "children"), Input(Home.CLOCK, "n_intervals"), prevent_initial_call=True)
    async def refresh_samples(_: int) -> Any:
        """Show the files to try as they come."""
        try:
            return _samples(await site.visit().samples())
        except ApiError:
            return no_update

    @app.callback(Output(Home.RENAME, "opened"), Output(Home.RENAME_TEXT, "value"), Output(Home.DELETE, "opened"),
                  Output(Home.CHOSEN, "data"), Input({"type": Home.ROW_RENAME, "id": ALL, "title": ALL}, "n_clicks"),
                  Input({"type": Home.ROW_DELETE, "id": ALL, "title": ALL}, "n_clicks"), prevent_initial_call=True)
    async def ask(renames: list[int | None], deletes: list[int | None]) -> tuple[Any, Any, Any, Any]:
        """Open the dialog of the row's button that was pressed."""
        if not any(renames) and not any(deletes):
            return no_update, no_update, no_update, no_update
        row = ctx.triggered_id
        renaming = row["type"] == Home.ROW_RENAME
        return renaming, row["title"], not renaming, row["id"]

    @app.callback(Output(Home.LIST, "children", allow_duplicate=True), Output(Home.RENAME, "opened", allow_duplicate=True),
                  Input(Home.RENAME_SAVE, "n_clicks"), Input(Home.RENAME_TEXT, "n_submit"), State(Home.CHOSEN, "data"),
                  State(Home.RENAME_TEXT, "value"), prevent_initial_call=True)
    async def rename(clicks: int | None, submits: int | None, chosen_id: str | None, title: str) -> tuple[Any, Any]:
        """Give the chosen analysis another title."""
        if not (clicks or submits) or not chosen_id or not (title or "").strip():
            return no_update, no_update
        try:
            await site.visit().rename_analysis(chosen_id, title.strip())
        except ApiError as error:
            return problem(error.problem), False
        return (await _list(site))[0], False

    @app.callback(Output(Home.LIST, "children", allow_duplicate=True), Output(Home.DELETE, "opened", allow_duplicate=True),
                  Input(Home.DELETE_CONFIRM, "n_clicks"), State(Home.CHOSEN, "data"), prevent_initial_call=True)
    async def delete(clicks: int | None, chosen_id: str | None) -> tuple[Any, Any]:
        """Remove the chosen analysis."""
        if not clicks or not chosen_id:
            return no_update, no_update
        try:
            await site.visit().delete_analysis(chosen_id)
        except ApiError as error:
            return problem(error.problem), False
        return (await _list(site))[0], False


async def _list(site: Site) -> tuple[Any, bool]:
    try:
        client = site.visit()
        analyses, demo = await client.analyses(), (await client.health())["demo"]
    except ApiError as error:
        return problem(error.problem), True
    return analysis_list(analyses, demo), not busy(analyses, demo)
