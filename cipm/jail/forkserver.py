"""The server that children are forked from, and a child as its parent sees it. Free of torch.

Importing torch and what tracing needs takes a processor 6 s, a fork 20 ms. So one process imports an entry's module, never
touches a request, keeps to one thread, and forks a child of itself for each run. It ends when its parent does, and its
children with it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")  # what a child sees of our environment
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}  # threads that wait sleep, see docs/design.md
PACKAGE = str(Path(__file__).resolve().parents[2])
START = "import sys; sys.path[:0] = {folders!r}; from cipm.jail.serve import serve; serve(*{arguments!r})"


class ForkServer:
    """A process that has imported `module`, with `folders` on its path, and forks children that may use `threads`."""

    def __init__(self, module: str, folders: tuple[str, ...], threads: int, *, cuda: bool):
        self.base = Path(tempfile.mkdtemp(prefix="cipm-jail-")).resolve()
        (self.base / "home").mkdir()
        self.log = self.base / "printed"
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = START.format(folders=list(folders), arguments=(module, str(self.base), theirs.fileno()))
        with theirs, self.log.open("wb") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-X", "faulthandler", "-c", code], cwd=self.base, start_new_session=True,
                env=_environment(self.base, threads, cuda=cuda), pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)

    def fork(self, entry: str, base: Path) -> Child:
        """Ask for a child that runs `entry` as the files in `base` say; one that cannot be had ends without a word."""
        inputs, outputs, errors, status = (os.pipe() for _ in range(4))
        theirs = (inputs[0], outputs[1], errors[1], status[1])
        with suppress(OSError):
            socket.send_fds(self.control, [json.dumps([entry, str(base)]).encode()], theirs)
        for end in theirs:
            os.close(end)
        return Child(self, inputs[1], outputs[0], errors[0], status[0])

    def printed(self) -> bytes:
        """Return what the server has printed."""
        return self.log.read_bytes() if self.log.exists() else b""

    def close(self) -> None:
        """End the server and its children, and remove its folder."""
        self.control.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)


@dataclass
class Child:
    """A forked child: the ends of its pipes, its process id once it is there, its exit status once it has ended."""

    server: ForkServer
    inputs: int
    outputs: int
    errors: int
    status: int
    pid: int = 0
    handle: int = -1
    code: int | None = None
    said: bytearray = field(default_factory=bytearray)

    def hear(self, chunk: bytes) -> None:
        """Take in what the server says of the child: its process id, upon which it may go, and how it ended."""
        self.said += chunk
        *lines, self.said = self.said.split(b"\n")
        for number in map(int, lines):
            if self.pid:
                self.code = number
            else:
                self.pid, self.handle = number, os.pidfd_open(number)
                with suppress(BrokenPipeError):  # it ended already; what it said is read next
                    os.write(self.inputs, b"go\n")

    def close(self) -> None:
        """End the child, whatever it does; one that is not there yet finds nobody and leaves."""
        if self.pid and self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            while chunk := os.read(self.status, 64):
                self.hear(chunk)
        for end in (self.inputs, self.outputs, self.errors, self.status, *([self.handle] if self.pid else [])):
            os.close(end)


_SERVERS: dict[tuple[object, ...], ForkServer] = {}
_GUARD = threading.Lock()


def server_for(entry: str, threads: int, *, cuda: bool, also: Mapping[str, Path]) -> ForkServer:
    """Return this process's server for the entry's module, started where there is none or it has ended."""
    module, folders = entry.partition(":")[0], tuple(sorted({PACKAGE, *map(str, also.values())}))
    key = (START, module, folders, threads, cuda)
    with _GUARD:
        server = _SERVERS.get(key)
        if server and server.process.poll() is not None:
            server.close()
            server = None
        if not server:
            server = _SERVERS[key] = ForkServer(module, folders, threads, cuda=cuda)
    return server


@atexit.register
def close_all() -> None:
    """End every server of this process."""
    while _SERVERS:
        _SERVERS.popitem()[1].close()


def last_line(printed: bytes) -> str:
    """Return the last line of what was printed, cut to 500 characters."""
    lines = printed.decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def home_in(base: Path) -> dict[str, str]:
    """Return the variables that lead a process to its own folder."""
    home = str(base / "home")
    return dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"), home)


def _environment(base: Path, threads: int, *, cuda: bool) -> dict[str, str]:
    """Return a server's whole environment: nothing of ours but the locale, library path and GPU number."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | home_in(base) | WAITING | {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "USER": "cipm", "LOGNAME": "cipm",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # it would start its threads at import; the child raises it once locked
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if cuda else "",
    }
