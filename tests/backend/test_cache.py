"""Folders made once, whole, and removed when there are too many; and the embedded worker's life."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from backend.cache import FolderCache
from backend.settings import Settings
from backend.worker import EmbeddedWorker


def fill(size: int):
    return lambda folder: (folder / "data").write_bytes(b"x" * size)


def test_a_folder_is_filled_once_by_whoever_comes_first(tmp_path):
    cache, calls = FolderCache(tmp_path), []

    def slow(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.1)
        (folder / "data").write_bytes(b"x")

    threads = [threading.Thread(target=cache.get, args=("key", slow)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and (cache.get("key", slow) / "data").read_bytes() == b"x"


def test_what_could_not_be_filled_does_not_stand(tmp_path):
    cache = FolderCache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        cache.get("key", fail)
    assert list(tmp_path.iterdir()) == []
    assert (cache.get("key", fill(1)) / "data").exists()


def test_the_least_recently_used_go_first_and_open_files_stay_readable(tmp_path):
    cache = FolderCache(tmp_path, limit=2500)
    for age, key in ((300, "old"), (400, "older-but-used")):
        os.utime(cache.get(key, fill(1000)), (time.time() - age,) * 2)
    with open(cache.get("older-but-used", fill(0)) / "data", "rb") as held:
        cache.get("young", fill(1000))
        assert sorted(place.name for place in tmp_path.iterdir()) == ["older-but-used", "young"]
        cache.get("large", fill(2000))
        assert [place.name for place in tmp_path.iterdir()] == ["large"]
        assert held.read() == b"x" * 1000


LIVES = "import sys; sys.stdin.read()"
DIES = "import sys; sys.exit(3)"


def wait_for(condition, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def run_loop(worker: EmbeddedWorker, during) -> None:
    """Start the worker on an event loop of its own, run `during` beside it in this thread, then stop the worker."""
    async def main() -> None:
        worker.start()
        await asyncio.to_thread(during)
        await worker.stop()

    asyncio.run(main())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_started_again_and_the_last_one_ends_with_the_server(tmp_path):
    worker = EmbeddedWorker(Settings(data=tmp_path), command=(sys.executable, "-c", LIVES))
    pids: list[int] = []

    def during() -> None:
        wait_for(lambda: worker.process is not None)
        pids.append(worker.process.pid)
        os.kill(pids[0], 9)
        wait_for(lambda: worker.process.pid != pids[0])
        pids.append(worker.process.pid)
        assert alive(pids[1])

    run_loop(worker, during)
    assert not alive(pids[0]) and not alive(pids[1])


def test_a_worker_that_cannot_start_is_tried_at_growing_distances(tmp_path):
    worker = EmbeddedWorker(Settings(data=tmp_path), command=(sys.executable, "-c", DIES))
    seen: set[int] = set()

    def during() -> None:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            if worker.process is not None:
                seen.add(worker.process.pid)
            time.sleep(0.02)

    run_loop(worker, during)
    assert 1 <= len(seen) <= 3
