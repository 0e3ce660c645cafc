"""Pruning what-ifs over the API: the session, and measured networks."""

from __future__ import annotations

import pytest
from api_server import analyse, claim, keep, leave_session, session, shape_of

from backend.store import WhatIf, jobs
from backend.whatif_schemas import WhatIfSession
from backend.whatifs import MOST_NAMED
from cipm.allocation import Session
from cipm.errors import ProbeError


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
    leave_session(local.store, made["job"]["id"], "of-an-earlier-version", tmp_path / "old", now=False)
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


@pytest.mark.parametrize(("asked", "said"), [
    ({"hidden": 301}, "Group hidden can keep 1 to 300 units; it cannot keep 301"),
    ({"hidden": 0}, "it cannot keep 0"), ({"heads": 3}, "2 to 8 units, a multiple of 2; it cannot keep 3"),
    ({"stream": 1}, "Group stream cannot be made smaller: Nothing reads it."),
    ({"nosuch": 1}, "There is no group 'nosuch'; those that can be made smaller are hidden, heads"),
    ({"hidden": "many"}, "keep.hidden")])
def test_a_measurement_that_makes_no_sense_is_refused(client, done, asked, said):
    answer = client.post(f"/api/analyses/{done['id']}/measurements", json={"keep": asked})
    assert answer.status_code == 422 and said in shape_of(answer)["message"]


def test_the_front_is_that_of_the_engine_with_locks_and_sizes(client, done):
    path, known = f"/api/analyses/{done['id']}/whatif/front", Session.from_json(session())
    whole = client.get(path).json()
    assert whole["count"] == "parameters" and 60 < len(whole["choices"]) <= 96
    assert whole["choices"][0] == {"keep": {"hidden": 300, "heads": 8}, "count": 5410.0, "rises": {"kl": 0.0, "loss": 0.0}}
    counts = [choice["count"] for choice in whole["choices"]]
    assert counts == sorted(counts, reverse=True) and whole["choices"][-1]["keep"] == {"hidden": 1, "heads": 2}
    middle = whole["choices"][30]
    assert middle["rises"] == pytest.approx(known.predicted(middle["keep"])) and middle["count"] == pytest.approx(
        known.counts["parameters"](middle["keep"]))
    mine = client.get(path, params={"count": "flops", "locked": ["heads"], "size": ["hidden:20"]}).json()["choices"]
    assert [choice["keep"] for choice in mine] == [{"hidden": 20, "heads": 8}]
    locked = client.get(path, params={"locked": ["heads"]}).json()
    assert locked["frontier"] == [[pytest.approx(one) for one in pair] for pair in known.along_front(["heads"])]
    middle = locked["choices"][40]
    assert middle["rises"] == pytest.approx(known.held(["heads"]).predicted(middle["keep"]))
    assert middle["rises"]["kl"] > 1.1 * known.predicted(middle["keep"])["kl"]  # along the front of what is left, not off it


def test_a_budget_of_run_time_is_a_job_and_is_not_asked_twice(local, client, done):
    path, asked = f"/api/analyses/{done['id']}/latencies", {"share": 0.5, "locked": ["heads"]}
    job = client.post(path, json=asked).json()
    assert job["kind"] == "latency" and client.post(path, json={**asked, "sizes": {}}).json()["id"] == job["id"]
    for wrong, said in (({"share": 1.5}, "less than 1"), ({"share": 0.5, "locked": ["stream"]}, "Group stream cannot be made")):
        answer = client.post(path, json=wrong)
        assert answer.status_code == 422 and said in shape_of(answer)["message"]
    result = {"keep": {"hidden": 100}, "share": 0.48, "latency": {"times": 2.1}, "words": "Run time was measured.",
              "predicted": {"kl": 0.1, "loss": 0.6}}
    jobs.finish(local.store, claim(local.store, job["id"]), result)
    (listed,) = client.get(path).json()
    assert listed["result"] == result and listed["share"] == 0.5 and listed["locked"] == ["heads"] and listed["turned"] == []


@pytest.mark.parametrize(("params", "said"), [
    ({"count": "memory"}, "There is no count 'memory'; there are parameters, flops, bytes"),
    ({"locked": "stream"}, "Group stream cannot be made smaller"), ({"size": "hidden"}, "GROUP:UNITS"),
    ({"size": "hidden:0"}, "it cannot keep 0"), ({"size": "hidden:9", "locked": "hidden"}, "locked")])
def test_a_front_that_makes_no_sense_is_refused(client, done, params, said):
    answer = client.get(f"/api/analyses/{done['id']}/whatif/front", params=params)
    assert answer.status_code == 422 and said in shape_of(answer)["message"]


