"""Single pages in a real browser: the tile viewer, the address as state, uploads, and what people read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from page_server import Running, probe_bytes
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

READY = ".cipm-heatmap[data-state=ready]:not([hidden])"
REORDERED = "#heatmap-reordered"


def open_analysis(tab: Page, pages: Running, query: str = "") -> None:
    tab.goto(f"{pages.url}/a/{pages.done}{query}")
    tab.wait_for_selector(READY)


def window(tab: Page, selector: str = REORDERED) -> list[float]:
    """Return the rows and columns in view: [first row, last row, first column, last column]."""
    return [float(part) for part in (tab.get_attribute(selector, "data-window") or "").split(",")]


def pixels(tab: Page, selector: str) -> np.ndarray:
    """Return the canvas of a viewer as an array [row, column, RGBA]."""
    data = tab.evaluate("""(selector) => { const canvas = document.querySelector(selector + " canvas");
        const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, Array.from(image.data)]; }""", selector)
    return np.array(data[2], np.float64).reshape(data[1], data[0], 4)


def roughness(image: np.ndarray) -> float:
    """Return the mean absolute difference of neighbouring pixels, which blocks lower."""
    inner = image[80:420, 120:460, :3]
    return float(np.abs(np.diff(inner, axis=0)).mean() + np.abs(np.diff(inner, axis=1)).mean())


def test_reordering_shows_blocks(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?show=both")
    tab.wait_for_selector("#heatmap-original[data-state=ready]")
    tab.wait_for_selector(f"{REORDERED}[data-state=ready]")
    assert roughness(pixels(tab, REORDERED)) < 0.8 * roughness(pixels(tab, "#heatmap-original"))


def test_wheel_zooms_at_the_cursor_and_the_address_keeps_it(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?tab=weights&group=hidden2")
    whole = window(tab)
    box = tab.locator(f"{REORDERED} .hm-stage").bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    tab.mouse.wheel(0, -600)
    expect(tab).to_have_url(re.compile(r"zoom=hidden2"))
    zoomed = window(tab)
    assert zoomed[1] - zoomed[0] < whole[1] - whole[0]
    tab.goto(tab.url)
    tab.wait_for_selector(READY)
    assert window(tab) == pytest.approx(zoomed, abs=0.02)
    tab.dblclick(f"{REORDERED} .hm-stage")
    expect(tab.locator(REORDERED)).to_have_attribute("data-window", ",".join(f"{value:g}" for value in whole))


def test_views_are_linked_by_axis_name(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?tab=weights&group=hidden2&zoom=hidden2*10*30")
    assert window(tab)[:2] == [10, 30]
    tab.click("[role=tab]:has-text('Correlation')")
    tab.wait_for_selector(f"{READY} .hm-caption:has-text('Correlation')")
    expect(tab.locator(REORDERED)).to_have_attribute("data-window", "10,30,10,30")


def test_keys(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages)
    tab.keyboard.press("o")
    tab.wait_for_selector("#heatmap-original[data-state=ready]:not([hidden])")
    assert tab.locator(REORDERED).is_hidden()
    tab.keyboard.press("o")
    tab.wait_for_selector(f"{REORDERED}[data-state=ready]:not([hidden])")
    tab.locator(f"{REORDERED} .hm-stage").focus()
    tab.keyboard.press("+")
    expect(tab.locator(REORDERED)).not_to_have_attribute("data-window", "0,320,0,320")
    before = window(tab)
    tab.keyboard.press("ArrowRight")
    expect(tab.locator(REORDERED)).not_to_have_attribute("data-window", ",".join(f"{value:g}" for value in before))
    assert window(tab)[2] > before[2] and window(tab)[:2] == before[:2]
    tab.keyboard.press("0")
    expect(tab.locator(REORDERED)).to_have_attribute("data-window", "0,320,0,320")


def test_hover_names_the_original_units_and_the_value(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?tab=weights&group=hidden2&zoom=hidden2*0*8*hidden1*0*8")
    box = tab.locator(f"{REORDERED} .hm-stage").bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 4)
    text = tab.locator(f"{REORDERED} .hm-readout").inner_text()
    row, column, value = re.search(r"row (\d+).*column (\d+).*\u00b7\s+(\S+)$", text, re.S).groups()  # type: ignore[union-attr]
    meta = tab.evaluate("""async (id) => { const answer = await fetch(`/api/analyses/${id}/matrices/w1?order=modules`);
        const meta = await answer.json(); return [meta.rows.ids[7], meta.cols.ids[7]]; }""", pages.done)
    assert [int(row), int(column)] == meta
    weights = np.load(next(Path(pages.app.state.settings.data).rglob("w1.npy")))
    assert float(value.replace("\u2212", "-")) == pytest.approx(float(weights[meta[0], meta[1]]), rel=2e-3)


def test_a_module_is_a_click_away(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?group=hidden1&order=random")
    tab.locator(".module-go").first.click()
    expect(tab).to_have_url(re.compile("order=modules"))
    expect(tab.locator(REORDERED)).not_to_have_attribute("data-window", "0,320,0,320")
    low, high = window(tab)[:2]
    assert high - low == int(tab.locator(".module-table summary").first.inner_text())


def test_back_and_forward(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages)
    tab.click("#group-list button:has-text('hidden2')")
    expect(tab.locator(".group h2")).to_have_text("hidden2")
    tab.click("[role=tab]:has-text('What-if')")
    tab.wait_for_selector("#whatif-curve .main-svg")
    tab.go_back()
    tab.wait_for_selector(READY)
    expect(tab.locator(".group h2")).to_have_text("hidden2")
    tab.go_back()
    expect(tab.locator(".group h2")).to_have_text("hidden1")
    tab.go_forward()
    expect(tab.locator(".group h2")).to_have_text("hidden2")


def test_the_group_list_is_filtered_and_walked(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages)
    tab.keyboard.press("/")
    tab.keyboard.type("128")
    expect(tab.locator("#group-list button:visible")).to_have_count(1)
    tab.fill("#group-filter", "nothing like it")
    expect(tab.locator("#group-none")).to_be_visible()
    tab.fill("#group-filter", "")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    expect(tab.locator(".group h2")).to_have_text("hidden2")


def test_the_colour_range_needs_no_fetch(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages, "?tab=weights&group=hidden2")
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    before = pixels(tab, REORDERED)
    tab.locator(f"{REORDERED} .hm-range").fill("50")
    expect(tab).to_have_url(re.compile("range="))
    tab.wait_for_timeout(100)
    assert np.abs(pixels(tab, REORDERED) - before).mean() > 5
    assert not [address for address in asked if "/tiles" in address]


def test_the_slider_tells_what_is_known(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages)
    tab.goto(f"{pages.url}/a/{pages.done}?tab=whatif&group=hidden2&keep=64")
    tab.wait_for_selector("#whatif-curve .main-svg")
    numbers = tab.locator("#whatif-numbers")
    expect(numbers).to_contain_text("64 of 128")
    expect(numbers).to_contain_text("on 597 rows")
    tab.locator("[role=slider]").focus()
    tab.keyboard.press("ArrowLeft")
    expect(numbers).to_contain_text("63 of 128")
    expect(numbers).to_contain_text("not measured at this number")
    expect(tab).to_have_url(re.compile("keep=63"))


def test_upload_guesses_the_kind_and_analyses(tab: Page, pages: Running, tmp_path: Path) -> None:
    model, probe = tmp_path / "model.pt2", tmp_path / "rows.npz"
    model.write_bytes(bytes(range(256)) * 80_000)
    probe.write_bytes(probe_bytes())
    tab.goto(pages.url)
    # Both are chosen through the probe's card: the model's name says where it belongs.
    tab.locator(".upload-card[data-kind=probe] [data-role=file]").set_input_files([model, probe])
    expect(tab.locator(".upload-card[data-state=done]")).to_have_count(2)
    expect(tab.locator(".upload-card[data-kind=model]")).to_contain_text("model.pt2")
    with pages.client() as client:
        sent = next(upload for upload in client.get("/api/uploads").json() if upload["name"] == "model.pt2")
    assert sent["size"] == model.stat().st_size and sent["complete"]
    tab.fill("#home-title", "From the page")
    tab.click("#home-analyse")
    tab.wait_for_url(re.compile("/a/"))
    expect(tab.locator("h1")).to_have_text("From the page")
    expect(tab.locator(".progress h2")).to_have_text("Waiting for a worker")
    tab.click("#analysis-cancel")
    expect(tab.locator(".progress h2")).to_have_text("Cancelled")
    expect(tab.locator("#analysis-rerun")).to_be_visible()


def test_an_interrupted_upload_goes_on(tab: Page, pages: Running, tmp_path: Path) -> None:
    model = tmp_path / "big.pt2"
    model.write_bytes(np.random.default_rng(0).bytes(20_000_000))
    tab.goto(pages.url)
    failed: list[str] = []

    def flaky(route: object) -> None:
        if "offset=8388608" in route.request.url and len(failed) < 2:  # type: ignore[attr-defined]
            failed.append(route.request.url)  # type: ignore[attr-defined]
            route.abort()  # type: ignore[attr-defined]
        else:
            route.continue_()  # type: ignore[attr-defined]

    tab.route("**/api/uploads/*", flaky)
    tab.locator(".upload-card[data-kind=model] [data-role=file]").set_input_files(model)
    expect(tab.locator(".upload-card[data-kind=model]")).to_have_attribute("data-state", "done", timeout=30_000)
    assert len(failed) == 2


def test_a_folder_is_packed_as_it_is(tab: Page, pages: Running, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"\x00" * 5000)
    tab.goto(pages.url)
    tab.locator(".upload-card[data-kind=model] [data-role=folder]").set_input_files(folder)
    expect(tab.locator(".upload-card[data-kind=model]")).to_have_attribute("data-state", "done")
    expect(tab.locator(".upload-card[data-kind=model] .upload-name")).to_contain_text("net.zip")


def test_a_share_reads_and_nothing_else(tab: Page, pages: Running) -> None:
    open_analysis(tab, pages)
    tab.click("#share-open")
    tab.click("#share-create")
    link = tab.locator(".link-field").inner_text()
    tab.goto(link)
    tab.wait_for_selector(READY)
    expect(tab.locator("#export-open, #share-open")).to_have_count(0)
    tab.click("[role=tab]:has-text('What-if')")
    tab.wait_for_selector("#whatif-curve .main-svg")
    expect(tab.locator("#whatif-measure")).to_have_count(0)
    open_analysis(tab, pages)
    tab.click("#share-open")
    tab.locator("#share-list button:has-text('Revoke')").first.click()
    expect(tab.locator("#share-list button")).to_have_count(0)
    tab.goto(link)
    expect(tab.locator("main")).to_contain_text("opens nothing")


def test_what_is_not_there_says_so(tab: Page, pages: Running) -> None:
    tab.goto(f"{pages.url}/nowhere")
    expect(tab.locator("main")).to_contain_text("There is no such page")
    tab.goto(f"{pages.url}/a/nothing")
    expect(tab.locator("main")).to_contain_text("This analysis cannot be opened")


def test_nothing_comes_from_another_host(tab: Page, pages: Running) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    open_analysis(tab, pages)
    tab.goto(pages.url)
    tab.wait_for_selector(".upload-card")
    assert asked and all(address.startswith((pages.url, "data:", "blob:")) for address in asked)
