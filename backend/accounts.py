"""Accounts: passwords (argon2), sign-ins (cookie), personal tokens. Secrets are kept as hashes only.

A sign-in that fails takes as long, and answers the same, whether the address is unknown or the password wrong.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from backend.errors import SignInNeeded, TooMany
from backend.store import Store
from backend.store.models import ApiToken, User, UserSession, utc_now
from cipm.errors import Conflict

TOKEN_PREFIX = "cipm_"
USED_EVERY = timedelta(minutes=1)
_HASHER = PasswordHasher()
_DUMMY = _HASHER.hash(secrets.token_urlsafe(16))
# One argon2 hash takes 64 MiB: a rush of sign-ins waits for its turn.
_TURN = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Throttle:
    """Counts failures per key in a sliding window; in memory, so per server process."""

    failures: int = 10
    seconds: float = 300.0
    most_keys: int = 10_000
    _seen: OrderedDict[str, list[float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, key: str) -> None:
        """Raise TooMany where this key failed too often lately."""
        with self._lock:
            if len(self._recent(key)) >= self.failures:
                raise TooMany(f"Too many attempts; try again in {self.seconds / 60:.0f} minutes.")

    def failed(self, key: str) -> None:
        """Count one failure."""
        with self._lock:
            self._seen[key] = [*self._recent(key), time.monotonic()]
            self._seen.move_to_end(key)
            while len(self._seen) > self.most_keys:
                self._seen.popitem(last=False)

    def clear(self, key: str) -> None:
        """Forget the failures of this key."""
        with self._lock:
            self._seen.pop(key, None)

    def _recent(self, key: str) -> list[float]:
        return [at for at in self._seen.get(key, []) if at > time.monotonic() - self.seconds]


def digest(token: str) -> str:
    """Return what is kept of a secret of 256 random bits; such a secret needs no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def register(store: Store, email: str, password: str) -> User:
    """Make an account. Raises Conflict where the address has one."""
    user = User(email=email.strip().lower(), name=email.split("@")[0], password_hash=_hash(password))
    try:
        with store.write() as session:
            session.add(user)
    except IntegrityError:
        raise Conflict("There is already an account with this e-mail address.", where="email",
                       fix="Sign in instead.") from None
    return user


def verify(store: Store, email: str, password: str) -> User:
    """Return the account of this address and password. Raises SignInNeeded, the same for either being wrong."""
    with store.read() as session:
        user = session.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))
    known = user is not None and user.password_hash is not None
    if not _matches(user.password_hash if known else _DUMMY, password) or not known:
        raise SignInNeeded("The e-mail address or the password is not right.")
    return user


def open_session(store: Store, user: User) -> str:
    """Sign someone in and return the cookie's token."""
    token = secrets.token_urlsafe(32)
    expires = utc_now() + timedelta(days=store.settings.session_days)
    with store.write() as session:
        session.execute(delete(UserSession).where(UserSession.expires < utc_now()))
        session.add(UserSession(user_id=user.id, token_hash=digest(token), expires=expires))
    return token


def close_session(store: Store, token: str) -> None:
    """Sign out."""
    with store.write() as session:
        session.execute(delete(UserSession).where(UserSession.token_hash == digest(token)))


def session_user(store: Store, token: str) -> str | None:
    """Return the id of the one signed in with this cookie, or None."""
    with store.read() as session:
        return session.scalar(select(UserSession.user_id).where(UserSession.token_hash == digest(token),
                                                                UserSession.expires > utc_now()))


def make_token(store: Store, user_id: str, name: str) -> tuple[ApiToken, str]:
    """Make a personal token and return its row and its secret, which is shown once."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = ApiToken(user_id=user_id, name=name, token_hash=digest(secret))
    with store.write() as session:
        session.add(row)
    return row, secret


def token_user(store: Store, secret: str) -> str | None:
    """Return the id of the owner of this personal token, or None; note its use once a minute."""
    with store.read() as session:
        row = session.scalar(select(ApiToken).where(ApiToken.token_hash == digest(secret)))
    if row is None:
        return None
    if row.last_used is None or row.last_used < utc_now() - USED_EVERY:
        with store.write() as session:
            if (kept := session.get(ApiToken, row.id)) is not None:
                kept.last_used = utc_now()
    return row.user_id


def _hash(password: str) -> str:
    with _TURN:
        return _HASHER.hash(password)


def _matches(password_hash: str, password: str) -> bool:
    with _TURN:
        try:
            return _HASHER.verify(password_hash, password)
        except VerificationError:
            return False
