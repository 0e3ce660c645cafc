"""The real server with its pages on a real uvicorn, and a study in its store as a worker would leave it there."""

from __future__ import annotations

import io
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from study import write_study
from symmetry_study import mlp_symmetry
from whatif_study import write_session

from backend.app import create_app
from backend.settings import Settings
from backend.store import artefacts, jobs
from frontend.serve import add_pages


@dataclass
class Running:
    """A server on a free port; `done` and `waiting` are the ids of its two analyses."""

    app: FastAPI
    server: uvicorn.Server
    thread: threading.Thread
    url: str
    done: str = ""
    waiting: str = ""

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)


def start(data: Path, **settings: Any) -> Running:
    """Start the server without a worker and wait until it answers."""
    app = create_app(Settings(data=data, embedded_worker=False, free_disk_bytes=0, **settings), mount=add_pages)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    return Running(app, server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}")


def serve_pages(data: Path) -> Running:
    """Start the server with one finished analysis and one that waits for a worker."""
    running = start(data)
    with running.client() as client:
        done, waiting = analyse(client, "Digits"), analyse(client, "Waiting")
    folder = data / "study"
    folder.mkdir()
    write_study(folder)
    finish(running, done, folder)
    running.done, running.waiting = done["id"], waiting["id"]
    return running


def analyse(client: httpx.Client, title: str) -> dict[str, Any]:
    """Upload a model and a probe and queue their analysis."""
    ids = []
    for name, kind, data in (("net.pt2", "model", b"PK not run here"), ("rows.npz", "probe", probe_bytes())):
        made = client.post("/api/uploads", json={"name": name, "kind": kind, "size": len(data)}).raise_for_status().json()
        client.put(f"/api/uploads/{made['id']}", params={"offset": 0}, content=data).raise_for_status()
        ids.append(made["id"])
    body = {"model": ids[0], "probe": ids[1], "title": title}
    return client.post("/api/analyses", json=body).raise_for_status().json()


def probe_bytes() -> bytes:
    """Return a small npz."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.eye(4, dtype=np.float32))
    return buffer.getvalue()


def finish(running: Running, analysis: dict[str, Any], folder: Path) -> None:
    """Do what a worker does at the end of a job: keep the stage's folder, and end the job well."""
    store, job = running.app.state.store, analysis["job"]["id"]
    lease = jobs.claim(store, "test")
    assert lease is not None and lease.job_id == job
    found, curves = f"discover-{analysis['id']}", f"whatif-{analysis['id']}"
    artefacts.use(store, job, {"view": analysis["id"], "discover": found, "whatif": curves})
    artefacts.record(store, found, "discover", mlp_symmetry(folder.parent / found, folder), 0.5)
    artefacts.record(store, curves, "whatif", write_session(folder.parent / curves, folder), 0.5)
    artefacts.record(store, analysis["id"], "view", folder, 0.5)
    jobs.report(store, lease, stages=[{"name": "view", "state": "done", "seconds": 0.5, "address": analysis["id"]}])
    jobs.finish(store, lease, {})
