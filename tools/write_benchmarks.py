"""Run benches and write what they print to docs/benchmarks.md, one section a bench, with machine, versions and date.

    python tools/write_benchmarks.py                      every bench with its usual arguments
    python tools/write_benchmarks.py ordering modules     these alone; the other sections of the page stay
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from cipm.jail.forkserver import WAITING

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
ELSEWHERE = ("coverage",)  # has a page of its own
HEAD = """# Benchmarks

Made by `make bench` (`python tools/write_benchmarks.py NAME` makes one section anew). Each bench runs its peers beside the code
of this project in the same run; compare figures within a section, not between sections or machines.
"""
VERSIONS = ("numpy", "scipy", "scikit-learn", "torch")


def main() -> int:
    known = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if path.stem not in ELSEWHERE)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(known)}; default: all")
    asked = parser.parse_args().names
    if unknown := sorted(set(asked) - set(known)):
        parser.error(f"there is no bench {', '.join(unknown)}; there are {', '.join(known)}")
    failed = [name for name in asked or known if not measure(name)]
    if failed:
        print(f"Failed, and their sections left as they were: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


def measure(name: str) -> bool:
    """Run one bench, showing what it prints, and put that into the page; tell whether it ended well."""
    print(f"== {name}", flush=True)
    lines = []
    environment = os.environ | WAITING  # as a worker's jobs have it
    with subprocess.Popen([sys.executable, f"bench/{name}.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                          text=True) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if child.returncode == 0:
        sections = read(DOCUMENT) | {name: section(name, "\n".join(lines).strip())}
        DOCUMENT.write_text("\n".join([HEAD, *(sections[key] for key in sorted(sections))]))
    return child.returncode == 0


def section(name: str, output: str) -> str:
    """Return a section of the page: what the bench is, where and when it ran, what it printed."""
    about = ast.get_docstring(ast.parse((ROOT / "bench" / f"{name}.py").read_text())).splitlines()[0]
    return f"## {name}\n\n{about} {machine()}\n\n```\n{output}\n```\n"


def machine() -> str:
    """Return machine, versions and date in a sentence."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    cores = f"{os.cpu_count()} cores ({model[1] if model else platform.machine()})"
    return f"Measured on {time.strftime('%Y-%m-%d', time.gmtime())}: {cores}, Python {platform.python_version()}, {versions}."


def read(document: Path) -> dict[str, str]:
    """Return the sections that the page has, by name."""
    text = document.read_text() if document.exists() else ""
    parts = [part.rstrip() + "\n" for part in re.split(r"^(?=## )", text, flags=re.M)[1:]]
    return {part.split("\n", 1)[0].removeprefix("## "): part for part in parts}


if __name__ == "__main__":
    sys.exit(main())
