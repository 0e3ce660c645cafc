"""Fixtures: the real app on a real uvicorn, with and without accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_server import Running, analyse, finish, serve

from backend.settings import Settings


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server with these settings; all end with the tests."""
    running: list[Running] = []

    def begin(*, mount: Any = None, **values: Any) -> Running:
        values = {"data": tmp_path_factory.mktemp("data"), "embedded_worker": False, "free_disk_bytes": 0} | values
        running.append(serve(Settings(**values), mount=mount))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def local(start: Callable[..., Running]) -> Running:
    """A server without sign-in."""
    return start()


@pytest.fixture(scope="session")
def guarded(start: Callable[..., Running]) -> Running:
    """A server with accounts."""
    return start(auth=True)


@pytest.fixture()
def client(local: Running) -> httpx.Client:
    """A client of the server without sign-in."""
    return local.client()


@pytest.fixture()
def done(local: Running, client: httpx.Client, tmp_path: Path) -> dict[str, Any]:
    """A finished analysis there."""
    made = analyse(client)
    finish(local, made, tmp_path / "view")
    return made
