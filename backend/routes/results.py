"""The report."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from backend.access import ReadingDep, StoreDep
from backend.results import View, view_of
from backend.routes.files import json_by_address
from backend.store import Store

router = APIRouter(prefix="/analyses", tags=["results"])


@router.get("/{analysis_id}/report", summary="The report", response_model=dict[str, Any])
def report(reading: ReadingDep, request: Request, store: StoreDep) -> Response:
    """Return report.json of the newest finished run. 404 where none is finished."""
    view = open_view(request, store, reading.analysis.id)
    return json_by_address(request, view.address, lambda: view.report_path)


def open_view(request: Request, store: Store, analysis_id: str) -> View:
    """Return the newest finished view of an analysis."""
    return view_of(store, request.app.state.views, analysis_id)
