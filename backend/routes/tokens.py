"""Personal API tokens: `Authorization: Bearer …` for programs."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from backend import accounts
from backend.access import PersonDep, StoreDep
from backend.schemas import Token, TokenCreate, TokenMade
from backend.store import ApiToken
from cipm.errors import NotFound

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("", summary="Your tokens")
def list_tokens(caller: PersonDep, store: StoreDep) -> list[Token]:
    """Return the caller's tokens, the newest first, without their secrets."""
    mine = select(ApiToken).where(ApiToken.user_id == caller.user_id).order_by(ApiToken.created.desc())
    with store.read() as session:
        return [Token(**_fields(row)) for row in session.scalars(mine)]


@router.post("", status_code=201, summary="Make a token")
def make_token(body: TokenCreate, caller: PersonDep, store: StoreDep) -> TokenMade:
    """Return a new token with its secret, which is not shown again."""
    row, secret = accounts.make_token(store, caller.user_id, body.name)
    return TokenMade(**_fields(row), token=secret)


@router.delete("/{token_id}", status_code=204, summary="Delete a token")
def delete_token(token_id: str, caller: PersonDep, store: StoreDep) -> None:
    """Make a token invalid at once."""
    with store.write() as session:
        row = session.get(ApiToken, token_id)
        if row is None or row.user_id != caller.user_id:
            raise NotFound("There is no such token, or it is not yours.")
        session.delete(row)


def _fields(row: ApiToken) -> dict[str, object]:
    return {"id": row.id, "name": row.name, "created": row.created, "last_used": row.last_used}
