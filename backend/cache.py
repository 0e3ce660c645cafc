"""Folders made once and kept while there is room: pyramids, and copies of artefacts from a remote store.

A folder is filled beside its place and renamed, so what stands is whole. The least recently used go first when all
together are over the limit; a file that is open stays readable after its removal.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CACHE_BYTES = 8 * 2**30


class KeyLock:
    """A lock that a weak dictionary can hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True)
class FolderCache:
    """Folders by key under `root`, at most `limit` bytes. Safe for many threads and several processes."""

    root: Path
    limit: int = CACHE_BYTES
    _locks: weakref.WeakValueDictionary[str, KeyLock] = field(default_factory=weakref.WeakValueDictionary)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str, fill: Callable[[Path], object]) -> Path:
        """Return the folder of this key, filling it first where it does not stand; one thread fills, others wait."""
        target = self.root / key
        if _touched(target):
            return target
        with self._lock(key):
            if not _touched(target):
                _whole(target, fill)
                self.trim(keep=key)
        return target

    def trim(self, *, keep: str) -> None:
        """Remove the least recently used folders, but not `keep`, until the rest fits the limit."""
        found = sorted(_dated(self.root))
        total = sum(size for _, size, _ in found)
        for _, size, place in found:
            if total <= self.limit:
                return
            if place.name != keep:
                total -= size
                _remove(place)

    def _lock(self, key: str) -> KeyLock:
        with self._guard:
            return self._locks.setdefault(key, KeyLock())


def _touched(folder: Path) -> bool:
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def _whole(target: Path, fill: Callable[[Path], object]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        if not target.exists():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dated(root: Path) -> list[tuple[float, int, Path]]:
    return [(place.stat().st_mtime, sum(path.stat().st_size for path in place.rglob("*") if path.is_file()), place)
            for place in root.iterdir() if place.is_dir()]


def _remove(place: Path) -> None:
    # Renamed first: nobody must find half a folder.
    gone = place.with_name(f".gone-{place.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        place.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)
