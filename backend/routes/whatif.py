"""Pruning what-ifs: the session to predict with, fronts, measured ones, and those kept under a name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from backend import describe
from backend.access import OwnedDep, ReadingDep, StoreDep
from backend.routes.files import json_by_address
from backend.schemas import Job
from backend.store import Analysis, Store, artefacts, jobs
from backend.store import WhatIf as WhatIfRow
from backend.whatif_schemas import (
    Front,
    LatencyCreate,
    LatencyFit,
    Measurement,
    MeasurementCreate,
    WhatIf,
    WhatIfCreate,
    WhatIfPatch,
    WhatIfSession,
)
from backend.whatifs import named, owned_whatif, room_for_one, session_artefact, session_of, sizes_of
from cipm.allocation import SESSION_FILE

router = APIRouter(prefix="/analyses", tags=["what-ifs"])


@router.get("/{analysis_id}/whatif", summary="The what-if session", response_model=WhatIfSession)
def session(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return curves, counts, fronts and measured networks: enough to predict any what-if without the server.

    There as soon as stage `whatif` is done; 409 before, 404 where the analysis ended before.
    """
    artefact = session_artefact(store, reading.analysis.id)
    return json_by_address(request, artefact.address, lambda: artefacts.file(store, artefact, SESSION_FILE))


@router.get("/{analysis_id}/whatif/front", summary="The front of a what-if session")
def front(reading: ReadingDep, store: StoreDep,
          count: Annotated[str, Query(description="parameters, flops or bytes.", max_length=20)] = "parameters",
          locked: Annotated[list[str] | None, Query(description="Groups that stay whole.", max_length=10_000)] = None,
          size: Annotated[list[str] | None, Query(description="Sizes of one's own, as GROUP:UNITS.", max_length=10_000)] = None,
          turned: Annotated[list[str] | None, Query(description="Streams that go by principal direction, as the session names "
                                                                "them.", max_length=10_000)] = None) -> Front:
    """Return the choices that lose least for what they save, with groups locked or at sizes of one's own."""
    session, asked = session_of(store, reading.analysis.id), (locked or (), sizes_of(size or ()), turned or ())
    if not session.groups:
        return Front(count=count, choices=[], frontier=[])
    held = session.held(*asked)
    return Front(count=count, choices=held.listed(session.front(count, *asked)), frontier=list(held.frontier))


@router.post("/{analysis_id}/measurements", status_code=201, summary="Measure a what-if")
def measure(body: MeasurementCreate, analysis: OwnedDep, store: StoreDep) -> Job:
    """Queue the measurement of the network with so many units of these groups; the same question is not measured twice."""
    return _asked(store, analysis, "measure", {"keep": session_of(store, analysis.id).checked(body.keep)})


@router.get("/{analysis_id}/measurements", summary="Measured what-ifs")
def list_measurements(reading: ReadingDep, store: StoreDep) -> list[Measurement]:
    """Return the what-ifs that were asked for, the newest first, with results where they are measured."""
    with store.read() as session:
        return [describe.measurement(row) for row in describe.jobs_of(session, reading.analysis.id, "measure")]


@router.post("/{analysis_id}/latencies", status_code=201, summary="Find the sizes that keep a run time")
def fit_latency(body: LatencyCreate, analysis: OwnedDep, store: StoreDep) -> Job:
    """Queue a search along the front of FLOPs: at most six smaller models are made and timed beside the whole one on a worker.

    Run times are those of the worker's machine, with whatever else runs there. The same question is not asked twice.
    """
    known, asked = session_of(store, analysis.id), body.model_dump()
    known.front("flops", body.locked, body.sizes, body.turned)
    return _asked(store, analysis, "latency", asked)


@router.get("/{analysis_id}/latencies", summary="Run times that were asked for")
def list_latencies(reading: ReadingDep, store: StoreDep) -> list[LatencyFit]:
    """Return what was asked for, the newest first, with the sizes found and their measured run time."""
    with store.read() as session:
        return [describe.latency_fit(row) for row in describe.jobs_of(session, reading.analysis.id, "latency")]


@router.get("/{analysis_id}/whatifs", summary="Named what-ifs")
def list_whatifs(reading: ReadingDep, store: StoreDep) -> list[WhatIf]:
    """Return the what-ifs that were kept, the newest first."""
    with store.read() as session:
        return [describe.whatif(row) for row in named(session, reading.analysis.id)]


@router.post("/{analysis_id}/whatifs", status_code=201, summary="Keep a what-if")
def create_whatif(body: WhatIfCreate, analysis: OwnedDep, store: StoreDep) -> WhatIf:
    """Keep a what-if under a name; at most 200 of an analysis."""
    known = session_of(store, analysis.id)
    known.check_names(body.locked)
    keep = known.checked(body.keep)
    with store.write() as session:
        room_for_one(session, analysis.id)
        row = WhatIfRow(analysis_id=analysis.id, name=body.name, keep=keep, locked=body.locked)
        session.add(row)
        session.flush()
        return describe.whatif(row)


@router.patch("/{analysis_id}/whatifs/{whatif_id}", summary="Change a named what-if")
def patch_whatif(whatif_id: str, body: WhatIfPatch, analysis: OwnedDep, store: StoreDep) -> WhatIf:
    """Change its name, its sizes or its locks."""
    known = session_of(store, analysis.id)
    with store.write() as session:
        row = owned_whatif(session, analysis.id, whatif_id)
        given = body.model_dump(exclude_none=True)
        keep, locked = given.get("keep", row.keep), given.get("locked", row.locked)
        known.check_names(locked)
        row.name, row.keep, row.locked = given.get("name", row.name), known.checked(keep), locked
        return describe.whatif(row)


@router.delete("/{analysis_id}/whatifs/{whatif_id}", status_code=204, summary="Forget a named what-if")
def delete_whatif(whatif_id: str, analysis: OwnedDep, store: StoreDep) -> None:
    """Forget a named what-if; what was measured stays."""
    with store.write() as session:
        session.delete(owned_whatif(session, analysis.id, whatif_id))


def _asked(store: Store, analysis: Analysis, kind: str, request: dict[str, Any]) -> Job:
    """Queue a job, or return the one that answers the same request."""
    with store.write() as session:
        row, new = jobs.enqueue_once(session, analysis, kind, request)
        job = describe.job(row)
    if new:
        store.wake(job.id)
    return job
