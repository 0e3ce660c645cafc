"""Server-sent events of one job until it ends.

Each event is `event: job` with the Job as JSON; a comment every few seconds keeps the line open. The stream ends after
the event that shows the job ended, or when a share link that opened it is revoked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from backend import describe
from backend.access import Reading, ReadingDep, StoreDep, shared, visible
from backend.routes.files import sends
from backend.schemas import Job
from backend.store import Store
from backend.store.models import ENDED
from cipm.errors import NotFound

POLL_SECONDS = 0.4
HEARTBEAT_SECONDS = 10.0

router = APIRouter(prefix="/analyses", tags=["analyses"])


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"


@router.get("/{analysis_id}/events", summary="Follow a job", response_class=EventStream,
            responses=sends("text/event-stream"))
async def events(reading: ReadingDep, store: StoreDep,
                 job: Annotated[str | None, Query(description="One of its jobs; default: the newest.")] = None,
                 ) -> EventStream:
    """Send the Job whenever it changes, until it ends."""
    first = await run_in_threadpool(_read, store, reading, job)
    return EventStream(_changes(store, reading, first), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def _read(store: Store, reading: Reading, job_id: str | None) -> Job:
    if reading.token is not None:
        shared(store, reading.token)
    with store.read() as session:
        visible(session, reading.analysis.id)
        return describe.job(describe.chosen_job(session, reading.analysis.id, job_id))


async def _changes(store: Store, reading: Reading, job: Job) -> AsyncIterator[str]:
    yield _event(job)
    spoken = time.monotonic()
    while job.status not in ENDED:
        await asyncio.sleep(POLL_SECONDS)
        try:
            now = await run_in_threadpool(_read, store, reading, job.id)
        except NotFound:
            return
        if now != job:
            yield _event(job := now)
        elif time.monotonic() - spoken < HEARTBEAT_SECONDS:
            continue
        else:
            yield ": still here\n\n"
        spoken = time.monotonic()


def _event(job: Job) -> str:
    return f"event: job\ndata: {job.model_dump_json()}\n\n"
