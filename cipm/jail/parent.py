"""The parent's side: start a child, watch it, and end it at a limit or on request. Free of torch."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cipm.errors import Cancelled, CipmError, JailError, LimitExceeded, from_json
from cipm.jail.forkserver import PACKAGE, Child, ForkServer, last_line, server_for
from cipm.jail.policy import Limits, Policy, check_entry
from cipm.jail.watch import check_tree, check_usage, check_written

log = logging.getLogger("cipm.jail")

TICK, STOP_EVERY, DISK_EVERY = 0.05, 0.2, 1.0  # seconds between looks at memory, the stop flag, the disk
MOST_LINE, MOST_TALK = 16 << 20, 256 << 20  # bytes of one message, and of all messages
MOST_TEXT = 4000  # characters of an error's line


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


def prepare(entry: str, *, threads: int | None = None, cuda: bool = False, also: Mapping[str, Path] | None = None) -> None:
    """Start what later runs of this entry, with these threads, are forked from; without it the first run does."""
    check_entry(entry, also or {})
    server_for(entry, threads or Limits().threads, cuda=cuda, also=also or {})


def run(entry: str, request: dict[str, Any], *, readable: Sequence[Path], scratch: Path, limits: Limits,
        on_event: Callable[[dict[str, Any]], None] = _ignore, should_stop: Callable[[], bool] = lambda: False,
        cuda: bool = False, also: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Run `entry(request, scratch, emit)` in a locked-down child and return its result.

    `readable` are the files and folders it may read, `scratch` the folder it may write, `on_event` is called with
    each event. `also` names further trusted entries with the folder to import each from (tests use it).

    Raises the child's own CipmError; LimitExceeded at a limit; Cancelled where `should_stop` says so; JailError where
    the lock cannot be built, does not hold or was broken; CipmError where the child crashes. Cost: 30 ms for fork and
    lock; the first run of an entry's module in this process waits for its imports.
    """
    check_entry(entry, also or {})
    server = server_for(entry, limits.threads, cuda=cuda, also=also or {})
    return _converse(server, entry, request, _Bounds(readable, scratch, limits, cuda), Conversation(on_event), should_stop)


def self_test() -> dict[str, Any]:
    """Lock a child down, have it prove that it is locked, and return {ok, detail, layers}. Cost: 0.2 s."""
    entry, conversation = "cipm.jail.proof:self_test_job", Conversation(_ignore)
    server = ForkServer("cipm.jail.proof", (PACKAGE,), 1, cuda=False)
    with tempfile.TemporaryDirectory(prefix="cipm-jail-") as scratch, closing(server):
        bounds = _Bounds([], Path(scratch), Limits(seconds=60.0, threads=1))
        try:
            _converse(server, entry, {}, bounds, conversation, lambda: False)
        except CipmError as error:
            return {"ok": False, "detail": error.line(), "layers": conversation.locked or {}}
    return {"ok": True, "detail": _in_words(conversation.locked), "layers": conversation.locked}


def _in_words(layers: Mapping[str, Any]) -> str:
    names = [f"Landlock {layers['landlock']}", "seccomp", *(f"{name} namespace" for name in layers["namespaces"])]
    return f"{', '.join(names)}; {len(layers['proved'])} break-out attempts failed as they must."


@dataclass(frozen=True)
class _Bounds:
    """What one run may read, write and use."""

    readable: Sequence[Path]
    scratch: Path
    limits: Limits
    cuda: bool = False


def _converse(server: ForkServer, entry: str, request: dict[str, Any], bounds: _Bounds, conversation: Conversation,
              should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Have a child forked for this one request, watch it to its end, and return its result."""
    bounds.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cipm-jail-", ignore_cleanup_errors=True) as folder:
        base = Path(folder).resolve()
        _brief(base, request, bounds)
        with closing(server.fork(entry, base)) as child:
            _watch(child, conversation, base, bounds, should_stop)
    if conversation.printed:
        log.debug("printed in the jail: %s", b"".join(conversation.printed).decode(errors="replace"))
    return _conclude(child, conversation, bounds.scratch)


def _brief(base: Path, request: dict[str, Any], bounds: _Bounds) -> None:
    """Write down what the child may do and is to do."""
    (base / "home").mkdir()
    (base / "canary").write_text("A jailed process that can read this is not in a jail.")
    folder = Path.home() if Path.home().is_dir() else "/etc"
    policy = Policy(tuple(str(path.resolve(strict=True)) for path in bounds.readable), str(bounds.scratch.resolve()),
                    str(base / "home"), str(base / "canary"), str(folder), bounds.limits, bounds.cuda)
    (base / "policy.json").write_text(json.dumps(asdict(policy)))
    (base / "home/request.json").write_text(json.dumps(request, allow_nan=False))


def _watch(child: Child, conversation: Conversation, base: Path, bounds: _Bounds, should_stop: Callable[[], bool]) -> None:
    """Listen to the child until it ends; raises at a limit or when asked to stop."""
    limits, start = bounds.limits, time.monotonic()
    next_stop = next_disk = start
    with selectors.DefaultSelector() as selector:
        selector.register(child.status, selectors.EVENT_READ, child.hear)
        selector.register(child.outputs, selectors.EVENT_READ, conversation.hear)
        selector.register(child.errors, selectors.EVENT_READ, conversation.printed.append)
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
                check_written((bounds.scratch, base / "home"), limits)
            if child.pid:
                check_usage(child.pid, limits)


def _conclude(child: Child, conversation: Conversation, scratch: Path) -> dict[str, Any]:
    """Return the result, or raise what became of the child."""
    if conversation.answer and "error" in conversation.answer:
        raise from_json(conversation.answer)
    if not conversation.locked:
        said = last_line(b"".join(conversation.printed)) or last_line(child.server.printed())
        raise JailError(f"The sandbox could not be started; nothing was run. {said}".strip())
    code = -signal.SIGKILL if child.code is None else child.code  # nobody says how it ended: its server was killed
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


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)
