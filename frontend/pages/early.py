"""A page that is there before its analysis ends: how far it is until then, and what follows its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dash import html, no_update
from dash.development.base_component import Component

from frontend import view_models as vm
from frontend.client import ApiError
from frontend.components import JobStream
from frontend.pages.progress import stages
from frontend.session import Site
from frontend.widgets import problem

Json = Mapping[str, Any]


def stored(analysis: Json, share: str | None) -> Json:
    """Return what the page's callbacks know of it."""
    return {"id": analysis["id"], "share": share, "read_only": bool(share) or analysis["read_only"]}


def waiting(notice: Component, analysis: Json, page: Json, *, stream: str, progress: str) -> list[Component]:
    """Return a notice and the stages of the job, with the stream that repaints them."""
    address = f"/api/analyses/{page['id']}"
    token = f"?share={page['share']}" if page.get("share") else ""
    return [notice, JobStream(id=stream, src=f"{address}/events{token}", fallback=f"{address}{token}"),
            html.Div(stages(analysis["job"]), id=progress, className="progress")]


async def followed(site: Site, job: Json | None, page: Json, there: Callable[[Json], bool],
                   drawn: Callable[[Json], Awaitable[list[Any]]]) -> tuple[Any, Any]:
    """Return (stages, body of the page): the stages alone while what the page shows is not `there`; then, or once the job has
    ended, what is `drawn` of the analysis, or why it cannot be read."""
    if not job:
        return no_update, no_update
    if job["status"] in vm.ACTIVE and not there(job):
        return stages(job), no_update
    try:
        return no_update, await drawn(await site.visit(page.get("share")).analysis(page["id"]))
    except ApiError as error:
        return no_update, problem(error.problem)
