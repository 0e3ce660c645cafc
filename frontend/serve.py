"""Where the API and the pages become one server: `python -m frontend.serve`.

The only module that knows both. Everything else in this folder knows the API's client alone, and the API knows no page.
"""

from __future__ import annotations

import ipaddress
import sys
from functools import partial

import httpx
import uvicorn
from fastapi import FastAPI

from backend.app import create_app
from backend.settings import Settings, load_settings
from cipm.errors import CipmError, OptionError
from frontend.app import mount
from frontend.client import Client, open_http

GRACE_SECONDS = 3


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
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", access_log=False,
                timeout_graceful_shutdown=GRACE_SECONDS)
    return 0


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
