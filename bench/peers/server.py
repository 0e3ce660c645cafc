"""The server as `cipm serve` starts it, and what a bench does there over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def server(data: Path, workers: int = 0) -> Iterator[httpx.Client]:
    """Start the server on a free port with its own worker, or with so many processes of `python -m workers` that compute with
    one thread each; yield a client once a worker is alive, and stop all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"CIPM_EMBEDDED_WORKER": "off", "OMP_NUM_THREADS": "1", "CIPM_DATA": str(data)} if workers else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | own}
    started = [subprocess.Popen([sys.executable, "-m", "cipm.cli", "serve", "--port", str(port), "--data", str(data)], **quiet)]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _until(client, lambda health: True)
            started += [subprocess.Popen([sys.executable, "-m", "workers"], **quiet) for _ in range(workers)]
            _until(client, lambda health: health["worker"]["workers"] >= max(workers, 1))
            yield client
    finally:
        for process in started[::-1]:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)


def _until(client: httpx.Client, ready) -> None:
    for _ in range(600):
        try:
            if ready(client.get("/api/health").json()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not come up")


def spent() -> float:
    """Return the processor seconds that the descendants of this process took so far, those that ended among them."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[pid] for pid in family - {os.getpid()}) / os.sysconf("SC_CLK_TCK")


def upload(client: httpx.Client, path: Path, kind: str) -> str:
    """Send a file in chunks of 8 MiB; return its id."""
    data = path.read_bytes()
    made = client.post("/api/uploads", json={"name": path.name, "size": len(data), "kind": kind}).raise_for_status().json()
    for offset in range(0, len(data), 8 << 20):
        client.put(f"/api/uploads/{made['id']}", params={"offset": offset}, content=data[offset:offset + (8 << 20)]
                   ).raise_for_status()
    return made["id"]
