"""Progress and time left, private folders, devices, and holding a lease: each alone."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services import wait_until
from sqlalchemy import text

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, jobs, open_store
from cipm.errors import CipmError
from cipm.stages import stage_addresses
from workers.keeper import Keeper
from workers.progress import Progress, seconds_left, share
from workers.run import Engine
from workers.scratch import own_folder, remove_stale
from workers.worker import WorkerProcess, choose_device, limits


def stages(*states, seconds=None):
    return [{"name": f"s{i}", "state": state, "seconds": seconds if state == "done" else None}
            for i, state in enumerate(states)]


def test_share_counts_stages_and_the_part_of_the_present_one():
    assert share(stages("cached", "done", "running", "waiting"), 0.5) == 0.625
    assert share(stages("waiting", "waiting"), 0.5) == 0.0
    assert share(stages("done", "done"), 0.0) == 1.0


def test_time_left_is_unknown_until_something_is_known():
    assert seconds_left(stages("running", "waiting"), {}, 5.0, 0.0) is None
    assert seconds_left(stages("running", "waiting"), {"s0": 9.0}, 5.0, 0.5) is None


@pytest.mark.parametrize(("states", "elapsed", "fraction", "left"), [
    (("running",), 5.0, 0.25, 15.0),             # from its own pace
    (("running", "waiting"), 0.0, 0.0, 30.0),    # as usual: 10 + 20
    (("running", "waiting"), 4.0, 0.0, 26.0),    # 6 of this one, 20 of the next
    (("running", "waiting"), 10.0, 0.5, 50.0),   # half took twice as long as usual: 10 more, then 40
    (("done", "running"), 0.0, 0.0, 40.0),       # the first took 20 instead of 10: the next takes 40
    (("done", "done"), 0.0, 0.0, 0.0),
])
def test_time_left(states, elapsed, fraction, left):
    assert seconds_left(stages(*states, seconds=20.0), {"s0": 10.0, "s1": 20.0}, elapsed, fraction) == left


@given(st.lists(st.tuples(st.integers(-5, 200), st.integers(-5, 100), st.floats(0.01, 2)), max_size=30))
def test_progress_is_between_nothing_and_all_and_not_written_too_often(moves):
    now, written = [0.0], []
    progress = Progress(stages("waiting", "waiting"), {}, written.append, clock=lambda: now[0])
    progress.started("s0")
    for done, total, pause in moves:
        now[0] += pause
        progress.moved(done, total)
    progress.ended("s0", "done", now[0])
    assert all(0 <= values["progress"] <= 0.5 for values in written[:-1]) and written[-1]["progress"] == 0.5
    assert len(written) <= 3 + now[0] / 0.5
    assert written[-1]["stages"][0]["state"] == "done" and written[-1]["stage"] is None


def test_folders_of_the_dead_go_and_of_the_living_stay(tmp_path):
    code = ("import sys, time; from pathlib import Path; from workers.scratch import own_folder\n"
            "with own_folder(Path(sys.argv[1]), sys.argv[2]) as folder:\n"
            "    (folder / 'x').write_text(''); print('ready', flush=True); time.sleep(60)")
    others = {name: subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdout=subprocess.PIPE)
              for name in ("dead", "living")}
    try:
        assert [other.stdout.readline() for other in others.values()] == [b"ready\n"] * 2
        others["dead"].kill()
        others["dead"].wait()
        with own_folder(tmp_path, "mine") as folder:
            assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["living", "mine"]
            (folder / "job").mkdir()
        assert remove_stale(tmp_path) == [] and (tmp_path / "living" / "x").exists()
        assert not (tmp_path / "mine").exists()
    finally:
        for other in others.values():
            other.kill()
            other.communicate()


def test_a_folder_is_locked_before_it_is_seen(tmp_path):
    with own_folder(tmp_path, "w"), open(tmp_path / "w.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    two = {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"}.__contains__
    assert not choose_device("cpu", exists=two) and not choose_device("auto", exists=lambda path: False)
    assert choose_device("auto", exists=two) and choose_device("cuda", exists=two)
    with pytest.raises(CipmError, match="CIPM_DEVICE is cuda:2, but this machine has no such GPU"):
        choose_device("cuda:2", exists=two)
    assert choose_device("cuda:1", exists=two)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not choose_device("auto", exists=two)


def test_limits_leave_memory_to_the_machine(tmp_path):
    assert limits(load_settings(data=tmp_path, job_memory_bytes=2**28)).memory_bytes == 2**28
    assert limits(load_settings(data=tmp_path, job_memory_bytes=2**60)).memory_bytes < 2**50


@pytest.fixture
def lease(tmp_path):
    store = open_store(load_settings(data=tmp_path, lease_seconds=1.0, heartbeat_seconds=0.2))
    with store.write() as session:
        analysis = Analysis(owner_id=LOCAL_OWNER, model_name="m", model_sha256="0" * 64, model_size=1, options={})
        session.add(analysis)
        session.flush()
        jobs.enqueue(session, analysis, "analyze")
    yield store, jobs.claim(store, "w")
    store.close()


def test_a_worker_tells_of_itself_from_any_thread_and_where_the_database_is_away(lease, tmp_path):
    store, _ = lease
    process = WorkerProcess(store, Engine("cipm.pipeline:run_job", stage_addresses), tmp_path / "w1", gpu=False)
    threads = [threading.Thread(target=process._tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jobs.health(store)["workers"] == 1
    with store.write() as session:
        session.execute(text("DROP TABLE workers"))
    process._tell()


def test_a_kept_lease_does_not_run_out(lease):
    store, held = lease
    with Keeper(store, held) as keeper:
        time.sleep(1.5)
        assert jobs.sweep(store) is None and not keeper.lost
    time.sleep(1.2)
    assert jobs.sweep(store) == held.job_id


def test_a_keeper_learns_of_a_cancel_and_of_its_loss(lease):
    store, held = lease
    with Keeper(store, held) as keeper:
        with store.write() as session:
            jobs.request_cancel(session, held.job_id)
        wait_until(lambda: keeper.cancelled, 3, "the cancel")
        jobs.cancelled(store, held)
        wait_until(lambda: keeper.lost, 3, "the loss")


def test_without_an_answer_for_a_whole_lease_it_is_lost(lease):
    store, held = lease
    keeper = Keeper(store, held)
    (store.settings.data / "cipm.sqlite").rename(store.settings.data / "gone")
    store.engine.dispose()
    with keeper:
        wait_until(lambda: keeper.lost, 5, "the loss")
