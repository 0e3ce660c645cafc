"""The API as one ASGI app. `create_app` makes it; a caller may mount pages on it, but the API knows none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from backend import errors, reference
from backend.accounts import Throttle
from backend.cache import FolderCache
from backend.demo import Demo
from backend.middleware import Guard, LastResort, SecurityHeaders
from backend.routes import routers
from backend.schemas import ErrorBody
from backend.settings import Settings, load_settings
from backend.store import open_store
from backend.supervisor import Supervisor
from cipm import __version__

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_ERRORS = {code: {"model": ErrorBody, "description": "An error, in the one shape."} for code in (422, "4XX", "5XX")}


def create_app(settings: Settings | None = None, *, mount: Callable[[FastAPI], object] | None = None) -> FastAPI:
    """Return the app. `mount(app)` adds pages after the API's routes; the store opens when the server starts."""
    settings = settings or load_settings()
    app = FastAPI(title="CIPM", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None,
                  openapi_url="/api/openapi.json", generate_unique_id_function=_operation, redirect_slashes=False,
                  description="See the modules and the redundancy of a trained network, share it, take it home.")
    app.state.settings, app.state.throttle, app.state.demo = settings, Throttle(), None
    app.state.views = FolderCache(settings.data / "views")
    app.state.pyramids = FolderCache(settings.data / "pyramids")
    errors.install(app)
    for router in routers:
        app.include_router(router, prefix="/api", responses=_ERRORS)
    _add_docs(app)
    _add_unknown(app)
    if mount is not None:
        mount(app)
    # The last one added is the outermost.
    app.add_middleware(Guard, hosts=_hosts(settings))
    app.add_middleware(LastResort)
    app.add_middleware(SecurityHeaders)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the store (migrations run, the owner is there), start the worker and the demo; end all in reverse."""
    settings: Settings = app.state.settings
    app.state.store = await run_in_threadpool(open_store, settings)
    app.state.worker = worker = Supervisor(settings) if settings.embedded_worker else None
    if worker is not None:
        worker.start()
    app.state.demo = demo = Demo(app.state.store) if settings.demo else None
    if demo is not None:
        demo.start()
    try:
        yield
    finally:
        if demo is not None:
            await demo.stop()
        if worker is not None:
            await run_in_threadpool(worker.stop)
        await run_in_threadpool(app.state.store.close)


def _add_docs(app: FastAPI) -> None:
    @app.get("/api/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(reference.html(app.openapi()))


def _add_unknown(app: FastAPI) -> None:
    """Answer unknown API addresses here, before pages that answer every address."""
    known = [(compile_path(path)[0], {method.upper() for method in methods})
             for path, methods in app.openapi()["paths"].items()]

    async def unknown(request: Request) -> None:
        allowed = sorted(set().union(*(methods for path, methods in known if path.match(request.url.path))))
        if allowed:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(allowed)})
        raise errors.no_such_path(request.url.path)

    for path in ("/api", "/api/{path:path}"):
        app.add_api_route(path, unknown, methods=METHODS, include_in_schema=False)


def _hosts(settings: Settings) -> set[str]:
    named = {settings.host, urlsplit(settings.public_url).hostname or ""}
    return named - {"", "0.0.0.0", "::"}


def _operation(route: APIRoute) -> str:
    return route.name
