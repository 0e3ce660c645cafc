"""Share links: one analysis, read-only, for whoever has the link, until it is revoked."""

from __future__ import annotations

import secrets

from fastapi import APIRouter
from sqlalchemy import select

from backend import accounts, describe
from backend.access import CallerDep, OwnedDep, StoreDep, owned_share, shared
from backend.schemas import Analysis, Share, ShareMade
from backend.store import Share as ShareRow
from backend.store.models import utc_now

router = APIRouter(tags=["shares"])


@router.post("/analyses/{analysis_id}/shares", status_code=201, summary="Share an analysis")
def create_share(analysis: OwnedDep, store: StoreDep) -> ShareMade:
    """Make a link that opens this analysis to read. Its token is shown once; only its hash is kept."""
    token = secrets.token_urlsafe(32)
    row = ShareRow(analysis_id=analysis.id, token_hash=accounts.digest(token))
    with store.write() as session:
        session.add(row)
    return ShareMade(id=row.id, created=row.created, revoked=None, url=f"/s/{token}", token=token)


@router.get("/analyses/{analysis_id}/shares", summary="Links of an analysis")
def list_shares(analysis: OwnedDep, store: StoreDep) -> list[Share]:
    """Return the links of an analysis, revoked ones too, the newest first."""
    found = select(ShareRow).where(ShareRow.analysis_id == analysis.id).order_by(ShareRow.created.desc(), ShareRow.id)
    with store.read() as session:
        return [Share(id=row.id, created=row.created, revoked=row.revoked) for row in session.scalars(found)]


@router.delete("/shares/{share_id}", status_code=204, summary="Revoke a link")
def revoke_share(share_id: str, caller: CallerDep, store: StoreDep) -> None:
    """Make a link open nothing any more, at once."""
    with store.write() as session:
        row = owned_share(session, share_id, caller)
        row.revoked = row.revoked or utc_now()


@router.get("/shared/{token}", summary="What a link opens")
def open_share(token: str, store: StoreDep) -> Analysis:
    """Return the analysis that a link opens, read-only. 404 where it was revoked."""
    row = shared(store, token)
    with store.read() as session:
        return describe.analysis(row, describe.newest_job(session, row.id), read_only=True)
