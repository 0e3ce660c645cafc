"""The tables: models and migration agree on SQLite and PostgreSQL, and processes may start together."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, Share, User, open_store
from backend.store.database import db_now, make_engine, upgrade
from backend.store.models import Base


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.sqlite'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def settings(url, tmp_path):
    return load_settings(data=tmp_path / "data", database_url=url)


def test_models_and_migration_agree(settings):
    engine = make_engine(settings.database)
    upgrade(engine)
    upgrade(engine)  # a second time changes nothing
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        assert set(inspect(connection).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    engine.dispose()


def test_the_comparison_can_fail(settings):
    engine = make_engine(settings.database)
    upgrade(engine)
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN stray INTEGER"))
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) != []
    engine.dispose()


def test_the_local_owner_is_there_once(settings):
    for _ in range(2):
        store = open_store(settings)
        with store.read() as session:
            assert [user.id for user in session.scalars(select(User))] == [LOCAL_OWNER]
        store.close()


def test_processes_that_start_together_take_turns(settings):
    code = "from backend.settings import load_settings; from backend.store import open_store; open_store(load_settings())"
    environment = settings.environment() | {"PYTHONPATH": ".", "PYTHONWARNINGS": "error"}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]


def test_the_clock_is_utc_seconds_with_fractions(settings):
    store = open_store(settings)
    with store.read() as session:
        first = session.scalar(select(db_now()))
        time.sleep(0.05)
        second = session.scalar(select(db_now()))
    assert abs(first - time.time()) < 5 and 0.03 < second - first < 5
    store.close()


def test_times_keep_their_zone(settings):
    store = open_store(settings)
    moment = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=2)))
    with store.write() as session:
        session.add(User(id="u", email="u@example.org", created=moment))
    with store.read() as session:
        found = session.get_one(User, "u").created
    assert found == moment and found.tzinfo == UTC
    store.close()


def test_foreign_keys_hold_and_a_failed_write_leaves_nothing(settings):
    store = open_store(settings)
    with pytest.raises(IntegrityError), store.write() as session:
        session.add(Analysis(id="a", owner_id=LOCAL_OWNER, model_name="m", model_sha256="0" * 64, model_size=1))
        session.flush()
        session.add(Share(analysis_id="nowhere", token_hash="0" * 64))
    with store.read() as session:
        assert session.get(Analysis, "a") is None
    store.close()
