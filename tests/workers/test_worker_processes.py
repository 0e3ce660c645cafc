"""Jobs through real worker processes: on files and SQLite, and on Redis and PostgreSQL."""

from __future__ import annotations

import json
import os
import signal

import pytest
from services import wait_until
from sqlalchemy import select

from backend.store import Artefact, artefacts, jobs
from cipm.errors import Conflict

pytestmark = pytest.mark.services


def nonces(deployment):
    with deployment.store.read() as session:
        rows = session.scalars(select(Artefact)).all()
    return {row.stage: json.loads(artefacts.file(deployment.store, row, "value.json").read_text())["nonce"] for row in rows}


def test_a_job_runs_to_its_result(deployment):
    deployment.start_worker()
    job = deployment.ended(deployment.submit(seconds={"mean": 0.5}))
    assert (job.status, job.attempt, job.error) == ("done", 1, None)
    assert job.result["ran"] == ["count", "mean", "sum"] and job.result["value"] == 6000
    assert [stage["state"] for stage in job.stages] == ["done"] * 3 and job.stages[1]["seconds"] > 0.3
    assert (job.progress, job.eta_seconds, job.owner, job.lease_until) == (1.0, None, None, None)
    assert job.created <= job.started <= job.finished
    assert set(nonces(deployment)) == {"count", "mean", "sum"}
    assert deployment.scratch() == []


def test_a_second_run_computes_nothing_again(deployment):
    deployment.start_worker()
    deployment.ended(deployment.submit())
    before = nonces(deployment)
    job = deployment.ended(deployment.submit())
    assert job.status == "done" and job.result["ran"] == []
    assert [stage["state"] for stage in job.stages] == ["cached"] * 3
    assert nonces(deployment) == before


def test_killed_worker_second_attempt_without_repeating_finished_stages(deployment):
    first = deployment.start_worker()
    job_id = deployment.submit(seconds={"mean": 4})
    deployment.in_stage(job_id, "mean")
    before = nonces(deployment)
    assert set(before) == {"count"}
    os.kill(first.pid, signal.SIGKILL)
    deployment.start_worker()
    wait_until(lambda: deployment.job(job_id).attempt == 2, 20.0, "a second attempt")  # 4 s on a quiet machine
    job = deployment.ended(job_id)
    assert (job.status, job.attempt) == ("done", 2)
    assert job.result["ran"] == ["mean", "sum"]
    assert [stage["state"] for stage in job.stages] == ["cached", "done", "done"]
    assert nonces(deployment)["count"] == before["count"]
    assert deployment.scratch() == []


def test_cancel_in_mid_stage_ends_soon_and_leaves_nothing(deployment):
    deployment.start_worker()
    job_id = deployment.submit(seconds={"mean": 60})
    deployment.in_stage(job_id, "mean")
    with deployment.store.write() as session:
        jobs.request_cancel(session, job_id)
    job = deployment.ended(job_id, 10.0)  # 1 s on a quiet machine; the stage would take 60
    assert job.status == "cancelled"
    assert set(nonces(deployment)) == {"count"}
    assert deployment.scratch() == []
    with deployment.store.write() as session, pytest.raises(Conflict, match="already ended"):
        jobs.request_cancel(session, job_id)


def test_two_workers_never_run_one_job_twice(deployment):
    for _ in range(2):
        deployment.start_worker()
    wait_until(lambda: jobs.health(deployment.store)["workers"] == 2, what="two workers")
    submitted = [deployment.submit(model=bytes([i]) * 50, seconds={"count": 0.2}) for i in range(8)]
    for job_id in submitted * 3:  # more wake-ups than work
        deployment.store.wake(job_id)
    ended = [deployment.ended(job_id) for job_id in submitted]
    assert all((job.status, job.attempt) == ("done", 1) for job in ended)
    assert all(job.result["ran"] == ["count", "mean", "sum"] for job in ended)
    assert len({job.result["pid"] for job in ended}) == 8


def test_a_job_whose_wake_up_was_lost_is_found(deploy):
    deployment = deploy()
    job_id = deployment.submit()
    for message in (deployment.store.settings.data / "broker" / "messages").iterdir():
        message.unlink()
    deployment.start_worker()
    assert deployment.ended(job_id).status == "done"


def test_three_deaths_fail_the_job_with_a_sentence(deploy):
    deployment = deploy(lease_seconds=1.0, heartbeat_seconds=0.2)
    job_id = deployment.submit(seconds={"mean": 60})
    for attempt in (1, 2, 3):
        worker = deployment.start_worker()
        wait_until(lambda n=attempt: (deployment.job(job_id).attempt, deployment.job(job_id).stage) == (n, "mean"),
                   30.0, f"attempt {attempt}")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    deployment.start_worker()
    job = deployment.ended(job_id)
    assert (job.status, job.attempt) == ("failed", 3)
    assert job.error["message"] == "The worker was lost 3 times during this job, so it was given up."
    assert job.error["where"] == "mean" and "memory" in job.error["fix"]
    wait_until(lambda: deployment.scratch() == [], what="an empty scratch folder")


def test_a_stopped_worker_gives_its_job_back(deploy):
    deployment = deploy(lease_seconds=60.0)
    first = deployment.start_worker()
    job_id = deployment.submit(seconds={"mean": 3})
    deployment.in_stage(job_id, "mean")
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(10) == 0
    job = deployment.job(job_id)
    assert (job.status, job.attempt, job.owner) == ("queued", 0, None)
    assert list(deployment.store.settings.scratch_folder.iterdir()) == []
    deployment.start_worker()
    assert deployment.ended(job_id).result["ran"] == ["mean", "sum"]


def test_a_worker_ends_with_who_started_it(deploy):
    deployment = deploy()
    worker = deployment.start_worker()
    wait_until(lambda: jobs.health(deployment.store)["alive"], what="the worker")
    worker.stdin.close()
    worker.wait(10)
    assert not jobs.health(deployment.store)["alive"]


@pytest.mark.parametrize(("trouble", "code", "words"), [
    ("refuse", "probe", "The probe has no rows."),
    ("bug", "error", "ValueError: a slip"),
    ("stray", "jail", "a stage that is not its own"),
    ("elsewhere", "jail", "a folder that is not its own"),
])
def test_what_goes_wrong_is_in_the_row(deploy, trouble, code, words):
    deployment = deploy()
    deployment.start_worker()
    job = deployment.ended(deployment.submit(trouble={"mean": trouble}))
    assert (job.status, job.attempt, job.error["code"]) == ("failed", 1, code)
    assert words in job.error["message"]
    assert set(nonces(deployment)) == {"count"}
    assert deployment.ended(deployment.submit()).status == "done"  # the worker lives on
