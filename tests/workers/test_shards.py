"""A job divided into shards, on two worker processes: on files and SQLite, and on Redis and PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from services import wait_until
from sqlalchemy import select

from backend import describe
from backend.store import Artefact, Job, artefacts, cleanup, jobs, shards
from backend.store.models import ENDED
from cipm.stages import stage_addresses
from workers.app import pipeline_engine

pytestmark = pytest.mark.services
MAIN = Path(__file__).with_name("shard_main.py")
DATA = bytes(range(256)) * 40


@pytest.fixture
def two(deployment):
    deployment.started = [deployment.start_worker(MAIN) for _ in range(2)]
    wait_until(lambda: jobs.health(deployment.store)["workers"] == 2, what="two workers")
    return deployment


def parts(deployment, job_id) -> list[Job]:
    return shards.of(deployment.store, job_id)


def shown(deployment, job_id):
    return describe.job(deployment.job(job_id))


def standing(deployment) -> list[str]:
    with deployment.store.read() as session:
        return sorted(row.stage for row in session.scalars(select(Artefact)))


def test_both_workers_take_shards_and_the_job_goes_on(two):
    job_id = two.submit(model=DATA, options={"shards": 4, "seconds": dict.fromkeys("0123", 1.0)})
    running = wait_until(lambda: [p for p in parts(two, job_id) if p.status == "running"][1:], what="two shards at once")
    assert len(running) == 1
    middle = shown(two, job_id)
    assert (middle.status, middle.stage) == ("running", "collect") and 0.5 <= middle.progress < 1
    assert [p.request for p in parts(two, job_id)] == [{"shard": n, "of": 4} for n in range(4)]
    owners = {p.owner.rpartition(":")[0] for p in parts(two, job_id) if p.owner}
    assert len(owners) == 2
    seen = [middle.progress]
    wait_until(lambda: seen.append(shown(two, job_id).progress) or two.job(job_id).status == "done", 30.0, "the job")
    assert seen == sorted(seen) and len(set(seen)) > 3, "progress is over all shards"
    job = two.job(job_id)
    assert job.result["value"] == sum(DATA) and job.result["read"] == ["0", "1", "2", "3"] and job.attempt == 1
    assert [stage["state"] for stage in job.stages] == ["cached", "done"]
    assert parts(two, job_id) == [] and two.scratch() == []
    cleanup.collect(two.store)
    assert standing(two) == ["collect", "open"], "what shards gave goes when it is in the result"


def test_a_lost_shard_is_done_again_alone(two):
    job_id = two.submit(model=DATA, options={"shards": 2, "seconds": {"0": 0.2, "1": 4.0}})
    lost = wait_until(lambda: [p for p in parts(two, job_id)[1:] if p.status == "running"], what="the shard")[0]
    wait_until(lambda: parts(two, job_id)[0].status == "done", what="the other shard")
    with two.store.read() as session:
        first = artefacts.of_job(session, parts(two, job_id)[0].id, "shard")
    nonce = json.loads(artefacts.file(two.store, first, "value.json").read_text())["nonce"]
    os.kill(int(lost.owner.rpartition(":")[0].split("-")[-2]), signal.SIGKILL)  # host-pid-random
    wait_until(lambda: parts(two, job_id)[1].attempt == 2, 20.0, "a second attempt")  # 3 s on a quiet machine
    assert parts(two, job_id)[0].attempt == 1
    job = two.ended(job_id)
    assert (job.status, job.attempt, job.result["value"]) == ("done", 1, sum(DATA))
    assert job.result["nonces"][0] == nonce and job.result["read"] == ["0", "1"]


def test_a_shard_that_fails_fails_the_job_with_its_words(deploy):
    deployment = deploy()
    deployment.start_worker(MAIN)
    job_id = deployment.submit(model=DATA, options={"shards": 3, "bad": 0, "seconds": {"1": 0.1, "2": 30.0}})
    job = deployment.ended(job_id)
    assert (job.status, job.error["code"], job.error["where"]) == ("failed", "probe", "row 7")
    wait_until(lambda: all(p.status in ENDED for p in parts(deployment, job_id)), what="the shards' end")
    with deployment.store.write() as session:
        again = jobs.enqueue(session, session.get_one(Job, job_id).analysis, "analyze")
    assert deployment.ended(again.id).status == "failed"


def test_cancel_stops_all_shards(deploy):
    deployment = deploy()
    deployment.start_worker(MAIN)
    job_id = deployment.submit(model=DATA, options={"shards": 3, "seconds": {"0": 60.0}})
    wait_until(lambda: [p for p in parts(deployment, job_id) if p.status == "running"], what="a shard")
    with deployment.store.write() as session:
        jobs.request_cancel(session, job_id)
    assert deployment.job(job_id).status == "cancelled"
    wait_until(lambda: {p.status for p in parts(deployment, job_id)} == {"cancelled"}, 10.0, "the shards' end")
    assert deployment.ended(deployment.submit(model=DATA, options={})).result["value"] == sum(DATA)


def test_shards_that_stand_are_not_run_again(deploy):
    """The job was cancelled half-way; the next one collects only what is missing."""
    deployment = deploy()
    deployment.start_worker(MAIN)
    options = {"shards": 2, "seconds": {"1": 3.0}}
    job_id = deployment.submit(model=DATA, options=options)
    wait_until(lambda: [p.status for p in parts(deployment, job_id)] == ["done", "running"], what="half")
    with deployment.store.write() as session:
        jobs.request_cancel(session, job_id)
        again = jobs.enqueue(session, session.get_one(Job, job_id).analysis, "analyze").id
    wait_until(lambda: parts(deployment, again), what="its shards")
    assert [p.request["shard"] for p in parts(deployment, again)] == [1]
    assert shown(deployment, again).progress >= 0.5
    assert deployment.ended(again).result["read"] == ["0", "1"]


def test_the_real_engine_knows_its_shards():
    facts = ("analyze", "m" * 64, "p" * 64, {"shards": 3})
    found = pipeline_engine().shards(*facts)
    assert found == [stage_addresses("shard", *facts[1:], {"shard": n})["shard"] for n in range(3)] and len({*found}) == 3
    assert [pipeline_engine().shards(kind, *facts[1:]) for kind in ("export", "measure", "shard")] == [[], [], []]
    assert pipeline_engine().shards(*facts[:3], {}) == []
