"""Holding a lease while a job runs: a thread that extends it, and learns of a cancel or of its loss."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from backend.store import Store, jobs
from backend.store.jobs import Lease, LeaseLost

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5


class Keeper(threading.Thread):
    """Keep a lease until the block ends. `cancelled` and `lost` tell what was learned meanwhile."""

    def __init__(self, store: Store, lease: Lease):
        super().__init__(daemon=True, name=f"lease of {lease.job_id}")
        self.store, self.lease = store, lease
        self.cancelled = self.lost = False
        self._ended = threading.Event()

    def __enter__(self) -> Keeper:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look for a cancel twice a second, extend the lease every `heartbeat_seconds`, until the end or the loss."""
        settings = self.store.settings
        extended = time.monotonic()
        while not self.lost and not self._ended.wait(min(LOOK_SECONDS, settings.heartbeat_seconds)):
            before = time.monotonic()
            due = before - extended >= settings.heartbeat_seconds
            try:
                self.cancelled |= (jobs.heartbeat if due else jobs.cancel_requested)(self.store, self.lease)
                extended = before if due else extended
            except LeaseLost:
                self.lost = True
            except SQLAlchemyError as error:
                log.warning("The database did not answer a heartbeat: %s", error)
            # Without an answer for a whole lease, another worker may have the job: stop before it starts.
            self.lost |= time.monotonic() - extended > settings.lease_seconds
