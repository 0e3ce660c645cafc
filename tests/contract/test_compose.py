"""docker-compose.yml, checked as far as it can be without an engine: its commands run on a real Redis and PostgreSQL."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from deployment import ROOT, compose, environment, images, variables
from services import free_port, wait_until

from backend.settings import Settings

SECRETS = {"POSTGRES_PASSWORD": "a1b2c3", "CIPM_SECRET_KEY": "d4e5f6"}
OURS = ("api", "worker", "worker-gpu")
KNOWN = {f"CIPM_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose(SECRETS)["services"]


def test_services_and_what_they_wait_for(services):
    assert set(services) == {*OURS, "redis", "postgres"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    assert not any("profiles" in services[name] for name in services if name != "worker-gpu")
    for name in services:
        for other, condition in services[name].get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[other] or images()[services[other]["build"]["target"]].health


def test_what_is_ours_runs_what_the_image_has_and_not_as_root(services):
    for name in OURS:
        image = images()[services[name]["build"]["target"]]
        assert image.user == "cipm" and "command" not in services[name]
        for command in (image.command, image.health):
            assert command[0] == "python" and command[1] in ("-m", "-c")
        assert services[name]["cap_drop"] == ["ALL"] and services[name]["security_opt"] == ["no-new-privileges:true"]
    assert images()["worker"].command == images()["worker-gpu"].command == ["python", "-m", "workers"]


def test_every_setting_exists_and_is_valid(services):
    for name in OURS:
        given = {key: str(value) for key, value in services[name]["environment"].items() if key.startswith("CIPM_")}
        assert set(given) <= KNOWN
        settings = Settings(**{key.removeprefix("CIPM_").lower(): value for key, value in given.items()})
        assert settings.auth == settings.host.startswith("0.") == (name == "api")
        assert settings.device == {"api": "auto", "worker": "cpu", "worker-gpu": "cuda:0"}[name]
    assert services["api"]["environment"]["CIPM_EMBEDDED_WORKER"] == "off"


def test_one_gpu_per_worker_process():
    services = compose(SECRETS | {"GPU": "3"})["services"]
    assert services["worker-gpu"]["environment"]["CIPM_DEVICE"] == "cuda:3"
    device, = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_secrets_must_be_given():
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            compose({key: value for key, value in SECRETS.items() if key != name})
    for name, uses in variables().items():
        if any(word in name for word in ("PASSWORD", "SECRET", "KEY", "TOKEN")):
            assert uses == {"?"}, f"{name} has a default"


def test_only_the_server_is_reachable_and_from_this_machine_alone(services):
    assert [name for name in services if "ports" in services[name]] == ["api"]
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    networks = compose(SECRETS)["networks"]
    assert networks["inside"] == {"internal": True}
    assert all(services[name]["networks"] == ["inside"] for name in services if name != "api")


def test_every_volume_is_declared(services):
    declared = set(compose(SECRETS)["volumes"])
    used = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert used == declared
    assert all("objects:/objects" in services[name]["volumes"] for name in OURS)


class Containers:
    """The services' own commands as plain processes, with addresses and folders of this machine in their settings."""

    def __init__(self, folder: Path, database: str, broker: str):
        self.folder, self.port, self.processes = folder, free_port(), {}
        self.places = {"CIPM_DATABASE_URL": database, "CIPM_BROKER_URL": broker, "CIPM_HOST": "127.0.0.1",
                       "CIPM_PORT": str(self.port), "CIPM_OBJECT_STORE": str(folder / "objects")}

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service, with what is elsewhere here replaced."""
        given = environment(compose(SECRETS)["services"][name])
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CIPM_")}
        return inherited | given | {key: value for key, value in self.places.items() if key in given} | {
            "CIPM_DATA": str(self.folder / name), "PYTHONPATH": str(ROOT)}

    def command(self, name: str, kind: str) -> list[str]:
        """Return an image's command, to be run by this Python."""
        image = images()[compose(SECRETS)["services"][name]["build"]["target"]]
        return [sys.executable, *(part.replace(":8000/", f":{self.port}/") for part in getattr(image, kind)[1:])]

    def start(self, name: str) -> None:
        """Start a service."""
        (self.folder / name).mkdir()
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name, "command"), env=self.environment(name), cwd=self.folder / name, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)

    def well(self, name: str) -> bool:
        """Run the image's health check."""
        done = subprocess.run(self.command(name, "health"), env=self.environment(name), cwd=self.folder / name,
                              stdin=subprocess.DEVNULL, capture_output=True)
        return done.returncode == 0

    def stop(self, name: str) -> int:
        """End a service as an engine does and return its exit status."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


@pytest.fixture
def containers(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Containers]:
    made = Containers(tmp_path, postgres_url, redis_url)
    with ExitStack() as stack:
        stack.callback(lambda: [made.stop(name) for name in list(made.processes)])
        yield made


@pytest.mark.services
def test_the_same_commands_run_a_job_on_redis_and_postgresql(containers):
    containers.start("api")
    wait_until(lambda: containers.well("api"), 60, "the server")
    containers.start("worker")
    wait_until(lambda: containers.well("worker"), 60, "the worker")
    with httpx.Client(base_url=f"http://127.0.0.1:{containers.port}", timeout=30) as client:
        wait_until(lambda: client.get("/api/health").json()["status"] == "ok", 30, "a server that is well")
        health = client.get("/api/health").json()
        assert health["auth"] and health["worker"]["alive"] and health["worker"]["workers"] == 1
        assert client.get("/api/analyses").status_code == 401
        _register(client)
        analysis = _analyse(client)
        wait_until(lambda: _job(client, analysis)["status"] in ("done", "failed"), 180, "the analysis")
        assert (_job(client, analysis)["status"], _job(client, analysis)["error"]) == ("done", None)
        assert client.get(f"/api/analyses/{analysis}/report").json()["groups"]
    assert containers.stop("worker") == 0
    assert not containers.well("worker")
    assert containers.stop("api") in (0, -signal.SIGTERM)
    assert not (containers.folder / "api" / "cipm.sqlite").exists(), "PostgreSQL holds the rows"


@pytest.mark.services
def test_the_page_answers_beside_the_api(containers):
    containers.start("api")
    wait_until(lambda: containers.well("api"), 60, "the server")
    with urllib.request.urlopen(f"http://127.0.0.1:{containers.port}/", timeout=30) as page:
        assert page.status == 200 and b"CIPM" in page.read()


JAILED_AS_IN_A_CONTAINER = """
import errno, json, pyseccomp
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name in "unshare setns mount umount2 pivot_root keyctl bpf perf_event_open userfaultfd".split():
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 0x10000000, 0x10000000))
rules.load()
from cipm.jail import self_test
print(json.dumps(self_test()))
"""


def test_the_jail_holds_where_an_engine_forbids_namespaces():
    done = subprocess.run([sys.executable, "-c", JAILED_AS_IN_A_CONTAINER], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"ok": true' in done.stdout and '"namespaces": []' in done.stdout and '"seccomp": true' in done.stdout


def _register(client: httpx.Client) -> None:
    made = client.post("/api/auth/register", json={"email": "a@example.org", "password": "a long enough password"})
    assert made.status_code == 201, made.text


def _analyse(client: httpx.Client) -> str:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    rows = torch.randn(200, 12)
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},), strict=False)
    packed, probe = io.BytesIO(), io.BytesIO()
    torch.export.save(program, packed)
    np.savez(probe, input=rows.numpy(), labels=model(rows).argmax(1).numpy())
    ids = {kind: _upload(client, name, kind, data.getvalue())
           for kind, name, data in (("model", "net.pt2", packed), ("probe", "rows.npz", probe))}
    made = client.post("/api/analyses", json=ids)
    assert made.status_code == 201, made.text
    return made.json()["id"]


def _upload(client: httpx.Client, name: str, kind: str, data: bytes) -> str:
    made = client.post("/api/uploads", json={"name": name, "kind": kind, "size": len(data)}).json()
    sent = client.put(f"/api/uploads/{made['id']}", params={"offset": 0}, content=data)
    assert sent.status_code == 200 and sent.json()["complete"], sent.text
    return made["id"]


def _job(client: httpx.Client, analysis: str) -> dict[str, Any]:
    return client.get(f"/api/analyses/{analysis}").json()["job"]
