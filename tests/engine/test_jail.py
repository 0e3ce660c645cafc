"""The jail holds against hostile jobs, lets honest ones work, and ends every job at its limits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jail_jobs
import pytest

from cipm.errors import Cancelled, CipmError, InputError, JailError, LimitExceeded, ProbeError
from cipm.jail import Limits, forkserver, run, self_test
from cipm.jail import prepare as prepare_jail
from cipm.jail.watch import check_tree

HERE = Path(__file__).parent
ENGINE = ("product", "export", "transformers", "compiled", "libraries")
ENTRIES = {f"jail_jobs:{name}": HERE for name in vars(jail_jobs)} | {f"jail_torch_jobs:{name}": HERE for name in ENGINE}


def jailed(job, request=None, *, folder, readable=(), limits=None, **options):
    """Run a job of this folder's job modules in the jail, in a scratch folder below `folder`."""
    module = "jail_torch_jobs" if job in ENGINE else "jail_jobs"
    limits = Limits(**{"memory_bytes": 1 << 30, "seconds": 60.0, "file_bytes": 64 << 20, "threads": 2} | (limits or {}))
    return run(f"{module}:{job}", request or {}, readable=readable, scratch=folder / "scratch", limits=limits, also=ENTRIES,
               **options)


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """Put a file into the parent's home and a server on its loopback."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIPM_SECRET_KEY", "never to be seen")
    path = tmp_path / "secret"
    path.write_text("the secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"path": str(path), "port": server.getsockname()[1]}
    assert path.read_text() == "the secret"


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true) -> None:
    """Wait until it is true, 20 s at most."""
    give_up = time.monotonic() + 20
    while not true() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert true()


# --- breaking out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", jail_jobs.ATTEMPTS)
def test_hostile_attempt_fails(what, secret, tmp_path):
    secret["path"] = str(tmp_path) if what == "list" else secret["path"]
    if "scratch" in what:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch/link").symlink_to(tmp_path / "secret")
    try:
        assert jailed("attempt", {"what": what} | secret, folder=tmp_path).get("refused")
    except JailError as error:  # it ran, and the link that was planted beforehand was then noticed
        assert "neither a file nor a folder" in str(error) and "link" in what


@pytest.mark.parametrize("what", ["passwd", "file", "file in a thread", "file through /proc/self/root", "list", "append",
                                  "parent's environment", "tcp", "unix", "socket pair", "netlink", "subprocess",
                                  "memory file", "symlink", "link in", "fifo"])
def test_the_same_attempt_succeeds_outside(what, secret, tmp_path):
    secret["path"] = str(tmp_path) if what == "list" else secret["path"]
    assert "did" in jail_jobs.attempt({"what": what} | secret, tmp_path, print)


def test_mode_and_times_of_a_file_outside_do_not_change(secret, tmp_path):
    before = os.stat(secret["path"])
    assert jailed("metadata", secret, folder=tmp_path) == {}
    after = os.stat(secret["path"])
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)


def test_a_readable_file_can_be_read_and_nothing_else(secret, tmp_path):
    path = Path(secret["path"])
    assert "the secret" in jailed("attempt", secret | {"what": "file"}, folder=tmp_path, readable=[path])["did"]
    for what in ("write", "append", "truncate", "empty by opening", "delete", "rename in", "link in"):
        assert jailed("attempt", secret | {"what": what}, folder=tmp_path, readable=[path]).get("refused"), what


def test_the_environment_holds_nothing_of_ours(secret, tmp_path):
    found = jailed("environment", folder=tmp_path)
    assert "never to be seen" not in str(found) and found["cwd"] == str(tmp_path / "scratch")
    assert found["environ"]["HOME"] == found["environ"]["TMPDIR"] != str(tmp_path)


def test_only_named_jobs_are_entries(tmp_path):
    for entry in ("os:system", "cipm.jail.proof:prove", "jail_jobs:echo", "cipm.pipeline:run_job.x", "cipm:a_job\n"):
        with pytest.raises(JailError, match="is not an entry of the sandbox"):
            run(entry, {}, readable=[], scratch=tmp_path, limits=Limits())


# --- failing closed ---------------------------------------------------------------------------------------------------


def test_self_test_names_the_layers():
    report = self_test()
    assert report["ok"], report["detail"]
    assert report["layers"]["landlock"] >= 1 and report["layers"]["seccomp"] and len(report["layers"]["proved"]) == 13


@pytest.mark.parametrize("readable", ["/etc", "/"])
def test_a_lock_that_does_not_hold_runs_nothing(readable, tmp_path):
    with pytest.raises(JailError, match="does not hold: a locked process could .*; nothing was run"):
        jailed("echo", {"events": 0, "file": "/etc/passwd"}, folder=tmp_path, readable=[Path(readable)])
    assert not list((tmp_path / "scratch").iterdir())


BROKEN = {
    "no Landlock": "from cipm.jail import landlock; landlock.abi = lambda: 0",
    "no seccomp": "import pyseccomp; pyseccomp.SyscallFilter.load = lambda self: (_ for _ in ()).throw(OSError('no'))",
    "seccomp that does nothing": "from cipm.jail import syscalls; syscalls.restrict = lambda cuda: None",
    "Landlock that does nothing": "from cipm.jail import landlock; landlock.restrict = lambda *paths: 7",
    "threads before the lock": ("import threading, time; "
                                "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"),
    "no child at all": "raise SystemExit(3)",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_without_a_layer_nothing_is_run(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("cipm.jail.forkserver.START", f"import sys; sys.path[:0] = {{folders!r}}; exec({BROKEN[broken]!r}); "
                                                      "from cipm.jail.serve import serve; serve(*{arguments!r})")
    (tmp_path / "file").write_text("x")
    with pytest.raises(JailError, match="nothing was run|nothing ran"):
        jailed("echo", {"events": 0, "file": str(tmp_path / "file")}, folder=tmp_path, readable=[tmp_path / "file"])
    assert not (tmp_path / "scratch/written").exists()


def test_a_link_left_behind_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/pointer").symlink_to("/etc/passwd")
    with pytest.raises(JailError, match="'pointer', neither a file nor a folder"):
        check_tree(tmp_path)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bomb", "message"), [
    ("memory_bomb", "more memory than the limit of 1.07 GB"), ("torch_memory_bomb", "more memory than the limit"),
    ("shared_memory_bomb", "more memory than the limit"), ("file_bomb", "wrote more than the limit of 0.07 GB"),
    ("many_files_bomb", "wrote more than the limit"), ("thread_bomb", "more than 40 threads"),
    ("flood", "more messages than it may"), ("endless_line", "more messages than it may")])
def test_bombs_end_at_their_limit(bomb, message, tmp_path):
    with pytest.raises(LimitExceeded, match=message):
        jailed(bomb, folder=tmp_path)


def test_an_endless_loop_that_blocks_signals_ends_at_the_wall_clock(tmp_path):
    events = []
    with pytest.raises(LimitExceeded, match="longer than the limit of 1.5 s"):
        jailed("endless", folder=tmp_path, limits={"seconds": 1.5}, on_event=events.append)
    assert [event["event"] for event in events] == ["started"] and not alive(events[0]["pid"])


def test_the_stop_flag_ends_the_job_and_leaves_no_process(tmp_path):
    events = []
    with pytest.raises(Cancelled):
        jailed("endless", folder=tmp_path, on_event=events.append, should_stop=lambda: bool(events))
    assert not alive(events[0]["pid"]) and alive(events[0]["server"])


def test_a_job_that_is_stopped_before_it_began_never_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("cipm.jail.forkserver.START", f"import time; time.sleep(1.0); {forkserver.START}")
    events = []
    with pytest.raises(Cancelled):
        jailed("endless", folder=tmp_path, on_event=events.append, should_stop=lambda: True)
    server = forkserver.server_for("jail_jobs:endless", 2, cuda=False, also=ENTRIES)
    assert jailed("remember", folder=tmp_path)["server"] == server.process.pid  # it has dealt with the first by now
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    wait_until(lambda: not any(map(alive, map(int, children.read_text().split()))))
    assert not events


def test_an_error_in_the_listener_ends_the_job(tmp_path):
    events = []

    def listen(event):
        events.append(event)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jailed("endless", folder=tmp_path, on_event=listen)
    assert not alive(events[0]["pid"])


PARENT = """
import sys
from pathlib import Path
from cipm.jail import Limits, run
folder = Path(sys.argv[1])
run("jail_jobs:endless", {}, readable=[], scratch=folder / "scratch", limits=Limits(seconds=300.0, threads=1),
    on_event=lambda event: print(event["server"], event["pid"], flush=True), also={"jail_jobs:endless": Path(sys.argv[2])})
