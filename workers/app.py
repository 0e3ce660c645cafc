"""The Celery side of a worker process: one solo worker, one task, started with `python -m workers`.

Solo: one job at a time, and its work is in a jailed child anyway. SIGTERM gives the
running job back to the queue and ends the process; with --with-parent so does the end of whoever holds our standard input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from celery import Celery
from celery.exceptions import WorkerShutdown
from celery.signals import worker_shutting_down

from backend.settings import Settings, load_settings
from backend.store import open_store
from backend.store.queue import WAKE, make_celery
from cipm.errors import CipmError
from cipm.stages import divided, stage_addresses
from workers.run import Engine
from workers.scratch import own_folder
from workers.worker import WorkerProcess, choose_device, new_worker_id

log = logging.getLogger(__name__)
ENTRY = "cipm.pipeline:run_job"
WITH_PARENT = "--with-parent"
LAST_SECONDS = 5.0
OPTIONS = ("--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "--queues=cipm",
           "--loglevel=WARNING")


def pipeline_engine() -> Engine:
    """Return the real engine."""
    return Engine(ENTRY, stage_addresses, shards=divided)


def build(settings: Settings, wake: Callable[[], None], stopping: Callable[[], bool]) -> Celery:
    """Return the application whose one task wakes the worker; the id in the message is only a hint for the log."""
    app = make_celery(settings)

    @app.task(name=WAKE, ignore_result=True)
    def woken(job_id: str) -> None:
        wake()
        if stopping():
            raise WorkerShutdown(0)

    return app


def main(engine: Callable[[], Engine] = pipeline_engine) -> int:
    """Run a worker until it is told to stop; return its exit status."""
    signal.signal(signal.SIGTERM, _leave)  # until Celery sets its own
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        gpu = choose_device(settings.device)
        store = open_store(settings)
    except CipmError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    with own_folder(settings.scratch_folder, new_worker_id()) as folder:
        tempfile.tempdir = str(folder)  # what the jail makes goes with us, even where we are killed
        process = WorkerProcess(store, engine(), folder, gpu)
        try:
            serve(settings, process)
        finally:
            process.close()
            store.close()
    return 0


def serve(settings: Settings, process: WorkerProcess) -> None:
    """Take wake-ups until told to stop."""
    app = build(settings, process.work, process.stopping.is_set)
    stop = stopper(process)
    worker_shutting_down.connect(stop, weak=False)
    process.prepare()
    process.idle.set()
    watches = [end_with_parent] if WITH_PARENT in sys.argv[1:] else []
    for watch in (process.prove, process.look_after, *watches):
        threading.Thread(target=watch, daemon=True, name=watch.__name__).start()
    try:
        app.worker_main(["--quiet", "worker", *OPTIONS, f"--hostname={process.id}"])
    except SystemExit as stopped:
        log.info("Stopped (%s).", stopped.code)


def stopper(process: WorkerProcess) -> Callable[..., None]:
    """Return a receiver that makes the running job stop and go back to the queue, and an idle worker leave at once."""
    def stop(**details: Any) -> None:
        process.stopping.set()
        if process.idle.is_set():
            raise WorkerShutdown(0)  # in the main thread, out of its wait for messages

    return stop


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def end_with_parent() -> None:
    """End this process when its standard input closes: the server holds it open for as long as it lives."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    os._exit(1)
