"""An analysis of two complete uploads, made and queued: the one way, for people and for the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from sqlalchemy.orm import Session

from backend.store import Analysis, Job, Upload, jobs


def submit(session: Session, owner_id: str, model: Upload, probe: Upload, *, title: str | None,
           options: Mapping[str, Any], sample: bool = False) -> tuple[Analysis, Job]:
    """Add an analysis with its first job. After the commit, call `store.wake(job.id)`."""
    assert model.complete and probe.complete
    row = Analysis(
        owner_id=owner_id, title=title or PurePath(model.name).stem[:200], options=dict(options), sample=sample,
        model_upload_id=model.id, model_name=model.name, model_sha256=model.sha256, model_size=model.size,
        probe_upload_id=probe.id, probe_name=probe.name, probe_sha256=probe.sha256, probe_size=probe.size)
    session.add(row)
    session.flush()
    return row, jobs.enqueue(session, row, "analyze")
