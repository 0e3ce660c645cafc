"""The symmetry page in a real browser: the graph is drawn, a click chooses a group, the address keeps it, pins say why."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import Running, analyse
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from symmetry_study import deep_symmetry

from backend.store import artefacts, jobs

pytestmark = pytest.mark.browser

READY = ".cipm-graph[data-state=ready]"
DEEP = 24


def open_page(tab: Page, pages: Running, query: str = "", analysis: str | None = None) -> None:
    tab.goto(f"{pages.url}/a/{analysis or pages.done}/symmetry{query}")
    tab.wait_for_selector(READY)


def box(tab: Page, label: str, *, at: int = 0) -> Locator:
    """Return a drawn box by what is written on it."""
    name = tab.locator(".mg-name", has_text=re.compile(f"^{re.escape(label)}$"))
    return tab.locator(".mg-box:not(.frame)").filter(has=name).nth(at)


def picture(place: Locator) -> np.ndarray:
    """Return what is on the screen there as [row, column, RGB]."""
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB"), np.float64)


def coloured(image: np.ndarray) -> int:
    """Return how many pixels are no grey."""
    return int((np.ptp(image, axis=2) > 60).sum())


@pytest.fixture(scope="module")
def deep(pages: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An analysis whose symmetry is found and whose statistics are not: a model of 24 blocks."""
    with pages.client() as client:
        made = analyse(client, "Deep")
    leave(pages, made, deep_symmetry(tmp_path_factory.mktemp("deep"), DEEP))
    yield made["id"]


def leave(pages: Running, analysis: dict[str, Any], folder: Path) -> None:
    """Leave what stage `discover` wrote, as a worker does while the job goes on."""
    store, address = pages.app.state.store, f"discover-{analysis['id']}"
    artefacts.use(store, analysis["job"]["id"], {"discover": address})
    artefacts.record(store, address, "discover", folder, 0.5)


