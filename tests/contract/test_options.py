"""Options and settings: every one is in the docs with its range, and every value outside is refused by name."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
from imports import ROOT

from backend.settings import Settings, load_settings
from cipm.errors import OptionError
from cipm.options import AnalysisOptions, parse_options

PAGE = (ROOT / "docs" / "options.md").read_text()


def outside(field: Any) -> list[Any]:
    """Return values that a field must refuse: one beyond each bound, and wrong types."""
    values: list[Any] = [[], {}, None, "no such value"]
    step = 1 if field.annotation is int else 1e-6
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=low):
                values.append(low - step)
            case annotated_types.Le(le=high):
                values.append(high + step)
            case annotated_types.Gt(gt=edge) | annotated_types.Lt(lt=edge):
                values.append(edge)
    return [*values, float("nan"), float("inf")] if field.annotation in (int, float) else values


def inside(field: Any) -> list[Any]:
    """Return the values at the edges of what a field may be."""
    if get_origin(field.annotation) is Literal:
        return list(get_args(field.annotation))
    edges = [getattr(limit, name) for limit in field.metadata for name in ("ge", "le") if hasattr(limit, name)]
    return [field.default, *edges]


CASES = [(name, value) for name, field in AnalysisOptions.model_fields.items() for value in outside(field)]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value!r}" for name, value in CASES])
def test_a_value_outside_is_refused_by_name(name, value):
    with pytest.raises(OptionError) as refused:
        parse_options({name: value})
    assert refused.value.where == name and name in refused.value.message
    assert repr(value) in refused.value.message and refused.value.exit_code == 2


@pytest.mark.parametrize("name", AnalysisOptions.model_fields)
def test_the_edges_are_allowed(name):
    for value in inside(AnalysisOptions.model_fields[name]):
        assert getattr(parse_options({name: value}), name) == value


@pytest.mark.parametrize("name", AnalysisOptions.model_fields)
def test_every_option_has_unit_help_and_range(name):
    field = AnalysisOptions.model_fields[name]
    assert field.json_schema_extra["unit"] and field.description.endswith(".")
    assert get_origin(field.annotation) is Literal or any(isinstance(m, annotated_types.Ge) for m in field.metadata)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert field.description in row and field.json_schema_extra["unit"] in row


def test_an_unknown_option_is_refused_with_those_that_exist():
    with pytest.raises(OptionError, match="no option 'max_row'; the options are max_rows, ") as refused:
        parse_options({"max_row": 3})
    assert refused.value.where == "max_row"


def test_the_page_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("write_options", ROOT / "tools" / "write_options.py")
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert PAGE == writer.document(), "run: make docs"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_on_the_page(name):
    assert f"| `CIPM_{name.upper()}` |" in PAGE and Settings.model_fields[name].description in PAGE


NUMBERS = {name: field for name, field in Settings.model_fields.items() if field.annotation in (int, float)}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_outside_its_range_is_refused_by_its_variable(name, monkeypatch):
    beyond = [value for value in outside(NUMBERS[name]) if isinstance(value, int | float) and value == value]
    for value in (*beyond[:-1], "many"):
        monkeypatch.setenv(f"CIPM_{name.upper()}", str(value))
        with pytest.raises(OptionError) as refused:
            load_settings()
        assert refused.value.where == f"CIPM_{name.upper()}"
