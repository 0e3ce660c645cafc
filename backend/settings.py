"""Settings of a deployment: read once from the environment (prefix `CIPM_`), the same for server and workers."""

from __future__ import annotations

import os
import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cipm.errors import OptionError

GIB = 2**30


def setting(default: Any, help: str, **bounds: Any) -> Any:
    """Declare one setting: its default, one sentence of help, and pydantic bounds (ge, le, …)."""
    return Field(default, description=help, **bounds)


class Settings(BaseSettings):
    """Where things are kept, who may come in, and how much a job may take. All defaults suit one person's machine."""

    model_config = SettingsConfigDict(env_prefix="CIPM_", frozen=True, extra="forbid")

    data: Path = setting(Path("~/.local/share/cipm"), "Folder for everything kept: database, objects, uploads, broker.")
    host: str = setting("127.0.0.1", "Address the server listens on.")
    port: int = setting(8000, "Port the server listens on.", ge=0, le=65_535)
    database_url: str = setting("", "SQLAlchemy URL; empty: SQLite in the data folder. postgresql://… for "
                                "several machines.")
    broker_url: str = setting("", "Where wake-ups travel; empty: files in the data folder. redis://… for "
                              "several machines.")
    object_store: str = setting("", "Where files are kept; empty: a folder in the data folder. s3://bucket/prefix "
                                "with the usual AWS_ variables.")
    scratch: Path | None = setting(None, "Folder for running jobs, local to each worker; default: in the data folder.")
    auth: bool = setting(False, "on: people sign in and own what they upload. off: one local owner, no sign-in.")
    secret_key: str = setting("", "Key that signs cookies; empty: made once and kept in the data folder.", repr=False)
    public_url: str = setting("", "Address people reach the server at, for links and cookies; empty: as the "
                              "request says.")
    embedded_worker: bool = setting(True, "on: the server starts a worker of its own and keeps it alive.")
    demo: bool = setting(False, "on: the server trains small sample models at its first start and analyses them.")
    device: str = setting("auto", "Where jobs compute: auto, cpu, cuda or cuda:N. One worker process per GPU.",
                          pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    lease_seconds: float = setting(30.0, "A job whose worker was not heard of for so long goes to another, seconds.",
                                   ge=1, le=3600)
    heartbeat_seconds: float = setting(5.0, "How often a worker extends its lease, seconds.", ge=0.1, le=600)
    max_attempts: int = setting(3, "Workers a job may lose before it is given up.", ge=1, le=10)
    max_upload_bytes: int = setting(16 * GIB, "Largest upload, bytes.", ge=1)
    upload_hours: float = setting(24.0, "An unfinished upload is removed after so long without a byte, hours.", gt=0)
    free_disk_bytes: int = setting(GIB // 2, "Disk left free when an upload is accepted, bytes.", ge=0)
    job_memory_bytes: int = setting(16 * GIB, "Memory one job may use, bytes.", ge=GIB // 4)
    job_seconds: float = setting(6 * 3600.0, "Time one job may take, seconds.", gt=0)
    session_days: float = setting(30.0, "A sign-in lasts so long, days.", gt=0)

    @field_validator("data", "scratch")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path.expanduser()))

    @field_validator("database_url")
    @classmethod
    def _with_driver(cls, url: str) -> str:
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        if url and not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("the database is sqlite:///path or postgresql://…")
        return url

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: str) -> str:
        if url and not url.startswith(("redis://", "rediss://", "unix://", "redis+socket://")):
            raise ValueError("the broker is redis://… or empty for files in the data folder")
        return url

    @field_validator("object_store")
    @classmethod
    def _known_store(cls, url: str) -> str:
        if "://" in url and not url.startswith("s3://"):
            raise ValueError("the object store is a folder, s3://bucket/prefix, or empty for one in the data folder")
        return url

    @property
    def database(self) -> str:
        """Return the database's URL with the default filled in."""
        return self.database_url or f"sqlite:///{self.data / 'cipm.sqlite'}"

    @property
    def scratch_folder(self) -> Path:
        """Return the folder under which each worker makes its own."""
        return self.scratch or self.data / "scratch"

    @cached_property
    def secret(self) -> str:
        """Return the signing key, made at the first call and then kept in a file that only the owner reads."""
        return self.secret_key or _kept_secret(self.data / "secret.key")

    def environment(self) -> dict[str, str]:
        """Return these settings as environment variables, for a child process."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {f"CIPM_{name.upper()}": str(value) for name, value in values.items() if value not in ("", None)}


def load_settings(**values: Any) -> Settings:
    """Return the settings of this environment, `values` first; raise OptionError naming the wrong variable."""
    known = [f"CIPM_{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(name for name in os.environ if name.startswith("CIPM_") and name not in known)
    if unknown:
        raise OptionError(f"There is no setting {unknown[0]}; the settings are {', '.join(known)}.", where=unknown[0])
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = "CIPM_" + ".".join(str(part) for part in first["loc"]).upper()
        reason = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"Setting {name} cannot be used: {reason}.", where=name) from None


def _kept_secret(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(48))
    return path.read_text().strip()
