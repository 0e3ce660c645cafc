"""The whole story in a real browser, on the real server with its worker: upload, cancel, rerun, look, share, take home."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from cipm.testing.digits import Recipe, load, train
from cipm.testing.models import mlp, save_pt2

pytestmark = pytest.mark.browser

MODEL, PROBE = "[data-kind=model] input[data-role=file]", "[data-kind=probe] input[data-role=file]"
REORDERED, ORIGINAL = "#heatmap-reordered", "#heatmap-original"
LONG = 120_000  # milliseconds; a loaded machine is slow


@dataclass(frozen=True)
class Files:
    """A trained model and its probe rows, as a person has them."""

    model: Path
    probe: Path
    rows: torch.Tensor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """An MLP trained on digits for a few seconds."""
    folder = tmp_path_factory.mktemp("files")
    digits, model = load(), mlp((64, 96, 64, 10))
    train(model, digits, Recipe(epochs=15, rate=3e-3), lambda m, images: m(images.reshape(-1, 64)))
    x = torch.cat([digits.test_x, digits.train_x]).reshape(-1, 64)
    y = torch.cat([digits.test_y, digits.train_y])
    np.savez(folder / "digits.npz", x=x.numpy(), y=y.numpy())
    return Files(save_pt2(model, x[:2], folder / "digits.pt2"), folder / "digits.npz", x)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server as `cipm serve` starts it, its worker included."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"CIPM_DATA": str(tmp_path_factory.mktemp("data")), "CIPM_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "cipm.cli", "serve"], env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for_worker(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for_worker(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(f"{url}/api/health", timeout=5).json()["worker"]["alive"]:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("no worker came up within a minute")


def upload(tab: Page, server: str, files: Files) -> None:
    """Choose both files on the first page and press Analyse."""
    tab.goto(server)
    tab.set_input_files(MODEL, str(files.model))
    tab.set_input_files(PROBE, str(files.probe))
    button = tab.get_by_role("button", name="Analyse")
    expect(button).to_be_enabled(timeout=LONG)
    button.click()
    tab.wait_for_url(re.compile(r"/a/"), timeout=LONG)


def canvas(tab: Page, selector: str) -> np.ndarray:
    """Return a viewer's canvas [row, column, RGBA]."""
    data = tab.evaluate("""(selector) => { const canvas = document.querySelector(selector + " canvas");
        const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, Array.from(image.data)]; }""", selector)
    return np.array(data[2], np.float64).reshape(data[1], data[0], 4)


def warmth(image: np.ndarray, blocks: list[tuple[float, float]]) -> float:
    """Return how much redder the diagonal blocks [(start, end) as shares of the axis] are than the whole picture."""
    red = image[..., 0] - image[..., 2]
    filled = np.flatnonzero((image[..., 3] > 0).any(0))
    side = filled.max() + 1
    inside = [red[int(a * side):int(b * side), int(a * side):int(b * side)].mean() for a, b in blocks]
    return float(np.mean(inside) - red[:side, :side].mean())


def module_blocks(server: str, analysis: str) -> list[tuple[float, float]]:
    """Return where the three largest modules of the first group stand in module order, as shares of the axis."""
    report = httpx.get(f"{server}/api/analyses/{analysis}/report").json()
    group = report["groups"][0]
    ends = np.cumsum([0, *(module["size"] for module in group["modules"])]) / group["size"]
    return list(zip(ends[:3], ends[1:4], strict=False))


@pytest.mark.timeout(600)
def test_the_whole_story(tab: Page, server: str, files: Files, browser: Browser, tmp_path: Path) -> None:
    # Upload, cancel while it runs, run again.
    upload(tab, server, files)
    tab.get_by_role("button", name="Cancel").click(timeout=LONG)
    expect(tab.get_by_role("button", name=re.compile("again|Rerun", re.I))).to_be_visible(timeout=LONG)
    analysis = tab.url.rsplit("/", 1)[1]
    assert httpx.get(f"{server}/api/analyses/{analysis}").json()["job"]["status"] == "cancelled"
    tab.get_by_role("button", name=re.compile("again|Rerun", re.I)).click()

    # The analysis: reordering makes the blocks of the modules visible, on the same colour scale.
    tab.wait_for_selector(f"{REORDERED}[data-state=ready]", timeout=LONG)
    tab.goto(f"{server}/a/{analysis}?show=both&order=modules")
    tab.wait_for_selector(f"{REORDERED}[data-state=ready]", timeout=LONG)
    tab.wait_for_selector(f"{ORIGINAL}[data-state=ready]", timeout=LONG)
    blocks = module_blocks(server, analysis)
    assert blocks, "the trained layer has modules"
    shown, before = (warmth(canvas(tab, selector), blocks) for selector in (REORDERED, ORIGINAL))
    assert shown > 15 and shown > 3 * abs(before), (shown, before)
    if "SCREENSHOT" in os.environ:
        tab.screenshot(path=os.environ["SCREENSHOT"])

    # What-if: measure a point on the worker.
    tab.goto(f"{server}/a/{analysis}?tab=whatif&keep=20")
    tab.get_by_role("button", name="Measure this").click(timeout=LONG)
    measured = _measured(server, analysis)
    assert [*measured["keep"].values()] == [20] and 0 <= measured["accuracy"] <= 1 and measured["rows"] == 898  # the odd ones

    _session(tab, server, analysis)
    _share_and_revoke(tab, server, analysis, browser)
    _export_and_compare(tab, server, analysis, files, tmp_path)


