"""Leases: one holder at a time, fenced writes, expiry, attempts, cancel; on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, Job, Worker, jobs, open_store
from backend.store.jobs import Lease, LeaseLost
from cipm.errors import Conflict, NotFound, ProbeError


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def store(request, tmp_path):
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    opened = open_store(load_settings(data=tmp_path, database_url=url, lease_seconds=1.0, max_attempts=2))
    yield opened
    opened.close()


def submit(store, kind="analyze", **options) -> str:
    with store.write() as session:
        analysis = Analysis(owner_id=LOCAL_OWNER, model_name="m", model_sha256="0" * 64, model_size=1, options=options)
        session.add(analysis)
        session.flush()
        return jobs.enqueue(session, analysis, kind).id


def row(store, job_id) -> Job:
    with store.read() as session:
        return session.get_one(Job, job_id)


def worker(name: str, *, gpu: bool = False, busy: bool = False) -> Worker:
    return Worker(id=name, host="h", pid=1, gpu=gpu, busy=busy, jail={"ok": True})


def test_many_claimers_one_holder_each(store):
    submitted = {submit(store) for _ in range(12)}
    claimed: list[Lease] = []

    def claim_all(name: str) -> None:
        while lease := jobs.claim(store, name):
            claimed.append(lease)

    threads = [threading.Thread(target=claim_all, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.job_id for lease in claimed) == sorted(submitted)
    assert len({lease.owner for lease in claimed}) == 12 and {lease.attempt for lease in claimed} == {1}


def test_short_jobs_first_then_the_oldest(store):
    slow = [submit(store), submit(store)]
    short = submit(store, "measure")
    assert [jobs.claim(store, "w").job_id for _ in range(3)] == [short, *slow]


def test_a_gpu_job_waits_for_a_gpu_while_one_is_alive(store):
    job_id = submit(store, device="cuda")
    jobs.seen(store, worker("with", gpu=True))
    assert jobs.claim(store, "without") is None
    jobs.gone(store, "with")
    assert jobs.claim(store, "without").job_id == job_id


def test_a_stranger_writes_nothing(store):
    job_id = submit(store)
    lease = jobs.claim(store, "w")
    stranger = Lease(job_id, "other", 1)
    for write in (lambda: jobs.heartbeat(store, stranger), lambda: jobs.finish(store, stranger, {}),
                  lambda: jobs.report(store, stranger, progress=0.9), lambda: jobs.cancelled(store, stranger),
                  lambda: jobs.fail(store, stranger, ProbeError("no")), lambda: jobs.release(store, stranger),
                  lambda: jobs.cancel_requested(store, stranger)):
        with pytest.raises(LeaseLost):
            write()
    assert (row(store, job_id).status, row(store, job_id).owner, row(store, job_id).progress) == ("running", lease.owner, 0)


def test_an_expired_lease_goes_on_and_its_old_holder_is_fenced_off(store):
    job_id = submit(store)
    first = jobs.claim(store, "a")
    jobs.report(store, first, stages=[{"name": "x", "state": "done"}, {"name": "y", "state": "running"}], stage="y")
    assert jobs.sweep(store) is None
    time.sleep(1.2)
    assert jobs.sweep(store) == job_id
    assert [stage["state"] for stage in row(store, job_id).stages] == ["done", "waiting"]
    second = jobs.claim(store, "b")
    assert second.attempt == 2
    with pytest.raises(LeaseLost):
        jobs.finish(store, first, {"from": "a"})
    jobs.finish(store, second, {"from": "b"})
    assert (row(store, job_id).status, row(store, job_id).result) == ("done", {"from": "b"})


def test_a_heartbeat_keeps_the_lease(store):
    job_id = submit(store)
    lease = jobs.claim(store, "w")
    for _ in range(4):
        time.sleep(0.4)
        assert jobs.heartbeat(store, lease) is False
        assert jobs.sweep(store) is None
    assert row(store, job_id).owner == lease.owner


def test_too_many_lost_workers(store):
    job_id = submit(store)
    for name in ("a", "b"):
        jobs.claim(store, name)
        time.sleep(1.2)
        jobs.sweep(store)
    job = row(store, job_id)
    assert (job.status, job.attempt, job.owner) == ("failed", 2, None) and job.finished is not None
    assert job.error["message"] == "The worker was lost twice during this job, so it was given up."


def test_cancel(store):
    waiting, running = submit(store), None
    with store.write() as session:
        jobs.request_cancel(session, waiting)
    assert row(store, waiting).status == "cancelled" and jobs.claim(store, "w") is None
    running = submit(store)
    lease = jobs.claim(store, "w")
    with store.write() as session:
        jobs.request_cancel(session, running)
    assert jobs.cancel_requested(store, lease) and jobs.heartbeat(store, lease)
    time.sleep(1.2)  # and if its worker dies before it obeys
    assert jobs.sweep(store) is None and row(store, running).status == "cancelled"
    with store.write() as session, pytest.raises(Conflict, match=r"already ended \(cancelled\)"):
        jobs.request_cancel(session, running)
    with store.write() as session, pytest.raises(NotFound):
        jobs.request_cancel(session, "nowhere")


def test_a_released_job_counts_no_attempt(store):
    job_id = submit(store)
    jobs.release(store, jobs.claim(store, "w"))
    assert (row(store, job_id).status, row(store, job_id).attempt) == ("queued", 0)


def test_an_error_is_kept_as_people_read_it(store):
    job_id = submit(store)
    jobs.fail(store, jobs.claim(store, "w"), ProbeError("No rows.", where="x.npy", fix="Add some."))
    assert row(store, job_id).error == {"code": "probe", "message": "No rows.", "where": "x.npy", "fix": "Add some."}


def test_health(store):
    assert jobs.health(store) == {"alive": False, "busy": False, "workers": 0, "jail": None}
    jobs.seen(store, worker("a"))
    jobs.seen(store, worker("b", busy=True))
    assert jobs.health(store) == {"alive": True, "busy": True, "workers": 2, "jail": {"ok": True}}
    jobs.seen(store, worker("b"))
    jobs.gone(store, "a")
    assert jobs.health(store)["workers"] == 1 and not jobs.health(store)["busy"]
    assert jobs.health(store, host="h")["alive"] and not jobs.health(store, host="elsewhere")["alive"]
