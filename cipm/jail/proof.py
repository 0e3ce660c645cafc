"""The proof that a locked child is locked: it tries what a hostile file would, and each attempt must fail."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cipm.errors import JailError
from cipm.jail.policy import Policy


def prove(policy: Policy) -> tuple[str, ...]:
    """Return what was tried in vain; raises JailError naming the first attempt that succeeded. Cost: under 1 ms."""
    tried = attempts(policy)
    for name, attempt in tried.items():
        try:
            attempt()
        except OSError:
            continue
        raise JailError(f"The sandbox does not hold: a locked process could {name}; nothing was run.")
    return tuple(tried)


def attempts(policy: Policy) -> dict[str, Callable[[], Any]]:
    """Return what must be impossible, by name."""
    outside = Path(policy.canary).with_name("outside")
    return {
        "read a host file": lambda: os.open(policy.canary, os.O_RDONLY),
        "read the password file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "list the home folder": lambda: os.listdir(policy.forbidden_folder),
        "list the root folder": lambda: os.listdir("/"),
        "read another process's environment": lambda: os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY),
        "write outside its folder": lambda: os.open(outside, os.O_WRONLY | os.O_CREAT, 0o600),
        "empty a host file": lambda: os.truncate(policy.canary, 0),
        "open a TCP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "open a UDP socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "open a local socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "start a process": _fork,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
    }


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def self_test_job(request: dict[str, Any], scratch: Path, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Write, read back and delete a file in scratch: the entry of `cipm.jail.self_test`."""
    place = scratch / "self-test"
    place.write_text("written")
    text = place.read_text()
    place.unlink()
    return {"scratch": text == "written"}
