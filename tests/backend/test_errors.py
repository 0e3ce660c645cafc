"""One JSON shape for everything that can go wrong, and answers only to requests that are meant for this server."""

from __future__ import annotations

import logging

import pytest
from api_server import shape_of
from fastapi import FastAPI
from starlette.testclient import TestClient

from backend import errors
from backend.middleware import BODY_BYTES, HEADERS, Guard, LastResort, SecurityHeaders
from cipm.errors import CipmError, error_classes


def app_that_raises(error: Exception) -> FastAPI:
    app = FastAPI()
    errors.install(app)

    @app.get("/api/raise")
    def fail() -> None:
        raise error

    app.add_middleware(LastResort)
    app.add_middleware(SecurityHeaders)
    return app


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_error_of_the_tree_has_its_status_and_the_one_shape(cls):
    with TestClient(app_that_raises(cls("What it is.", where="fc1.weight:0", fix="Do this."))) as client:
        answer = client.get("/api/raise")
    assert answer.status_code == cls.status and 400 <= cls.status < 600
    assert shape_of(answer) == {"code": cls.code, "message": "What it is.", "where": "fc1.weight:0", "fix": "Do this."}


def test_the_tree_has_a_code_of_its_own_for_each_class():
    pending, found = [CipmError], []
    while pending:
        cls = pending.pop()
        found.append(cls)
        pending += cls.__subclasses__()
    assert len(found) == len(error_classes()) > 15


def test_a_bug_of_ours_is_a_500_that_says_nothing_and_logs_everything(caplog):
    with TestClient(app_that_raises(RuntimeError("/etc/secret of the host"))) as client, caplog.at_level(logging.ERROR):
        answer = client.get("/api/raise")
    assert answer.status_code == 500 and "secret" not in answer.text
    number = shape_of(answer)["message"].split("error ")[1].rstrip(").")
    assert number in caplog.text and "/etc/secret of the host" in caplog.text
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/api", 404), ("GET", "/api/", 404), ("GET", "/api/nosuch", 404), ("POST", "/api/no/such/../thing", 404),
    ("GET", "/api/uploads/", 404), ("GET", "/nosuch", 404), ("DELETE", "/api/health", 405), ("PUT", "/api/analyses", 405),
    ("POST", "/api/exports/x", 405), ("OPTIONS", "/api/health", 405)])
def test_unknown_addresses_and_methods_have_the_shape(local, method, path, status):
    answer = local.client().request(method, path)
    assert answer.status_code == status, answer.text
    assert shape_of(answer)["code"] == {404: "not_found", 405: "method"}[status]
    assert status != 405 or answer.headers["allow"]


@pytest.mark.parametrize(("body", "said"), [
    (b"{", "not valid JSON"), (b"[]", "body"), (b"null", "body"), (b'{"name": 3}', "more fields do not fit"),
    (b'{"name": "a", "size": -1, "kind": "model"}', "greater than or equal to 0"),
    (b'{"name": "a", "size": 1, "kind": "poem"}', "'model' or 'probe'"),
    (b'{"name": "a", "size": 1, "kind": "model", "extra": 1}', "extra"), (b"\xff\xfe", "JSON")])
def test_bodies_that_do_not_fit_are_named_by_field(local, body, said):
    answer = local.client().post("/api/uploads", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and said in shape_of(answer)["message"]


def test_pages_may_answer_every_address_but_those_of_the_api(start):
    def pages(app: FastAPI) -> None:
        @app.get("/{path:path}")
        def page(path: str) -> str:
            return "a page"

    client = start(mount=pages).client()
    assert client.get("/a/anything").json() == "a page"
    assert client.get("/api/anything").status_code == 404 and client.get("/api").status_code == 404


@pytest.mark.parametrize("path", ["/api/health", "/api/nosuch", "/api/docs", "/nosuch"])
def test_every_answer_carries_the_security_headers(local, path):
    headers = local.client().get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "no-referrer" in headers["referrer-policy"] and "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("[::1]:{port}", 200), ("LOCALHOST", 200), ("192.168.1.7", 200),
    ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:{port}", 403), ("", 403), ("[::1", 403)])
def test_names_that_are_not_ours_are_not_answered(local, host, status):
    answer = local.client().get("/api/health", headers={"Host": host.format(port=local.port)})
    assert answer.status_code == status
    if status == 403:
        assert shape_of(answer)["where"] == "Host"


def test_the_public_name_is_answered(start):
    server = start(public_url="https://cipm.example.org")
    assert server.client().get("/api/health", headers={"Host": "cipm.example.org"}).status_code == 200
    assert server.client().get("/api/health", headers={"Host": "other.example.org"}).status_code == 403


@pytest.mark.parametrize(("headers", "refused"), [
    ({"Origin": "http://evil.example"}, True), ({"Origin": "null"}, True), ({"Origin": "http://127.0.0.1:1"}, True),
    ({"Sec-Fetch-Site": "cross-site"}, True), ({"Sec-Fetch-Site": "same-site"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, True),
    ({"Origin": "{url}", "Sec-Fetch-Site": "same-origin"}, False), ({"Sec-Fetch-Site": "none"}, False), ({}, False)])
def test_another_site_changes_nothing(local, headers, refused):
    client, body = local.client(), {"name": "a", "size": 1, "kind": "model"}
    sent = {name: value.format(url=local.url) for name, value in headers.items()}
    answer = client.post("/api/uploads", json=body, headers=sent)
    assert answer.status_code == (403 if refused else 201)
    assert client.get("/api/health", headers=sent).status_code == 200


def test_a_web_socket_from_another_site_is_refused():
    guard = Guard(FastAPI(), ["127.0.0.1"])
    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"127.0.0.1:8000"), (b"origin", b"http://evil")]}
    assert guard.refusal(scope) is not None
    scope["headers"][1] = (b"origin", b"http://127.0.0.1:8000")
    assert guard.refusal(scope) is None


@pytest.mark.parametrize("path", ["/api/analyses/%00", "/api/analyses/a%00b/report", "/api/analyses/x?share=%00"])
def test_an_address_with_a_nul_is_of_nothing(local, path):
    answer = local.client().get(path)
    assert answer.status_code == 422 and "NUL" in shape_of(answer)["message"]


def test_a_text_with_a_nul_is_refused_by_field(guarded):
    answer = guarded.client().post("/api/auth/login", json={"email": "a\0b@c", "password": "x"})
    assert answer.status_code == 422 and shape_of(answer)["where"] == "email"


def test_only_uploads_may_be_long(local):
    client = local.client()
    declared = client.post("/api/uploads", content=b"x" * (BODY_BYTES + 1))
    assert declared.status_code == 413 and "at most 16,777,216" in shape_of(declared)["message"]
    undeclared = client.post("/api/uploads", content=iter([b"{}"]))
    assert undeclared.status_code == 413
