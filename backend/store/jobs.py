"""Jobs and their leases: who works on what, told by the database row alone.

    queued ──claim──► running ──finish──► done
      ▲  └─cancel─► cancelled ◄─cancel──┤ └─fail──► failed
      └──── release, or sweep of an expired lease ────┘ (a third lost worker fails the job)

A worker that claimed a job holds a Lease until it ends it or is not heard of for `lease_seconds`. Every write names the
lease; a worker that lost it writes nothing any more (LeaseLost) and stops.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from backend.store import shards
from backend.store.database import db_now
from backend.store.models import ENDED, JOB_KINDS, Analysis, Job, Worker, utc_now
from backend.store.store import Store
from cipm.errors import CipmError, Conflict, NotFound

WORKER_SILENT_SECONDS = 15.0
_RELEASED: dict[str, Any] = {"status": "queued", "owner": None, "lease_until": None, "eta_seconds": None}


class LeaseLost(Exception):  # noqa: N818 - it is news, not an error of anybody's
    """The job went to another worker, or was ended from outside: stop, and write nothing."""


@dataclass(frozen=True)
class Lease:
    """The right to work on one job: `owner` is unique to this claim, `attempt` counts from 1."""

    job_id: str
    owner: str
    attempt: int


def enqueue(session: Session, analysis: Analysis, kind: str, request: dict[str, Any] | None = None) -> Job:
    """Add a job to the queue. After the commit, call `store.wake(job.id)`."""
    assert kind in JOB_KINDS
    job = Job(analysis_id=analysis.id, kind=kind, request=request or {}, stages=[], status="queued",
              device=analysis.options.get("device", "auto"))
    session.add(job)
    session.flush()
    return job


def enqueue_once(session: Session, analysis: Analysis, kind: str, request: dict[str, Any]) -> tuple[Job, bool]:
    """Return the newest job of the same kind and request that waits, runs or is done, or else a new one, and whether it is new.

    After the commit, call `store.wake(job.id)` where it is.
    """
    asked = (select(Job).where(Job.analysis_id == analysis.id, Job.kind == kind, Job.status.in_(("queued", "running", "done")))
             .order_by(Job.created.desc(), Job.id))
    before = next((job for job in session.scalars(asked) if job.request == request), None)
    return (before, False) if before else (enqueue(session, analysis, kind, request), True)


def claim(store: Store, worker_id: str, *, gpu: bool = False) -> Lease | None:
    """Take the next job by one atomic update; None where there is none for this worker.

    Short jobs (exports, measurements) go first, then shards, then the oldest. A job that asks for a GPU is left to a
    worker that has one while such a worker is alive, and one that was divided until its shards have ended.
    """
    owner = f"{worker_id}:{secrets.token_urlsafe(8)}"
    waiting = [Job.status == "queued", ~shards.waits_for_shards()] + ([] if gpu else [or_(Job.device != "cuda", ~_gpu_alive())])
    first = (select(Job.id).where(*waiting).order_by(case((Job.kind == "analyze", 2), (Job.kind == "shard", 1), else_=0),
                                                            Job.created, Job.id)
             .limit(1).with_for_update(skip_locked=True, of=Job).scalar_subquery())
    taken = (update(Job).where(Job.id == first, Job.status == "queued")
             .values(status="running", owner=owner, lease_until=db_now() + store.settings.lease_seconds,
                     attempt=Job.attempt + 1, started=func.coalesce(Job.started, utc_now()), cancel_requested=False)
             .returning(Job.id, Job.attempt).execution_options(synchronize_session=False))
    with store.write() as session:
        row = session.execute(taken).first()
    return None if row is None else Lease(row.id, owner, row.attempt)


def heartbeat(store: Store, lease: Lease) -> bool:
    """Extend the lease; return whether the job is to be cancelled. Raises LeaseLost."""
    extended = (_mine(lease).values(lease_until=db_now() + store.settings.lease_seconds)
                .returning(Job.cancel_requested))
    with store.write() as session:
        row = session.execute(extended).first()
    if row is None:
        raise LeaseLost(lease.job_id)
    return bool(row.cancel_requested)


def cancel_requested(store: Store, lease: Lease) -> bool:
    """Return whether the job is to be cancelled, without a write. Raises LeaseLost."""
    held = select(Job.cancel_requested).where(Job.id == lease.job_id, Job.owner == lease.owner, Job.status == "running")
    with store.read() as session:
        row = session.execute(held).first()
    if row is None:
        raise LeaseLost(lease.job_id)
    return bool(row.cancel_requested)


def report(store: Store, lease: Lease, **values: Any) -> None:
    """Write how far the job is (stage, stages, progress, eta_seconds). Raises LeaseLost."""
    assert values.keys() <= {"stage", "stages", "progress", "eta_seconds"}, values.keys()
    _write(store, lease, values)


def finish(store: Store, lease: Lease, result: dict[str, Any]) -> None:
    """End the job well; its shards, if any, are forgotten. Raises LeaseLost."""
    with store.write() as session:
        _fenced(session, lease, _ending("done") | {"result": result, "progress": 1.0, "stage": None})
        shards.forget(session, lease.job_id)


def divide(store: Store, lease: Lease, numbers: Sequence[int], total: int) -> list[str]:
    """Give the job back until the shards with these numbers, of `total`, have ended; they are queued in the same breath.

    Returns their ids; after it call `store.wake_all`. The attempt does not count. Raises LeaseLost.
    """
    with store.write() as session:
        _fenced(session, lease, _RELEASED | {"attempt": Job.attempt - 1})
        return shards.add(session, lease.job_id, numbers, total)


def fail(store: Store, lease: Lease, error: CipmError) -> None:
    """End the job with an error that a person can read; where it is a shard, stop the others. Raises LeaseLost."""
    with store.write() as session:
        _fenced(session, lease, _ending("failed") | {"error": error.to_json()["error"]})
        shards.stop_others(session, lease.job_id)


def fail_with_shard(store: Store, lease: Lease, shard: Job) -> None:
    """End the job with the error of one of its shards. Raises LeaseLost."""
    _write(store, lease, _ending("failed") | {"error": shard.error})


def cancelled(store: Store, lease: Lease) -> None:
    """End the job because its owner asked. Raises LeaseLost."""
    _write(store, lease, _ending("cancelled"))


def release(store: Store, lease: Lease) -> None:
    """Give the job back unharmed, as if this attempt had not been: the worker is going away. Raises LeaseLost."""
    _write(store, lease, _RELEASED | {"attempt": Job.attempt - 1})


def request_cancel(session: Session, job_id: str) -> None:
    """Stop a job: at once where it waits, within about a second where it runs. Raises NotFound, Conflict when ended."""
    shards.stop(session, job_id)
    waiting = update(Job).where(Job.id == job_id, Job.status == "queued").values(_ending("cancelled"))
    running = update(Job).where(Job.id == job_id, Job.status == "running").values(cancel_requested=True)
    for statement in (waiting, running):
        if session.execute(statement.returning(Job.id)).first() is not None:
            return
    status = session.scalar(select(Job.status).where(Job.id == job_id))
    if status is None:
        raise NotFound("There is no such job.")
    raise Conflict(f"This job has already ended ({status}).")


def sweep(store: Store) -> str | None:
    """End or requeue every job whose lease ran out; return a job that waits for a worker, if any."""
    with store.read() as session:
        lost = session.scalars(select(Job).where(Job.status == "running", Job.lease_until < db_now())).all()
    for job in lost:
        _take_back(store, job)
    with store.read() as session:
        waiting = select(Job.id).where(Job.status == "queued", ~shards.waits_for_shards())
        return session.scalar(waiting.order_by(Job.created).limit(1))


def seen(store: Store, worker: Worker) -> None:
    """Write that this worker is alive, and forget those silent for a day."""
    values = {"host": worker.host, "pid": worker.pid, "gpu": worker.gpu, "busy": worker.busy, "jail": worker.jail}
    with store.write() as session:
        if not session.execute(update(Worker).where(Worker.id == worker.id).values(seen=db_now(), **values)
                               .returning(Worker.id)).first():
            session.add(Worker(id=worker.id, seen=db_now(), **values))
            session.execute(delete(Worker).where(Worker.seen < db_now() - 86_400))


def gone(store: Store, worker_id: str) -> None:
    """Write that this worker has ended."""
    with store.write() as session:
        session.execute(delete(Worker).where(Worker.id == worker_id))


def health(store: Store, *, host: str | None = None) -> dict[str, Any]:
    """Return {alive, busy, workers, jail} over the workers heard of lately, of one host or of all.

    `jail` is a worker's own account of it, {ok, detail, layers}, or None while it is being tested.
    """
    lately = select(Worker).where(_lately(), *([] if host is None else [Worker.host == host]))
    with store.read() as session:
        alive = session.scalars(lately.order_by(Worker.seen.desc())).all()
    return {"alive": bool(alive), "busy": any(worker.busy for worker in alive), "workers": len(alive),
            "jail": next((worker.jail for worker in alive if worker.jail), None)}


def _lately() -> ColumnElement[bool]:
    return Worker.seen > db_now() - WORKER_SILENT_SECONDS


def _gpu_alive() -> ColumnElement[bool]:
    return exists(select(Worker.id).where(and_(Worker.gpu, _lately())))


def _mine(lease: Lease) -> Any:
    return update(Job).where(Job.id == lease.job_id, Job.owner == lease.owner, Job.status == "running")


def _write(store: Store, lease: Lease, values: dict[str, Any]) -> None:
    with store.write() as session:
        _fenced(session, lease, values)


def _fenced(session: Session, lease: Lease, values: dict[str, Any]) -> None:
    row = session.execute(_mine(lease).values(values).returning(Job.id).execution_options(synchronize_session=False)).first()
    if row is None:
        raise LeaseLost(lease.job_id)


def _ending(status: str) -> dict[str, Any]:
    assert status in ENDED
    return {"status": status, "owner": None, "lease_until": None, "eta_seconds": None, "finished": utc_now()}


def _take_back(store: Store, job: Job) -> None:
    """Decide about a job whose worker is gone; whoever sweeps first decides."""
    assert job.owner is not None
    values = _RELEASED
    if job.cancel_requested:
        values = _ending("cancelled")
    elif job.attempt >= store.settings.max_attempts:
        values = _ending("failed") | {"error": _lost(job).to_json()["error"]}
    stages = [stage | ({"state": "waiting"} if stage["state"] == "running" else {}) for stage in job.stages]
    expired = _mine(Lease(job.id, job.owner, job.attempt)).where(Job.lease_until < db_now())
    with store.write() as session:
        session.execute(expired.values(stages=stages, **values).execution_options(synchronize_session=False))
        if values["status"] == "failed":
            shards.stop_others(session, job.id)


def _lost(job: Job) -> CipmError:
    times = {1: "once", 2: "twice"}.get(job.attempt, f"{job.attempt} times")
    return CipmError(f"The worker was lost {times} during this job, so it was given up.", where=job.stage,
                     fix="The usual cause is too little memory: try fewer probe rows or a smaller model.")
