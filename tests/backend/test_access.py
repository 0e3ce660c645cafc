"""Who may see what: accounts, tokens, isolation of two people, and the reach of a share link, over every route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_server import PASSWORD, Running, analyse, finish, keep, send, shape_of

from backend.access import COOKIE
from backend.store import Analysis, ApiToken, Share, UserSession

PUBLIC = {("GET", "/api/health"), ("POST", "/api/auth/register"), ("POST", "/api/auth/login"),
          ("POST", "/api/auth/logout"), ("GET", "/api/shared/{token}")}
SHARED = {("GET", f"/api/analyses/{{analysis_id}}{rest}")
          for rest in ("", "/events", "/report", "/symmetry", "/whatif", "/whatif/front", "/whatifs", "/measurements",
                       "/latencies", "/matrices/{matrix_id}", "/matrices/{matrix_id}/tiles")}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/tokens"): {"name": "n"},
    ("POST", "/api/uploads"): {"name": "n", "size": 1, "kind": "model"},
    ("PATCH", "/api/analyses/{analysis_id}"): {"title": "stolen"},
    ("POST", "/api/analyses/{analysis_id}/measurements"): {"keep": {"hidden": 1}},
    ("POST", "/api/analyses/{analysis_id}/latencies"): {"share": 0.5},
    ("POST", "/api/analyses/{analysis_id}/whatifs"): {"name": "n", "keep": {}},
    ("PATCH", "/api/analyses/{analysis_id}/whatifs/{whatif_id}"): {"name": "n"},
    ("POST", "/api/analyses/{analysis_id}/exports"): {"order": "original"},
}


def routes(server: Running) -> list[tuple[str, str]]:
    """Return every (method, path) of the API as it describes itself."""
    return [(method.upper(), path) for path, methods in server.app.openapi()["paths"].items() for method in methods]


def ask(client: httpx.Client, method: str, path: str, ids: dict[str, str], **params: Any) -> httpx.Response:
    """Ask one route with these ids, a body that fits, and the query it needs."""
    body = BODIES.get((method, path))
    if (method, path) == ("POST", "/api/analyses"):
        body = {"model": ids["upload_id"], "probe": ids["probe"]}
    if path.endswith("/tiles"):
        params = {"at": "0.0"} | params
    if method == "PUT":
        params = {"offset": 0} | params
    with client.stream(method, path.format(**ids), json=body, params=params) as answer:
        answer.read()
        return answer


@pytest.fixture(scope="module")
def ann(guarded: Running) -> httpx.Client:
    return guarded.person("Ann@example.org")


@pytest.fixture(scope="module")
def bob(guarded: Running) -> httpx.Client:
    return guarded.person("bob@example.org")


@pytest.fixture(scope="module")
def ids(guarded: Running, ann: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return ids of everything that Ann has: each route's path can be filled with them."""
    made = analyse(ann)
    finish(guarded, made, tmp_path_factory.mktemp("view"))
    export = ann.post(f"/api/analyses/{made['id']}/exports", json={"order": "spectral"}).json()
    folder = tmp_path_factory.mktemp("export")
    (folder / "net.pt2").write_bytes(b"exported")
    keep(guarded.store, export["id"], "export", "export-of-ann", folder, {"filename": "net.pt2", "size": 8})
    share = ann.post(f"/api/analyses/{made['id']}/shares").json()
    uploads = {kind: send(ann, kind, kind, b"other " + kind.encode())["id"] for kind in ("model", "probe")}
    whatif = ann.post(f"/api/analyses/{made['id']}/whatifs", json={"name": "n", "keep": {"hidden": 9}}).json()
    return {"analysis_id": made["id"], "whatif_id": whatif["id"], "matrix_id": "m0", "export_id": export["id"],
            "share_id": share["id"], "token": share["token"], "upload_id": uploads["model"], "probe": uploads["probe"],
            "name": "digits.pt2", "token_id": ann.post("/api/tokens", json={"name": "one"}).json()["id"]}


def test_every_route_but_the_public_ones_asks_who_you_are(guarded, ids):
    nobody = guarded.client()
    for method, path in routes(guarded):
        if (method, path) not in PUBLIC:
            assert ask(nobody, method, path, ids).status_code == 401, (method, path)


def test_what_belongs_to_another_answers_exactly_as_if_it_were_not_there(guarded, ann, bob, ids):
    gone = {name: "A" * 22 for name in ids}
    walked = 0
    for method, path in routes(guarded):
        if "{" not in path or (method, path) in PUBLIC or path.startswith("/api/samples"):
            continue
        theirs, nothing = ask(bob, method, path, ids), ask(bob, method, path, gone)
        assert theirs.status_code == nothing.status_code == 404, (method, path, theirs.text)
        if method != "HEAD":
            assert shape_of(theirs) == shape_of(nothing)
        walked += 1
    assert walked >= 20
    assert ann.get(f"/api/analyses/{ids['analysis_id']}").json()["title"] != "stolen"


