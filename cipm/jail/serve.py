"""The fork server itself: import once, then fork a child for each request until the parent hangs up."""

from __future__ import annotations

import gc
import json
import os
import selectors
import shutil
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from cipm.jail import kernel
from cipm.jail.child import Given, main, prepare


def serve(module: str, base: str, control: int) -> NoReturn:
    """Import `module`, then fork a child for each request on the socket `control`; end when that closes, and remove `base`."""
    prepared = import_once(module)
    gc.freeze()  # what no collection touches stays shared with the children
    asked = socket.socket(fileno=control)
    with selectors.DefaultSelector() as selector:
        selector.register(asked, selectors.EVENT_READ)
        listening = True
        while listening:
            for key, _ in selector.select():
                if key.data is not None:
                    tell_end(selector, key)
                else:
                    listening = fork_child(asked, selector, prepared)
    shutil.rmtree(base, ignore_errors=True)
    os._exit(0)


def import_once(module: str) -> bool:
    """Import and prepare the module for all children; tell whether it could be: else each child tries, and says why not."""
    try:
        prepare(module)
    except Exception:
        traceback.print_exc()
        return False
    return True


def fork_child(asked: socket.socket, selector: selectors.BaseSelector, prepared: bool) -> bool:
    """Fork the child that the next message asks for; tell whether there was one. The child does not return."""
    message, files, _, _ = socket.recv_fds(asked, 1 << 16, 4)
    if not message:
        return False
    given = Given(*json.loads(message), os.getpid(), kernel.thread_count(), prepared)
    pid = os.fork()
    if not pid:
        take_streams(files)
        main(given)
    *streams, status = files
    for end in streams:
        os.close(end)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
    tell(status, pid)
    return True


def take_streams(files: list[int]) -> None:
    """Make the first three files standard input, output and error, and close everything else, the server's too."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def tell_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Say how a child ended, and forget it."""
    selector.unregister(key.fileobj)
    pid, status = key.data
    os.close(key.fd)
    tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os.close(status)


def tell(status: int, number: int) -> None:
    """Write a number to a child's parent, who may have gone."""
    with suppress(BrokenPipeError):
        os.write(status, b"%d\n" % number)
