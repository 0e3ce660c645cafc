"""The API's reference from its own OpenAPI: a page that needs no other host, and docs/api.md.

`python -m backend.reference` writes docs/api.md anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cipm.errors import error_classes

DOCUMENT = Path(__file__).parent.parent / "docs" / "api.md"
_STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
          "code,pre{font:13px ui-monospace,monospace}h2{margin-top:2.5rem;border-bottom:1px solid #8888}"
          "h3{margin:1.6rem 0 .2rem}td,th{text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0}")


@dataclass(frozen=True)
class Operation:
    """One method of one address, in words."""

    method: str
    path: str
    tag: str
    summary: str
    text: str
    takes: tuple[tuple[str, str, str], ...]
    gives: str


def operations(openapi: dict[str, Any]) -> Iterator[Operation]:
    """Yield every operation in the order of the routes."""
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            yield Operation(method.upper(), path, about["tags"][0], about["summary"], about.get("description", ""),
                            tuple(_takes(about)), _gives(about))


def markdown(openapi: dict[str, Any]) -> str:
    """Return the whole reference as Markdown."""
    lines = ["# API", "", "Made from the running code by `python -m backend.reference`; a test keeps it so. "
             "The same, as a page: `/api/docs`; as OpenAPI: `/api/openapi.json`.", ""]
    tag = None
    for operation in operations(openapi):
        if operation.tag != tag:
            tag = operation.tag
            lines += [f"## {tag}", ""]
        lines += [f"### `{operation.method} {operation.path}`", "", f"{operation.summary}. {operation.text}", ""]
        lines += [f"- `{name}` ({kind}){': ' + text if text else ''}" for name, kind, text in operation.takes]
        lines += [f"- → {operation.gives}", ""]
    return "\n".join([*lines, *_schemas_markdown(openapi), *_errors_markdown()])


def html(openapi: dict[str, Any]) -> str:
    """Return the whole reference as one page without scripts."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>API</title><style>{_STYLE}</style><h1>API</h1>"
             "<p>As OpenAPI: <a href=/api/openapi.json>/api/openapi.json</a></p>"]
    for operation in operations(openapi):
        parts.append(f"<h3><code>{operation.method} {escape(operation.path)}</code></h3><p>{escape(operation.summary)}. "
                     f"{escape(operation.text)}</p>{_table(operation.takes)}<p>→ {escape(operation.gives)}</p>")
    parts.append("<h2>Bodies</h2>")
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        rows = [(field, _kind(about), about.get("description", "")) for field, about in _properties(schema)]
        parts.append(f"<h3>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>{_table(rows)}")
    return "".join(parts)


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{escape(text)}" for name, kind, text in rows)
    return f"<table>{''.join(cells)}</table>"


def _properties(schema: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    return schema.get("properties", {}).items()


def _takes(about: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for parameter in about.get("parameters", ()):
        kind = f"{parameter['in']}, {_kind(parameter['schema'])}{'' if parameter.get('required') else ', optional'}"
        yield parameter["name"], kind, parameter.get("description", "")
    for media, content in about.get("requestBody", {}).get("content", {}).items():
        yield "body", f"{media}, {_kind(content['schema'])}", ""


def _gives(about: dict[str, Any]) -> str:
    status, response = next((status, r) for status, r in about["responses"].items() if status.startswith("2"))
    content = response.get("content", {})
    # A route that sends bytes may also carry a default JSON entry; the bytes are what it sends.
    media = next((m for m in content if m != "application/json"), next(iter(content), None))
    if media is None:
        return status
    kind = _kind(content[media].get("schema", {})) if media == "application/json" else media
    return f"{status} {kind}"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    return schema.get("const") or schema.get("format") or schema.get("type", "any")


def _schemas_markdown(openapi: dict[str, Any]) -> Iterator[str]:
    yield from ("## Bodies", "")
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        yield from (f"### {name}", "", schema.get("description", ""), "")
        for field, about in _properties(schema):
            text = about.get("description", "")
            yield f"- `{field}`: {_kind(about)}{'. ' + text if text else ''}"
        yield ""


def _errors_markdown() -> Iterator[str]:
    yield from ("## Errors", "", 'Every error has one shape, `{"error": {"code", "message", "where", "fix"}}`.', "",
                "| code | status |", "|---|---|")
    for code, cls in sorted(error_classes().items()):
        yield f"| `{code}` | {cls.status} |"
    yield ""


if __name__ == "__main__":
    from backend.app import create_app
    from backend.settings import Settings

    text = markdown(create_app(Settings()).openapi())
    sys.stdout.write(text) if sys.argv[1:] == ["-"] else DOCUMENT.write_text(text)
