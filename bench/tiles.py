"""Showing a large matrix: tiles of the running API beside plotly's Heatmap, the same matrix and the same permuted order.

    python bench/tiles.py [--rows 4096 --cols 11008]

Prints what a browser waits for: metadata, the first (coarse) tile with the pyramid not built yet, then p50 and p95 of a
screenful of 12 tiles at random places and levels; and bytes sent. The peer is `go.Figure(go.Heatmap).to_json`, what a Dash
callback would send. Both on this machine, in one run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import plotly.graph_objects as go
import uvicorn

from backend.app import create_app
from backend.settings import Settings
from backend.store import Store, artefacts, jobs
from cipm.views import TILE, AxisMeta, level_shape, write_index, write_matrix

SCREENS, ACROSS, DOWN = 200, 4, 3


def low_rank(rows: int, cols: int) -> np.ndarray:
    """Return a matrix with structure and noise, as weights have."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, 8)) @ rng.normal(size=(8, cols)) + rng.normal(size=(rows, cols))).astype(np.float32)


def keep_view(store: Store, analysis: dict, folder: Path, values: np.ndarray) -> None:
    """Keep a view artefact with this matrix as the analysis's result, as a worker does."""
    rng = np.random.default_rng(1)
    write_matrix(folder, "m0", values, title="weight", rows=AxisMeta("rows"), cols=AxisMeta("cols"))
    write_index(folder, "shuffled", "m0", rng.permutation(values.shape[0]), rng.permutation(values.shape[1]))
    (folder / "report.json").write_text(json.dumps({"groups": []}))
    lease = jobs.claim(store, "bench")
    assert lease is not None
    artefacts.use(store, lease.job_id, {"view": analysis["id"]})
    artefacts.record(store, analysis["id"], "view", folder, 0.0)
    jobs.finish(store, lease, {})


def start(data: Path) -> tuple[uvicorn.Server, threading.Thread, Store, str]:
    app = create_app(Settings(data=data, embedded_worker=False))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return server, thread, app.state.store, f"http://127.0.0.1:{listener.getsockname()[1]}"


def make_analysis(client: httpx.Client) -> dict:
    ids = {}
    for kind in ("model", "probe"):
        upload = client.post("/api/uploads", json={"name": kind, "size": 1, "kind": kind}).raise_for_status().json()
        ids[kind] = client.put(f"/api/uploads/{upload['id']}?offset=0", content=b"x").raise_for_status().json()["id"]
    return client.post("/api/analyses", json=ids).raise_for_status().json()


def timed(client: httpx.Client, path: str, **params: str | int) -> tuple[float, int, httpx.Response]:
    """Return milliseconds, bytes and the answer of one request."""
    began = time.perf_counter()
    answer = client.get(path, params=params).raise_for_status()
    return 1e3 * (time.perf_counter() - began), len(answer.content), answer


def screens(client: httpx.Client, path: str, meta: dict, level: int | None) -> list[tuple[float, int]]:
    """Ask for screenfuls at random places of one level (None: a random level each)."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(SCREENS):
        chosen = int(rng.integers(meta["levels"])) if level is None else level
        rows, cols = (-(-side // TILE) for side in level_shape(tuple(meta["shape"]), chosen))
        x, y = rng.integers(max(1, cols - ACROSS + 1)), rng.integers(max(1, rows - DOWN + 1))
        at = ",".join(f"{i}.{j}" for j in range(y, min(y + DOWN, rows)) for i in range(x, min(x + ACROSS, cols)))
        took, size, _ = timed(client, f"{path}/tiles", order="shuffled", level=chosen, at=at, rev=meta["revision"])
        found.append((took, size))
    return found


def show(name: str, found: list[tuple[float, int]]) -> float:
    times = sorted(took for took, _ in found)
    p50, p95 = statistics.median(times), times[int(0.95 * len(times))]
    print(f"{name:34} p50 {p50:7.1f} ms   p95 {p95:7.1f} ms   {statistics.mean(size for _, size in found) / 1e6:6.2f} MB")
    return p50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=11008)
    asked = parser.parse_args()
    values = low_rank(asked.rows, asked.cols)
    data = Path(tempfile.mkdtemp(prefix="cipm-bench-"))
    server, thread, store, url = start(data / "store")
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            analysis = make_analysis(client)
            keep_view(store, analysis, data / "view", values)
            path = f"/api/analyses/{analysis['id']}/matrices/m0"
            opened, size, answer = timed(client, path, order="shuffled")
            meta = answer.json()
            print(f"{'metadata, first':34}     {opened:7.1f} ms {'':18} {size / 1e6:6.2f} MB")
            top = meta["levels"] - 1
            cold, first, _ = timed(client, f"{path}/tiles", order="shuffled", level=top, at="0.0", rev=meta["revision"])
            print(f"{'first tile, pyramid built':34}     {cold:7.1f} ms {'':18} {first / 1e6:6.2f} MB")
            show("12 tiles of level 0, gathered", screens(client, path, meta, 0))
            if top:
                show("12 tiles of level 1, stored", screens(client, path, meta, 1))
            show("12 tiles, any level", screens(client, path, meta, None))
    finally:
        server.should_exit = True
        thread.join()
        shutil.rmtree(data)
    began = time.perf_counter()
    payload = len(go.Figure(go.Heatmap(z=values)).to_json())
    peer = 1e3 * (time.perf_counter() - began)
    print(f"{'go.Heatmap to_json (peer)':34}     {peer:7.1f} ms {'':18} {payload / 1e6:6.2f} MB")
    print(f"ours / peer: time to the first picture {(opened + cold) / peer:.3f}, bytes {(size + first) / payload:.5f}")


if __name__ == "__main__":
    main()
