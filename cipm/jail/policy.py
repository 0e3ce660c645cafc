"""What a jailed child may use and reach, as frozen values that cross to the child as JSON. Free of torch."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cipm.errors import JailError

ENTRY = re.compile(r"cipm(\.[a-z_]+)*:[a-z_]+_job")

SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime",
          "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/proc/cpuinfo",
          "/proc/meminfo", "/proc/stat", "/proc/self", "/proc/version", "/proc/sys/vm", "/sys/devices/system/cpu",
          "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage")
CUDA_READ = ("/proc/driver/nvidia", "/proc/devices", "/sys/bus/pci", "/sys/devices", "/sys/module/nvidia",
             "/sys/module/nvidia_uvm", "/etc/nvidia", "/usr/share/nvidia", "/usr/local/cuda", "/opt/nvidia")


@dataclass(frozen=True)
class Limits:
    """What one job may use; passing any of them ends it with LimitExceeded.

    `memory_bytes` counts anonymous and shared memory and swap, not files mapped for reading. `seconds` is wall time.
    `file_bytes` bounds each file written and all of them together. `threads` is how many compute; a job may have
    four times as many and 32 more.
    """

    memory_bytes: int = 8 << 30
    seconds: float = 3600.0
    file_bytes: int = 32 << 30
    threads: int = os.cpu_count() or 1
    open_files: int = 1024

    @property
    def most_threads(self) -> int:
        """Return how many threads may live at once."""
        return 4 * self.threads + 32


@dataclass(frozen=True)
class Policy:
    """Everything the child has to know to lock itself down, and to prove that it did."""

    readable: tuple[str, ...]
    scratch: str
    home: str
    canary: str
    forbidden_folder: str
    limits: Limits
    cuda: bool

    def read_paths(self) -> tuple[Path, ...]:
        """Return everything the child may read: the request's files, Python, libraries, our own package."""
        extra = CUDA_READ if self.cuda else ()
        return tuple(map(Path, (*self.readable, *python_paths(), *SYSTEM, *extra)))

    def write_paths(self) -> tuple[Path, ...]:
        """Return the two folders the child may write."""
        return Path(self.scratch), Path(self.home)

    def devices(self) -> tuple[Path, ...]:
        """Return the device nodes the child may use."""
        graphics = sorted(Path("/dev").glob("nvidia*")) if self.cuda else []
        return Path("/dev/null"), *graphics

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Policy:
        """Rebuild a policy from `dataclasses.asdict`."""
        return cls(**{**payload, "readable": tuple(payload["readable"]), "limits": Limits(**payload["limits"])})


def python_paths() -> tuple[str, ...]:
    """Return the folders Python imports from: its library, the virtual environment's, and this package."""
    standard = Path(sysconfig.get_path("stdlib")).resolve().parent
    environment = [str(Path(sys.prefix).resolve())] if sys.prefix != sys.base_prefix else []
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return str(standard), *environment, *sorted(places), str(Path(__file__).resolve().parents[1])


def check_entry(entry: str, also: Mapping[str, Path]) -> None:
    """Raise JailError where `entry` is not one that may be run in the jail."""
    if entry not in also and not ENTRY.fullmatch(entry):
        raise JailError(f"{entry!r} is not an entry of the sandbox; entries are functions of cipm named …_job.")
