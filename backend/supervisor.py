"""The server's own worker: a child process, started again when it dies, ended with the server.

It is named by module, not imported. It ends with us however we end: it reads our pipe to its end, and says goodbye.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from backend.settings import Settings

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "workers", "--with-parent")
FIRST_WAIT, LONGEST_WAIT, LIVED_SECONDS, GRACE_SECONDS = 0.2, 30.0, 60.0, 8.0


@dataclass
class Supervisor:
    """Keep one worker child alive between `start` and `stop`. `start` returns at once, `stop` within the grace time."""

    settings: Settings
    command: Sequence[str] = COMMAND
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the worker and watch over it."""
        self._thread = threading.Thread(target=self._keep, daemon=True, name="worker supervisor")
        self._thread.start()

    def stop(self) -> None:
        """End the worker: a word first, so that it gives its job back; by force after a few seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def alive(self) -> bool:
        """Tell whether the worker process runs."""
        return self.process is not None and self.process.poll() is None

    def _keep(self) -> None:
        wait = FIRST_WAIT
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run_once()
            if self._stopping.is_set():
                return
            wait = FIRST_WAIT if time.monotonic() - began > LIVED_SECONDS else min(LONGEST_WAIT, wait * 2)
            log.warning("The worker ended (status %s); starting another in %.1f s.", code, wait)
            self._stopping.wait(wait)

    def _run_once(self) -> int | None:
        """Run one worker until it ends or we stop; return its exit status."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CIPM_")}
        # A session of its own: Ctrl-C in a terminal reaches the server alone, which then ends the worker in order.
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, start_new_session=True,
                                        env=environment | self.settings.environment())
        self.starts += 1
        try:
            while self.process.poll() is None and not self._stopping.is_set():
                self._stopping.wait(0.1)
        finally:
            self._end(self.process)
        return self.process.returncode

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()  # the word that it waits for
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS if self._stopping.is_set() else 0)
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
