"""Whether the server, its workers and the jail are well."""

from __future__ import annotations

from fastapi import APIRouter, Request

from backend.access import StoreDep
from backend.schemas import DemoHealth, Health, JailHealth, WorkerHealth
from backend.store import jobs
from cipm import __version__

router = APIRouter(tags=["health"])
_NO_WORKER = {"ok": False, "detail": "No worker has reported yet."}


@router.get("/health", summary="The state of this server")
def health(request: Request, store: StoreDep) -> Health:
    """Answer without sign-in. `degraded`: no worker, or no jail, so that jobs wait or are refused."""
    found = jobs.health(store)
    jail = found["jail"] or _NO_WORKER
    demo = request.app.state.demo
    well = found["alive"] and jail["ok"]
    return Health(status="ok" if well else "degraded", version=__version__, auth=store.settings.auth,
                  worker=WorkerHealth(alive=found["alive"], busy=found["busy"], workers=found["workers"]),
                  jail=JailHealth(ok=bool(jail["ok"]), detail=str(jail.get("detail", ""))),
                  demo=demo and DemoHealth(state=demo.state, detail=demo.detail))
