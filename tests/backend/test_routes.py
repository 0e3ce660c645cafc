"""The life of an analysis over the API, with a store and a server that are real."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from api_server import analyse, claim, finish, keep, matrix, send, shape_of

from backend.store import jobs
from cipm.errors import ProbeError
from cipm.views import TILE


def test_health_says_what_is_missing(client):
    health = client.get("/api/health").json()
    assert health["status"] == "degraded" and health["worker"] == {"alive": False, "busy": False, "workers": 0}
    assert health["jail"]["ok"] is False and health["auth"] is False


def test_an_analysis_is_queued_with_its_files_and_validated_options(client):
    made = analyse(client, title="mine", options={"seed": 7})
    assert made["title"] == "mine" and made["options"]["seed"] == 7 and made["options"]["max_rows"] == 10_000
    assert made["job"]["status"] == "queued" and made["job"]["kind"] == "analyze" and not made["read_only"]
    assert made["model"]["name"] == "net.pt2" and len(made["model"]["sha256"]) == 64
    assert client.get(f"/api/analyses/{made['id']}").json() == made
    assert made["id"] in [row["id"] for row in client.get("/api/analyses").json()]


@pytest.mark.parametrize(("options", "where"), [({"seed": -1}, "seed"), ({"nonsense": 1}, "nonsense")])
def test_wrong_options_are_refused_by_name(client, options, where):
    model, probe = send(client, "a", "model", b"1"), send(client, "b", "probe", b"2")
    answer = client.post("/api/analyses", json={"model": model["id"], "probe": probe["id"], "options": options})
    assert answer.status_code == 422 and shape_of(answer)["where"] == where


def test_uploads_must_be_complete_and_of_the_right_kind(client):
    probe = send(client, "b", "probe", b"2")
    swapped = client.post("/api/analyses", json={"model": probe["id"], "probe": probe["id"]})
    assert swapped.status_code == 422 and "uploaded as a probe" in shape_of(swapped)["message"]
    half = client.post("/api/uploads", json={"name": "m", "kind": "model", "size": 10}).json()
    early = client.post("/api/analyses", json={"model": half["id"], "probe": probe["id"]})
    assert early.status_code == 409 and "0 of 10 bytes" in shape_of(early)["message"]


def test_the_title_can_be_changed_and_an_empty_one_cannot(client):
    made = analyse(client)
    assert client.patch(f"/api/analyses/{made['id']}", json={"title": "new"}).json()["title"] == "new"
    assert client.get(f"/api/analyses/{made['id']}").json()["title"] == "new"
    assert client.patch(f"/api/analyses/{made['id']}", json={"title": ""}).status_code == 422


def test_cancel_then_rerun_makes_a_new_job_and_each_is_refused_in_the_wrong_state(client):
    made = analyse(client)
    assert shape_of(client.post(f"/api/analyses/{made['id']}/rerun"))["code"] == "conflict"
    assert client.post(f"/api/analyses/{made['id']}/cancel").json()["job"]["status"] == "cancelled"
    assert client.post(f"/api/analyses/{made['id']}/cancel").status_code == 409
    again = client.post(f"/api/analyses/{made['id']}/rerun").json()
    assert again["job"]["status"] == "queued" and again["job"]["id"] != made["job"]["id"]
    assert client.post(f"/api/analyses/{made['id']}/rerun").status_code == 409


def test_a_failed_job_shows_its_error(local, client):
    made = analyse(client)
    lost = ProbeError("No column fits.", where="x", fix="Rename it.")
    jobs.fail(local.store, claim(local.store, made["job"]["id"]), lost)
    error = client.get(f"/api/analyses/{made['id']}").json()["job"]["error"]
    assert error == {"code": "probe", "message": "No column fits.", "where": "x", "fix": "Rename it."}


def test_a_deleted_analysis_is_gone_and_its_uploads_stay(client):
    made = analyse(client)
    assert client.delete(f"/api/analyses/{made['id']}").status_code == 204
    assert client.get(f"/api/analyses/{made['id']}").status_code == 404
    assert client.delete(f"/api/analyses/{made['id']}").status_code == 404
    assert made["id"] not in [row["id"] for row in client.get("/api/analyses").json()]
    assert client.get("/api/uploads").json()


def test_artefacts_that_another_analysis_uses_survive_a_deletion(local, client, tmp_path):
    first, second = analyse(client), analyse(client)
    finish(local, first, tmp_path / "one", address="shared-address")
    finish(local, second, tmp_path / "two", address="shared-address")
    client.delete(f"/api/analyses/{first['id']}")
    assert client.get(f"/api/analyses/{second['id']}/report").status_code == 200
    client.delete(f"/api/analyses/{second['id']}")
    assert client.get(f"/api/analyses/{second['id']}/report").status_code == 404


def read_events(client, path: str, seen: list[dict]) -> None:
    with client.stream("GET", path) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen.extend(json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))


def test_events_follow_a_job_and_end_with_it(local, client):
    made = analyse(client)
    seen: list[dict] = []
    reader = threading.Thread(target=read_events, args=(local.client(), f"/api/analyses/{made['id']}/events", seen))
    reader.start()
    lease = claim(local.store, made["job"]["id"])
    jobs.report(local.store, lease, stage="open", progress=0.5, eta_seconds=3.0,
                stages=[{"name": "open", "state": "running", "seconds": None, "address": "secret"}])
    while not any(job["progress"] == 0.5 for job in seen):
        assert reader.is_alive()
        time.sleep(0.05)
    jobs.finish(local.store, lease, {})
    reader.join(10)
    assert not reader.is_alive() and seen[-1]["status"] == "done" and seen[-1]["progress"] == 1.0
    assert "secret" not in json.dumps(seen)


def test_events_of_an_ended_job_are_one_event(client):
    made = analyse(client)
    client.post(f"/api/analyses/{made['id']}/cancel")
    seen: list[dict] = []
    read_events(client, f"/api/analyses/{made['id']}/events", seen)
    assert [job["status"] for job in seen] == ["cancelled"]


def test_a_server_with_an_open_event_stream_still_stops(start):
    server = start()
    client = server.client()
    made = analyse(client)
    with client.stream("GET", f"/api/analyses/{made['id']}/events") as stream:
        next(stream.iter_lines())
        server.server.should_exit = True
        server.thread.join(15)
    assert not server.thread.is_alive()


def test_the_report_is_served_as_written_and_not_again_where_it_is_known(client, done):
    first = client.get(f"/api/analyses/{done['id']}/report")
    assert first.json()["groups"][0]["name"] == "hidden"
    known = client.get(f"/api/analyses/{done['id']}/report", headers={"If-None-Match": first.headers["etag"]})
    assert known.status_code == 304 and not known.content


def test_no_report_before_the_first_run_is_finished(client):
    made = analyse(client)
    assert shape_of(client.get(f"/api/analyses/{made['id']}/report"))["message"] == "This analysis has no result yet."


def test_the_last_report_stays_readable_while_it_runs_again(client, done):
    client.post(f"/api/analyses/{done['id']}/rerun")
    assert client.get(f"/api/analyses/{done['id']}/report").status_code == 200


def test_a_matrix_and_its_tiles_in_an_order(client, done):
    path = f"/api/analyses/{done['id']}/matrices/m0"
    meta = client.get(path, params={"order": "spectral"}).json()
    assert meta["shape"] == [300, 700] and meta["levels"] == 3 and meta["orders"] == ["original", "spectral"]
    assert meta["rows"]["ids"][0] == 299 and meta["rows"]["modules"][0] == 299 % 3 and meta["cols"]["modules"] is None
    answer = client.get(f"{path}/tiles", params={"order": "spectral", "at": "2.1,0.0", "rev": meta["revision"]})
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    tiles = np.frombuffer(answer.content, "<f2").reshape(2, TILE, TILE).astype(float) * meta["scale"]
    shown = matrix()[::-1]
    np.testing.assert_allclose(tiles[1], shown[:256, :256], rtol=1e-3)
    np.testing.assert_allclose(tiles[0][:44, :188], shown[256:, 512:], rtol=1e-3)
    assert np.isnan(tiles[0][44:]).all() and np.isnan(tiles[0][:, 188:]).all()
    coarse = client.get(f"{path}/tiles", params={"order": "spectral", "at": "0.0", "level": 2, "stat": "mean"}).content
    values = np.frombuffer(coarse, "<f2").reshape(TILE, TILE).astype(float) * meta["scale"]
    np.testing.assert_allclose(values[0, 0], shown[:4, :4].mean(), rtol=1e-3)


@pytest.mark.parametrize(("params", "status", "said"), [
    ({"at": "0.0", "level": 9}, 422, "levels 0 to 2"), ({"at": "9.0"}, 422, "beyond the 3 × 2 tiles"),
    ({"at": "0"}, 422, "x.y,x.y"), ({"at": "0.-1"}, 422, "x.y,x.y"), ({"at": ""}, 422, "x.y,x.y"),
    ({"at": ",".join(["0.0"] * 65)}, 422, "1 to 64"), ({"at": "0.0", "stat": "median"}, 422, "mean, maxabs"),
    ({"at": "0.0", "rev": "old"}, 409, "has changed"), ({"at": "0.0", "order": "nosuch"}, 404, "original, spectral"),
    ({"at": "0.0", "order": "../m0"}, 404, "no order"), ({}, 422, "at")])
def test_tiles_that_do_not_exist_are_refused_with_a_reason(client, done, params, status, said):
    answer = client.get(f"/api/analyses/{done['id']}/matrices/m0/tiles", params=params)
    assert answer.status_code == status and said in shape_of(answer)["message"]


def test_an_unknown_matrix_is_not_found(client, done):
    for name in ("m1", "..%2Freport", "%2e%2e"):
        assert client.get(f"/api/analyses/{done['id']}/matrices/{name}").status_code == 404


def test_the_pyramid_is_built_once_whoever_asks(local, client, done):
    path = f"/api/analyses/{done['id']}/matrices/m0/tiles"
    answers: list[bytes] = []
    readers = [threading.Thread(target=lambda: answers.append(
        local.client().get(path, params={"at": "0.0", "level": 1, "stat": "maxabs"}).content)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(answers) == 8 and len(set(answers)) == 1 and len(answers[0]) == TILE * TILE * 2
    assert [place.name for place in local.app.state.pyramids.root.iterdir() if place.name.startswith(".")] == []


def test_an_export_is_a_job_with_a_file(local, client, done, tmp_path):
    made = client.post(f"/api/analyses/{done['id']}/exports", json={"order": "spectral"}).json()
    assert made["job"]["kind"] == "export" and made["filename"] is None
    assert client.get(f"/api/exports/{made['id']}/file").status_code == 409
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "net.spectral.pt2").write_bytes(b"x" * 100_000)
    keep(local.store, made["job"]["id"], "export", f"export-{done['id']}", folder,
         {"filename": "net.spectral.pt2", "size": 100_000, "certificate": {"passed": True}})
    listed = client.get(f"/api/analyses/{done['id']}/exports").json()
    assert listed[0] == client.get(f"/api/exports/{made['id']}").json() and listed[0]["certificate"] == {"passed": True}
    file = client.get(f"/api/exports/{made['id']}/file")
    assert file.content == b"x" * 100_000
    assert file.headers["content-disposition"] == 'attachment; filename="net-spectral.pt2"'
    refused = client.post(f"/api/analyses/{done['id']}/exports", json={"order": "nosuch"})
    assert "there are original, spectral" in shape_of(refused)["message"]


def test_samples_are_those_the_demo_left(local, client):
    assert client.get("/api/samples").json() == []
    folder = local.store.settings.data / "samples"
    folder.mkdir()
    (folder / "digits.pt2").write_bytes(b"zip")
    (folder / "samples.json").write_text(json.dumps({"digits.pt2": {"kind": "model", "title": "A net"}}))
    assert client.get("/api/samples").json() == [{"name": "digits.pt2", "kind": "model", "title": "A net", "size": 3}]
    assert client.get("/api/samples/digits.pt2").content == b"zip"
    for name in ("samples.json", "..%2Fcipm.sqlite", "nosuch"):
        assert client.get(f"/api/samples/{name}").status_code == 404
