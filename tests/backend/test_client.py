"""The typed client against OpenAPI and against the running server; docs/api.md against the routes."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import httpx
import pytest
from api_server import Running, finish

from backend import reference
from backend.app import create_app
from backend.settings import Settings
from frontend import api_types
from frontend import client as module
from frontend.client import ApiError, Client, open_http

OPENAPI = create_app(Settings(data=Path("/nonexistent"))).openapi()
SHOWN = {name: schema for name, schema in OPENAPI["components"]["schemas"].items()
         if not name.endswith(("Create", "Patch")) and name not in {
             "Credentials", "Login", "ErrorBody"}}


def run(server: Running, calls, **who):
    async def inner():
        async with open_http(server.url) as http:
            return await calls(Client(http, **who))

    return asyncio.run(inner())


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_the_clients_types_have_exactly_the_fields_of_openapi(name):
    declared = typing.get_type_hints(getattr(api_types, name))
    assert set(declared) == set(SHOWN[name]["properties"])
    for field, about in SHOWN[name]["properties"].items():
        nullable = any(part.get("type") == "null" for part in about.get("anyOf", ()))
        assert (type(None) in typing.get_args(declared[field])) == nullable, field


def test_no_other_error_body_is_promised_anywhere():
    assert "HTTPValidationError" not in OPENAPI["components"]["schemas"]
    for methods in OPENAPI["paths"].values():
        for about in methods.values():
            assert about["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def test_operations_have_names_of_their_own_and_a_summary():
    every = [about for methods in OPENAPI["paths"].values() for about in methods.values()]
    assert len({about["operationId"] for about in every}) == len(every)
    assert all(about["summary"] and about["description"] for about in every)


NO_METHOD = {("GET", "/api/analyses/x/matrices/x/tiles"), ("GET", "/api/exports/x/file"), ("GET", "/api/samples/name"),
             ("HEAD", "/api/uploads/x"), *(("POST", f"/api/auth/{name}") for name in ("register", "login", "logout"))}
"""What the client leaves to the browser: files, tiles, cookies."""


def test_the_client_has_a_method_for_every_route():
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        return httpx.Response(200, content=b"data: {}\n")

    async def call_all() -> None:
        async with open_http("http://127.0.0.1", transport=httpx.MockTransport(answer)) as http:
            client = Client(http)
            for name, method in inspect.getmembers(client, inspect.ismethod):
                arguments = ["x"] * sum(p.default is p.empty for p in inspect.signature(method).parameters.values())
                if name.startswith("_"):
                    continue
                if inspect.isasyncgenfunction(method):
                    assert [event async for event in method(*arguments)] == [{}]
                else:
                    try:
                        await method(*arguments)
                    except ValueError:
                        pass  # the answer above is no JSON; only the question matters here

    asyncio.run(call_all())
    known = {(method.upper(), path.replace("{", "").replace("}", "")) for path, methods in OPENAPI["paths"].items()
             for method in methods}
    shape = {(method, "/".join("x" if "_id" in part or part == "token" else part for part in path.split("/")))
             for method, path in known}
    assert {pair for pair in asked if pair[1] != "/api/openapi.json"} == shape - NO_METHOD


def test_the_client_does_the_whole_story(local, tmp_path):
    async def story(client: Client):
        assert (await client.me())["id"] == "local" and (await client.health())["auth"] is False
        upload = await client.create_upload("m.pt2", 4, "model")
        model = await client.send(upload["id"], 0, b"abcd")
        probe = await client.send((await client.create_upload("p.npz", 2, "probe"))["id"], 0, b"ef")
        made = await client.create_analysis(model["id"], probe["id"], title="t", options={"seed": 1})
        await client.cancel(made["id"])
        events = [job["status"] async for job in client.events(made["id"])]
        again = await client.rerun(made["id"])
        await client.rename_analysis(made["id"], "renamed")
        share = await client.create_share(made["id"])
        return events, again, share, await client.analyses()

    events, again, share, listed = run(local, story)
    assert events == ["cancelled"] and again["job"]["status"] == "queued"
    assert next(row for row in listed if row["id"] == again["id"])["title"] == "renamed"
    finish(local, again, tmp_path)

    async def visitor(client: Client):
        found = await client.shared(share["token"])
        report, matrix = await client.report(found["id"]), await client.matrix(found["id"], "m0", "spectral")
        with pytest.raises(ApiError) as refused:
            await client.matrix(found["id"], "m9")
        return found, report, matrix, refused.value

    found, report, matrix, refused = run(local, visitor, share=share["token"])
    assert found["read_only"] and report["groups"] and matrix["rows"]["ids"][0] == 299
    assert refused.status == 404 and refused.problem["code"] == "not_found"


def test_a_client_speaks_for_its_own_visitor_only(guarded):
    person = guarded.person("client@example.org")
    cookie = f"cipm_session={person.cookies['cipm_session']}"

    async def ask():
        async with open_http(guarded.url) as http:
            mine = await Client(http, cookie=cookie).me()
            with pytest.raises(ApiError) as refused:
                await Client(http).me()
            return mine, refused.value.status

    mine, status = asyncio.run(ask())
    assert mine["email"] == "client@example.org" and status == 401


def test_an_answer_that_is_not_ours_is_still_an_error_in_words(local):
    async def ask():
        async with open_http(local.url) as http:
            with pytest.raises(ApiError) as refused:
                await Client(http)._call("GET", "/api/nosuch%20/thing")
            return refused.value

    assert asyncio.run(ask()).problem["code"] == "not_found"
    assert module._refusal(502, b"<html>Bad gateway").problem["message"] == "The server answered with status 502."


def test_docs_api_md_is_what_the_routes_say():
    written = reference.DOCUMENT.read_text()
    assert written == reference.markdown(OPENAPI), "run: python -m backend.reference"
    for path, methods in OPENAPI["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in written


def test_the_docs_page_lists_every_route_and_needs_no_other_host(local):
    page = local.client().get("/api/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(path in page.text for path in OPENAPI["paths"])
    assert "<script" not in page.text and "http://" not in page.text and "https://" not in page.text
    assert local.client().get("/api/openapi.json").json()["paths"].keys() == OPENAPI["paths"].keys()


def test_the_api_imports_neither_torch_nor_the_pages():
    code = "import backend.app, sys; assert 'torch' not in sys.modules and 'frontend' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
