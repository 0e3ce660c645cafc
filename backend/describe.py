"""Rows of the store as the API shows them."""

from __future__ import annotations

from pathlib import PurePath

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.schemas import Analysis, Export, Job, Problem, Source, Stage
from backend.store.models import Analysis as AnalysisRow
from backend.store.models import Job as JobRow
from backend.store.models import WhatIf as WhatIfRow
from backend.store.shards import is_divided
from backend.whatif_schemas import LatencyFit, Measurement, WhatIf
from cipm.errors import NotFound


def newest_job(session: Session, analysis_id: str) -> JobRow:
    """Return the newest job that analyses; every analysis has one."""
    newest = (select(JobRow).where(JobRow.analysis_id == analysis_id, JobRow.kind == "analyze")
              .order_by(JobRow.created.desc(), JobRow.id).limit(1))
    return session.scalars(newest).one()


def chosen_job(session: Session, analysis_id: str, job_id: str | None) -> JobRow:
    """Return this job of the analysis, or its newest one that analyses. Raises NotFound."""
    if job_id is None:
        return newest_job(session, analysis_id)
    job = session.get(JobRow, job_id)
    if job is None or job.analysis_id != analysis_id or job.parent_id is not None:
        raise NotFound("This analysis has no such job.", where="job")
    return job


def jobs_of(session: Session, analysis_id: str, *kinds: str) -> list[JobRow]:
    """Return the jobs of these kinds, the newest first."""
    found = select(JobRow).where(JobRow.analysis_id == analysis_id, JobRow.kind.in_(kinds))
    return list(session.scalars(found.order_by(JobRow.created.desc(), JobRow.id)))


def job(row: JobRow) -> Job:
    """Return a job as the API shows one; addresses and lease holders stay inside."""
    stages = [Stage(name=s["name"], state=s["state"], seconds=s.get("seconds")) for s in row.stages]
    status = "running" if is_divided(row) else row.status
    return Job(id=row.id, kind=row.kind, status=status, stage=row.stage, stages=stages,
               progress=min(1.0, max(0.0, row.progress)), eta_seconds=row.eta_seconds, attempt=row.attempt,
               error=Problem(**row.error) if row.error else None,
               created=row.created, started=row.started, finished=row.finished)


def analysis(row: AnalysisRow, newest: JobRow, *, read_only: bool) -> Analysis:
    """Return an analysis as the API shows one: no upload ids, no owner."""
    return Analysis(id=row.id, title=row.title, created=row.created, options=row.options, job=job(newest),
                    model=Source(name=row.model_name, sha256=row.model_sha256, size=row.model_size),
                    probe=_probe(row), read_only=read_only, sample=row.sample)


def measurement(row: JobRow) -> Measurement:
    """Return a measured what-if as the API shows one."""
    return Measurement(id=row.id, keep=row.request["keep"], job=job(row), result=row.result)


def latency_fit(row: JobRow) -> LatencyFit:
    """Return a budget of run time as the API shows one."""
    return LatencyFit(id=row.id, job=job(row), result=row.result, **row.request)


def whatif(row: WhatIfRow) -> WhatIf:
    """Return a named what-if as the API shows one."""
    return WhatIf(id=row.id, name=row.name, keep=row.keep, locked=row.locked, created=row.created)


def export(session: Session, row: JobRow) -> Export:
    """Return an export as the API shows one; name, size, certificate and facts come with its file."""
    made, asked = row.result or {}, row.request
    return Export(id=row.id, order=asked.get("order"), keep=asked.get("keep"), form=asked.get("form"), job=job(row),
                  filename=export_name(session, row), size=made.get("size"), certificate=made.get("certificate"),
                  facts=made.get("facts"))


def export_name(session: Session, row: JobRow) -> str | None:
    """Return what the owner's download is called: after the owner's model, not after whoever exported these contents first."""
    made = row.result or {}
    if made.get("filename") is None:
        return None
    model = PurePath(session.get_one(AnalysisRow, row.analysis_id).model_name).stem
    return f"{model}-{row.request.get('order', 'pruned')}{PurePath(made['filename']).suffix}"


def _probe(row: AnalysisRow) -> Source | None:
    if row.probe_sha256 is None:
        return None
    return Source(name=row.probe_name or "", sha256=row.probe_sha256, size=row.probe_size or 0)
