"""One worker process: it claims jobs while there are any, and a thread of it looks after the queue.

The message that wakes it carries no truth. Each second the thread ends expired leases and, while this worker is idle and a
job waits, sends a wake-up: so a lost message, a dead worker or a broker that was away costs a second or two. Only idle
workers send, and each takes its own messages off again, so they never pile up.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from backend.settings import Settings
from backend.store import Store, Worker, cleanup, jobs
from cipm.errors import CipmError
from cipm.jail import Limits, prepare, self_test
from workers.run import Bench, Engine, run_claimed

log = logging.getLogger(__name__)
SWEEP_SECONDS, COLLECT_SECONDS = 1.0, 600.0


@dataclass
class WorkerProcess:
    """The state of this process. `work` is called by the one thread that runs jobs, `look_after` by the sweeping one."""

    store: Store
    engine: Engine
    folder: Path
    gpu: bool
    stopping: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)
    telling: threading.Lock = field(default_factory=threading.Lock)
    jail: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """Return the name under which this worker claims jobs."""
        return self.folder.name

    def work(self) -> None:
        """Run jobs until none waits."""
        self.idle.clear()
        try:
            while not self.stopping.is_set():
                lease = jobs.claim(self.store, self.id, gpu=self.gpu)
                if lease is None:
                    return
                self._tell()
                run_claimed(self._bench(), lease)
        finally:
            self.idle.set()

    def prepare(self) -> None:
        """Have the engine imported before a job needs it; where that fails, the first job tries again and says why."""
        try:
            prepare(self.engine.entry, threads=limits(self.store.settings).threads, cuda=self.gpu, also=self.engine.also)
        except (CipmError, OSError) as error:
            log.warning("The engine could not be prepared: %s", error)

    def look_after(self) -> None:
        """Sweep each second until the worker stops."""
        told = collected = -1e9
        while not self.stopping.wait(SWEEP_SECONDS):
            try:
                waiting = jobs.sweep(self.store)
                if waiting and self.idle.is_set():
                    self.store.wake(waiting)
                if time.monotonic() - told > min(self.store.settings.heartbeat_seconds, 5.0):
                    self._tell()
                    told = time.monotonic()
                if time.monotonic() - collected > COLLECT_SECONDS:
                    cleanup.collect(self.store)
                    collected = time.monotonic()
            except SQLAlchemyError as error:
                log.warning("The database did not answer the sweep: %s", error)
            except Exception:  # the sweep is what everything else relies on: it goes on
                log.exception("The sweep failed; it goes on in a second.")

    def prove(self) -> None:
        """Test the jail once, for the health page; jobs prove it again each time."""
        self.jail = self_test()
        log.info("Jail: %s", self.jail["detail"])

    def close(self) -> None:
        """Say that this worker is gone."""
        self.stopping.set()
        jobs.gone(self.store, self.id)

    def _tell(self) -> None:
        """Say that this worker is alive. News only: a job must not suffer where it cannot be told."""
        news = Worker(id=self.id, host=socket.gethostname(), pid=os.getpid(), gpu=self.gpu,
                      busy=not self.idle.is_set(), jail=self.jail)
        try:
            with self.telling:  # two threads of ours making the same row would be one too many
                jobs.seen(self.store, news)
        except SQLAlchemyError as error:
            log.warning("The database did not take word of this worker: %s", error)

    def _bench(self) -> Bench:
        return Bench(self.store, self.engine, self.folder, limits(self.store.settings), self.gpu, self.stopping.is_set)


def new_worker_id() -> str:
    """Return a name that no other worker has."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


def limits(settings: Settings) -> Limits:
    """Return what a job may use here: the settings, and no more than four fifths of this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Limits(memory_bytes=min(settings.job_memory_bytes, memory * 4 // 5), seconds=settings.job_seconds)


def choose_device(device: str, *, exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Tell whether this worker has a GPU, and let its children see that one alone. Without torch: by device node.

    Raises CipmError where the setting names a GPU that is not there.
    """
    if device == "cpu":
        return False
    number = device.partition(":")[2] or os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    there = exists(f"/dev/nvidia{number}") if number.isdigit() else bool(number) and exists("/dev/nvidiactl")
    if not there and device != "auto":
        raise CipmError(f"CIPM_DEVICE is {device}, but this machine has no such GPU.", fix="Use auto or cpu.")
    if there:
        os.environ["CUDA_VISIBLE_DEVICES"] = number
    return there
