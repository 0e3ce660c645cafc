"""Accounts and sign-in, where the server asks for it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from backend import accounts
from backend.access import COOKIE, CallerDep, StoreDep
from backend.schemas import Credentials, Login, User
from backend.store import LOCAL_OWNER, Store
from backend.store import User as UserRow
from cipm.errors import NotFound

router = APIRouter(prefix="/auth", tags=["auth"])


@router.post("/register", status_code=201, summary="Make an account and sign in")
def register(body: Credentials, request: Request, response: Response, store: StoreDep) -> User:
    """Make an account. 409 where the address has one already."""
    _needs_accounts(store)
    address = f"register {_address(request)}"
    throttle: accounts.Throttle = request.app.state.throttle
    throttle.check(address)
    throttle.failed(address)
    user = accounts.register(store, body.email, body.password)
    _sign_in(user, request, response, store)
    return describe(user, store)


@router.post("/login", summary="Sign in")
def login(body: Login, request: Request, response: Response, store: StoreDep) -> User:
    """Set the sign-in cookie. The answer is the same for an unknown address and a wrong password."""
    _needs_accounts(store)
    throttle: accounts.Throttle = request.app.state.throttle
    key = f"login {body.email.strip().lower()} {_address(request)}"
    throttle.check(key)
    throttle.failed(key)
    user = accounts.verify(store, body.email, body.password)
    throttle.clear(key)
    _sign_in(user, request, response, store)
    return describe(user, store)


@router.post("/logout", status_code=204, summary="Sign out")
def logout(request: Request, response: Response, store: StoreDep) -> None:
    """Forget the sign-in of this cookie; without one, nothing happens."""
    if token := request.cookies.get(COOKIE):
        accounts.close_session(store, token)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="lax")


@router.get("/me", summary="Who asks")
def me(caller: CallerDep, store: StoreDep) -> User:
    """Return the one who asks: the local owner where nobody signs in."""
    with store.read() as session:
        return describe(session.get_one(UserRow, caller.user_id), store)


def describe(user: UserRow, store: Store) -> User:
    """Return a user as the API shows one."""
    return User(id=user.id, email=None if user.id == LOCAL_OWNER else user.email, name=user.name,
                auth=store.settings.auth)


def _sign_in(user: UserRow, request: Request, response: Response, store: Store) -> None:
    secure = request.url.scheme == "https" or store.settings.public_url.startswith("https://")
    response.set_cookie(COOKIE, accounts.open_session(store, user), httponly=True, samesite="lax", secure=secure, path="/",
                        max_age=int(store.settings.session_days * 86_400))


def _needs_accounts(store: Store) -> None:
    if not store.settings.auth:
        raise NotFound("This server has no accounts: it belongs to the one person on this machine.",
                       fix="CIPM_AUTH=on turns sign-in on.")


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
