"""A whole deployment for the workers' tests: a store, and real worker processes that share it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from services import wait_until

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, Job, Store, Upload, jobs, open_store, uploads
from backend.supervisor import Supervisor

MAIN = Path(__file__).with_name("worker_main.py")
LEASE = 3.0


@dataclass
class Deployment:
    """A store and its workers; every process started here ends here."""

    store: Store
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    supervisor: Supervisor | None = None

    def start_worker(self, main: Path = MAIN) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CIPM_")}
        log = open(self.store.settings.data / "worker.log", "ab")
        worker = subprocess.Popen([sys.executable, str(main), "--with-parent"], stdin=subprocess.PIPE, stdout=log,
                                  stderr=log, start_new_session=True, cwd=MAIN.parents[2],
                                  env=environment | self.store.settings.environment() | {"PYTHONPATH": "."})
        log.close()
        self.workers.append(worker)
        return worker

    def upload(self, kind: str, name: str, data: bytes) -> Upload:
        upload = uploads.create(self.store, LOCAL_OWNER, name, kind, len(data))
        return uploads.append(self.store, upload.id, LOCAL_OWNER, 0, [data])

    def submit(self, *, model: bytes = b"\x01\x02\x03" * 1000, probe: bytes | None = None, kind: str = "analyze",
               options: dict | None = None, **request) -> str:
        upload = self.upload("model", "model.pt2", model)
        data = self.upload("probe", "probe.npz", probe) if probe else None
        with self.store.write() as session:
            analysis = Analysis(owner_id=LOCAL_OWNER, title="t", model_upload_id=upload.id, model_name=upload.name,
                                model_sha256=upload.sha256, model_size=upload.size, options=options or {},
                                probe_name=data and data.name, probe_sha256=data and data.sha256,
                                probe_size=data and data.size)
            session.add(analysis)
            session.flush()
            job = jobs.enqueue(session, analysis, kind, request)
        self.store.wake(job.id)
        return job.id

    def job(self, job_id: str) -> Job:
        with self.store.read() as session:
            return session.get_one(Job, job_id)

    def ended(self, job_id: str, seconds: float = 30.0) -> Job:
        wait_until(lambda: self.job(job_id).status in ("done", "failed", "cancelled"), seconds, f"job {job_id}")
        return self.job(job_id)

    def in_stage(self, job_id: str, stage: str) -> Job:
        wait_until(lambda: self.job(job_id).stage == stage, 30.0, f"stage {stage}")
        return self.job(job_id)

    def states(self, job_id: str) -> list[str]:
        return [stage["state"] for stage in self.job(job_id).stages]

    def scratch(self) -> list[Path]:
        """Return what lies in the workers' folders, apart from what waits for the next job."""
        folders = self.store.settings.scratch_folder.glob("*/*")
        return [path for path in folders if not path.name.startswith("cipm-jail-")]

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self.workers:
            worker.stdin.close()
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        self.store.close()


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[type[Deployment]]:
    with ExitStack() as stack:
        def make(**settings) -> Deployment:
            values = {"data": tmp_path / "data", "lease_seconds": LEASE, "heartbeat_seconds": 0.5,
                      "free_disk_bytes": 0, "device": "cpu"} | settings
            deployment = Deployment(open_store(load_settings(**values)))
            stack.callback(deployment.close)
            return deployment

        yield make


@pytest.fixture(params=["files", "redis"])
def deployment(request: pytest.FixtureRequest, deploy) -> Deployment:
    """A deployment of one machine (SQLite, files), and one of several (PostgreSQL, Redis)."""
    if request.param == "files":
        return deploy()
    urls = {name: request.getfixturevalue(name) for name in ("postgres_url", "redis_url")}
    return deploy(database_url=urls["postgres_url"], broker_url=urls["redis_url"])
