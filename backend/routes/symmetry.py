"""The symmetry report with the model's graph: what stage `discover` wrote, as soon as it is there."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from backend import describe
from backend.access import ReadingDep, StoreDep
from backend.schemas import SymmetryReport
from backend.store import Artefact, Store, artefacts
from backend.store.models import ENDED
from cipm.errors import Conflict, NotFound
from cipm.views.facts import STRUCTURE_FILE

router = APIRouter(prefix="/analyses", tags=["results"])


@router.get("/{analysis_id}/symmetry", summary="The symmetry report", response_model=SymmetryReport)
def symmetry(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return groups, pins with reasons, proof and the model's graph, as soon as the symmetry is found.

    409 while the analysis has not come so far, 404 where it ended before.
    """
    artefact = _found(store, reading.analysis.id)
    etag = f'"{artefact.address}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return FileResponse(artefacts.file(store, artefact, STRUCTURE_FILE), media_type="application/json", headers=headers)


def _found(store: Store, analysis_id: str) -> Artefact:
    with store.read() as session:
        artefact = artefacts.newest(session, analysis_id, "discover")
        status = describe.newest_job(session, analysis_id).status
    if artefact is not None and STRUCTURE_FILE in artefact.files:
        return artefact
    if status not in ENDED:
        raise Conflict("The symmetry of this model is not found yet.", fix="Ask again when the stage discover is done.")
    if artefact is not None:
        raise NotFound("This analysis was made before there were symmetry reports.", fix="Run it again to get one.")
    raise NotFound("This analysis ended before the symmetry was found.", fix="Run it again.")
