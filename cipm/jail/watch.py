"""What the parent sees of a running child: memory, threads, and what it has written. Free of torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cipm.errors import JailError, LimitExceeded
from cipm.jail.policy import Limits

MOST_FILES = 100_000


def usage(pid: int) -> tuple[int, int]:
    """Return (bytes of memory that is the process's own, threads); (0, 0) once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kibibytes = sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap") if name in lines)
    return kibibytes << 10, int(lines.get("Threads", "0"))


def check_usage(pid: int, limits: Limits) -> None:
    """Raise LimitExceeded where the process holds too much memory or too many threads."""
    memory, threads = usage(pid)
    if memory > limits.memory_bytes:
        raise out_of_memory(limits.memory_bytes)
    if threads > limits.most_threads:
        raise LimitExceeded(f"The job started more than {limits.most_threads} threads and was stopped.")


def check_written(folders: Iterable[Path], limits: Limits) -> None:
    """Raise LimitExceeded where the folders together hold too many bytes or files."""
    total = 0
    for number, entry in enumerate(entry for folder in folders for entry in walk(folder)):
        total += _size(entry)
        if total > limits.file_bytes:
            raise too_much_written(limits.file_bytes)
        if number >= MOST_FILES:
            raise LimitExceeded(f"The job made more than {MOST_FILES:,} files and was stopped.")


def check_tree(folder: Path) -> None:
    """Raise JailError where a job left anything but plain files and folders, which nobody may then follow."""
    for entry in walk(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise JailError(f"The job left {entry.name!r}, neither a file nor a folder; its result is not used.")


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield every entry under a folder without following a link; what vanishes meanwhile is left out."""
    pending = [str(folder)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from entries
        pending.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def out_of_memory(limit: int) -> LimitExceeded:
    """Return the error of a job that needs more memory than it may."""
    return LimitExceeded(f"The job needed more memory than the limit of {limit / 1e9:.2f} GB and was stopped.",
                         fix="Use a smaller model or fewer probe rows, or raise CIPM_JOB_MEMORY_BYTES.")


def too_much_written(limit: int) -> LimitExceeded:
    """Return the error of a job that writes more than it may."""
    return LimitExceeded(f"The job wrote more than the limit of {limit / 1e9:.2f} GB and was stopped.",
                         fix="Use a smaller model or fewer probe rows.")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
