"""The jailed child: import, lock, prove, and only then touch the request.

It is started as a fresh interpreter by `cipm.jail.parent`. Its standard output is the channel of JSON lines; whatever
code prints goes to standard error. Standard input says "go" once, and stays open for as long as the parent lives.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cipm.errors import CipmError, JailError
from cipm.jail import kernel, landlock, proof, syscalls
from cipm.jail.policy import Policy
from cipm.jail.watch import out_of_memory, too_much_written

Send = Callable[[dict[str, Any]], None]


def main(entry: str, base: str, parent: int, watch_thread: bool) -> NoReturn:
    """Run one request: `entry` from the folder `base`, for the process `parent`; leaves by os._exit."""
    send = open_channel()
    code = 0
    try:
        layers = {"namespaces": list(kernel.enter_namespaces())}
        function = resolve(entry)
        send({"ready": True})
        wait_for_go()
        policy = Policy.from_json(json.loads(Path(base, "policy.json").read_text()))
        layers |= lock(policy, parent, watch_thread)
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


def resolve(entry: str) -> Callable[..., Any]:
    """Import the entry's module, call its `prepare()` where it has one, and return the entry's function.

    `prepare` is for what is slow and needs no request, such as loading what numba has compiled: nothing untrusted has
    been touched yet, so it may read and write caches that the locked process may not.
    """
    name, function = entry.split(":")
    module = importlib.import_module(name)
    getattr(module, "prepare", lambda: None)()
    return getattr(module, function)


def wait_for_go() -> None:
    """Wait for the parent's word; leave quietly where the parent ended first."""
    if sys.stdin.readline() != "go\n":
        os._exit(0)


def lock(policy: Policy, parent: int, watch_thread: bool) -> dict[str, Any]:
    """Lock this process down for good and return the layers; raises JailError where one cannot be had."""
    started = time.perf_counter()
    with open(policy.canary, "rb"):  # it can be read now, so that failing to read it later proves something
        pass
    if (threads := kernel.thread_count()) != 1:
        raise JailError(f"The sandbox must be locked before there are threads, and there are {threads}: nothing ran.")
    set_limits(policy)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    if watch_thread:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    os.environ["TMPDIR"] = policy.home
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
    threading.Thread(target=_leave_with_parent, daemon=True).start()
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


def _leave_with_parent() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(0)
