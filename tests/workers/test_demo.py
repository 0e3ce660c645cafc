"""The demo: its samples are trained by a child, queued once, worked on by the embedded worker, and stay deleted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from services import free_port, wait_until
from sqlalchemy import select

from backend.demo import Demo, register
from backend.store import Analysis, Store, cleanup
from frontend.browser import has_desktop

ROOT = Path(__file__).parents[2]


@contextmanager
def demo_server(data: Path) -> Iterator[httpx.Client]:
    """Run `cipm demo` without a desktop."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("CIPM_") and name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    port = free_port()
    command = [sys.executable, "-m", "cipm.cli", "demo", "--port", str(port), "--data", str(data)]
    with (subprocess.Popen(command, cwd=ROOT, env=environment | {"CIPM_DEVICE": "cpu"}, stdout=subprocess.PIPE) as server,
          httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client):
        try:
            assert f"http://127.0.0.1:{port}/" in server.stdout.readline().decode()  # said once it answers
            yield client
        finally:
            server.send_signal(signal.SIGINT)  # Ctrl-C
            assert server.wait(20) == 0


def stored(store: Store) -> list[Analysis]:
    with store.read() as session:
        return list(session.scalars(select(Analysis).where(Analysis.deleted.is_(None)).order_by(Analysis.model_name)))


@pytest.mark.services
def test_from_first_start_to_finished_analyses(samples, tmp_path):
    samples.copy(tmp_path / "samples", without="digits_mlp")  # one is left to train
    with demo_server(tmp_path) as client:
        first = client.get("/api/health").json()["demo"]
        assert first["state"] == "training" and client.get("/").status_code == 200
        wait_until(lambda: client.get("/api/health").json()["demo"]["state"] == "ready", 60, "the samples")
        assert "digits_mlp.pt2" in client.get("/api/health").json()["demo"]["detail"]
        ended = wait_until(lambda: _ended(client), 300, "both analyses")
        assert {(a["model"]["name"], a["job"]["status"], a["sample"], a["read_only"]) for a in ended} == {
            ("digits_mlp.pt2", "done", True, False), ("digits_cnn.pt2", "done", True, False)}
        mlp = next(a for a in ended if a["model"]["name"] == "digits_mlp.pt2")
        report = client.get(f"/api/analyses/{mlp['id']}/report").json()
        assert [group["size"] for group in report["groups"]] == [128, 96]
        assert report["baseline"]["accuracy"] > 0.95
        assert {file["name"] for file in client.get("/api/samples").json()} == samples.index.keys()
        client.delete(f"/api/analyses/{mlp['id']}").raise_for_status()
    with demo_server(tmp_path) as client:
        wait_until(lambda: client.get("/api/health").json()["demo"]["state"] == "ready", 20, "the second start")
        assert [a["model"]["name"] for a in client.get("/api/analyses").json()] == ["digits_cnn.pt2"]


def test_each_sample_is_queued_once_and_stays_deleted(samples, deploy):
    store = deploy().store
    folder = store.settings.data / "samples"
    samples.copy(folder)
    assert len(register(store, folder)) == 2 and register(store, folder) == []
    (folder / "registered.json").unlink()  # a server that ended before it could note what it had queued
    assert register(store, folder) == [] and [row.sample for row in stored(store)] == [True, True]
    cleanup.delete_analysis(store, stored(store)[1].id)
    assert register(store, folder) == [] and [row.model_name for row in stored(store)] == ["digits_cnn.pt2"]
    for path in folder.iterdir():
        path.unlink()
    samples.copy(folder)
    assert len(register(store, folder)) == 1 and len(stored(store)) == 2


def test_a_training_that_fails_is_told_and_tried_again(samples, deploy):
    store = deploy().store
    folder = store.settings.data / "samples"
    folder.write_text("not a folder")
    demo = asyncio.run(_run(Demo(store)))
    assert demo.state == "failed" and demo.detail.startswith("The sample models could not be trained (exit status 1): "
                                                             "The samples cannot be written:")
    folder.unlink()
    samples.copy(folder)
    demo = asyncio.run(_run(Demo(store)))
    assert demo.state == "ready" and len(stored(store)) == 2


def test_stopping_ends_the_training(deploy):
    store = deploy().store

    async def start_and_stop() -> Demo:
        demo = Demo(store)
        demo.start()
        await asyncio.sleep(1.0)
        await asyncio.wait_for(demo.stop(), 10)
        return demo

    assert asyncio.run(start_and_stop()).state == "training"
    folder = store.settings.data / "samples"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_no_browser_opens_without_a_desktop():
    assert has_desktop({"DISPLAY": ":0"}, "linux") and has_desktop({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    assert has_desktop({}, "darwin") and not has_desktop({}, "linux") and not has_desktop({"DISPLAY": ""}, "linux")


def _ended(client: httpx.Client) -> list[dict] | None:
    analyses = client.get("/api/analyses").json()
    return analyses if len(analyses) == 2 and all(a["job"]["finished"] for a in analyses) else None


async def _run(demo: Demo) -> Demo:
    demo.start()
    while demo.state == "training":
        await asyncio.sleep(0.05)
    await demo.stop()
    return demo
