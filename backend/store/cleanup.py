"""Removing what nobody needs: analyses, uploads, and the files that only they used."""

from __future__ import annotations

from sqlalchemy import delete, exists, or_, select, update

from backend.store.database import lock_content
from backend.store.models import Analysis, Artefact, Job, Share, StageUse, Upload, utc_now
from backend.store.store import Store

ORPHAN_SECONDS = 3600.0


def delete_analysis(store: Store, analysis_id: str) -> None:
    """Remove an analysis, stop its jobs, revoke its links, and remove the files that nothing else uses."""
    with store.write() as session:
        session.execute(update(Analysis).where(Analysis.id == analysis_id).values(deleted=utc_now()))
        session.execute(update(Job).where(Job.analysis_id == analysis_id, Job.status == "queued")
                        .values(status="cancelled", finished=utc_now()))
        session.execute(update(Job).where(Job.analysis_id == analysis_id, Job.status == "running")
                        .values(cancel_requested=True))
        session.execute(update(Share).where(Share.analysis_id == analysis_id, Share.revoked.is_(None))
                        .values(revoked=utc_now()))
    collect(store)


def collect(store: Store) -> int:
    """Remove deleted analyses whose jobs have ended, then every file that nothing uses; return how many things went."""
    return _drop_analyses(store) + _drop_artefacts(store) + collect_uploads(store)


def drop_content(store: Store, sha256: str) -> bool:
    """Remove an uploaded file that no upload and no analysis names any more."""
    with store.write() as session:
        lock_content(session, sha256)
        named = session.scalar(select(or_(
            exists(select(Upload.id).where(Upload.sha256 == sha256)),
            exists(select(Analysis.id).where(or_(Analysis.model_sha256 == sha256, Analysis.probe_sha256 == sha256))))))
        if not named:
            store.objects.delete_file(f"uploads/{sha256}")
    return not named


def _drop_analyses(store: Store) -> int:
    active = exists(select(Job.id).where(Job.analysis_id == Analysis.id, Job.status.in_(("queued", "running"))))
    with store.write() as session:
        gone = session.scalars(select(Analysis).where(Analysis.deleted.is_not(None), ~active)).all()
        hashes = {sha for row in gone for sha in (row.model_sha256, row.probe_sha256) if sha}
        session.execute(delete(Analysis).where(Analysis.id.in_([row.id for row in gone])))
    return len(gone) + sum(drop_content(store, sha) for sha in hashes)


def _drop_artefacts(store: Store) -> int:
    used = exists(select(StageUse.job_id).where(StageUse.address == Artefact.address))
    with store.write() as session:
        unused = session.scalars(select(Artefact).where(~used)).all()
        session.execute(delete(Artefact).where(Artefact.address.in_([row.address for row in unused])))
    for row in unused:
        store.objects.delete_folder(row.prefix)
    return len(unused)


def collect_uploads(store: Store) -> int:
    """Forget uploads that expired half-way; their bytes go with them."""
    with store.write() as session:
        expired = session.scalars(select(Upload.id).where(~Upload.complete, Upload.expires < utc_now())).all()
        session.execute(delete(Upload).where(Upload.id.in_(expired), ~Upload.complete))
    for upload_id in expired:
        (store.settings.data / "uploads" / f"{upload_id}.part").unlink(missing_ok=True)
    return len(expired)
