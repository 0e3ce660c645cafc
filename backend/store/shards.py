"""A job divided into shards: jobs of kind `shard`, which any worker takes, and their parent, which waits for them.

    parent: running ──divide──► queued, not to be claimed ──all shards ended──► claimed again
    shard:  queued ──► running ──► done | failed | cancelled; a lost one is taken back alone, like any other job

One that fails stops the others, and the parent fails with its error when it is claimed.

Everything is in the rows, as for all jobs: what a shard gave is an artefact, found by its address.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.orm import Session, aliased

from backend.store.models import ENDED, Job, StageUse, utc_now
from backend.store.store import Store

DIVIDED_STAGE = "collect"


def waits_for_shards() -> ColumnElement[bool]:
    """Tell in SQL whether a job was divided and its shards are still at it."""
    shard = aliased(Job)
    return exists(select(shard.id).where(shard.parent_id == Job.id, shard.status.in_(("queued", "running"))).correlate(Job))


def add(session: Session, parent_id: str, numbers: Sequence[int], total: int) -> list[str]:
    """Queue the shards with these numbers, of so many in all; the parent's stage counts as running meanwhile."""
    parent = session.get_one(Job, parent_id, populate_existing=True)
    shards = [Job(analysis_id=parent.analysis_id, parent_id=parent.id, kind="shard", request={"shard": number, "of": total},
                  stages=[], status="queued", device=parent.device) for number in numbers]
    session.add_all(shards)
    parent.stage, parent.stages = DIVIDED_STAGE, _marked(parent, {"state": "running", "shards": total})
    session.flush()
    return [shard.id for shard in shards]


def of(store: Store, parent_id: str) -> list[Job]:
    """Return the shards of a job, by their number."""
    with store.read() as session:
        return sorted(session.scalars(select(Job).where(Job.parent_id == parent_id)), key=lambda shard: shard.request["shard"])


def is_divided(job: Job) -> bool:
    """Tell whether a job in the queue is in truth being worked on, by its shards."""
    return job.status == "queued" and any(stage.get("shards") and stage["state"] == "running" for stage in job.stages)


def tell_parent(store: Store, parent_id: str) -> None:
    """Write into a divided job how far all its shards are together."""
    shards = of(store, parent_id)
    with store.write() as session:
        parent = session.get(Job, parent_id)
        if parent is None or not is_divided(parent):
            return
        total = next(stage["shards"] for stage in parent.stages if stage.get("shards"))
        standing = total - len(shards)  # collected before
        share = (standing + sum(_share(shard) for shard in shards)) / total
        over = sum(stage["state"] in ("done", "cached") for stage in parent.stages)
        session.execute(update(Job).where(Job.id == parent_id, Job.status == "queued")
                        .values(progress=(over + share) / len(parent.stages)).execution_options(synchronize_session=False))


def stop(session: Session, parent_id: str) -> None:
    """Stop the shards of a job that are not over."""
    mine = Job.parent_id == parent_id
    session.execute(update(Job).where(mine, Job.status == "queued").values(status="cancelled", finished=utc_now()))
    session.execute(update(Job).where(mine, Job.status == "running").values(cancel_requested=True))


def stop_others(session: Session, job_id: str) -> None:
    """Stop the other shards of what this job is a shard of, if it is one."""
    parent_id = session.scalar(select(Job.parent_id).where(Job.id == job_id))
    if parent_id is not None:
        stop(session, parent_id)


def forget(session: Session, parent_id: str) -> None:
    """Remove the shards of a job that is done: what they gave is in its result."""
    session.execute(delete(Job).where(Job.parent_id == parent_id, Job.status.in_(ENDED)))
    session.execute(delete(StageUse).where(StageUse.job_id == parent_id, StageUse.stage.startswith("shard ")))


def _share(shard: Job) -> float:
    """Return how much of a shard's own stage, its last, is done."""
    if shard.status == "done":
        return 1.0
    return max(0.0, shard.progress * len(shard.stages) - (len(shard.stages) - 1)) if shard.stages else 0.0


def _marked(parent: Job, values: dict[str, object]) -> list[dict[str, object]]:
    return [stage | values if stage["name"] == DIVIDED_STAGE else stage for stage in parent.stages]