"""


def test_the_child_dies_with_its_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), str(HERE)], stdout=subprocess.PIPE)
    processes = [int(number) for number in parent.stdout.readline().split()]
    assert len(processes) == 2 and all(map(alive, processes))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_until(lambda: not any(map(alive, processes)))


# --- the fork server --------------------------------------------------------------------------------------------------


def test_runs_share_a_server_and_nothing_else(tmp_path):
    prepare_jail("jail_jobs:remember", threads=2, also=ENTRIES)
    first, second = (jailed("remember", {"secret": "of one run"}, folder=tmp_path) for _ in range(2))
    assert first == second and first["runs"] == 1
    assert first["open"] == [0, 1, 2, 3, 4]  # the streams, the channel, and the listing itself
    assert jailed("remember", folder=tmp_path, limits={"threads": 1})["server"] != first["server"]


def test_a_server_that_was_killed_is_replaced(tmp_path):
    server = jailed("remember", folder=tmp_path)["server"]
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not alive(server))
    assert jailed("remember", folder=tmp_path)["server"] != server


def test_a_job_dies_with_its_server(tmp_path):
    events = []

    def listen(event):
        events.append(event)
        os.kill(event["server"], signal.SIGKILL)

    with pytest.raises(CipmError, match="was killed by the system"):
        jailed("endless", folder=tmp_path, on_event=listen)
    wait_until(lambda: not alive(events[0]["pid"]))


def test_a_module_that_cannot_be_imported_is_said_and_tried_anew(tmp_path):
    entries = {"jail_new_jobs:answer": tmp_path}
    request = {"readable": [], "scratch": tmp_path / "scratch", "limits": Limits(threads=1), "also": entries}
    with pytest.raises(CipmError, match="ModuleNotFoundError: No module named 'jail_new_jobs'"):
        run("jail_new_jobs:answer", {}, **request)
    (tmp_path / "jail_new_jobs.py").write_text("def answer(request, scratch, emit):\n    return {'answer': 42}\n")
    assert run("jail_new_jobs:answer", {}, **request) == {"answer": 42}


# --- what comes back --------------------------------------------------------------------------------------------------


def test_an_honest_job_reads_writes_tells_and_returns(tmp_path):
    events, file = [], tmp_path / "file"
    file.write_text("content")
    result = jailed("echo", {"events": 3, "file": str(file)}, folder=tmp_path, readable=[file], on_event=events.append)
    assert result == {"read": "content"} and [event["done"] for event in events] == [0, 1, 2]
    assert (tmp_path / "scratch/folder/moved").read_text() == "content"


def test_an_error_comes_back_whole(tmp_path):
    with pytest.raises(ProbeError) as caught:
        jailed("honest_error", folder=tmp_path)
    assert caught.value.to_json()["error"] == {"code": "probe", "message": "The probe is not to our taste.",
                                               "where": "column 3", "fix": "Try another."}


@pytest.mark.parametrize(("job", "message"), [
    ("surprise", "The job failed inside the sandbox: ZeroDivisionError: one over zero"),
    ("crash", r"The job crashed inside the sandbox \(SIGSEGV\)"), ("not_json", "not one of our messages"),
    ("vanish", r"ended without a result \(exit status 0\)")])
def test_other_ends_are_said(job, message, tmp_path):
    with pytest.raises(CipmError, match=message) as caught:
        jailed(job, folder=tmp_path)
    assert not isinstance(caught.value, InputError)


# --- the engine's libraries -------------------------------------------------------------------------------------------


def test_products_with_several_threads(tmp_path):
    result = jailed("product", folder=tmp_path)
    assert len(result["torch"]) == 4 and len(set(result["torch"])) == 1
    assert result["numpy"] == pytest.approx(result["torch"][0]) and result["threads"] == 2 and max(result["blas"]) == 2


def test_torch_export(tmp_path):
    assert jailed("export", folder=tmp_path)["ops"] == ["aten.linear.default", "aten.relu.default", "aten.linear.default"]


def test_transformers_imported_after_the_lock(tmp_path):
    assert jailed("transformers", folder=tmp_path)["shape"] == [1, 3, 16]


def test_numba_compiles_before_and_after_the_lock(tmp_path):
    assert jailed("compiled", folder=tmp_path) == {"total": [45.0, 45.0], "prepared": [3], "scratch": []}


def test_scikit_learn_scipy_safetensors(tmp_path):
    result = jailed("libraries", folder=tmp_path)
    assert len(set(result["labels"][:5])) == 1 and result["labels"][0] != result["labels"][5]
    assert result["values"] == [1.0, 3.0] and result["tensor"] == [1.0, 1.0, 1.0]


def test_the_parents_side_never_imports_torch():
    code = "import sys, cipm.jail; cipm.jail.self_test(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
