"""Write docs/options.md from the declarations themselves: `make docs`. A test keeps the file so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from backend.settings import Settings
from cipm.options import AnalysisOptions

DOCUMENT = Path(__file__).parent.parent / "docs" / "options.md"
HEAD = """# Options and settings

Made from the code by `make docs`; a test keeps it so.

## Options of an analysis

The same on the page, in `options` of `POST /api/analyses`, and as flags of `cipm analyze` (`max_rows` is `--max-rows`).
A value outside its range is refused with the option's name; nothing is rounded or clipped.

| option | default | range | unit | what it does |
|---|---|---|---|---|
"""
MIDDLE = """
## Settings of a deployment

Environment variables, read once at the start, the same for server and workers. An unknown `CIPM_…` variable is refused.

| variable | default | range | what it does |
|---|---|---|---|
"""


def document() -> str:
    """Return the whole page."""
    options = [_row(f"`{name}`", _value(field.default), bounds(field), field.json_schema_extra["unit"], field.description)
               for name, field in AnalysisOptions.model_fields.items()]
    settings = [_row(f"`{variable(name)}`", _value(field.default), bounds(field), field.description)
                for name, field in Settings.model_fields.items()]
    return "\n".join([HEAD + "\n".join(options), MIDDLE + "\n".join(settings), ""])


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"CIPM_{name.upper()}"


def bounds(field: FieldInfo) -> str:
    """Return in words what a field may be."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "`on`, `off`"
    words = [_bound(limit) for limit in field.metadata]
    return " and ".join(word for word in words if word) or "any"


def _bound(limit: Any) -> str:
    match limit:
        case annotated_types.Ge(ge=low):
            return f"≥ {_number(low)}"
        case annotated_types.Gt(gt=low):
            return f"> {_number(low)}"
        case annotated_types.Le(le=high):
            return f"≤ {_number(high)}"
        case annotated_types.Lt(lt=high):
            return f"< {_number(high)}"
    return f"`{pattern}`".replace("|", "\\|") if (pattern := getattr(limit, "pattern", None)) else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", None):
        return "–"
    return _number(value) if isinstance(value, int | float) else f"`{value}`"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
