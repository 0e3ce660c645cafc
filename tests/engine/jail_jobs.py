"""Jobs for the jail's tests: hostile ones, which must fail, and honest ones, which must work. Run in the jail only."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from cipm.errors import ProbeError


def attempt(request, scratch, emit):
    """Try one thing by name and return what came of it."""
    try:
        done = ATTEMPTS[request["what"]](request, scratch)
    except OSError as error:
        return {"refused": type(error).__name__}
    for end in done if isinstance(done, tuple) else (done,):
        getattr(end, "close", str)()
    return {"did": repr(done)}


def _set_owner(request, scratch):
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())


def _system_call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if (result := libc.syscall(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def _in_thread(function):
    """Run in a new thread: the lock must hold there too."""
    failed = []

    def target():
        try:
            function()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


ATTEMPTS = {
    "passwd": lambda r, s: Path("/etc/passwd").read_text(),
    "file": lambda r, s: Path(r["path"]).read_text(),
    "file through a link in scratch": lambda r, s: (s / "link").read_text(),
    "file in a thread": lambda r, s: _in_thread(lambda: open(r["path"]).close()),
    "file through /proc/self/root": lambda r, s: Path("/proc/self/root" + r["path"]).read_text(),
    "list": lambda r, s: os.listdir(r["path"]),
    "write": lambda r, s: Path(r["path"]).write_text("was here"),
    "append": lambda r, s: open(r["path"], "a"),
    "empty by opening": lambda r, s: os.open(r["path"], os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda r, s: os.truncate(r["path"], 0),
    "delete": lambda r, s: os.unlink(r["path"]),
    "rename in": lambda r, s: os.rename(r["path"], s / "stolen"),
    "link in": lambda r, s: os.link(r["path"], s / "linked"),
    "symlink": lambda r, s: os.symlink(r["path"], s / "pointer"),
    "extended attribute": lambda r, s: os.setxattr(r["path"], "user.cipm", b"x"),
    "chown": lambda r, s: os.chown(r["path"], 1, 1),
    "fifo": lambda r, s: os.mkfifo(s / "fifo"),
    "init's environment": lambda r, s: Path("/proc/1/environ").read_bytes(),
    "parent's environment": lambda r, s: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "parent's memory": lambda r, s: open(f"/proc/{os.getppid()}/mem", "rb"),
    "tcp": lambda r, s: socket.create_connection(("127.0.0.1", r["port"])),
    "ipv6": lambda r, s: socket.socket(socket.AF_INET6),
    "unix": lambda r, s: socket.socket(socket.AF_UNIX),
    "socket pair": lambda r, s: socket.socketpair(),
    "netlink": lambda r, s: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet": lambda r, s: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "look up a name": lambda r, s: socket.getaddrinfo("localhost", 80),
    "exec": lambda r, s: os.execv("/bin/true", ["true"]),
    "subprocess": lambda r, s: subprocess.run([sys.executable, "-c", "0"]),
    "fork": lambda r, s: os.fork(),
    "posix_spawn": lambda r, s: os.posix_spawn("/bin/true", ["true"], {}),
    "kill the parent": lambda r, s: os.kill(os.getppid(), signal.SIGKILL),
    "kill its group": lambda r, s: os.killpg(os.getpgid(os.getppid()), signal.SIGKILL),
    "kill everyone": lambda r, s: os.kill(-1, signal.SIGKILL),
    "signal through a pipe": _set_owner,
    "leave its group": lambda r, s: os.setsid(),
    "pin the parent": lambda r, s: os.sched_setaffinity(os.getppid(), {0}),
    "ptrace": lambda r, s: _system_call(101, 16, os.getppid(), 0, 0),
    "read the parent's pages": lambda r, s: _system_call(310, os.getppid(), 0, 0, 0, 0, 0),
    "bpf": lambda r, s: _system_call(321, 0, 0, 0),
    "io_uring": lambda r, s: _system_call(425, 8, ctypes.create_string_buffer(120)),
    "user namespace": lambda r, s: _system_call(272, 0x10000000),
    "clone3": lambda r, s: _system_call(435, ctypes.create_string_buffer(88), 88),
    "keyring": lambda r, s: _system_call(250, 0, -3, 0),
    "more memory": lambda r, s: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40)),
    "memory file": lambda r, s: os.close(os.memfd_create("hidden")),
}


def metadata(request, scratch, emit):
    """Ask for another mode and other times of a file outside; the answer is success, the file stays as it was."""
    os.chmod(request["path"], 0o777)
    os.utime(request["path"], (0, 0))
    return {}


def memory_bomb(request, scratch, emit):
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def shared_memory_bomb(request, scratch, emit):
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 16 << 20))
        kept[-1].write(bytes(16 << 20))


def torch_memory_bomb(request, scratch, emit):
    import torch  # noqa: PLC0415 (this module is imported by the tests too)
    return {"numel": torch.ones(1 << 34).numel()}


def file_bomb(request, scratch, emit):
    with open(scratch / "big", "wb") as file:
        while True:
            file.write(bytes(1 << 20))


def many_files_bomb(request, scratch, emit):
    number = 0
    while True:
        (scratch / str(number)).write_bytes(bytes(1 << 20))
        number += 1


def thread_bomb(request, scratch, emit):
    for _ in range(300):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        time.sleep(0.005)  # all at once, their stacks may fill the memory before anybody looks
    time.sleep(60)


def endless(request, scratch, emit):
    emit({"event": "started", "pid": os.getpid(), "server": os.getppid()})
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        pass


def flood(request, scratch, emit):
    while True:
        emit({"event": "x" * 1_000_000})


def endless_line(request, scratch, emit):
    for number in range(3, 20):
        try:
            while True:
                os.write(number, b"x" * 65536)
        except OSError:
            continue
    return {}


def not_json(request, scratch, emit):
    for number in range(3, 20):
        try:
            os.write(number, b'{"result": NaN}\n')
        except OSError:
            continue
    time.sleep(60)
    return {}


def crash(request, scratch, emit):
    ctypes.string_at(0)


def vanish(request, scratch, emit):
    os._exit(0)


def honest_error(request, scratch, emit):
    raise ProbeError("The probe is not to our taste.", where="column 3", fix="Try another.")


def surprise(request, scratch, emit):
    raise ZeroDivisionError("one over zero")


def environment(request, scratch, emit):
    return {"environ": dict(os.environ), "cwd": os.getcwd(), "uid": os.getuid()}


RUNS = []


def remember(request, scratch, emit):
    """Return what an earlier run left in memory, which server this is forked from, and the files it has open."""
    RUNS.append(request)
    return {"runs": len(RUNS), "server": os.getppid(), "open": sorted(map(int, os.listdir("/proc/self/fd")))}


def echo(request, scratch, emit):
    print("this goes to standard error")
    for number in range(request["events"]):
        emit({"event": "progress", "done": number})
    text = Path(request["file"]).read_text()
    (scratch / "written").write_text(text)
    (scratch / "moved").write_text(text)
    (scratch / "folder").mkdir()
    os.rename(scratch / "moved", scratch / "folder" / "moved")
    return {"read": text}
