"""Who may see what. Everything belongs to a user; what is not yours answers as if it were not there.

    Caller    the one who asks: the local owner, a sign-in, or a personal token
    Reading   an analysis to look at: its owner's, a sample, or the one a share link opens
    Owned     an analysis to change: its owner's

A request that carries a share token is answered by the reading routes of that one analysis alone, whoever sends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend import accounts
from backend.errors import SignInNeeded
from backend.store import Store
from backend.store.models import LOCAL_OWNER, Analysis, Job, Share
from cipm.errors import Forbidden, NotFound

COOKIE = "cipm_session"
SHARE = "share"
NO_ANALYSIS = "There is no such analysis, or it is not yours."


@dataclass(frozen=True)
class Caller:
    """The one who asks, and how we know."""

    user_id: str
    via: Literal["local", "session", "token"]


@dataclass(frozen=True)
class Reading:
    """An analysis to look at; `token` is the share token it was opened with."""

    analysis: Analysis
    read_only: bool
    token: str | None = None


def get_store(request: Request) -> Store:
    """Return the store of this app."""
    return request.app.state.store


StoreDep = Annotated[Store, Depends(get_store)]


def get_caller(request: Request, store: StoreDep) -> Caller:
    """Return who asks. Raises SignInNeeded; Forbidden where the request carries a share token."""
    if SHARE in request.query_params:
        raise Forbidden("A share link opens one analysis to read, and nothing else.", where=SHARE)
    if not store.settings.auth:
        return Caller(LOCAL_OWNER, "local")
    return _by_token(request, store) or _by_session(request, store) or _nobody()


CallerDep = Annotated[Caller, Depends(get_caller)]


def get_person(caller: CallerDep) -> Caller:
    """Return who asks, but not by a personal token: a token that leaked must not make more of its kind."""
    if caller.via == "token":
        raise Forbidden("Personal tokens are managed by signing in, not with a token.")
    return caller


def get_reading(analysis_id: str, request: Request, store: StoreDep,
                share: Annotated[str | None, Query(description="Token of a share link.", max_length=200)] = None,
                ) -> Reading:
    """Return the analysis to look at. Raises NotFound, SignInNeeded."""
    if share is not None:
        found = shared(store, share)
        if found.id != analysis_id:
            raise NotFound(NO_ANALYSIS)
        return Reading(found, True, share)
    caller = get_caller(request, store)
    with store.read() as session:
        analysis = visible(session, analysis_id)
    if analysis.owner_id != caller.user_id and not analysis.sample:
        raise NotFound(NO_ANALYSIS)
    return Reading(analysis, analysis.owner_id != caller.user_id)


def get_owned(analysis_id: str, caller: CallerDep, store: StoreDep) -> Analysis:
    """Return the analysis to change. Raises NotFound where it is another's."""
    with store.read() as session:
        analysis = visible(session, analysis_id)
    if analysis.owner_id != caller.user_id:
        raise NotFound(NO_ANALYSIS)
    return analysis


PersonDep = Annotated[Caller, Depends(get_person)]
ReadingDep = Annotated[Reading, Depends(get_reading)]
OwnedDep = Annotated[Analysis, Depends(get_owned)]


def shared(store: Store, token: str) -> Analysis:
    """Return the analysis that a share token opens. Raises NotFound where it never did or no longer does."""
    found = (select(Analysis).join(Share).where(Share.token_hash == accounts.digest(token), Share.revoked.is_(None),
                                                Analysis.deleted.is_(None)))
    with store.read() as session:
        analysis = session.scalar(found)
    if analysis is None:
        raise NotFound("This link does not open anything; it may have been revoked.")
    return analysis


def visible(session: Session, analysis_id: str) -> Analysis:
    """Return an analysis that is not deleted. Raises NotFound."""
    analysis = session.get(Analysis, analysis_id)
    if analysis is None or analysis.deleted is not None:
        raise NotFound(NO_ANALYSIS)
    return analysis


def owned_job(session: Session, job_id: str, caller: Caller, *kinds: str) -> Job:
    """Return a job of these kinds on an analysis of the caller's. Raises NotFound, in the same words for another's."""
    job = session.get(Job, job_id)
    if job is None or job.kind not in kinds or not _owns(session, job.analysis_id, caller):
        raise NotFound(f"There is no such {kinds[0]}, or it is not yours.")
    return job


def owned_share(session: Session, share_id: str, caller: Caller) -> Share:
    """Return a link to an analysis of the caller's. Raises NotFound, in the same words for another's."""
    share = session.get(Share, share_id)
    if share is None or not _owns(session, share.analysis_id, caller):
        raise NotFound("There is no such link, or it is not yours.")
    return share


def _owns(session: Session, analysis_id: str, caller: Caller) -> bool:
    analysis = session.get(Analysis, analysis_id)
    return analysis is not None and analysis.deleted is None and analysis.owner_id == caller.user_id


def _by_token(request: Request, store: Store) -> Caller | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    user_id = accounts.token_user(store, secret.strip())
    if user_id is None:
        raise SignInNeeded("This token is not valid; it may have been deleted.", where="Authorization")
    return Caller(user_id, "token")


def _by_session(request: Request, store: Store) -> Caller | None:
    token = request.cookies.get(COOKIE)
    user_id = accounts.session_user(store, token) if token else None
    return Caller(user_id, "session") if user_id else None


def _nobody() -> Caller:
    raise SignInNeeded("Please sign in.", fix="Sign in on /login, or send a personal token as Authorization: Bearer ….")
