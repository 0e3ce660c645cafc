"""Compiled loops work where their cache can be written, where there is none, and where it cannot be written any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALL = """
import numpy as np
from cipm.ordering.leaves import leaf_order
merges = np.array([[0, 1, 1.0, 2], [2, 3, 1.0, 2], [4, 5, 3.0, 4]])
line = np.array([1.0, 0.0, 3.0, 2.0])
{just_before}
print(leaf_order(merges, abs(line[:, None] - line)).tolist())
print(leaf_order(merges, abs(line[:, None] - line)).tolist())
"""
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"


def in_fresh_process(cache: str, just_before: str = "") -> list[str]:
    script = CALL.format(just_before=just_before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:2]


SHORTEST = (["[1, 0, 3, 2]"] * 2, ["[2, 3, 0, 1]"] * 2)


@pytest.mark.parametrize("just_before", ["", FULL_DISK], ids=["cache", "cache that cannot be written"])
def test_result_does_not_depend_on_the_cache(tmp_path, just_before):
    assert in_fresh_process(str(tmp_path), just_before=just_before) in SHORTEST
    assert any(tmp_path.rglob("*.nbc")) == (just_before == "")


def test_no_folder_for_a_cache():
    assert in_fresh_process("/dev/null/none") in SHORTEST
