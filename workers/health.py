"""`python -m workers.health`: exit 0 where a worker of this host was heard of lately, else 1 with one line. For containers."""

from __future__ import annotations

import socket
import sys

from backend.settings import Settings, load_settings
from backend.store import jobs, open_store
from cipm.errors import CipmError


def problem(settings: Settings, host: str) -> str | None:
    """Return what is wrong with the workers of a host, or None."""
    store = open_store(settings)
    try:
        found = jobs.health(store, host=host)
    finally:
        store.close()
    if not found["alive"]:
        return f"No worker on {host} was heard of lately."
    return found["jail"]["detail"] if found["jail"] and not found["jail"]["ok"] else None


def main() -> int:
    """Print the problem, if any, and return the exit status."""
    try:
        found = problem(load_settings(), socket.gethostname())
    except CipmError as error:
        found = error.line()
    if found:
        print(found, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
