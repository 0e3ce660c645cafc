"""What holds for the Dash app as a whole: thin asynchronous callbacks, own components with a browser side, no other host."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dash
import httpx
import pytest
from dash import Dash
from fastapi import FastAPI

import frontend
from frontend import components, ids
from frontend.client import Client, open_http

ASSETS = Path(frontend.__file__).parent / "assets"
MOST_INPUTS, MOST_LINES = 5, 16


@pytest.fixture(scope="module")
def pages() -> Dash:
    app = FastAPI()
    http = open_http("http://127.0.0.1", transport=httpx.ASGITransport(app))
    return frontend.mount(app, lambda cookie, share: Client(http, cookie, share))


def written(pages: Dash) -> list[Callable[..., Any]]:
    """Return our callbacks as they were written."""
    found = [inspect.unwrap(entry["callback"]) for entry in pages.callback_map.values() if "callback" in entry]
    return [function for function in found if function.__module__.startswith("frontend")]


def test_every_callback_is_a_coroutine_function(pages: Dash) -> None:
    functions = written(pages)
    assert len(functions) > 15
    assert [function.__qualname__ for function in functions if not inspect.iscoroutinefunction(function)] == []


def test_callbacks_are_thin(pages: Dash) -> None:
    wide = [key for key, entry in pages.callback_map.items() if len(entry["inputs"]) > MOST_INPUTS]
    long = [function.__qualname__ for function in written(pages) if body_lines(function) > MOST_LINES]
    assert (wide, long) == ([], [])


def body_lines(function: Callable[..., Any]) -> int:
    """Return the lines of a function's body, without decorator and signature."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.rstrip().endswith(":"))
    return len(lines) - start - 1


def test_ids_are_unique_over_all_enums() -> None:
    values = [member.value for enum in vars(ids).values() if isinstance(enum, type) and issubclass(enum, ids.StrEnum)
              for member in enum]
    assert len(values) == len(set(values))


def test_every_own_component_has_its_browser_side() -> None:
    scripts = "".join(path.read_text() for path in ASSETS.glob("*.js"))
    registered = set(re.findall(r'cipm\.component\("(\w+)"', scripts))
    own = {cls._type for cls in vars(components).values() if getattr(cls, "_type", "")}
    assert registered == own


def test_an_own_component_refuses_what_it_does_not_know() -> None:
    assert components.Heatmap(id="x", src="/api").to_plotly_json()["namespace"] == "cipm_ui"
    with pytest.raises(TypeError, match="colour"):
        components.Heatmap(id="x", colour="red")


def test_assets_name_no_other_host() -> None:
    for path in ASSETS.iterdir():
        addresses = re.findall(r"https?://[^\s\"'`)]+", path.read_text())
        assert [address for address in addresses if not address.startswith("http://www.w3.org/")] == [], path.name


def test_every_page_is_registered(pages: Dash) -> None:
    assert {page["path_template"] or page["path"] for page in pages_of(pages)} == {
        "/", "/a/<analysis_id>", "/a/<analysis_id>/symmetry", "/a/<analysis_id>/whatif", "/s/<share_token>",
        "/s/<share_token>/symmetry", "/s/<share_token>/whatif",
        "/login", "/account", "/404"}


def pages_of(pages: Dash) -> list[Any]:
    """Return the pages; the registry is Dash's own global, which mounting fills."""
    assert pages.use_pages
    return list(dash.page_registry.values())
