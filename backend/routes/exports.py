"""Exports: the reorganised checkpoint in the uploaded format, or a smaller one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from backend import describe
from backend.access import CallerDep, OwnedDep, StoreDep, owned_job
from backend.results import check_order
from backend.routes.files import attachment, sends
from backend.routes.results import open_view
from backend.schemas import Export, ExportCreate
from backend.store import Analysis, Store, artefacts, jobs
from backend.whatifs import session_of
from cipm.errors import Conflict, OptionError

router = APIRouter(tags=["exports"])
EXPORTS = ("export", "prune")
"""The kinds of jobs that write a checkpoint."""


@router.post("/analyses/{analysis_id}/exports", status_code=201, summary="Export a reorganised or smaller checkpoint")
def create_export(body: ExportCreate, analysis: OwnedDep, request: Request, store: StoreDep) -> Export:
    """Queue the export in one order, or of the network with so many units of each group; the same is not exported twice."""
    kind, asked = _order(body.order, analysis, request, store) if body.order is not None else _smaller(body, analysis, store)
    with store.write() as session:
        job, new = jobs.enqueue_once(session, analysis, kind, asked)
        made = describe.export(session, job)
    if new:
        store.wake(job.id)
    return made


@router.get("/analyses/{analysis_id}/exports", summary="Exports of an analysis")
def list_exports(analysis: OwnedDep, store: StoreDep) -> list[Export]:
    """Return the exports of an analysis, the newest first."""
    with store.read() as session:
        return [describe.export(session, row) for row in describe.jobs_of(session, analysis.id, *EXPORTS)]


@router.get("/exports/{export_id}", summary="One export")
def get_export(export_id: str, caller: CallerDep, store: StoreDep) -> Export:
    """Return an export with its job."""
    with store.read() as session:
        return describe.export(session, owned_job(session, export_id, caller, *EXPORTS))


@router.get("/exports/{export_id}/file", summary="Download an export", response_class=FileResponse,
            responses=sends("application/octet-stream"))
def get_export_file(export_id: str, caller: CallerDep, store: StoreDep) -> FileResponse:
    """Send the exported checkpoint. 409 where it is not written yet."""
    with store.read() as session:
        job = owned_job(session, export_id, caller, *EXPORTS)
        if job.status != "done" or job.result is None:
            raise Conflict(f"This export is {job.status}; it has no file.", where=export_id)
        artefact, name = artefacts.of_job(session, job.id, job.kind), describe.export_name(session, job)
    return attachment(artefacts.file(store, artefact, job.result["filename"]), name)


def _order(order: str, analysis: Analysis, request: Request, store: Store) -> tuple[str, dict[str, Any]]:
    check_order(open_view(request, store, analysis.id), order)
    return "export", {"order": order}


def _smaller(body: ExportCreate, analysis: Analysis, store: Store) -> tuple[str, dict[str, Any]]:
    session = session_of(store, analysis.id)
    if body.form is not None and body.form not in session.forms:
        raise OptionError(f"This model cannot be written as {body.form}; it can as {', '.join(session.forms)}.", where="form")
    return "prune", {"keep": session.checked(body.keep or {}), "form": body.form or session.forms[0]}