def test_lists_show_only_your_own(ann, bob, ids):
    for path in ("/api/analyses", "/api/uploads", "/api/tokens"):
        assert ann.get(path).json() and bob.get(path).json() == []


def test_another_persons_uploads_cannot_be_analysed(bob, ids):
    answer = bob.post("/api/analyses", json={"model": ids["upload_id"], "probe": ids["probe"]})
    assert answer.status_code == 404


def reached_by_share(client: httpx.Client, server: Running, ids: dict[str, str], token: str) -> Iterator[tuple[str, str]]:
    for method, path in routes(server):
        if (method, path) not in PUBLIC and ask(client, method, path, ids, share=token).status_code < 400:
            yield method, path


@pytest.mark.parametrize("who", ["nobody", "bob", "ann"])
def test_a_share_token_reaches_the_reading_routes_of_its_analysis_and_nothing_else(guarded, ann, bob, ids, who):
    client = {"nobody": guarded.client(), "bob": bob, "ann": ann}[who]
    assert set(reached_by_share(client, guarded, ids, ids["token"])) == SHARED


def test_a_share_token_reaches_nothing_of_another_analysis(guarded, ann, ids, tmp_path):
    other = analyse(ann)
    finish(guarded, other, tmp_path)
    assert list(reached_by_share(guarded.client(), guarded, ids | {"analysis_id": other["id"]}, ids["token"])) == []


@pytest.mark.parametrize("token", ["", "A" * 43, "x" * 300, "%00"])
def test_a_token_that_was_never_made_reaches_nothing(guarded, ids, token):
    assert list(reached_by_share(guarded.client(), guarded, ids, token)) == []


def test_a_share_shows_no_upload_ids_and_no_owner(guarded, ids):
    client = guarded.client()
    shown = client.get(f"/api/shared/{ids['token']}")
    same = client.get(f"/api/analyses/{ids['analysis_id']}", params={"share": ids["token"]})
    assert shown.json() == same.json() and shown.json()["read_only"] is True
    assert ids["upload_id"] not in shown.text and "ann@example.org" not in shown.text


def test_a_revoked_share_opens_nothing(guarded, ann, bob, ids):
    made = ann.post(f"/api/analyses/{ids['analysis_id']}/shares").json()
    assert made["url"] == f"/s/{made['token']}" and len(made["token"]) >= 43
    assert bob.delete(f"/api/shares/{made['id']}").status_code == 404
    assert guarded.client().get(f"/api/shared/{made['token']}").status_code == 200
    assert ann.delete(f"/api/shares/{made['id']}").status_code == 204
    assert guarded.client().get(f"/api/shared/{made['token']}").status_code == 404
    assert list(reached_by_share(guarded.client(), guarded, ids, made["token"])) == []
    listed = {row["id"]: row for row in ann.get(f"/api/analyses/{ids['analysis_id']}/shares").json()}
    assert listed[made["id"]]["revoked"] and "token" not in listed[made["id"]]


def test_revoking_ends_an_open_event_stream(guarded, ann):
    waiting = analyse(ann)
    share = ann.post(f"/api/analyses/{waiting['id']}/shares").json()
    path = f"/api/analyses/{waiting['id']}/events"
    with guarded.client().stream("GET", path, params={"share": share["token"]}) as stream:
        lines = stream.iter_lines()
        next(lines)
        ann.delete(f"/api/shares/{share['id']}")
        assert "queued" in "".join(lines)  # the stream ends, though the job does not
    ann.post(f"/api/analyses/{waiting['id']}/cancel")


def test_a_deleted_analysis_is_no_longer_shared(guarded, ann):
    made = analyse(ann)
    share = ann.post(f"/api/analyses/{made['id']}/shares").json()
    ann.delete(f"/api/analyses/{made['id']}")
    assert guarded.client().get(f"/api/shared/{share['token']}").status_code == 404


def test_no_secret_is_kept_as_it_is(guarded, ann, ids):
    secrets = [ids["token"], ann.cookies[COOKIE], ann.post("/api/tokens", json={"name": "x"}).json()["token"]]
    with guarded.store.read() as session:
        kept = {row.token_hash for table in (Share, UserSession, ApiToken) for row in session.query(table)}
    assert kept and not kept & set(secrets)
    database = Path(guarded.store.settings.data)
    for file in database.glob("cipm.sqlite*"):
        data = file.read_bytes()
        assert not any(secret.encode() in data for secret in [*secrets, PASSWORD])


