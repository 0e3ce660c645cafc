"""The parent's side: start a child, watch it, and end it at a limit or on request. Free of torch."""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cipm.errors import Cancelled, CipmError, JailError, LimitExceeded, from_json
from cipm.jail.policy import Limits, Policy, check_entry
from cipm.jail.watch import check_tree, check_usage, check_written

log = logging.getLogger("cipm.jail")

TICK, STOP_EVERY, DISK_EVERY = 0.05, 0.2, 1.0  # seconds between looks at memory, the stop flag, the disk
MOST_LINE, MOST_TALK = 16 << 20, 256 << 20  # bytes of one message, and of all messages
KEPT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")  # what the child sees of our environment
MOST_TEXT = 4000  # characters of an error's line
START = "import sys; sys.path[:0] = {paths!r}; from cipm.jail.child import main; main(*{arguments!r})"


class Spare:
    """A child that has imported what it needs and waits, to be used by one `run`.

    `entry`, `threads`, `cuda` must be those of the run. Close it where it is not used.
    """

    def __init__(self, entry: str, *, threads: int | None = None, cuda: bool = False,
                 also: Mapping[str, Path] | None = None):
        also = also or {}
        check_entry(entry, also)
        self.entry, self.threads, self.cuda = entry, threads or Limits().threads, cuda
        self.base = Path(tempfile.mkdtemp(prefix="cipm-jail-")).resolve()
        self.home = self.base / "home"
        self.home.mkdir()
        (self.base / "canary").write_text("A jailed process that can read this is not in a jail.")
        folders = {str(Path(__file__).resolve().parents[2]), *map(str, also.values())}
        main_thread = threading.current_thread() is threading.main_thread()
        code = START.format(paths=sorted(folders), arguments=(entry, str(self.base), os.getpid(), main_thread))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "faulthandler", "-c", code], cwd=self.base, env=self._environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def serves(self, entry: str, threads: int, cuda: bool) -> bool:
        """Tell whether this child is alive and made for such a run."""
        return self.process.poll() is None and (self.entry, self.threads, self.cuda) == (entry, threads, cuda)

    def wait_ready(self, seconds: float = 60.0) -> bool:
        """Wait until the child has imported everything (it says so on its channel) or the time is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def close(self) -> None:
        """End the child, whatever it does, and remove its folder."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        """Return the child's whole environment: nothing of ours but the locale, library path and GPU number."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        home, threads = str(self.home), str(self.threads)
        return kept | {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home, "HF_HOME": home, "TORCHINDUCTOR_CACHE_DIR": home,
            "USER": "cipm", "LOGNAME": "cipm",
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": "1",  # it would start its threads at import; the child raises it once locked
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if self.cuda else "",
        }


@dataclass
class Conversation:
    """What the child has said so far, and what it may still say. The one mutable value of this module."""

    on_event: Callable[[dict[str, Any]], None]
    buffer: bytearray = field(default_factory=bytearray)
    said: int = 0
    locked: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    printed: deque[bytes] = field(default_factory=lambda: deque(maxlen=16))

    def hear(self, chunk: bytes) -> None:
        """Take in bytes of the channel; raises LimitExceeded on a flood, JailError on anything but our JSON lines."""
        self.said += len(chunk)
        self.buffer += chunk
        if self.said > MOST_TALK or len(self.buffer) > MOST_LINE:
            raise LimitExceeded("The job sent more messages than it may and was stopped.")
        if b"\n" in chunk:
            *lines, self.buffer = self.buffer.split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"ready": True}:
                pass
            case {"locked": dict(layers)}:
                self.locked = layers
            case {"emit": dict(event)} if self.locked:
                self.on_event(event)
            case {"result": dict()}:
                self.answer = message
            case {"error": {"code": str(code), "message": str(text), "where": str() | None as where,
                            "fix": str() | None as fix}}:
                self.answer = {"error": {"code": code, "message": text[:MOST_TEXT],
                                         "where": where and where[:MOST_TEXT], "fix": fix and fix[:MOST_TEXT]}}
            case _:
                raise JailError("The job sent something that is not one of our messages and was stopped.")


def _ignore(event: dict[str, Any]) -> None:
    """Take no notice of an event."""


