"""Pruning what-ifs: the session to predict with, and measured ones."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from backend import describe
from backend.access import OwnedDep, ReadingDep, StoreDep
from backend.schemas import Job, Measurement, MeasurementCreate, WhatIfSession
from backend.store import artefacts, jobs
from backend.whatifs import SESSION_FILE, session_artefact, session_of

router = APIRouter(prefix="/analyses", tags=["what-ifs"])


@router.get("/{analysis_id}/whatif", summary="The what-if session", response_model=WhatIfSession)
def session(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return curves, counts, fronts and measured networks: enough to predict any what-if without the server.

    There as soon as stage `whatif` is done; 409 before, 404 where the analysis ended before.
    """
    artefact = session_artefact(store, reading.analysis.id)
    etag = f'"{artefact.address}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return FileResponse(artefacts.file(store, artefact, SESSION_FILE), media_type="application/json", headers=headers)


@router.post("/{analysis_id}/measurements", status_code=201, summary="Measure a what-if")
def measure(body: MeasurementCreate, analysis: OwnedDep, store: StoreDep) -> Job:
    """Queue the measurement of the network with so many units of these groups; the same question is not measured twice."""
    asked = {"keep": session_of(store, analysis.id).checked(body.keep)}
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
