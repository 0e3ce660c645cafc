"""Settings: from the environment, refused with the variable's name, handed on to a child unchanged."""

from __future__ import annotations

import os
import stat

import pytest

from backend.settings import Settings, load_settings
from cipm.errors import OptionError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [name for name in os.environ if name.startswith("CIPM_")]:
        monkeypatch.delenv(name)


def test_defaults_suit_one_machine():
    settings = load_settings()
    assert (settings.host, settings.port, settings.auth, settings.embedded_worker) == ("127.0.0.1", 8000, False, True)
    assert settings.data.is_absolute() and settings.database == f"sqlite:///{settings.data / 'cipm.sqlite'}"


def test_the_environment_is_read(monkeypatch, tmp_path):
    for name, value in {"DATA": str(tmp_path), "AUTH": "on", "EMBEDDED_WORKER": "off", "LEASE_SECONDS": "3",
                        "DATABASE_URL": "postgres://u:p@h/d"}.items():
        monkeypatch.setenv(f"CIPM_{name}", value)
    settings = load_settings()
    assert (settings.auth, settings.embedded_worker, settings.lease_seconds) == (True, False, 3.0)
    assert settings.database == "postgresql+psycopg://u:p@h/d"


@pytest.mark.parametrize(("name", "value", "words"), [
    ("PORT", "99999", "less than or equal to 65535"),
    ("AUTH", "perhaps", "valid boolean"),
    ("DEVICE", "tpu", "should match pattern"),
    ("DATABASE_URL", "mysql://x", "the database is sqlite:///path or postgresql://…"),
    ("BROKER_URL", "amqp://x", "the broker is redis://… or empty"),
    ("OBJECT_STORE", "gs://x", "the object store is a folder, s3://bucket/prefix"),
    ("LEASE_SECONDS", "0", "greater than or equal to 1"),
])
def test_what_cannot_be_used_is_named(monkeypatch, name, value, words):
    monkeypatch.setenv(f"CIPM_{name}", value)
    with pytest.raises(OptionError) as caught:
        load_settings()
    assert caught.value.where == f"CIPM_{name}" and words in caught.value.message


def test_a_misspelt_setting_is_not_ignored(monkeypatch):
    monkeypatch.setenv("CIPM_DATABSE_URL", "x")
    with pytest.raises(OptionError, match="There is no setting CIPM_DATABSE_URL; the settings are CIPM_DATA, "):
        load_settings()


def test_a_child_gets_the_same_settings(monkeypatch, tmp_path):
    settings = load_settings(data=tmp_path, auth=True, device="cuda:1", lease_seconds=2.5, object_store="s3://b/p")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_the_secret_is_made_once_and_private(tmp_path):
    first, second = load_settings(data=tmp_path), load_settings(data=tmp_path)
    assert len(first.secret) >= 43 and first.secret == second.secret
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert load_settings(data=tmp_path, secret_key="mine").secret == "mine"
    assert "mine" not in repr(load_settings(data=tmp_path, secret_key="mine"))


def test_every_setting_has_its_help():
    assert all(field.description and field.description.endswith(".") for field in Settings.model_fields.values())
