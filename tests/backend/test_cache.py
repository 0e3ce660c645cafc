"""Folders made once, whole, and removed when there are too many."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from backend.cache import FolderCache


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
