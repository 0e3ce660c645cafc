"""Analyses: make, list, rename, stop, run again, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from backend import describe
from backend.access import Caller, CallerDep, OwnedDep, ReadingDep, StoreDep, visible
from backend.schemas import Analysis, AnalysisCreate, AnalysisPatch
from backend.store import Analysis as AnalysisRow
from backend.store import Upload, cleanup, jobs, uploads
from backend.store.models import ENDED
from backend.submission import submit
from cipm.errors import Conflict, InputError
from cipm.options import parse_options

router = APIRouter(prefix="/analyses", tags=["analyses"])


@router.post("", status_code=201, summary="Analyse a model")
def create_analysis(body: AnalysisCreate, caller: CallerDep, store: StoreDep) -> Analysis:
    """Queue the analysis of two complete uploads. Follow it on `…/events`."""
    options = parse_options(body.options).model_dump()
    with store.write() as session:
        model = _complete(session, caller, body.model, "model")
        probe = _complete(session, caller, body.probe, "probe")
        row, job = submit(session, caller.user_id, model, probe, title=body.title, options=options)
    store.wake(job.id)
    return describe.analysis(row, job, read_only=False)


@router.get("", summary="Your analyses")
def list_analyses(caller: CallerDep, store: StoreDep,
                  limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 200,
                  ) -> list[Analysis]:
    """Return the caller's analyses and the samples, the newest first."""
    mine = (select(AnalysisRow).where(or_(AnalysisRow.owner_id == caller.user_id, AnalysisRow.sample),
                                      AnalysisRow.deleted.is_(None))
            .order_by(AnalysisRow.created.desc(), AnalysisRow.id).limit(limit))
    with store.read() as session:
        return [describe.analysis(row, describe.newest_job(session, row.id), read_only=row.owner_id != caller.user_id)
                for row in session.scalars(mine).all()]


@router.get("/{analysis_id}", summary="One analysis")
def get_analysis(reading: ReadingDep, store: StoreDep) -> Analysis:
    """Return an analysis with its newest job."""
    with store.read() as session:
        newest = describe.newest_job(session, reading.analysis.id)
    return describe.analysis(reading.analysis, newest, read_only=reading.read_only)


@router.patch("/{analysis_id}", summary="Rename an analysis")
def patch_analysis(body: AnalysisPatch, analysis: OwnedDep, store: StoreDep) -> Analysis:
    """Change the title."""
    with store.write() as session:
        row = visible(session, analysis.id)
        row.title = body.title
        newest = describe.newest_job(session, row.id)
    return describe.analysis(row, newest, read_only=False)


@router.delete("/{analysis_id}", status_code=204, summary="Delete an analysis")
def delete_analysis(analysis: OwnedDep, store: StoreDep) -> None:
    """Delete an analysis, its links, exports and results; what other analyses use stays."""
    cleanup.delete_analysis(store, analysis.id)


@router.post("/{analysis_id}/cancel", summary="Stop a job")
def cancel(analysis: OwnedDep, store: StoreDep,
           job: Annotated[str | None, Query(description="One of its jobs; default: the newest that analyses.")] = None,
           ) -> Analysis:
    """Stop the job at its next breath; finished stages are kept. 409 where it has ended."""
    with store.write() as session:
        jobs.request_cancel(session, describe.chosen_job(session, analysis.id, job).id)
    with store.read() as session:
        return describe.analysis(analysis, describe.newest_job(session, analysis.id), read_only=False)


@router.post("/{analysis_id}/rerun", summary="Run again")
def rerun(analysis: OwnedDep, store: StoreDep) -> Analysis:
    """Queue the analysis again; finished stages are not repeated. 409 while it waits or runs."""
    with store.write() as session:
        # Locked, so that of two who ask at once one is refused.
        row = session.get_one(AnalysisRow, analysis.id, with_for_update=True)
        before = describe.newest_job(session, row.id)
        if before.status not in ENDED:
            raise Conflict(f"This analysis is {before.status} already.", fix="Wait for it, or cancel it first.")
        job = jobs.enqueue(session, row, "analyze")
    store.wake(job.id)
    return describe.analysis(row, job, read_only=False)


def _complete(session: Session, caller: Caller, upload_id: str, kind: str) -> Upload:
    upload = uploads.get(session, upload_id, caller.user_id)
    if upload.kind != kind:
        raise InputError(f"{upload.name} was uploaded as a {upload.kind}, not as a {kind}.", where=kind)
    if not upload.complete:
        raise Conflict(f"{upload.name} is not complete: {upload.offset:,} of {upload.size:,} bytes are here.", where=kind,
                       fix="Send the rest, then ask again.")
    return upload
