"""The embedded worker: a child process that the server starts, respawns when it dies, and ends with itself.

It is started by module name and told nothing but the settings; what it works on it finds in the database. It watches
its standard input, which this process holds open, so that it ends even where this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field

from backend.settings import Settings

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "workers", "--with-parent")
STOP_SECONDS = 8.0
HEALTHY_SECONDS = 20.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0


@dataclass
class EmbeddedWorker:
    """Keeps one worker process alive between `start` and `stop`."""

    settings: Settings
    command: tuple[str, ...] = COMMAND
    process: asyncio.subprocess.Process | None = None
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Begin to keep a worker alive."""
        self._task = asyncio.create_task(self._keep_alive(), name="embedded worker")

    async def stop(self) -> None:
        """End the worker: it gives its job back to the queue; one that does not end in time is killed."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self.process is not None and self.process.returncode is None:
            await _end(self.process)

    async def _keep_alive(self) -> None:
        wait = FIRST_WAIT
        while True:
            started = time.monotonic()
            self.process = await self._spawn()
            status = await self.process.wait()
            lived = time.monotonic() - started
            wait = FIRST_WAIT if lived > HEALTHY_SECONDS else min(2 * wait, LONGEST_WAIT)
            log.warning("The worker ended (%s) after %.0f s; another starts in %.1f s.", status, lived, wait)
            await asyncio.sleep(wait)

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CIPM_")}
        environment |= self.settings.environment()
        # A session of its own: Ctrl-C in the terminal reaches the server alone, which then ends the worker in order.
        return await asyncio.create_subprocess_exec(*self.command, env=environment, stdin=asyncio.subprocess.PIPE,
                                                    start_new_session=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
