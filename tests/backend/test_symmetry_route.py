"""The symmetry report over the API: there before the job is done, kept by its ETag, refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_server import Running, analyse, claim, finish, leave_symmetry, shape_of

from backend.schemas import SymmetryReport
from backend.store import artefacts, jobs
from cipm.errors import ProbeError


@pytest.fixture()
def client(local: Running):
    return local.client()


def test_before_the_symmetry_is_found_it_says_to_ask_again(client):
    answer = client.get(f"/api/analyses/{analyse(client)['id']}/symmetry")
    assert answer.status_code == 409 and shape_of(answer)["message"] == "The symmetry of this model is not found yet."
    assert "discover" in shape_of(answer)["fix"]


def test_it_is_there_while_the_job_still_runs_and_not_sent_again_where_it_is_known(local, client, tmp_path: Path):
    made = analyse(client)
    claim(local.store, made["job"]["id"])
    leave_symmetry(local.store, made["job"]["id"], "found-early", tmp_path / "discover")
    answer = client.get(f"/api/analyses/{made['id']}/symmetry")
    assert SymmetryReport.model_validate(answer.json()).symmetry.structure == "1"
    assert client.get(f"/api/analyses/{made['id']}").json()["job"]["status"] == "running"
    known = client.get(f"/api/analyses/{made['id']}/symmetry", headers={"If-None-Match": answer.headers["etag"]})
    assert known.status_code == 304 and not known.content


def test_it_outlives_a_job_that_failed_later_and_a_rerun_that_has_not_come_so_far(local, client, tmp_path: Path):
    made = analyse(client)
    lease = claim(local.store, made["job"]["id"])
    leave_symmetry(local.store, made["job"]["id"], "found-then-failed", tmp_path / "discover")
    jobs.fail(local.store, lease, ProbeError("No column fits."))
    assert client.get(f"/api/analyses/{made['id']}/symmetry").status_code == 200
    client.post(f"/api/analyses/{made['id']}/rerun")
    assert client.get(f"/api/analyses/{made['id']}/symmetry").status_code == 200


def test_an_analysis_that_ended_before_says_to_run_it_again(local, client):
    made = analyse(client)
    jobs.fail(local.store, claim(local.store, made["job"]["id"]), ProbeError("No column fits."))
    answer = client.get(f"/api/analyses/{made['id']}/symmetry")
    assert answer.status_code == 404 and shape_of(answer)["fix"] == "Run it again."


def test_an_analysis_from_before_the_reports_says_so(local, client, tmp_path: Path):
    made = analyse(client)
    old = tmp_path / "old"
    old.mkdir()
    (old / "symmetry.json").write_text("{}")
    artefacts.use(local.store, made["job"]["id"], {"discover": "of-an-earlier-version"})
    artefacts.record(local.store, "of-an-earlier-version", "discover", old, 0.5)
    finish(local, {"id": made["id"], "job": {"id": made["job"]["id"]}}, tmp_path / "new", address="again")
    assert client.get(f"/api/analyses/{made['id']}/symmetry").status_code == 200
    artefacts.use(local.store, made["job"]["id"], {"discover": "of-an-earlier-version"})
    answer = client.get(f"/api/analyses/{made['id']}/symmetry")
    assert answer.status_code == 404 and "before there were symmetry reports" in shape_of(answer)["message"]
