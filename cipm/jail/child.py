"""The jailed child: lock, prove, and only then touch the request.

It is forked by `cipm.jail.serve`, which has imported what it needs. Its standard output is the channel of JSON lines; what
code prints goes to standard error. Standard input says "go" once.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from cipm.errors import CipmError, JailError
from cipm.jail import kernel, landlock, proof, syscalls
from cipm.jail.forkserver import home_in
from cipm.jail.policy import Policy
from cipm.jail.watch import out_of_memory, too_much_written

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Given:
    """What a child is told at its fork: `entry` to run, its folder `base`, its server, and how many threads that had."""

    entry: str
    base: str
    server: int
    threads: int
    prepared: bool


def main(given: Given) -> NoReturn:
    """Run one request; leaves by os._exit."""
    send = open_channel()
    code = 0
    try:
        wait_for_go()
        settle(given.base)
        function = resolve(given)
        policy = Policy.from_json(json.loads(Path(given.base, "policy.json").read_text()))
        layers = {"namespaces": list(kernel.enter_namespaces())} | lock(policy, given)
        layers["proved"] = list(proof.prove(policy))
        send({"locked": layers})
        send({"result": work(function, policy, send)})
    except BaseException as error:  # whatever it is, the parent is told, and this process ends here
        traceback.print_exc()
        send(describe(error).to_json())
        code = 1
    sys.stderr.flush()
    os._exit(code)


def open_channel() -> Send:
    """Take standard output for JSON lines alone; what is printed goes to standard error."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    guard = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        with guard:
            while line:
                line = line[channel.write(line):]

    return send


def prepare(module: str) -> ModuleType:
    """Import the module and call its `prepare()` where it has one.

    `prepare` is for what is slow and needs no request, such as loading what numba has compiled: nothing untrusted has
    been touched yet, so it may read and write caches that a locked process may not.
    """
    imported = importlib.import_module(module)
    getattr(imported, "prepare", lambda: None)()
    return imported


def resolve(given: Given) -> Callable[..., Any]:
    """Return the entry's function, from a module that the server has imported, or else is imported now."""
    module, function = given.entry.split(":")
    return getattr(sys.modules[module] if given.prepared else prepare(module), function)


def wait_for_go() -> None:
    """Wait for the parent's word; leave quietly where the parent ended first."""
    if sys.stdin.readline() != "go\n":
        os._exit(0)


def settle(base: str) -> None:
    """Let what asks for a home or a place for temporary files find this run's own."""
    os.environ.update(home_in(Path(base)))
    tempfile.tempdir = None


def lock(policy: Policy, given: Given) -> dict[str, Any]:
    """Lock this process down for good and return the layers; raises JailError where one cannot be had."""
    started = time.perf_counter()
    with open(policy.canary, "rb"):  # it can be read now, so that failing to read it later proves something
        pass
    if (threads := max(given.threads, kernel.thread_count())) != 1:
        raise JailError(f"The sandbox must be locked before there are threads, and there are {threads}: nothing ran.")
    set_limits(policy)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given.server:
        os._exit(0)
    os.chdir(policy.scratch)
    version = landlock.restrict(policy.read_paths(), policy.write_paths(), policy.devices())
    syscalls.restrict(cuda=policy.cuda)
    return {"landlock": version, "seccomp": True, "milliseconds": round(1e3 * (time.perf_counter() - started), 2)}


def set_limits(policy: Policy) -> None:
    """Set the limits that the kernel keeps; the parent keeps the others."""
    limits = policy.limits
    kept = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: limits.open_files, resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_FSIZE: limits.file_bytes,
            resource.RLIMIT_CPU: 60 + int(limits.seconds * (limits.threads + 1))}
    if not policy.cuda:  # the driver reserves far more than it uses
        kept[resource.RLIMIT_DATA] = limits.memory_bytes
    for limit, value in kept.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def work(function: Callable[..., Any], policy: Policy, send: Send) -> dict[str, Any]:
    """Run the request with the threads it may use and return its result."""
    _use_threads(policy.limits.threads)
    request = json.loads(Path(policy.home, "request.json").read_text())
    result = function(request, Path(policy.scratch), lambda event: send({"emit": event}))
    assert isinstance(result, dict), f"a job returns a dict, not {type(result).__name__}"
    return result


def describe(error: BaseException) -> CipmError:
    """Return what to tell the parent about an exception."""
    if isinstance(error, CipmError):
        return error
    code = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM or "can't allocate memory" in str(error):
        return out_of_memory(resource.getrlimit(resource.RLIMIT_DATA)[0])
    if code == errno.EFBIG:
        return too_much_written(resource.getrlimit(resource.RLIMIT_FSIZE)[0])
    first = (str(error).strip() or "no message").splitlines()[0][:500]
    return CipmError(f"The job failed inside the sandbox: {type(error).__name__}: {first}")


def _use_threads(threads: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    if pools := sys.modules.get("threadpoolctl"):
        pools.threadpool_limits(threads, user_api="blas")
