"""Callbacks that leave the event loop free; errors as their tree is drawn."""

from __future__ import annotations

import inspect
import re

import dash
import pytest

import backend.errors  # noqa: F401  (its errors belong to the tree)
from backend.settings import Settings
from cipm import errors
from frontend import app as pages
from frontend.serve import build


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> dash.Dash:
    kept: list[dash.Dash] = []
    mount = pages.mount
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frontend.serve.mount", lambda *args: kept.append(mount(*args)))
        build(Settings(data=tmp_path_factory.mktemp("data"), embedded_worker=False))
    return kept[0]


def test_every_callback_is_async(dashboard):
    ours = {name: entry["callback"] for name, entry in dash._callback.GLOBAL_CALLBACK_MAP.items() if "callback" in entry}
    ours |= {name: entry["callback"] for name, entry in dashboard.callback_map.items() if "callback" in entry}
    written = {name: inspect.unwrap(callback) for name, callback in ours.items()}
    of_pages = {name: function for name, function in written.items() if function.__module__.startswith("frontend")}
    assert len(of_pages) > 10
    assert [name for name, function in of_pages.items() if not inspect.iscoroutinefunction(function)] == []


def test_every_page_is_async(dashboard):
    layouts = {name: page["layout"] for name, page in dash.page_registry.items()}
    assert layouts and [name for name, layout in layouts.items() if not inspect.iscoroutinefunction(layout)] == []


def test_no_callback_has_more_than_five_inputs(dashboard):
    every = {**dash._callback.GLOBAL_CALLBACK_MAP, **dashboard.callback_map}
    assert {name: len(entry["inputs"]) for name, entry in every.items() if len(entry["inputs"]) > 5} == {}


def classes() -> list[type[errors.CipmError]]:
    found, pending = [], [errors.CipmError]
    while pending:
        cls = pending.pop()
        found.append(cls)
        pending += cls.__subclasses__()
    return found


def test_every_error_has_a_code_of_its_own():
    codes = [cls.code for cls in classes()]
    assert len(codes) == len(set(codes)) == len(errors.error_classes())
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_error_crosses_a_process_boundary_whole(cls):
    error = cls("What it is.", where="fc1.weight:0", fix="Do this.")
    payload = error.to_json()
    assert payload == {"error": {"code": cls.code, "message": "What it is.", "where": "fc1.weight:0", "fix": "Do this."}}
    back = errors.from_json(payload)
    assert type(back) is cls and back.to_json() == payload and back.line() == "What it is. [fc1.weight:0] Do this."
    assert 400 <= cls.status <= 599 and cls.exit_code in (1, 2) and isinstance(cls.status, int)


def test_what_is_about_the_input_exits_with_2():
    assert {cls.exit_code for cls in classes() if issubclass(cls, errors.InputError)} == {2}
    assert {cls.status // 100 for cls in classes() if issubclass(cls, errors.InputError)} == {4}


def test_the_tree_is_drawn_as_it_is():
    drawn = re.findall(r"^    ([│ ]*)(?:├── |└── )([A-Z]\w+)", errors.__doc__, re.MULTILINE)
    stack, tree = {-1: "CipmError"}, {}
    for indent, name in drawn:
        depth = len(indent) // 4
        tree[name] = stack[depth - 1]
        stack[depth] = name
    there = {cls.__name__: cls.__base__.__name__ for cls in classes() if cls.__module__ == "cipm.errors"}
    assert tree == {name: base for name, base in there.items() if name != "CipmError"}
