"""A worker's own folder: locked while the worker lives, so that the next one knows which folders nobody owns."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_folder(root: Path, worker_id: str) -> Iterator[Path]:
    """Give a private folder under `root`, removed at the end; folders of dead workers are removed first."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_stale(root)
    folder = root / worker_id
    with open(_lock_path(folder), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _lock_path(folder).unlink(missing_ok=True)


def remove_stale(root: Path) -> list[Path]:
    """Remove the folders whose worker is gone (its lock went with it) and return them."""
    gone = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
        with open(_lock_path(folder), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            os.unlink(lock.name)
            gone.append(folder)
    return gone


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
