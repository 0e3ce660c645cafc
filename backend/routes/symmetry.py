"""The symmetry report with the model's graph: what stage `discover` wrote, as soon as it is there."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from backend.access import ReadingDep, StoreDep
from backend.results import early_result
from backend.routes.files import json_by_address
from backend.schemas import SymmetryReport
from backend.store import artefacts
from cipm.views.facts import STRUCTURE_FILE

router = APIRouter(prefix="/analyses", tags=["results"])


@router.get("/{analysis_id}/symmetry", summary="The symmetry report", response_model=SymmetryReport)
def symmetry(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return groups, pins with reasons, proof and the model's graph, as soon as the symmetry is found.

    409 while the analysis has not come so far, 404 where it ended before.
    """
    artefact = early_result(store, reading.analysis.id, "discover", STRUCTURE_FILE,
                            waiting="The symmetry of this model is not found yet.",
                            older="This analysis was made before there were symmetry reports.",
                            ended="This analysis ended before the symmetry was found.")
    return json_by_address(request, artefact.address, lambda: artefacts.file(store, artefact, STRUCTURE_FILE))
