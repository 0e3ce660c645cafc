"""The what-if session of one analysis, the owner's and a share's. The browser draws it (assets/45 to 49); here is its frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component

from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend.client import ApiError
from frontend.components import WhatIfSession
from frontend.ids import WhatIfPage
from frontend.pages import account, early
from frontend.session import Site
from frontend.widgets import badge, empty

Json = Mapping[str, Any]


# ---------------------------------------------------------------- layout
async def layout(site: Site, analysis_id: str | None, share: str | None) -> Component:
    """Return the page of an analysis's what-if session, by its id or by a share's token."""
    client = site.visit(share)
    try:
        analysis = await (client.shared(share) if share else client.analysis(analysis_id))
    except ApiError as error:
        return account.instead(error, analysis_id, share, "/whatif")
    page = early.stored(analysis, share)
    return html.Main([dcc.Store(id=WhatIfPage.PAGE, data=page), html.Div(body(page, analysis), id=WhatIfPage.BODY)],
                     className="page wide")


def body(page: Json, analysis: Json) -> list[Any]:
    """Return the session once its stage is done, else how far the analysis is, or that it ended before."""
    job = analysis["job"]
    if vm.session_there(job):
        session = WhatIfSession(id=WhatIfPage.SESSION, src=f"/api/analyses/{page['id']}", share=page.get("share"),
                                readOnly=page["read_only"], page=sm.analysis_address(page))
        return [head(page, analysis), session]
    if job["status"] not in vm.ACTIVE:
        return [head(page, analysis), empty("There is no what-if session", "This analysis ended before it was made.",
                                            "Run it again from its own page.")]
    notice = empty("What-ifs are not computed yet", "This page appears by itself.")
    return [head(page, analysis),
            *early.waiting(notice, analysis, page, stream=WhatIfPage.STREAM, progress=WhatIfPage.PROGRESS)]


def head(page: Json, analysis: Json) -> Component:
    """Return the title and the ways to the other pages of this analysis."""
    ways = [dcc.Link("Analysis", href=sm.analysis_address(page), className="cipm-button", title="Modules, heatmaps, orders"),
            dcc.Link("Symmetry", href=sm.symmetry_address(page), className="cipm-button",
                     title="Groups and pins on the model's graph")]
    return html.Header(html.Div([
        html.H1([analysis["title"], html.Span("What-ifs", className="wi-title")]),
        badge("read only", "plain", "You were given a link to look at this analysis") if page["read_only"] else None,
        html.Div(ways, className="actions")], className="title-line"), className="analysis-head")


# ---------------------------------------------------------------- callbacks
def register(app: Dash, site: Site) -> None:
    """Attach the page's callbacks."""

    @app.callback(Output(WhatIfPage.PROGRESS, "children"), Output(WhatIfPage.BODY, "children"), Input(WhatIfPage.STREAM, "job"),
                  State(WhatIfPage.PAGE, "data"), prevent_initial_call=True)
    async def follow(job: Json | None, page: Json) -> tuple[Any, Any]:
        """Repaint the stages; once the session is there, or the job has ended, the whole page."""
        async def drawn(analysis: Json) -> list[Any]:
            return body(page, analysis)

        return await early.followed(site, job, page, vm.session_there, drawn)
