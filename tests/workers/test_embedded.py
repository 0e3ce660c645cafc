"""The worker that the server starts: the real engine on a real model, started again when it dies, never left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from services import wait_until

from backend.store import artefacts, jobs
from backend.supervisor import Supervisor
from cipm.allocation import SESSION_FILE, read_session

pytestmark = pytest.mark.services
SERVER = """
import sys, time
from backend.settings import load_settings
from backend.supervisor import Supervisor
supervisor = Supervisor(load_settings())
supervisor.start()
while supervisor.process is None:
    time.sleep(0.05)
print(supervisor.process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def embedded(deploy):
    deployment = deploy()
    supervisor = Supervisor(deployment.store.settings)
    supervisor.start()
    deployment.supervisor = supervisor
    try:
        yield deployment
    finally:
        supervisor.stop()


@pytest.fixture(scope="module")
def model_and_probe() -> tuple[bytes, bytes]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (torch.randn(8, 20),), dynamic_shapes=({0: batch},), strict=False)
    packed, probe = io.BytesIO(), io.BytesIO()
    torch.export.save(program, packed)
    rows = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    np.savez(probe, input=rows, labels=model(torch.from_numpy(rows)).argmax(1).numpy())
    return packed.getvalue(), probe.getvalue()


def test_real_analysis_export_and_measurement(embedded, model_and_probe):
    model, probe = model_and_probe
    job = embedded.ended(embedded.submit(model=model, probe=probe), 120.0)
    assert (job.status, job.error) == ("done", None)
    assert [stage["state"] for stage in job.stages] == ["done"] * 7
    with embedded.store.read() as session:
        view = artefacts.of_analysis(session, job.analysis_id)
    assert "report.json" in view.files
    assert artefacts.file(embedded.store, view, "report.json").stat().st_size == view.files["report.json"]["size"]
    export = embedded.ended(embedded.submit(model=model, probe=probe, kind="export", order="modules"), 60.0)
    assert (export.status, export.error) == ("done", None)
    assert [stage["state"] for stage in export.stages][:-1] == ["cached"] * 5
    keep = {_only_group(embedded, job.analysis_id): 5}
    measured = embedded.ended(embedded.submit(model=model, probe=probe, kind="measure", keep=keep), 60.0)
    assert (measured.status, measured.error) == ("done", None) and measured.result["keep"] == keep
    assert 0 < measured.result["kl"] < 3 and set(measured.result["predicted"]) == {"kl", "loss"}
    smaller = embedded.ended(embedded.submit(model=model, probe=probe, kind="prune", keep=keep, form="onnx"), 60.0)
    assert (smaller.status, smaller.error) == ("done", None)
    assert [stage["state"] for stage in smaller.stages] == ["cached"] * 4 + ["done"]
    assert smaller.result["facts"]["parameters"] == {"before": 404, "after": 129}
    with embedded.store.read() as session:
        written = artefacts.of_job(session, smaller.id, "prune")
    assert written.files[smaller.result["filename"]]["size"] == smaller.result["size"] > 500
    assert embedded.scratch() == []


def _only_group(deployment, analysis_id: str) -> str:
    with deployment.store.read() as session:
        whatif = artefacts.of_analysis(session, analysis_id, "whatif")
    group, = read_session(artefacts.file(deployment.store, whatif, SESSION_FILE))["groups"]
    return group["name"]


def test_a_killed_worker_is_started_again(embedded):
    supervisor = embedded.supervisor
    wait_until(lambda: jobs.health(embedded.store)["alive"], 30, "the worker")
    first = supervisor.process.pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervisor.alive() and supervisor.process.pid != first, 10, "another worker")
    assert supervisor.starts == 2


def test_stop_ends_the_worker(embedded):
    wait_until(lambda: jobs.health(embedded.store)["alive"], 30, "the worker")
    process = embedded.supervisor.process
    embedded.supervisor.stop()
    assert process.returncode == 0 and not jobs.health(embedded.store)["alive"]
    assert list(embedded.store.settings.scratch_folder.iterdir()) == []


def test_the_worker_of_a_killed_server_ends(deploy):
    store = deploy().store
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CIPM_")}
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
                          env=environment | store.settings.environment()) as server:
        worker = int(server.stdout.readline())
        wait_until(lambda: jobs.health(store)["alive"], 30, "the worker")
        server.kill()
        wait_until(lambda: not Path(f"/proc/{worker}").exists() or _is_zombie(worker), 15, "the end of the worker")


def _is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
