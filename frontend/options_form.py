"""The options of an analysis as form fields, read from the API's OpenAPI schema: range, unit and help come with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptionField:
    """One control: `kind` is integer, number or choice; `low`/`high` bound it; `step` is its smallest step."""

    name: str
    title: str
    kind: str
    default: Any
    help: str
    unit: str
    low: float | None = None
    high: float | None = None
    step: float = 1
    choices: tuple[str, ...] = ()


def option_fields(openapi: Mapping[str, Any]) -> list[OptionField]:
    """Return the fields of AnalysisOptions as OpenAPI names them; none where the schema does not have them."""
    schemas = (openapi.get("components") or {}).get("schemas") or {}
    properties = (schemas.get("AnalysisOptions") or {}).get("properties") or _inlined(schemas)
    return [_field(name, schema) for name, schema in properties.items()]


def _inlined(schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options where AnalysisCreate spells them out itself."""
    options = ((schemas.get("AnalysisCreate") or {}).get("properties") or {}).get("options") or {}
    return options.get("properties") or {}


def _field(name: str, schema: Mapping[str, Any]) -> OptionField:
    choices = tuple(schema.get("enum") or ())
    kind = "choice" if choices else schema.get("type", "number")
    high = schema.get("maximum", _below(schema.get("exclusiveMaximum"), kind))
    return OptionField(name, name.replace("_", " ").capitalize(), kind, schema.get("default"),
                       schema.get("description") or "", schema.get("unit") or "", schema.get("minimum"), high,
                       1 if kind == "integer" else 0.05, choices)


def _below(bound: float | None, kind: str) -> float | None:
    return None if bound is None else bound - (1 if kind == "integer" else 0.01)


def chosen(fields: list[OptionField], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that differ from their defaults, typed as the schema says."""
    found = {}
    for field in fields:
        value = values.get(field.name)
        if value in (None, "") or value == field.default:
            continue
        found[field.name] = int(value) if field.kind == "integer" and float(value).is_integer() else value
    return found