def run(entry: str, request: dict[str, Any], *, readable: Sequence[Path], scratch: Path, limits: Limits,
        on_event: Callable[[dict[str, Any]], None] = _ignore, should_stop: Callable[[], bool] = lambda: False,
        cuda: bool = False, spare: Spare | None = None, also: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Run `entry(request, scratch, emit)` in a locked-down child and return its result.

    `readable` are the files and folders it may read, `scratch` the folder it may write, `on_event` is called with
    each event. `spare` is used up where it fits. `also` names further trusted entries with the folder to import each
    from (tests use it).

    Raises the child's own CipmError; LimitExceeded at a limit; Cancelled where `should_stop` says so; JailError where
    the lock cannot be built, does not hold or was broken; CipmError where the child crashes. Cost: 5 ms for the
    lock, plus the imports of the entry.
    """
    check_entry(entry, also or {})
    child = spare if spare and spare.serves(entry, limits.threads, cuda) else None
    if spare and not child:
        spare.close()
    child = child or Spare(entry, threads=limits.threads, cuda=cuda, also=also)
    return _converse(child, request, readable, scratch, limits, Conversation(on_event), should_stop)


def self_test() -> dict[str, Any]:
    """Lock a child down, have it prove that it is locked, and return {ok, detail, layers}. Cost: 0.2 s."""
    entry, limits = "cipm.jail.proof:self_test_job", Limits(seconds=60.0, threads=1)
    conversation = Conversation(_ignore)
    with tempfile.TemporaryDirectory(prefix="cipm-jail-") as folder:
        try:
            _converse(Spare(entry, threads=1), {}, [], Path(folder), limits, conversation, lambda: False)
        except CipmError as error:
            return {"ok": False, "detail": error.line(), "layers": conversation.locked or {}}
    return {"ok": True, "detail": _in_words(conversation.locked), "layers": conversation.locked}


def _in_words(layers: Mapping[str, Any]) -> str:
    names = [f"Landlock {layers['landlock']}", "seccomp", *(f"{name} namespace" for name in layers["namespaces"])]
    return f"{', '.join(names)}; {len(layers['proved'])} break-out attempts failed as they must."


def _converse(child: Spare, request: dict[str, Any], readable: Sequence[Path], scratch: Path, limits: Limits,
              conversation: Conversation, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Give the child its one request, watch it to its end, and return its result."""
    try:
        _brief(child, request, readable, scratch, limits)
        _watch(child, conversation, scratch, limits, should_stop)
    finally:
        child.close()
        if conversation.printed:
            log.debug("printed in the jail: %s", b"".join(conversation.printed).decode(errors="replace"))
    return _conclude(child, conversation, scratch)


def _brief(child: Spare, request: dict[str, Any], readable: Sequence[Path], scratch: Path, limits: Limits) -> None:
    """Write down what the child may do and is to do, and say go."""
    scratch.mkdir(parents=True, exist_ok=True)
    home = Path.home()
    policy = Policy(tuple(str(path.resolve(strict=True)) for path in readable), str(scratch.resolve()), str(child.home),
                    str(child.base / "canary"), str(home if home.is_dir() else "/etc"), limits, child.cuda)
    (child.base / "policy.json").write_text(json.dumps(asdict(policy)))
    (child.home / "request.json").write_text(json.dumps(request, allow_nan=False))
    try:
        child.process.stdin.write(b"go\n")
        child.process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended already; what it said is read next


def _watch(child: Spare, conversation: Conversation, scratch: Path, limits: Limits,
           should_stop: Callable[[], bool]) -> None:
    """Listen to the child until it ends; raises at a limit or when asked to stop."""
    start = time.monotonic()
    next_stop = next_disk = start
    with selectors.DefaultSelector() as selector:
        selector.register(child.process.stdout, selectors.EVENT_READ, conversation.hear)
        selector.register(child.process.stderr, selectors.EVENT_READ, conversation.printed.append)
        while selector.get_map():
            for key, _ in selector.select(TICK):
                if chunk := os.read(key.fd, 1 << 16):
                    key.data(chunk)
                else:
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if now - start > limits.seconds:
                raise LimitExceeded(f"The job ran longer than the limit of {limits.seconds:g} s and was stopped.",
                                    fix="Use a smaller model or fewer probe rows, or raise CIPM_JOB_SECONDS.")
            if now >= next_stop:
                next_stop = now + STOP_EVERY
                if should_stop():
                    raise Cancelled("The job was stopped as asked.")
            if now >= next_disk:
                next_disk = now + DISK_EVERY
                check_written((scratch, child.home), limits)
            check_usage(child.process.pid, limits)
    child.process.wait(timeout=max(1.0, limits.seconds - (time.monotonic() - start)))


def _conclude(child: Spare, conversation: Conversation, scratch: Path) -> dict[str, Any]:
    """Return the result, or raise what became of the child."""
    code = child.process.returncode
    if conversation.answer and "error" in conversation.answer:
        raise from_json(conversation.answer)
    if not conversation.locked:
        raise JailError(f"The sandbox could not be started; nothing was run. {_last_line(conversation)}".strip())
    if code < 0:
        raise _death(-code)
    if code or not conversation.answer:
        raise CipmError(f"The job ended without a result (exit status {code}).")
    check_tree(scratch)
    return conversation.answer["result"]


def _death(number: int) -> CipmError:
    if number == signal.SIGXCPU:
        return LimitExceeded("The job used more processor time than it may and was stopped.")
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return CipmError("The job was killed by the system (SIGKILL), most likely because the machine ran out of "
                         "memory.", fix="Use a smaller model or fewer probe rows, or a machine with more memory.")
    return CipmError(f"The job crashed inside the sandbox ({name}) while working on this file; nothing else was "
                     "affected.", fix="Please report the file.")


def _last_line(conversation: Conversation) -> str:
    lines = b"".join(conversation.printed).decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)
