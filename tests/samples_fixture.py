"""The demo's sample models, trained once per test session by the program that the demo runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


@dataclass(frozen=True)
class Samples:
    """The folder of sample files and what `samples.json` says of them."""

    folder: Path
    index: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        return self.folder / name

    def probe(self, model: str) -> Path:
        return self.folder / self.index[model]["probe"]

    def copy(self, folder: Path, *, without: str = "") -> None:
        """Copy all files to another folder, but those of one sample, as if it had not been trained yet."""
        kept = {name: about for name, about in self.index.items() if not without or not name.startswith(without)}
        folder.mkdir(parents=True, exist_ok=True)
        for name in kept:
            shutil.copy(self.file(name), folder)
        (folder / "samples.json").write_text(json.dumps(kept))


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The samples, trained by whichever test process comes first."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "samples"
    done_before = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done_before.exists():
            done = subprocess.run([sys.executable, "-m", "cipm.testing.samples", str(folder)], capture_output=True, text=True,
                                  cwd=Path(__file__).parents[1])
            assert done.returncode == 0, done.stderr
            done_before.touch()
    return Samples(folder, json.loads((folder / "samples.json").read_text()))