def test_the_graph_is_drawn_in_the_colours_of_its_groups(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    labels = tab.locator(".mg-box:not(.frame) .mg-name").all_text_contents()
    assert labels == ["x", "coefs.0", "relu", "coefs.1", "relu", "coefs.2", "output"]
    shown = picture(tab.locator(".mg-stage"))
    assert coloured(shown) > 800 and len(np.unique(shown.reshape(-1, 3), axis=0)) > 40
    assert coloured(picture(box(tab, "x"))) < coloured(picture(box(tab, "coefs.1")))
    expect(tab.locator(".analysis-head")).to_contain_text("S₃₂₀ × S₁₂₈")


def test_a_click_chooses_the_group_and_the_address_reproduces_it(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    before = coloured(picture(box(tab, "coefs.2")))
    box(tab, "coefs.0").locator("rect").first.click(position={"x": 50, "y": 8})
    expect(tab).to_have_url(re.compile(r"group=hidden1"))
    expect(tab.locator("#symmetry-panel h2").first).to_have_text("hidden1")
    expect(tab.locator("#symmetry-panel")).to_contain_text("coefs.1 axis 0")
    assert tab.locator(".mg-box.on:not(.frame) .mg-name").all_text_contents() == ["coefs.0", "relu", "coefs.1"]
    assert coloured(picture(box(tab, "coefs.2"))) < before  # what the group does not stand on steps back
    tab.goto(tab.url)
    tab.wait_for_selector(f"{READY}[data-group=hidden1]")
    expect(tab.locator("#symmetry-panel h2").first).to_have_text("hidden1")
    box(tab, "coefs.1").locator("rect").first.click(position={"x": 50, "y": 8})
    expect(tab.locator(READY)).to_have_attribute("data-group", "hidden1")
    box(tab, "coefs.1").locator("rect").first.click(position={"x": 50, "y": 8})  # again: the next group on this box
    expect(tab.locator(READY)).to_have_attribute("data-group", "hidden2")
    tab.go_back()
    expect(tab.locator(READY)).to_have_attribute("data-group", "hidden1")


def test_the_list_and_a_line_choose_as_well_and_the_heatmap_is_one_click_away(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    tab.locator("#group-list [data-value=hidden2]").click()
    expect(tab.locator(READY)).to_have_attribute("data-group", "hidden2")
    tab.locator(".mg-line").nth(1).locator(".mg-hit").dispatch_event("click")
    expect(tab.locator(READY)).to_have_attribute("data-group", "hidden1")
    tab.get_by_role("link", name="Open in the heatmap view").click()
    tab.wait_for_url(re.compile(rf"/a/{pages.done}\?group=hidden1$"))
    tab.wait_for_selector(".group[data-group=hidden1] .cipm-heatmap[data-state=ready]")
    tab.get_by_role("link", name="in the graph").click()
    tab.wait_for_selector(f"{READY}[data-group=hidden1]")


def test_pins_say_why(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    assert tab.locator(".mg-pin").count() == 4  # the input, the output, and the two layers that they hold
    box(tab, "coefs.2").hover()
    expect(tab.locator(".mg-tip")).to_contain_text("Pinned: coefs.2 axis 1: it is an axis of the model's output")
    expect(tab.locator(".mg-tip")).to_contain_text("128 × 10")
    tab.fill("#pin-filter", "input")
    expect(tab.locator("#pin-rows tr:visible")).to_have_count(1)
    tab.locator("#pin-rows tr:visible button").click()
    expect(tab.locator(".mg-box.chosen .mg-name")).to_have_text("coefs.0")
    expect(tab.locator("#symmetry-panel .chosen-box")).to_contain_text("it is an axis of the model's input 'x'")
    tab.fill("#pin-filter", "nothing like it")
    expect(tab.locator("#pin-none")).to_be_visible()


def test_a_deep_model_opens_block_by_block_and_by_keyboard_alone(tab: Page, pages: Running, deep: str) -> None:
    open_page(tab, pages, analysis=deep)
    assert tab.locator(".mg-box.module").count() == DEEP
    tab.locator(".mg-box[tabindex='0']").focus()
    for _ in range(3):  # from the input over the frame to the second block
        tab.keyboard.press("ArrowDown")
    expect(tab.locator(".mg-box:focus .mg-name")).to_have_text("blocks.1")
    tab.keyboard.press("Space")
    expect(tab).to_have_url(re.compile(r"open=.*blocks\.1"))
    expect(tab.locator(".mg-box.module")).to_have_count(DEEP - 1)
    tab.keyboard.press("ArrowDown")
    expect(tab.locator(".mg-box:focus .mg-name")).to_have_text("up")
    tab.keyboard.press("Enter")
    expect(tab.locator(READY)).to_have_attribute("data-group", "blocks.1.up")
    expect(tab.locator("#symmetry-panel")).to_contain_text("Its heatmaps come when the analysis is done.")
    tab.goto(tab.url)
    tab.wait_for_selector(f"{READY}[data-group='blocks.1.up']")
    expect(tab.locator(".mg-box.module")).to_have_count(DEEP - 1)
    tab.locator(".mg-box[tabindex='0']").focus()
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    expect(tab.locator(READY)).to_have_attribute("data-group", "")
    tab.get_by_role("button", name="Open all modules").click()
    expect(tab.locator(".mg-box:not(.frame)")).to_have_count(4 * DEEP + 2)
    assert tab.url.endswith("?open=all")


def test_the_wheel_zooms_a_drag_moves_and_fit_shows_all(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    stage = tab.locator(".mg-stage").bounding_box()
    assert stage is not None
    scale = float(tab.get_attribute(READY, "data-scale") or 0)
    tab.mouse.move(stage["x"] + 60, stage["y"] + 60)
    tab.mouse.wheel(0, -400)
    expect(tab.locator(READY)).not_to_have_attribute("data-scale", f"{scale:.3f}")
    place = box(tab, "coefs.1").bounding_box()
    tab.mouse.down()
    tab.mouse.move(stage["x"] + 160, stage["y"] + 100, steps=4)
    tab.mouse.up()
    moved = box(tab, "coefs.1").bounding_box()
    assert place is not None and moved is not None
    assert (moved["x"] - place["x"], moved["y"] - place["y"]) == (pytest.approx(100, abs=3), pytest.approx(40, abs=3))
    assert "group=" not in tab.url  # a drag chooses nothing
    tab.get_by_role("button", name="Show the whole graph").click()
    first, last = (box(tab, name).bounding_box() for name in ("x", "output"))
    assert first is not None and last is not None
    assert stage["y"] <= first["y"] and last["y"] + last["height"] <= stage["y"] + stage["height"]


def test_a_shared_link_shows_the_same_and_only_to_look(tab: Page, pages: Running, browser: Browser) -> None:
    with pages.client() as client:
        link = client.post(f"/api/analyses/{pages.done}/shares").json()
    private = browser.new_context()
    guest = private.new_page()
    guest.goto(f"{pages.url}/s/{link['token']}/symmetry?group=hidden2")
    guest.wait_for_selector(f"{READY}[data-group=hidden2]")
    expect(guest.get_by_text("read only")).to_be_visible()
    box(guest, "coefs.0").locator("rect").first.click(position={"x": 50, "y": 8})
    expect(guest.locator("#symmetry-panel h2").first).to_have_text("hidden1")
    heatmap = guest.get_by_role("link", name="Open in the heatmap view")
    assert heatmap.get_attribute("href") == f"/s/{link['token']}?group=hidden1"
    private.close()
    with pages.client() as client:
        client.delete(f"/api/shares/{link['id']}").raise_for_status()


def test_dark_mode_and_an_analysis_that_is_not_so_far(tab: Page, pages: Running) -> None:
    open_page(tab, pages)
    light = picture(tab.locator(".mg-stage")).mean()
    tab.locator("#shell-place").click()
    expect(tab.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
    assert picture(tab.locator(".mg-stage")).mean() < light - 80
    tab.goto(f"{pages.url}/a/{pages.waiting}/symmetry")
    expect(tab.get_by_text("The symmetry is not found yet")).to_be_visible()
    tab.goto(f"{pages.url}/a/nosuch/symmetry")
    expect(tab.get_by_text("This analysis cannot be opened")).to_be_visible()


def test_the_page_comes_by_itself_when_the_symmetry_is_found(tab: Page, pages: Running, tmp_path: Path) -> None:
    with pages.client() as client:
        made = analyse(client, "Found while you look")
    store = pages.app.state.store
    tab.goto(f"{pages.url}/a/{made['id']}/symmetry")
    expect(tab.get_by_text("The symmetry is not found yet")).to_be_visible()
    leave(pages, made, deep_symmetry(tmp_path, 2))
    with store.write() as session:
        row = session.get(jobs.Job, made["job"]["id"])
        row.stages = [{"name": "discover", "state": "done", "seconds": 0.5, "address": "x"}]
    tab.wait_for_selector(READY)
