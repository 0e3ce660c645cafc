"""The real app on a real uvicorn, over real HTTP, on a store of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from backend.settings import Settings
from backend.store import Store, artefacts, jobs
from cipm.allocation import write_session
from cipm.errors import CipmError
from cipm.views import AxisMeta, write_index, write_matrix, write_strip
from cipm.views.facts import STRUCTURE_FILE

PASSWORD = "a long enough password"
TILE_BYTES = 256 * 256 * 2


@dataclass
class Running:
    """A server on a free port, and what its tests need of it."""

    app: FastAPI
    server: uvicorn.Server
    thread: threading.Thread
    port: int
    _clients: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Store:
        return self.app.state.store

    def client(self, **options: Any) -> httpx.Client:
        """Return a fresh client: no cookies, no token."""
        self._clients.append(httpx.Client(base_url=self.url, timeout=30, **options))
        return self._clients[-1]

    def person(self, email: str) -> httpx.Client:
        """Return a client signed in with an account of its own."""
        client = self.client()
        client.post("/api/auth/register", json={"email": email, "password": PASSWORD}).raise_for_status()
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"


def serve(settings: Settings, **options: Any) -> Running:
    """Start the app in a thread and wait until it answers."""
    app = create_app(settings, **options)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    return Running(app, server, thread, listener.getsockname()[1])


def send(client: httpx.Client, name: str, kind: str, data: bytes) -> dict[str, Any]:
    """Upload a file in one piece."""
    made = client.post("/api/uploads", json={"name": name, "kind": kind, "size": len(data)})
    assert made.status_code == 201, made.text
    sent = client.put(f"/api/uploads/{made.json()['id']}", params={"offset": 0}, content=data)
    assert sent.status_code == 200, sent.text
    return sent.json()


def analyse(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Upload a model and a probe and queue their analysis."""
    model, probe = send(client, "net.pt2", "model", b"model bytes"), send(client, "rows.npz", "probe", b"probe bytes")
    made = client.post("/api/analyses", json={"model": model["id"], "probe": probe["id"], **fields})
    assert made.status_code == 201, made.text
    return made.json()


def claim(store: Store, job_id: str) -> jobs.Lease:
    """Claim jobs as a worker does until it is this one's turn; those before it are ended as failed."""
    while (lease := jobs.claim(store, "test")) is not None:
        if lease.job_id == job_id:
            return lease
        jobs.fail(store, lease, CipmError("Another test's job."))
    raise AssertionError(f"job {job_id} does not wait")


def keep(store: Store, job_id: str, stage: str, address: str, folder: Path, result: dict[str, Any]) -> None:
    """Do what a worker does at the end of a job: keep the stage's folder, and end the job well."""
    lease = claim(store, job_id)
    artefacts.use(store, job_id, {stage: address})
    artefacts.record(store, address, stage, folder, 0.5)
    jobs.report(store, lease, stages=[{"name": stage, "state": "done", "seconds": 0.5, "address": address}])
    jobs.finish(store, lease, result)


def matrix(rows: int = 300, cols: int = 700) -> np.ndarray:
    """Return a matrix whose entries all differ."""
    return (np.arange(rows * cols, dtype=np.float32).reshape(rows, cols) / 1000) - 50