def test_a_personal_token_does_what_its_owner_does_but_makes_no_tokens(guarded, ann, ids):
    made = ann.post("/api/tokens", json={"name": "program"}).json()
    program = guarded.client(headers={"Authorization": f"Bearer {made['token']}"})
    assert program.get("/api/auth/me").json()["email"] == "ann@example.org"
    assert program.get(f"/api/analyses/{ids['analysis_id']}/report").status_code == 200
    assert program.post("/api/tokens", json={"name": "more"}).status_code == 403
    assert [row["last_used"] is not None for row in ann.get("/api/tokens").json() if row["id"] == made["id"]] == [True]
    assert ann.delete(f"/api/tokens/{made['id']}").status_code == 204
    assert program.get("/api/auth/me").status_code == 401


def test_unknown_address_and_wrong_password_answer_the_same(guarded, ann):
    answers = [guarded.client().post("/api/auth/login", json={"email": email, "password": "wrong password"})
               for email in ("ann@example.org", "nobody@example.org")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


def test_signing_in_and_out(guarded, ann):
    client = guarded.client()
    answer = client.post("/api/auth/login", json={"email": "ANN@example.org ", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 200 and "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    token = client.cookies[COOKIE]
    assert client.get("/api/auth/me").json()["email"] == "ann@example.org"
    assert client.post("/api/auth/logout").status_code == 204
    stolen = guarded.client(cookies={COOKIE: token})
    assert stolen.get("/api/auth/me").status_code == 401


@pytest.mark.parametrize(("body", "field"), [
    ({"email": "nobody", "password": PASSWORD}, "email"), ({"email": "a@b", "password": "short"}, "password"),
    ({"email": "a@b", "password": PASSWORD, "admin": True}, "admin")])
def test_an_account_needs_an_address_and_a_long_password(guarded, body, field):
    answer = guarded.client().post("/api/auth/register", json=body)
    assert answer.status_code == 422 and shape_of(answer)["where"] == field
    assert "short" not in answer.text.replace("too short", "")


def test_an_address_has_one_account_whatever_its_case(guarded, ann):
    answer = guarded.client().post("/api/auth/register", json={"email": "ann@EXAMPLE.org", "password": PASSWORD})
    assert answer.status_code == 409


def test_guessing_is_slowed_down_for_that_address_alone(start):
    server = start(auth=True)
    server.person("carl@example.org")
    guess = {"email": "carl@example.org", "password": "a wrong password"}
    statuses = [server.client().post("/api/auth/login", json=guess).status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    right = server.client().post("/api/auth/login", json=guess | {"password": PASSWORD})
    assert right.status_code == 429 and "minutes" in shape_of(right)["message"]
    assert server.client().post("/api/auth/login", json=guess | {"email": "d@example.org"}).status_code == 401


def test_behind_https_the_cookie_is_secure(start):
    server = start(auth=True, public_url="https://cipm.example.org")
    client = server.client(headers={"Host": "cipm.example.org"})
    answer = client.post("/api/auth/register", json={"email": "e@example.org", "password": PASSWORD})
    assert "Secure" in answer.headers["set-cookie"]


def test_without_sign_in_everyone_on_the_machine_is_the_owner(local):
    client = local.client()
    assert client.get("/api/auth/me").json() == {"id": "local", "email": None, "name": "Local owner", "auth": False}
    for path in ("register", "login"):
        answer = client.post(f"/api/auth/{path}", json={"email": "a@b.org", "password": PASSWORD})
        assert answer.status_code == 404 and "no accounts" in shape_of(answer)["message"]


def test_without_sign_in_a_share_token_is_as_narrow(local, tmp_path):
    client = local.client()
    made = analyse(client)
    finish(local, made, tmp_path)
    token = client.post(f"/api/analyses/{made['id']}/shares").json()["token"]
    ids = {"analysis_id": made["id"], "matrix_id": "m0", "export_id": "x", "share_id": "x", "token": token,
           "upload_id": "x", "probe": "x", "name": "x", "token_id": "x", "whatif_id": "x"}
    assert set(reached_by_share(client, local, ids, token)) == SHARED


def test_samples_are_open_to_everyone_to_read_and_to_nobody_to_change(guarded, bob, ann, tmp_path):
    made = analyse(ann)
    finish(guarded, made, tmp_path)
    with guarded.store.write() as session:
        session.get_one(Analysis, made["id"]).sample = True
    assert bob.get(f"/api/analyses/{made['id']}").json()["read_only"] is True
    assert bob.get(f"/api/analyses/{made['id']}/report").status_code == 200
    assert bob.patch(f"/api/analyses/{made['id']}", json={"title": "mine"}).status_code == 404
    assert made["id"] in [row["id"] for row in bob.get("/api/analyses").json()]