def _measured(server: str, analysis: str) -> dict[str, float]:
    for _ in range(600):
        found = httpx.get(f"{server}/api/analyses/{analysis}/measurements").json()
        if found and found[0]["result"]:
            return found[0]["result"]
        time.sleep(0.2)
    raise AssertionError("the what-if was not measured")


def _session(tab: Page, server: str, analysis: str) -> None:
    """Make the whole model smaller: what the browser predicts is what the engine predicts, what it shows was measured."""
    tab.goto(f"{server}/a/{analysis}/whatif")
    tab.wait_for_selector(".wi[data-state=ready][data-measured]", timeout=LONG)
    tab.locator("[aria-label='Size of the whole model']").fill("300")
    expect(tab.locator(".wi-state")).to_have_text(re.compile("^Measured on 898"), timeout=LONG)
    kept = [int(field.input_value()) for field in tab.locator(".wi-number").all()]
    found = _measured(server, analysis)
    assert [*found["keep"].values()] == kept
    cells = tab.locator(".wi-facts tbody tr").first.locator("td").all_inner_texts()
    shown, told = [float(cells[1]), float(cells[3])], [found["predicted"]["loss"], found["loss"]]
    assert shown == pytest.approx(told, rel=5e-3)


def _share_and_revoke(tab: Page, server: str, analysis: str, browser: Browser) -> None:
    tab.goto(f"{server}/a/{analysis}")
    tab.get_by_role("button", name="Share").click(timeout=LONG)
    tab.get_by_role("button", name="Create a link").click()
    link = tab.locator(".new-link code").inner_text(timeout=LONG)
    assert re.fullmatch(rf"{re.escape(server)}/s/[\w-]{{40,}}", link)
    private = browser.new_context()
    guest = private.new_page()
    guest.goto(link)
    guest.wait_for_selector(f"{REORDERED}[data-state=ready]", timeout=LONG)
    expect(guest.get_by_text("read only")).to_be_visible()
    assert guest.get_by_role("button", name="Export").count() == 0 == guest.get_by_role("button", name="Share").count()
    tab.get_by_role("button", name="Revoke").first.click()
    expect(tab.get_by_text("revoked")).to_be_visible(timeout=LONG)
    guest.goto(link)
    expect(guest.get_by_text("This link opens nothing")).to_be_visible(timeout=LONG)
    private.close()


def _export_and_compare(tab: Page, server: str, analysis: str, files: Files, tmp_path: Path) -> None:
    """Take the reorganised model home; torch alone loads it, and it computes the same with its units moved."""
    tab.goto(f"{server}/a/{analysis}")
    tab.get_by_role("button", name="Export").click(timeout=LONG)
    dialog = tab.get_by_role("dialog")
    dialog.get_by_role("button", name="Export").click(timeout=LONG)
    with tab.expect_download(timeout=LONG) as download:
        dialog.get_by_role("link", name="Download").first.click(timeout=LONG)
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    original, moved = torch.export.load(files.model).module(), torch.export.load(path).module()
    torch.testing.assert_close(moved(files.rows), original(files.rows), rtol=1e-4, atol=1e-4)
    first = next(iter(original.state_dict()))
    assert not torch.equal(original.state_dict()[first], moved.state_dict()[first])


def test_a_file_that_is_no_model_is_told_so_in_place(tab: Page, server: str, files: Files, tmp_path: Path) -> None:
    picture = tmp_path / "net.pt2"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    upload(tab, server, Files(picture, files.probe, files.rows))
    expect(tab.get_by_text(re.compile("PNG"))).to_be_visible(timeout=LONG)
    assert httpx.get(f"{server}/api/health").json()["status"] == "ok"
