"""Pruning what-ifs over the API: the session, and measured networks."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_server import Running, analyse, claim, finish, leave_session, session, shape_of

from backend.schemas import WhatIfSession
from backend.store import jobs
from cipm.errors import ProbeError


@pytest.fixture()
def client(local: Running):
    return local.client()


@pytest.fixture()
def done(local: Running, client, tmp_path: Path) -> dict:
    made = analyse(client)
    finish(local, made, tmp_path / "view")
    return made


def test_the_session_is_there_while_the_job_still_runs(local, client, tmp_path):
    made = analyse(client)
    path = f"/api/analyses/{made['id']}/whatif"
    early = client.get(path)
    assert early.status_code == 409 and shape_of(early)["message"] == "What pruning costs is not computed yet."
    claim(local.store, made["job"]["id"])
    leave_session(local.store, made["job"]["id"], "session-found-early", tmp_path / "whatif")
    answer = client.get(path)
    assert WhatIfSession.model_validate(answer.json()).model_dump(mode="json") == session() == answer.json()
    known = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert known.status_code == 304 and not known.content


def test_an_analysis_without_a_session_says_to_run_it_again(local, client, tmp_path):
    made = analyse(client)
    leave_session(local.store, made["job"]["id"], "of-an-earlier-version", tmp_path / "old", name="whatif.json")
    jobs.fail(local.store, claim(local.store, made["job"]["id"]), ProbeError("No column fits."))
    answer = client.get(f"/api/analyses/{made['id']}/whatif")
    assert answer.status_code == 404 and "before there were what-if sessions" in shape_of(answer)["message"]


def test_a_measurement_is_a_job_and_is_not_asked_twice(local, client, done):
    path = f"/api/analyses/{done['id']}/measurements"
    job = client.post(path, json={"keep": {"hidden": 10, "heads": 4}}).json()
    again = {"keep": {"heads": 4, "hidden": 10}}
    assert job["kind"] == "measure" and client.post(path, json=again).json()["id"] == job["id"]
    whole = {"keep": {"hidden": 10, "heads": 8}}  # a group at its full size is one that is not named
    assert client.post(path, json=whole).json()["id"] == client.post(path, json={"keep": {"hidden": 10}}).json()["id"]
    result = {"keep": {"hidden": 10, "heads": 4}, "loss": 0.5, "accuracy": None, "agreement": 0.9, "rows": 100}
    jobs.finish(local.store, claim(local.store, job["id"]), result)
    listed = client.get(path).json()
    assert len(listed) == 2 and listed[1]["result"] == result and listed[1]["keep"] == {"hidden": 10, "heads": 4}
    assert client.get(f"/api/analyses/{done['id']}").json()["job"]["kind"] == "analyze"


@pytest.mark.parametrize(("keep", "said"), [
    ({"hidden": 301}, "Group hidden can keep 1 to 300 units; it cannot keep 301"),
    ({"hidden": 0}, "it cannot keep 0"), ({"heads": 3}, "2 to 8 units, a multiple of 2; it cannot keep 3"),
    ({"stream": 1}, "Group stream cannot be made smaller: Nothing reads it."),
    ({"nosuch": 1}, "There is no group 'nosuch'; those that can be made smaller are hidden, heads"),
    ({"hidden": "many"}, "keep.hidden")])
def test_a_measurement_that_makes_no_sense_is_refused(client, done, keep, said):
    answer = client.post(f"/api/analyses/{done['id']}/measurements", json={"keep": keep})
    assert answer.status_code == 422 and said in shape_of(answer)["message"]
