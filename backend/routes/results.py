"""The report, and measured what-ifs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from backend import describe
from backend.access import OwnedDep, ReadingDep, StoreDep
from backend.results import View, check_keep, view_of
from backend.schemas import Job, Measurement, MeasurementCreate
from backend.store import Store, jobs

router = APIRouter(prefix="/analyses", tags=["results"])


@router.get("/{analysis_id}/report", summary="The report", response_model=dict[str, Any])
def report(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return report.json of the newest finished run. 404 where none is finished."""
    view = open_view(request, store, reading.analysis.id)
    etag = f'"{view.address}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return FileResponse(view.report_path, media_type="application/json", headers=headers)


@router.post("/{analysis_id}/measurements", status_code=201, summary="Measure a what-if")
def measure(body: MeasurementCreate, analysis: OwnedDep, request: Request, store: StoreDep) -> Job:
    """Queue the measurement of one group pruned to `keep` units; the same question is not measured twice."""
    check_keep(open_view(request, store, analysis.id), body.group, body.keep)
    asked = {"group": body.group, "keep": body.keep}
    with store.write() as session:
        for before in describe.jobs_of(session, analysis.id, "measure"):
            if before.request == asked and before.status in ("queued", "running", "done"):
                return describe.job(before)
        job = jobs.enqueue(session, analysis, "measure", asked)
    store.wake(job.id)
    return describe.job(job)


@router.get("/{analysis_id}/measurements", summary="Measured what-ifs")
def list_measurements(reading: ReadingDep, store: StoreDep) -> list[Measurement]:
    """Return the what-ifs that were asked for, the newest first, with results where they are measured."""
    with store.read() as session:
        return [describe.measurement(row) for row in describe.jobs_of(session, reading.analysis.id, "measure")]


def open_view(request: Request, store: Store, analysis_id: str) -> View:
    """Return the newest finished view of an analysis."""
    return view_of(store, request.app.state.views, analysis_id)
