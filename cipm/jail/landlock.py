"""Landlock: what of the file system the process may still reach. No rule, no access.

Source: the kernel's Documentation/userspace-api/landlock.rst. Landlock does not govern metadata (stat, chmod, utime),
and truncation only from ABI 3 on; `cipm.jail.syscalls` closes those.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from cipm.errors import JailError
from cipm.jail.kernel import LIBC, call

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
CREATE_RULESET_VERSION, RULE_PATH_BENEATH = 1, 1

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = (
    1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 13, 14, 15))
FILE_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many bits each version knows
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE  # no links, no devices
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
ON_FILES = WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rights that a rule for a single file may name


class Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """Return the version of Landlock that the kernel offers, 0 where it has none or it is switched off."""
    return max(0, LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), CREATE_RULESET_VERSION))


def restrict(read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path] = ()) -> int:
    """Confine this thread (call it before there is another) to these paths; return the ABI version used.

    Paths that do not exist are left out. Every right the kernel knows is handled, so execution, links, device nodes
    and sockets are granted nowhere, nor are TCP (ABI 4) or signals and abstract sockets to the outside (ABI 6).
    Raises JailError where there is no Landlock, OSError where the kernel refuses.
    """
    version = abi()
    if version < 1:
        raise JailError("The sandbox needs Landlock, which this kernel does not offer; nothing was run.",
                        fix="Use Linux 5.13 or later with landlock in its lsm= list (the default on Debian 12 and "
                            "Ubuntu 22.04; in a container, update the container engine).")
    handled = (1 << FILE_RIGHTS_BY_ABI.get(version, 16)) - 1
    attributes = Ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call(LIBC.syscall(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0), "landlock ruleset")
    for paths, rights in ((read, READ), (write, WRITE), (devices, DEVICE)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    call(LIBC.syscall(RESTRICT_SELF, ruleset, 0), "landlock restrict")
    os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    rule = PathBeneath(rights if path.is_dir() else rights & ON_FILES, place)
    call(LIBC.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0), f"landlock rule for {path}")
    os.close(place)
