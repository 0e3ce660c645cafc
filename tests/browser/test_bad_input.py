"""Each bad input as a person meets it on the page: a sentence, and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect
from test_story import LONG, MODEL, PROBE, server  # noqa: F401 - the fixture: the server as `cipm serve` starts it

sys.path.append(str(Path(__file__).parents[1] / "corpus"))
import bad_models as make  # noqa: E402 - the corpus' own builders

pytestmark = pytest.mark.browser
ROWS = np.eye(4, dtype=np.float32)


def cases(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write every bad file; return {name: (model, probe)}, one of the two bad."""
    good, rows = make.tiny_export(folder / "good.pt2"), folder / "rows.npz"
    np.savez(rows, x=ROWS)
    models = {"empty file": b"", "text file": b"just words\n", "truncated zip": good.read_bytes()[:900],
              "pickle": make.pickled()}
    found = {name: (_written(folder / f"{name}.pt2", data), rows) for name, data in models.items()}
    found["PNG"] = (make.image(folder / "picture.pt2", "PNG"), rows)  # .png would be taken for probe data, by its name
    found["custom op"] = (make.custom_op_export(folder / "custom.pt2"), rows)
    nan = ROWS.copy()
    nan[2, 1] = np.nan
    probes = {"columns match no input": {"x": np.ones((3, 7), np.float32)}, "wrong dtype": {"x": np.array([list("abcd")])},
              "NaN": {"x": nan}, "zero rows": {"x": ROWS[:0]}, "labels of another length": {"x": ROWS, "y": np.arange(3)}}
    for name, arrays in probes.items():
        np.savez(folder / f"{name}.npz", **arrays)
        found[name] = (good, folder / f"{name}.npz")
    return found


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.timeout(600)
def test_bad_input_on_the_page(tab: Page, server: str, tmp_path: Path) -> None:  # noqa: F811
    for name, (model, probe) in cases(tmp_path).items():
        tab.goto(server)
        tab.set_input_files(MODEL, str(model))
        tab.set_input_files(PROBE, str(probe))
        if name == "empty file":  # refused before it is sent, beside the file's name
            expect(tab.get_by_text("The file is empty.")).to_be_visible(timeout=LONG)
            expect(tab.get_by_text("Choose a file with something in it.")).to_be_visible()
            continue
        button = tab.get_by_role("button", name="Analyse")
        expect(button).to_be_enabled(timeout=LONG)
        button.click()
        tab.wait_for_url("**/a/*", timeout=LONG)
        expect(tab.get_by_role("button", name="Rerun")).to_be_visible(timeout=LONG)
        analysis = tab.url.rsplit("/", 1)[1]
        job = httpx.get(f"{server}/api/analyses/{analysis}").json()["job"]
        assert job["status"] == "failed" and job["attempt"] == 1, (name, job)
        expect(tab.get_by_text(job["error"]["message"])).to_be_visible()
        if job["error"]["fix"]:
            expect(tab.get_by_text(job["error"]["fix"])).to_be_visible()
        assert httpx.get(f"{server}/api/analyses/{analysis}/report").status_code == 404
    assert httpx.get(f"{server}/api/health").json()["status"] == "ok"
    assert not os.path.exists(make.MARKER)  # what the pickle would have made