def write_view(folder: Path, values: np.ndarray | None = None) -> Path:
    """Write a small view artefact: one matrix between the groups `hidden` and `inputs`, in two orders."""
    values = matrix() if values is None else values
    rows, cols = values.shape
    folder.mkdir(parents=True, exist_ok=True)
    write_matrix(folder, "m0", values, title="fc1.weight", rows=AxisMeta("hidden"), cols=AxisMeta("fc1.weight:1"))
    write_index(folder, "spectral", "m0", np.arange(rows)[::-1], np.arange(cols))
    write_strip(folder, "hidden", [unit % 3 for unit in range(rows)])
    (folder / "orders.json").write_text(json.dumps(["original", "spectral"]))
    report = {"schema_version": 1, "matrices": [{"id": "m0"}], "groups": [
        {"name": "hidden", "size": rows, "whatif": {"keep": [1], "unavailable": None}, "unavailable": None}]}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def leave_symmetry(store: Store, job_id: str, address: str, folder: Path) -> None:
    """Leave what stage `discover` writes, as a worker does while the job still runs."""
    folder.mkdir(parents=True)
    facts = {"parameters": 1, "movable": 1, "movable_share": 1.0, "log10_equivalents": 0.0, "structure": "1", "groups": [],
             "pins": [], "reasons": [], "certificate": None, "continuous": [], "notes": []}
    graph = {"modules": [], "boxes": [], "edges": [], "tensors": []}
    (folder / STRUCTURE_FILE).write_text(json.dumps({"schema_version": 1, "symmetry": facts, "graph": graph}))
    artefacts.use(store, job_id, {"discover": address})
    artefacts.record(store, address, "discover", folder, 0.5)


def session() -> dict[str, Any]:
    """Return a what-if session of two groups, one of which reads the other, and one that cannot be made smaller."""
    groups = [{"name": name, "kind": "units", "size": size, "blocks": blocks, "level": None,
               "removal_order": list(range(size)), "measured": [], "notes": [],
               "rises": {kind: [scale * (1 - keep / size) ** 2 for keep in range(size + 1)] for kind in ("kl", "loss")}}
              for name, size, blocks, scale in (("hidden", 300, 1, 1.0), ("heads", 8, 2, 3.0))]
    count = {"fixed": 10.0, "terms": [[3000.0, [{"hidden": 1.0}]], [2400.0, [{"hidden": 1.0}, {"heads": 1.0}]]],
             "unit": "numbers"}
    return {"schema_version": 4, "kinds": ["kl", "loss"], "groups": groups, "unavailable": {"stream": "Nothing reads it."},
            "baseline": {"loss_kind": "cross_entropy", "loss": 0.5, "accuracy": 0.9, "perplexity": None, "rows": 100},
            "counts": dict.fromkeys(("parameters", "flops", "bytes"), count), "points": [], "advice": [], "rows": 100,
            "whole": dict.fromkeys(("kl", "loss"), {"front": [[0.1, 0.2], [1.0, 1.5]], "off": [[0.1, 0.1], [1.0, 1.2]]}),
            "notes": [], "fronts": {}, "frontier": [[10, 1.0], [5410, 0.0]], "forms": ["pt2", "onnx"], "power": 0.75,
            "band": {"kl": {"median": 1.1, "p90": 1.3, "points": 9}, "loss": None}}


def leave_session(store: Store, job_id: str, address: str, folder: Path, *, now: bool = True) -> None:
    """Leave what stage `whatif` writes, as a worker does while the job still runs; or what an earlier version wrote."""
    folder.mkdir(parents=True)
    if now:
        write_session(folder, session())
    else:
        (folder / "session.json").write_text("{}")
    artefacts.use(store, job_id, {"whatif": address})
    artefacts.record(store, address, "whatif", folder, 0.5)


def finish(server: Running, analysis: dict[str, Any], folder: Path, address: str | None = None) -> None:
    """Give an analysis its symmetry, its what-ifs and a finished view, as a worker would."""
    leave_session(server.store, analysis["job"]["id"], f"whatif-{address or analysis['id']}", folder / "whatif")
    leave_symmetry(server.store, analysis["job"]["id"], f"symmetry-{address or analysis['id']}", folder / "discover")
    keep(server.store, analysis["job"]["id"], "view", address or analysis["id"], write_view(folder / "view"), {})


def shape_of(answer: httpx.Response) -> dict[str, Any]:
    """Assert that an answer is an error in the one shape and return what it says."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message", "where", "fix"}, body
    assert answer.headers["content-type"] == "application/json"
    return body["error"]