def test_what_ifs_are_kept_changed_and_forgotten_under_a_name(local, client, done):
    path = f"/api/analyses/{done['id']}/whatifs"
    made = client.post(path, json={"name": "half", "keep": {"hidden": 150, "heads": 8}, "locked": ["heads"]}).json()
    assert made["keep"] == {"hidden": 150} and made["locked"] == ["heads"] and client.get(path).json() == [made]
    renamed = client.patch(f"{path}/{made['id']}", json={"name": "a half"}).json()
    assert renamed == {**made, "name": "a half"}
    held = client.patch(f"{path}/{made['id']}", json={"keep": {"heads": 4}}).json()
    assert held == {**renamed, "keep": {"heads": 4}} and client.get(path).json() == [held]
    assert client.patch(f"{path}/{made['id']}", json={"locked": ["stream"]}).status_code == 422
    freed = client.patch(f"{path}/{made['id']}", json={"keep": {"heads": 4}, "locked": []}).json()
    assert freed["keep"] == {"heads": 4} and freed["locked"] == [] and client.get(path).json() == [freed]
    other = analyse(client)
    assert client.delete(f"/api/analyses/{other['id']}/whatifs/{made['id']}").status_code == 404
    assert client.delete(f"{path}/{made['id']}").status_code == 204 and client.get(path).json() == []
    assert client.patch(f"{path}/{made['id']}", json={"name": "x"}).status_code == 404
    for body in ({"name": "", "keep": {}}, {"name": "n" * 201, "keep": {}}, {"name": "n", "keep": {"hidden": 0}}):
        assert client.post(path, json=body).status_code == 422


def test_an_analysis_keeps_so_many_what_ifs_and_takes_them_along_when_it_goes(local, client, done):
    path = f"/api/analyses/{done['id']}/whatifs"
    with local.store.write() as rows:
        rows.add_all(WhatIf(analysis_id=done["id"], name=str(number), keep={}, locked=[]) for number in range(MOST_NAMED))
    full = client.post(path, json={"name": "one more", "keep": {}})
    assert full.status_code == 409 and "at most 200" in shape_of(full)["message"]
    client.delete(f"/api/analyses/{done['id']}")
    with local.store.read() as rows:
        assert rows.query(WhatIf).filter_by(analysis_id=done["id"]).count() == 0


def test_a_share_sees_what_ifs_and_changes_none(client, done):
    path = f"/api/analyses/{done['id']}"
    made = client.post(f"{path}/whatifs", json={"name": "seen", "keep": {"hidden": 7}}).json()
    share = {"share": client.post(f"{path}/shares").json()["token"]}
    assert client.get(f"{path}/whatifs", params=share).json() == [made]
    assert client.get(f"{path}/whatif", params=share).status_code == 200 == client.get(
        f"{path}/whatif/front", params=share).status_code
    one = f"whatifs/{made['id']}"
    for method, rest, body in (("POST", "whatifs", {"name": "n", "keep": {}}), ("PATCH", one, {"name": "n"}),
                               ("DELETE", one, None), ("POST", "measurements", {"keep": {}})):
        assert client.request(method, f"{path}/{rest}", json=body, params=share).status_code == 403


def test_a_smaller_checkpoint_is_exported_once_and_named_so(local, client, done, tmp_path):
    path = f"/api/analyses/{done['id']}/exports"
    made = client.post(path, json={"keep": {"hidden": 10}}).json()
    assert made["job"]["kind"] == "prune" and made["order"] is None and made["form"] == "pt2" and made["keep"] == {"hidden": 10}
    assert client.post(path, json={"keep": {"hidden": 10, "heads": 8}, "form": "pt2"}).json()["id"] == made["id"]
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model-pruned.pt2").write_bytes(b"small")
    facts = {"parameters": {"before": 100, "after": 40}, "latency": {"times": 2.0}}
    keep(local.store, made["job"]["id"], "prune", f"prune-{done['id']}", folder,
         {"filename": "model-pruned.pt2", "size": 5, "certificate": {"masked": {"passed": True}}, "facts": facts})
    listed = client.get(path).json()
    assert listed[0]["facts"] == facts and listed[0]["filename"] == "net-pruned.pt2"
    file = client.get(f"/api/exports/{made['id']}/file")
    assert file.content == b"small" and file.headers["content-disposition"] == 'attachment; filename="net-pruned.pt2"'


@pytest.mark.parametrize(("body", "said"), [
    ({}, "give either an order or keep"), ({"order": "spectral", "keep": {}}, "give either an order or keep"),
    ({"order": "spectral", "form": "pt2"}, "a form is chosen for a smaller checkpoint"),
    ({"keep": {}, "form": "state_dict"}, "This model cannot be written as state_dict; it can as pt2, onnx."),
    ({"keep": {"hidden": 0}}, "it cannot keep 0")])
def test_an_export_that_makes_no_sense_is_refused(client, done, body, said):
    answer = client.post(f"/api/analyses/{done['id']}/exports", json=body)
    assert answer.status_code == 422 and said in shape_of(answer)["message"]
