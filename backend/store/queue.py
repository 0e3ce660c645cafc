"""The broker: messages that say "there is work". They carry no truth; losing one costs a second, not a job."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from celery import Celery, group
from kombu.exceptions import OperationalError

from backend.settings import Settings

WAKE = "cipm.wake"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broker:
    """A sender of wake-ups."""

    celery: Celery

    def wake(self, job_id: str) -> bool:
        """Tell one idle worker to look for work; False where the broker is away (the sweep looks again)."""
        try:
            self.celery.send_task(WAKE, args=[job_id], retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("The broker did not take a wake-up (%s); a worker's sweep will find the job.", error)
            return False
        return True


    def wake_all(self, job_ids: Sequence[str]) -> bool:
        """Tell as many idle workers as there are jobs, as one group; False where the broker is away."""
        try:
            group([self.celery.signature(WAKE, args=[job_id], ignore_result=True) for job_id in job_ids],
                  app=self.celery).apply_async(retry=False)
        except (OperationalError, OSError) as error:
            log.warning("The broker did not take %d wake-ups (%s); sweeps will find the jobs.", len(job_ids), error)
            return False
        return True


def make_celery(settings: Settings) -> Celery:
    """Return a Celery application on the broker of these settings: JSON only, early ack, no result backend."""
    app = Celery("cipm", broker=settings.broker_url or "filesystem://localhost", set_as_current=False)
    app.conf.update(
        accept_content=["json"], task_serializer="json", task_ignore_result=True, result_backend=None,
        task_acks_late=False, worker_prefetch_multiplier=1, worker_enable_remote_control=False,
        worker_send_task_events=False, worker_hijack_root_logger=False, task_default_queue="cipm",
        broker_connection_retry_on_startup=True, broker_connection_timeout=3,
        broker_transport_options=_transport(settings),
    )
    return app


def _transport(settings: Settings) -> dict[str, object]:
    if settings.broker_url:
        return {"socket_connect_timeout": 3, "socket_timeout": 30}
    return {name: str(_folder(settings.data / "broker" / folder)) for name, folder in (
        ("data_folder_in", "messages"), ("data_folder_out", "messages"), ("control_folder", "control"))}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
