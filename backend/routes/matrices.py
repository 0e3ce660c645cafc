"""Matrices: metadata of one order, and tiles of its pyramid as raw float16."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from backend.access import ReadingDep, StoreDep
from backend.routes.files import sends
from backend.routes.results import open_view
from backend.schemas import Matrix
from backend.store import Store
from backend.tiles import Shown, TileRequest, parse_places, read_tiles, show

router = APIRouter(prefix="/analyses", tags=["matrices"])
OrderQuery = Annotated[str, Query(description="Name of an order.", max_length=100)]


@router.get("/{analysis_id}/matrices/{matrix_id}", summary="A matrix in one order")
def matrix(matrix_id: str, reading: ReadingDep, request: Request, store: StoreDep,
           order: OrderQuery = "original") -> Matrix:
    """Return the matrix's range, levels, scale and revision, and per axis the unit and module at each position."""
    return Matrix(**_shown(request, store, reading.analysis.id, matrix_id, order).describe())


@router.get("/{analysis_id}/matrices/{matrix_id}/tiles", summary="Tiles", response_class=Response,
            responses=sends("application/octet-stream"))
def tiles(matrix_id: str, reading: ReadingDep, request: Request, store: StoreDep,
          at: Annotated[str, Query(description="Tiles as x.y,x.y,… counted from the top left; up to 64.",
                                   max_length=1000)],
          order: OrderQuery = "original",
          level: Annotated[int, Query(ge=0, description="Blocks of 2^level entries a side are one cell.")] = 0,
          stat: Annotated[str, Query(description="mean, or maxabs: the entry of largest magnitude, sign kept.")] = "mean",
          rev: Annotated[str | None, Query(description="The matrix's revision.", max_length=64)] = None) -> Response:
    """Return 256 × 256 little-endian float16 tiles back to back, row-major, NaN beyond the edge; × scale is the value.

    With `rev` the answer never changes and may be kept for good; 409 where the matrix is of another revision by now.
    """
    shown = _shown(request, store, reading.analysis.id, matrix_id, order)
    body = read_tiles(request.app.state.pyramids, shown, TileRequest(level, stat, parse_places(at)), rev)
    kept = "private, max-age=31536000, immutable" if rev else "no-store"
    return Response(body, media_type="application/octet-stream", headers={"Cache-Control": kept})


def _shown(request: Request, store: Store, analysis_id: str, matrix_id: str, order: str) -> Shown:
    view = open_view(request, store, analysis_id)
    return show(view.folder, view.address, matrix_id, order)
