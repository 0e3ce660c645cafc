"""Exports: the reorganised checkpoint in the uploaded format."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from backend import describe
from backend.access import CallerDep, OwnedDep, StoreDep, owned_job
from backend.results import check_order
from backend.routes.files import attachment, sends
from backend.routes.results import open_view
from backend.schemas import Export, ExportCreate
from backend.store import artefacts, jobs
from cipm.errors import Conflict

router = APIRouter(tags=["exports"])


@router.post("/analyses/{analysis_id}/exports", status_code=201, summary="Export a reorganised checkpoint")
def create_export(body: ExportCreate, analysis: OwnedDep, request: Request, store: StoreDep) -> Export:
    """Queue the export in one order; the same order is not exported twice."""
    check_order(open_view(request, store, analysis.id), body.order)
    asked = {"order": body.order}
    with store.write() as session:
        for before in describe.jobs_of(session, analysis.id, "export"):
            if before.request == asked and before.status in ("queued", "running", "done"):
                return describe.export(session, before)
        job = jobs.enqueue(session, analysis, "export", asked)
        made = describe.export(session, job)
    store.wake(job.id)
    return made


@router.get("/analyses/{analysis_id}/exports", summary="Exports of an analysis")
def list_exports(analysis: OwnedDep, store: StoreDep) -> list[Export]:
    """Return the exports of an analysis, the newest first."""
    with store.read() as session:
        return [describe.export(session, row) for row in describe.jobs_of(session, analysis.id, "export")]


@router.get("/exports/{export_id}", summary="One export")
def get_export(export_id: str, caller: CallerDep, store: StoreDep) -> Export:
    """Return an export with its job."""
    with store.read() as session:
        return describe.export(session, owned_job(session, export_id, caller, "export"))


@router.get("/exports/{export_id}/file", summary="Download an export", response_class=FileResponse,
            responses=sends("application/octet-stream"))
def get_export_file(export_id: str, caller: CallerDep, store: StoreDep) -> FileResponse:
    """Send the exported checkpoint. 409 where it is not written yet."""
    with store.read() as session:
        job = owned_job(session, export_id, caller, "export")
        if job.status != "done" or job.result is None:
            raise Conflict(f"This export is {job.status}; it has no file.", where=export_id)
        artefact, name = artefacts.of_job(session, job.id, "export"), describe.export_name(session, job)
    return attachment(artefacts.file(store, artefact, job.result["filename"]), name)
