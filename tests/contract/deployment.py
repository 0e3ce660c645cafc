"""docker-compose.yml and the Dockerfile as plain values, the way an engine would read them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


@dataclass(frozen=True)
class Image:
    """A target of the Dockerfile: what it runs, and how it is found to be well."""

    command: list[str]
    health: list[str]
    user: str


def compose(given: dict[str, str]) -> dict[str, Any]:
    """Return docker-compose.yml with its variables filled in; KeyError names one that must be given and is not."""
    def fill(match: re.Match[str]) -> str:
        value = given.get(match["name"], "")
        if not value and match["kind"] == "?":
            raise KeyError(match["name"])
        return value or (match["text"] or "" if match["kind"] == "-" else "")

    text = "\n".join(line.partition(" #")[0] if not line.startswith("#") else "" for line in _text().splitlines())
    return yaml.safe_load(VARIABLE.sub(fill, text))


def variables() -> dict[str, set[str]]:
    """Return every variable of docker-compose.yml with the ways it is used: "?" required, "-" with a default, "" neither."""
    found: dict[str, set[str]] = {}
    for match in VARIABLE.finditer(_text()):
        found.setdefault(match["name"], set()).add(match["kind"] or "")
    return found


def images() -> dict[str, Image]:
    """Return the Dockerfile's targets; each has what the one it stands on has, where it says nothing itself."""
    found: dict[str, Image] = {}
    current = ""
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, current = rest.partition(" AS ")
            found[current] = found.get(base, Image([], [], "root"))
        elif word in ("CMD", "HEALTHCHECK", "USER"):
            found[current] = _with(found[current], word, rest)
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's environment; what is passed through is there only where this process has it."""
    return {name: str(os.environ.get(name, "") if value is None else value)
            for name, value in service["environment"].items() if value is not None or name in os.environ}


def _with(image: Image, word: str, rest: str) -> Image:
    if word == "USER":
        return Image(image.command, image.health, rest.strip())
    command = json.loads(rest[rest.index("["):])
    return Image(command, image.health, image.user) if word == "CMD" else Image(image.command, command, image.user)


def _text() -> str:
    return (ROOT / "docker-compose.yml").read_text()
