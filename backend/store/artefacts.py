"""Artefacts: what stages wrote, found by address. The database row is made after the files stand."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.store.models import Artefact, Job, StageUse
from backend.store.store import Store
from cipm.errors import NotFound

TIMINGS_KEPT = 20


def find(store: Store, addresses: Iterable[str]) -> dict[str, Artefact]:
    """Return the artefacts that stand, by address; a row whose files are gone is forgotten."""
    with store.read() as session:
        rows = session.scalars(select(Artefact).where(Artefact.address.in_(list(addresses)))).all()
    whole = {row.address: row for row in rows if store.objects.manifest(row.prefix) is not None}
    gone = [row.prefix for row in rows if row.address not in whole]
    if gone:
        with store.write() as session:
            session.execute(delete(Artefact).where(Artefact.prefix.in_(gone)))
    return whole


def record(store: Store, address: str, stage: str, folder: Path, seconds: float) -> Artefact:
    """Keep a stage's folder under its address; where another worker was first, its artefact stays.

    The folder comes from a jailed process: see `ObjectStore.put_folder` for what is refused.
    """
    prefix = f"artefacts/{address}-{secrets.token_hex(8)}"
    try:
        files = store.objects.put_folder(prefix, folder)
        size = sum(entry["size"] for entry in files.values())
        stands = _first(store, Artefact(address=address, stage=stage, prefix=prefix, files=files, size=size,
                                        seconds=seconds))
    except BaseException:
        store.objects.delete_folder(prefix)
        raise
    if stands.prefix != prefix:
        store.objects.delete_folder(prefix)
    return stands


def _first(store: Store, artefact: Artefact) -> Artefact:
    """Write the row where its address is free; return the row that stands."""
    with suppress(IntegrityError), store.write() as session:
        if session.get(Artefact, artefact.address) is None:
            session.add(artefact)
    with store.read() as session:
        return session.get_one(Artefact, artefact.address)


def use(store: Store, job_id: str, addresses: Mapping[str, str]) -> None:
    """Write that this job needs or makes these artefacts ({stage: address}), so that they are kept."""
    with store.write() as session:
        for stage, address in addresses.items():
            session.merge(StageUse(job_id=job_id, stage=stage, address=address))


def of_analysis(session: Session, analysis_id: str, stage: str = "view") -> Artefact:
    """Return the newest artefact of a stage among this analysis's finished jobs. Raises NotFound."""
    newest = (select(Artefact).join(StageUse, StageUse.address == Artefact.address).join(Job, Job.id == StageUse.job_id)
              .where(Job.analysis_id == analysis_id, StageUse.stage == stage, Job.status == "done")
              .order_by(Job.finished.desc()).limit(1))
    found = session.scalar(newest)
    if found is None:
        raise NotFound("This analysis has no result yet.")
    return found


def newest(session: Session, analysis_id: str, stage: str) -> Artefact | None:
    """Return the artefact of a stage of this analysis's newest job that has it, ended or not, or None."""
    found = (select(Artefact).join(StageUse, StageUse.address == Artefact.address).join(Job, Job.id == StageUse.job_id)
             .where(Job.analysis_id == analysis_id, StageUse.stage == stage).order_by(Job.created.desc(), Job.id).limit(1))
    return session.scalar(found)


def of_job(session: Session, job_id: str, stage: str) -> Artefact:
    """Return the artefact of one stage of this job. Raises NotFound."""
    found = session.scalar(select(Artefact).join(StageUse, StageUse.address == Artefact.address)
                           .where(StageUse.job_id == job_id, StageUse.stage == stage))
    if found is None:
        raise NotFound("This job has no such result yet.")
    return found


def file(store: Store, artefact: Artefact, name: str) -> Path:
    """Return a path to read one file of an artefact at. Raises NotFound; `name` may come from a request."""
    if name not in artefact.files:
        raise NotFound("There is no such file in this result.")
    return store.objects.local_file(f"{artefact.prefix}/files/{name}")


def folder(store: Store, artefact: Artefact, into: Path) -> Path:
    """Return where the artefact's files can be read: the store's own folder where it is local, else `into`, filled."""
    return store.objects.fetch_folder(artefact.prefix, into)


def typical_seconds(session: Session, stages: Iterable[str]) -> dict[str, float]:
    """Return the median time that each stage took lately, seconds, for those that ever ran."""
    found = {}
    for stage in stages:
        lately = (select(Artefact.seconds).where(Artefact.stage == stage).order_by(Artefact.created.desc())
                  .limit(TIMINGS_KEPT))
        times = sorted(session.scalars(lately))
        if times:
            found[stage] = times[len(times) // 2]
    return found


def kept_bytes(session: Session) -> int:
    """Return the size of all artefacts, bytes."""
    return session.scalar(select(func.coalesce(func.sum(Artefact.size), 0))) or 0
