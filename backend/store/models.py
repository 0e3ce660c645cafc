"""The tables. Ids are made by the server and cannot be guessed; times are UTC; leases run on the database's clock.

    User ─┬─ UserSession, ApiToken
          ├─ Upload            bytes on their way in, then a name for a file in the content store
          └─ Analysis ─┬─ Job ── StageUse ──► Artefact (shared by address)
                       ├─ WhatIf
                       └─ Share

An export is a Job of kind "export" or "prune", a measured what-if one of kind "measure", a budget of run
time one of kind "latency": what they made is in `Job.result`.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

LOCAL_OWNER = "local"
JOB_KINDS = ("analyze", "export", "latency", "measure", "prune", "shard")
JOB_STATES = ("queued", "running", "done", "failed", "cancelled")
ENDED = ("done", "failed", "cancelled")


def new_id() -> str:
    """Return a fresh id of 128 random bits that is safe in a URL."""
    return secrets.token_urlsafe(16)


def utc_now() -> datetime:
    """Return the present time with its zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, with zone in Python on every database (SQLite itself drops the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None, "a time without a zone"
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The base of all tables, with constraint names that migrations can rely on."""

    metadata = MetaData(naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s", "pk": "pk_%(table_name)s"})
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, list[dict[str, Any]]: JSON, dict[str, int]: JSON,
                           list[str]: JSON, str: String}


def _id() -> Mapped[str]:
    return mapped_column(String(64), primary_key=True, default=new_id)


def _owner(nullable: bool = False) -> Mapped[Any]:
    return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True, nullable=nullable)


class User(Base):
    """Someone who owns things; without sign-in the one local owner."""

    __tablename__ = "users"
    id: Mapped[str] = _id()
    email: Mapped[str] = mapped_column(String(320), unique=True)
    name: Mapped[str] = mapped_column(String(200), default="")
    password_hash: Mapped[str | None] = mapped_column(String(500))
    created: Mapped[datetime] = mapped_column(default=utc_now)


class UserSession(Base):
    """A sign-in: the cookie's token is kept as its SHA-256 only."""

    __tablename__ = "sessions"
    id: Mapped[str] = _id()
    user_id: Mapped[str] = _owner()
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=utc_now)
    expires: Mapped[datetime]


class ApiToken(Base):
    """A personal API token: shown once, kept as its SHA-256 only."""

    __tablename__ = "api_tokens"
    id: Mapped[str] = _id()
    user_id: Mapped[str] = _owner()
    name: Mapped[str] = mapped_column(String(200))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=utc_now)
    last_used: Mapped[datetime | None]


class Upload(Base):
    """A file on its way in (`complete` false), then a person's name for a file of the content store."""

    __tablename__ = "uploads"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(16))
    size: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    complete: Mapped[bool] = mapped_column(default=False, server_default=false())
    created: Mapped[datetime] = mapped_column(default=utc_now)
    expires: Mapped[datetime | None] = mapped_column(index=True)
    locked_by: Mapped[str | None] = mapped_column(String(64))
    locked_until: Mapped[float | None] = mapped_column(Float)


class Analysis(Base):
    """A model, a probe set and options; what came of them is with its jobs."""

    __tablename__ = "analyses"
    id: Mapped[str] = _id()
    owner_id: Mapped[str] = _owner()
    title: Mapped[str] = mapped_column(String(200), default="")
    model_upload_id: Mapped[str | None] = mapped_column(ForeignKey("uploads.id", ondelete="SET NULL"))
    model_name: Mapped[str] = mapped_column(String(255))
    model_sha256: Mapped[str] = mapped_column(String(64), index=True)
    model_size: Mapped[int] = mapped_column(BigInteger)
    probe_upload_id: Mapped[str | None] = mapped_column(ForeignKey("uploads.id", ondelete="SET NULL"))
    probe_name: Mapped[str | None] = mapped_column(String(255))
    probe_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    probe_size: Mapped[int | None] = mapped_column(BigInteger)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sample: Mapped[bool] = mapped_column(default=False, server_default=false())
    created: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    deleted: Mapped[datetime | None]
    jobs: Mapped[list[Job]] = relationship(back_populates="analysis", order_by="Job.created", passive_deletes=True)


class Job(Base):
    """One piece of work, and the whole truth about it.

    `stages` is `[{name, state: waiting|running|done|cached, seconds, address}]`, `error` `{code, message, where, fix}`.
    `owner` is the lease holder of the present attempt; `lease_until` is in seconds since 1970 on the database's clock.
    `parent_id` is the job that this one is a shard of: that one waits in the queue until all its shards have ended.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "status", "created"),)
    id: Mapped[str] = _id()
    analysis_id: Mapped[str] = mapped_column(ForeignKey("analyses.id", ondelete="CASCADE"), index=True)
    parent_id: Mapped[str | None] = mapped_column(String(64), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]] = mapped_column(default=dict)
    device: Mapped[str] = mapped_column(String(16), default="auto")
    status: Mapped[str] = mapped_column(String(16), default="queued")
    stage: Mapped[str | None] = mapped_column(String(64))
    stages: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    eta_seconds: Mapped[float | None] = mapped_column(Float)
    attempt: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[float | None] = mapped_column(Float, index=True)
    cancel_requested: Mapped[bool] = mapped_column(default=False, server_default=false())
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[datetime] = mapped_column(default=utc_now)
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    analysis: Mapped[Analysis] = relationship(back_populates="jobs")


class Artefact(Base):
    """What a stage wrote, found by its address. The row is made last: where it stands, all files stand.

    `files` is `{relative path: {size}}` under `prefix` in the object store; `seconds` is what the stage took.
    """

    __tablename__ = "artefacts"
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage: Mapped[str] = mapped_column(String(64), index=True)
    prefix: Mapped[str] = mapped_column(String(200))
    files: Mapped[dict[str, Any]]
    size: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float] = mapped_column(Float, default=0.0)
    created: Mapped[datetime] = mapped_column(default=utc_now)


class StageUse(Base):
    """That a job needs or made an artefact; an artefact that no job uses is removed."""

    __tablename__ = "stage_uses"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(64), primary_key=True)
    address: Mapped[str] = mapped_column(String(64), index=True)


class WhatIf(Base):
    """A named pruning what-if: how many units each group keeps ({group: units}), and which groups are locked at their size."""

    __tablename__ = "whatifs"
    id: Mapped[str] = _id()
    analysis_id: Mapped[str] = mapped_column(ForeignKey("analyses.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    keep: Mapped[dict[str, int]] = mapped_column(default=dict)
    locked: Mapped[list[str]] = mapped_column(default=list)
    created: Mapped[datetime] = mapped_column(default=utc_now)


class Share(Base):
    """A read-only link to one analysis: the token is kept as its SHA-256 only."""

    __tablename__ = "shares"
    id: Mapped[str] = _id()
    analysis_id: Mapped[str] = mapped_column(ForeignKey("analyses.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=utc_now)
    revoked: Mapped[datetime | None]


class Worker(Base):
    """A worker process that was alive at `seen` (seconds since 1970 on the database's clock)."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    gpu: Mapped[bool] = mapped_column(default=False, server_default=false())
    busy: Mapped[bool] = mapped_column(default=False, server_default=false())
    jail: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    seen: Mapped[float] = mapped_column(Float)
