"""The store as one value: database, objects and broker of a deployment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.settings import Settings
from backend.store.database import make_engine, upgrade
from backend.store.models import LOCAL_OWNER, User
from backend.store.objects import ObjectStore, open_objects
from backend.store.queue import Broker, make_celery


@dataclass(frozen=True)
class Store:
    """Everything that is kept. Synchronous: call it from a thread, never from the event loop."""

    settings: Settings
    engine: Engine
    objects: ObjectStore
    broker: Broker

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session to look things up; what it returns stays readable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that commits at the end, or rolls back on an error. Keep it short: SQLite has one writer."""
        with Session(self.engine.execution_options(write=True), expire_on_commit=False) as session, session.begin():
            yield session

    def wake(self, job_id: str) -> bool:
        """Tell a worker that there is work. Call it after the commit."""
        return self.broker.wake(job_id)

    def wake_all(self, job_ids: Sequence[str]) -> bool:
        """Tell a worker for each of these jobs that there is work. Call it after the commit."""
        return self.broker.wake_all(job_ids)

    def close(self) -> None:
        """Let go of the database's connections."""
        self.engine.dispose()


def open_store(settings: Settings) -> Store:
    """Return the store of these settings: folders made, tables at the newest version, the local owner present."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = make_engine(settings.database)
    upgrade(engine)
    store = Store(settings, engine, open_objects(settings), Broker(make_celery(settings)))
    _ensure_owner(store)
    return store


def _ensure_owner(store: Store) -> None:
    with store.read() as session:
        if session.get(User, LOCAL_OWNER) is not None:
            return
    try:
        with store.write() as session:
            session.add(User(id=LOCAL_OWNER, email=LOCAL_OWNER, name="Local owner"))
    except IntegrityError:
        return  # another process was first
