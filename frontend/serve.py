"""Where the API and the pages become one server: `python -m frontend.serve`.

The only module that knows both. Everything else in this folder knows the API's client alone, and the API knows no page.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from functools import partial

import httpx
import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from backend.settings import Settings, load_settings
from cipm.errors import CipmError, OptionError
from frontend.app import mount
from frontend.browser import open_page
from frontend.client import Client, open_http

GRACE_SECONDS = 3
STARTUP_FAILED = 3  # what uvicorn itself returns


def build(settings: Settings | None = None) -> FastAPI:
    """Return the server: the API, with the pages mounted on it."""
    return create_app(settings, mount=add_pages)


def add_pages(app: FastAPI) -> None:
    """Mount the pages; they speak to the API by its own requests and answers, without a socket between."""
    http = open_http("http://127.0.0.1", transport=httpx.ASGITransport(app))
    mount(app, partial(Client, http))


def check_exposure(settings: Settings) -> None:
    """Raise OptionError where the server would be open to others and ask nobody who they are."""
    if not settings.auth and not _loopback(settings.host):
        raise OptionError(f"Without sign-in the server listens on this machine alone, not on {settings.host}.",
                          where="CIPM_HOST", fix="Set CIPM_AUTH=on, or leave CIPM_HOST at 127.0.0.1.")


def main() -> int:
    """Serve until told to stop; return the exit status."""
    try:
        settings = load_settings()
        check_exposure(settings)
        app = build(settings)
    except CipmError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    server = Server(uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning", access_log=False,
                                   timeout_graceful_shutdown=GRACE_SECONDS), settings)
    with suppress(KeyboardInterrupt):  # uvicorn raises it once more after it has stopped in order
        server.run()
    return 0 if server.started else STARTUP_FAILED


class Server(uvicorn.Server):
    """uvicorn, saying where it is once it answers; a demo opens its page."""

    def __init__(self, config: uvicorn.Config, settings: Settings):
        super().__init__(config)
        self.settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            announce(self.settings, self.servers[0].sockets[0].getsockname()[1])


def announce(settings: Settings, port: int) -> None:
    """Say where the server is. `port` is the one it listens on, also where any free one was asked for."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = settings.public_url or f"http://{host}:{port}/"
    print(f"CIPM is on {address} (Ctrl-C stops it).", flush=True)
    if settings.demo:
        print("At the first start its sample models are trained in the background; they appear on the page.", flush=True)
        open_page(address)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
