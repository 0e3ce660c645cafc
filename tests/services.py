"""Real services for tests: a private PostgreSQL cluster, a private Redis, an S3 server; skipped where they are missing.

Fixtures: `postgres_url` (a fresh database each), `redis_url` (emptied each), `s3_url` (a fresh bucket each; sets AWS_…).
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition, seconds: float = 20.0, what: str = "it"):
    """Return the first true value of `condition`, or fail after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {seconds:g} s for {what}")


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    folder, port = Path(tempfile.mkdtemp(prefix="cipm-pg-")), free_port()
    if os.geteuid() == 0:
        postgres = _postgres_user()
        os.chown(folder, postgres.pw_uid, postgres.pw_gid)
    control = programs[-1].with_name("pg_ctl")
    _as_postgres([programs[-1], "-D", folder / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"])
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"
    _as_postgres([control, "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start"])
    try:
        yield port
    finally:
        _as_postgres([control, "-D", folder / "data", "-m", "immediate", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_port: int) -> str:
    name = f"cipm_{os.urandom(6).hex()}"
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{postgres_port}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://postgres@127.0.0.1:{postgres_port}/{name}"


@pytest.fixture(scope="session")
def redis_port() -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed (Debian package redis-server)")
    port = free_port()
    with subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                          stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir()) as server:
        try:
            wait_until(lambda: _redis_answers(port), what="Redis")
            yield port
        finally:
            server.terminate()


@pytest.fixture
def redis_url(redis_port: int) -> str:
    with redis.Redis(port=redis_port) as client:
        client.flushall()
    return f"redis://127.0.0.1:{redis_port}/0"


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    pytest.importorskip("moto", reason="the S3 server of the tests (moto) is not installed")
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port), "-H", "127.0.0.1"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: _http_answers(f"http://127.0.0.1:{port}/"), 60, "the S3 server")
            yield port
        finally:
            server.terminate()


@pytest.fixture
def s3_url(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    endpoint, bucket = f"http://127.0.0.1:{s3_port}", f"cipm-{os.urandom(6).hex()}"
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                        "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}/kept"


def _postgres_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


def _as_postgres(command: list[str | Path]) -> None:
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *map(str, command)], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def _redis_answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _http_answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
