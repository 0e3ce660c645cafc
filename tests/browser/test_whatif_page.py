"""The what-if session in a real browser: sliders, predictions beside the engine's, undo, measuring, comparing, marks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import Running
from playwright.sync_api import Browser, Page, expect
from whatif_study import measured

from backend.store import artefacts, jobs
from cipm.allocation import Session

pytestmark = pytest.mark.browser

READY = ".wi[data-state=ready][data-saved][data-measured]"
MODEL = "[aria-label='Size of the whole model']"
SHOWN = 12


@pytest.fixture(scope="module")
def session(pages: Running) -> dict[str, Any]:
    """The session as the API gives it."""
    with pages.client() as client:
        return client.get(f"/api/analyses/{pages.done}/whatif").raise_for_status().json()


def open_session(tab: Page, pages: Running, query: str = "", *, measure: bool = False) -> None:
    """Open the session; what rests is measured only where a test waits for it, so that no job is left to another."""
    if not measure:
        tab.add_init_script("localStorage.setItem('cipm-measure-when-still', 'off')")
    tab.goto(f"{pages.url}/a/{pages.done}/whatif{query}")
    tab.wait_for_selector(READY)


def fact(tab: Page, name: str) -> dict[str, str]:
    """Return one line of the figures by column."""
    cells = tab.locator(".wi-facts tbody tr", has_text=name).locator("td").all_inner_texts()
    return dict(zip(("whole", "predicted", "range", "measured", "other"), (cell.strip() for cell in cells), strict=False))


def number(text: str) -> float:
    """Return a figure of the page as a number."""
    value = re.match(r"[-\d.e+]+", text.replace("\u2212", "-"))
    assert value is not None, text
    return float(value.group())


def sizes(tab: Page) -> list[int]:
    """Return what the groups keep, as their fields show it."""
    return [int(field.input_value()) for field in tab.locator(".wi-number").all()]


def drag(tab: Page, selector: str, value: int) -> None:
    """Move a slider to a value in one step and let it go."""
    tab.locator(selector).fill(str(value))


def test_the_browser_predicts_what_the_engine_predicts(tab: Page, pages: Running, session: dict[str, Any]) -> None:
    engine, generator = Session.from_json(session), np.random.default_rng(0)
    keeps = [{group["name"]: int(generator.integers(1, group["size"] + 1)) for group in session["groups"]} for _ in range(40)]
    keeps += [point["keep"] for point in session["points"]] + [choice["keep"] for choice in session["fronts"]["flops"]]
    open_session(tab, pages)
    found = tab.evaluate("""([session, keeps]) => { const whatif = new cipm.WhatIf(session);
        return keeps.map((keep) => { const sizes = whatif.sizes(keep); return {
            rises: Object.fromEntries(whatif.kinds.map((kind) => [kind, whatif.rise(kind, sizes)])),
            counts: Object.fromEntries(Object.keys(whatif.counts).map((name) => [name, whatif.count(name, sizes)])),
            back: whatif.keep(whatif.decode(whatif.encode(sizes))) }; }); }""", [session, keeps])
    for keep, answer in zip(keeps, found, strict=True):
        assert answer["rises"] == pytest.approx(engine.predicted(keep), rel=1e-9)
        assert answer["counts"] == pytest.approx({name: count(keep) for name, count in engine.counts.items()}, rel=1e-9)
        assert answer["back"] == engine.checked(keep)
    assert session["groups"][1]["name"] == "hidden2"
    turned = {**session["groups"][1], "name": "hidden2 by direction", "of": "hidden2"}
    found = tab.evaluate("""async (session) => { const whatif = new cipm.WhatIf(session), asked = [];
        const front = { choices: session.fronts.parameters, frontier: [[1, 1]] };
        const state = new cipm.WhatIfState(whatif, async (query) => { asked.push(String(query)); return front; }, () => {});
        const steps = [[1, 60], [2, 40], [0, 300]].map(([at, units]) => { state.move(at, units); return [...state.sizes]; });
        await state.fetch();
        state.toggleLock(1);
        return { steps, asked, frontier: whatif.frontier, locked: [...state.locked], back: whatif.encode(state.sizes),
            turned: whatif.turned(state.sizes) }; }""",
                         {**session, "groups": [*session["groups"], turned]})
    assert found["steps"] == [[320, 60, 128], [320, 128, 40], [300, 128, 40]]  # a stream is cut one way or the other
    assert found["asked"][0] == "count=parameters&turned=hidden2+by+direction" and found["frontier"] == [[1, 1]]
    assert found["locked"] == [1, 2] and found["back"] == "300..40" and found["turned"] == [2]


def test_sliders_answer_and_undo_redo_and_the_address_bring_back(tab: Page, pages: Running, session: dict[str, Any]) -> None:
    open_session(tab, pages)
    engine, base = Session.from_json(session), session["baseline"]["loss"]
    assert fact(tab, "Cross-entropy")["predicted"] == fact(tab, "Cross-entropy")["whole"]
    drag(tab, MODEL, 500)
    first = sizes(tab)
    keep = dict(zip(engine.groups, first, strict=True))
    assert keep in [choice["keep"] for choice in session["fronts"]["parameters"]]
    assert number(fact(tab, "Cross-entropy")["predicted"]) == pytest.approx(base + engine.predicted(keep)["loss"], rel=5e-3)
    low, high = (number(part) for part in fact(tab, "KL")["range"].split(" \u2013 "))
    assert high / low == pytest.approx(session["band"]["kl"]["p90"] ** 2, rel=2e-2)
    expect(tab).to_have_url(re.compile(rf"sizes={first[0]}\.{first[1]}$"))

    tab.locator(MODEL).press("ArrowLeft")  # the next smaller choice on the front
    assert sum(sizes(tab)) < sum(first)
    drag(tab, "[aria-label='Units kept of hidden1']", 200)
    tab.locator(".wi-number").nth(1).fill("1000")
    tab.locator(".wi-number").nth(1).press("Enter")
    assert sizes(tab) == [200, 128]  # a group never keeps more than it has
    tab.get_by_role("button", name="Lock hidden1").click()
    with tab.expect_response(re.compile("whatif/front.*size=hidden1%3A200")):
        tab.get_by_role("radio", name="FLOPs").click()
    drag(tab, MODEL, 0)
    assert sizes(tab)[0] == 200 and sizes(tab)[1] < 10 and tab.locator("[aria-label='Units kept of hidden1']").is_disabled()
    there = tab.url
    tab.keyboard.press("Control+z")
    assert sizes(tab) == [200, 128]
    tab.keyboard.press("Control+Shift+Z")
    assert sizes(tab)[1] < 10
    tab.get_by_role("button", name="Keep everything").click()
    assert sizes(tab) == [320, 128] and fact(tab, "KL")["predicted"] == "0"
    tab.goto(there)
    tab.wait_for_selector(READY)
    assert sizes(tab)[0] == 200 and sizes(tab)[1] < 10
    expect(tab.locator("tr[data-group=hidden1]")).to_have_attribute("data-locked", "true")
    tab.get_by_role("button", name="Apply the widths for 1.0").click()
    assert sizes(tab) == list(session["advice"][1]["keep"].values())
    expect(tab.locator(".wi-reasons")).to_contain_text("outputs its units are the model's answers.")


def test_a_move_is_timed_to_the_painted_frame(tab: Page, pages: Running) -> None:
    open_session(tab, pages)
    took = tab.evaluate("""async (selector) => { const slider = document.querySelector(selector), took = [];
        for (let at = 0; at < 60; at += 1) {
          const start = performance.now();
          slider.value = String(1000 - at * 16); slider.dispatchEvent(new Event("input", { bubbles: true }));
          await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          took.push(performance.now() - start);
        } return took; }""", MODEL)
    alone = tab.evaluate("document.querySelector('.wi').moves")
    assert len(took) == 60 and len(alone) == 60
    p95 = [float(np.quantile(part, 0.95)) for part in (alone, took)]
    print(f"a slider's move: computed and laid out in {p95[0]:.1f} ms, on the screen in {p95[1]:.1f} ms (p95 of 60)")


def test_what_rests_is_measured_and_stands_beside_the_prediction(tab: Page, pages: Running, session: dict[str, Any]) -> None:
    open_session(tab, pages, "?sizes=100.40", measure=True)
    store, state = pages.app.state.store, tab.locator(".wi-state")
    expect(state).to_have_text("Not measured.")  # opening an address measures nothing
    drag(tab, "[aria-label='Units kept of hidden2']", 41)
    expect(state).to_have_text("Waiting for a worker\u2026")
    tab.get_by_role("button", name="Cancel").click()
    expect(state).to_have_text("Not measured.")
    with pages.client() as client:
        asked = client.get(f"/api/analyses/{pages.done}/measurements").json()
    assert [(one["keep"], one["job"]["status"]) for one in asked] == [({"hidden1": 100, "hidden2": 41}, "cancelled")]
    tab.get_by_role("button", name="Measure", exact=True).click()
    expect(state).to_have_text("Waiting for a worker\u2026")
    keep = {"hidden1": 100, "hidden2": 41}
    lease, result = taken(pages, {"keep": keep}), measured(session, keep, 1.2)
    jobs.finish(store, lease, {"keep": keep, **result})
    expect(state).to_have_text("Measured on 597 held-out rows.")
    found = fact(tab, "Cross-entropy")
    assert number(found["measured"]) == pytest.approx(result["loss"], rel=5e-3)
    assert number(found["predicted"]) < number(found["measured"])  # both stay
    assert fact(tab, "Accuracy")["measured"].startswith(f"{100 * result['accuracy']:.1f}")
    assert tab.locator(".wi-figure .wi-measured").count() == 1
    tab.get_by_label("Measure when I stop").uncheck()
    drag(tab, "[aria-label='Units kept of hidden2']", 42)
    expect(state).to_have_text("Not measured.")
    tab.wait_for_timeout(1300)
    expect(state).to_have_text("Not measured.")

    tab.get_by_role("button", name="Lock hidden2").click()  # at 42; a budget of run time, met by a worker
    tab.get_by_label("Run time at most").fill("40")
    tab.get_by_role("button", name="Find sizes").click()
    expect(tab.locator(".wi-time")).to_have_text("Timing smaller models on the server\u2026")
    lease = taken(pages, {"share": 0.4, "locked": [], "sizes": {"hidden2": 42}, "turned": []})
    times = {"before_ms": 2.0, "after_ms": 0.7, "times": 2.6, "rows": 64, "runs": 25, "threads": 2, "runtime": "onnxruntime"}
    jobs.finish(store, lease, {"keep": {"hidden1": 90, "hidden2": 42}, "share": 0.385, "latency": times, "words": "Timed.",
                               "predicted": {"kl": 0.1, "loss": 0.3}})
    expect(tab.locator(".wi-time")).to_contain_text("39\u202f% of the whole model\u2019s run time, measured on the server")
    assert sizes(tab) == [90, 42]


def taken(pages: Running, asked: dict[str, Any]) -> jobs.Lease:
    """Take the job that waits, as a worker does: it is to ask for this."""
    lease = jobs.claim(pages.app.state.store, "test")
    assert lease is not None
    with pages.app.state.store.read() as reading:
        assert reading.get(jobs.Job, lease.job_id).request == asked
    return lease


def test_saved_what_ifs_are_compared_renamed_had_back_and_shared(tab: Page, pages: Running, browser: Browser) -> None:
    open_session(tab, pages, "?sizes=160.64&locked=1")
    tab.get_by_label("Name of this what-if").fill("half")
    tab.get_by_label("Name of this what-if").press("Enter")
    expect(tab.locator(".wi-saved li")).to_contain_text("half")
    drag(tab, "[aria-label='Units kept of hidden1']", 300)
    tab.get_by_role("button", name="Compare with half").click()
    expect(tab.locator("tr[data-group=hidden1] .wi-other")).to_have_text("160")
    expect(tab.locator("tr[data-group=hidden2]")).not_to_have_class(re.compile("wi-differs"))  # 64 in both
    assert fact(tab, "KL")["other"].endswith("predicted")
    expect(tab).to_have_url(re.compile("compare="))
    tab.get_by_role("button", name="Rename half").click()
    tab.get_by_label("New name of half").fill("a half")
    tab.get_by_label("New name of half").press("Enter")
    expect(tab.get_by_role("button", name="Rename a half")).to_be_visible()
    tab.get_by_role("button", name="Delete a half").click()
    expect(tab.locator(".wi-back")).to_contain_text("is deleted")
    tab.locator(".wi-back button").click()
    tab.get_by_role("button", name="a half", exact=True).click()
    assert sizes(tab) == [160, 64]

    with pages.client() as client:
        link = client.post(f"/api/analyses/{pages.done}/shares").json()
        saved = client.get(f"/api/analyses/{pages.done}/whatifs").json()
    assert [one["name"] for one in saved] == ["a half"] and saved[0]["keep"] == {"hidden1": 160, "hidden2": 64}
    assert saved[0]["locked"] == ["hidden2"]  # at the size it had
    private = browser.new_context()
    guest = private.new_page()
    guest.goto(f"{pages.url}/s/{link['token']}/whatif?whatif={saved[0]['id']}")
    guest.wait_for_selector(READY)
    assert sizes(guest) == [160, 64]
    for name in ("Save", "Measure", "Export smaller\u2026", "Rename a half"):
        expect(guest.get_by_role("button", name=name, exact=True)).to_have_count(0)
    drag(guest, MODEL, 300)  # only to look, but sliders answer
    assert sizes(guest) != [160, 64]
    private.close()


def test_the_units_that_go_are_marked_on_the_heatmap_of_a_group(tab: Page, pages: Running, session: dict[str, Any]) -> None:
    open_session(tab, pages, "?sizes=160.40")
    tab.get_by_role("link", name="hidden2").click()
    viewer = ".cipm-heatmap[data-state=ready]:not([hidden])"
    tab.wait_for_selector(viewer)
    legend = tab.locator("#heatmap-reordered .hm-marks")
    expect(legend).to_have_text("88 of 128 units go in this what-if")
    tab.goto(f"{tab.url}&show=original&zoom=hidden2*0*{SHOWN}")
    tab.wait_for_selector(viewer)
    expect(tab.locator("#heatmap-original .hm-marks")).to_be_visible()
    tab.wait_for_timeout(300)
    marked = diagonal(tab)
    tab.locator("#heatmap-original .hm-marks input").uncheck()
    expect(tab).to_have_url(re.compile("marks=off"))
    tab.wait_for_timeout(300)
    order = next(group["removal_order"] for group in session["groups"] if group["name"] == "hidden2")
    changed = np.abs(diagonal(tab) - marked).sum(1) > 30
    assert changed.tolist() == np.isin(np.arange(SHOWN), order[:88]).tolist() and 0 < changed.sum() < SHOWN
    tab.goto(f"{pages.url}/a/{pages.done}?tab=weights&group=hidden2&keep=100")  # of this group alone
    tab.wait_for_selector(viewer)
    expect(legend).to_have_text("28 of 128 rows go in this what-if")
    tab.goto(f"{pages.url}/a/{pages.done}?tab=whatif&group=hidden2")
    tab.get_by_role("link", name="Together with the other groups").click()
    tab.wait_for_selector(READY)
    expect(tab.locator("tr.wi-asked")).to_have_attribute("data-group", "hidden2")


def diagonal(tab: Page) -> np.ndarray:
    """Return the mean colours [unit, RGBA] of the diagonal cells of the first units of hidden2 in their original order."""
    return np.array(tab.evaluate("""(shown) => { const canvas = document.querySelector("#heatmap-original canvas");
        const pen = canvas.getContext("2d"), [left, top] = [56, 30];  // ticks and strip
        const width = (canvas.width - left - 1) / shown, height = (canvas.height - top - 1) / shown;
        return [...Array(shown).keys()].map((at) => {
          const cell = pen.getImageData(left + at * width + 3, top + at * height + 3, width - 6, height - 6).data;
          const mean = (part) => cell.filter((_, i) => i % 4 === part).reduce((a, b) => a + b, 0) / (cell.length / 4);
          return [0, 1, 2, 3].map(mean); }); }""", SHOWN))


def test_a_smaller_checkpoint_is_written_and_its_report_read(tab: Page, pages: Running, session: dict[str, Any],
                                                             tmp_path: Path) -> None:
    open_session(tab, pages)
    tab.get_by_role("button", name="Export smaller\u2026").click()
    expect(tab.get_by_role("button", name="Write it")).to_be_disabled()
    expect(tab.locator(".wi-dialog")).to_contain_text("Every group is whole")
    tab.keyboard.press("Escape")
    drag(tab, MODEL, 400)
    keep = dict(zip(("hidden1", "hidden2"), sizes(tab), strict=True))
    tab.get_by_role("button", name="Export smaller\u2026").click()
    tab.get_by_label("Format of the file").select_option("onnx")
    tab.get_by_role("button", name="Write it").click()
    expect(tab.locator(".wi-dialog")).to_contain_text("writing")
    written(pages, tmp_path, {"keep": keep, "form": "onnx"}, measured(session, keep, 1.1))
    files = tab.locator(".wi-dialog .exports")
    expect(files).to_contain_text("0.5 ms instead of 1 ms for 64 rows on the server: 2 \u00d7 as fast (onnxruntime")
    expect(files).to_contain_text("Run by onnxruntime on 64 rows: outputs differ from those of the network that was measured "
                                  "by at most 2.0e\u22126, 3.0e\u22127 of the largest (rounding may explain 1.0e\u22124)")
    expect(files).to_contain_text("equals the what-if")
    tab.set_viewport_size({"width": 390, "height": 844})
    report = files.locator("li > div").bounding_box()
    assert report is not None and report["width"] > 250
    with tab.expect_download() as download:
        files.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == b"smaller" and download.value.suggested_filename.endswith(".onnx")


def written(pages: Running, folder: Path, asked: dict[str, Any], found: dict[str, Any]) -> None:
    """Do what a worker does with the export that waits."""
    store, lease = pages.app.state.store, taken(pages, asked)
    (folder / "net.onnx").write_bytes(b"smaller")
    artefacts.use(store, lease.job_id, {"prune": "smaller"})
    artefacts.record(store, "smaller", "prune", folder, 0.5)
    whole = {"loss": 0.2, "accuracy": 0.9}
    facts = {"parameters": {"before": 63_000, "after": 25_000}, "baseline": whole, "measured": found, "rows": 597, "notes": [],
             "latency": {"before_ms": 1.0, "after_ms": 0.5, "times": 2.0, "rows": 64, "runs": 25, "runtime": "onnxruntime"}}
    masked = {"dtype": "float64", "max_abs": 1e-15, "max_rel": 1e-15, "rows": 4, "tolerance": 1e-10, "passed": True}
    runtime = {"runtime": "onnxruntime", "max_abs": 2e-6, "max_rel": 3e-7, "rows": 64, "tolerance": 1e-4, "passed": True}
    jobs.report(store, lease, stages=[{"name": "prune", "state": "done", "seconds": 0.5, "address": "smaller"}])
    jobs.finish(store, lease, {"filename": "net.onnx", "size": 7, "certificate": {"masked": masked, "runtime": runtime},
                              "facts": facts})


def test_what_is_not_there_says_so_and_a_phone_shows_everything(tab: Page, pages: Running) -> None:
    tab.goto(f"{pages.url}/a/{pages.waiting}/whatif")
    expect(tab.locator("main")).to_contain_text("This page appears by itself.")
    tab.goto(f"{pages.url}/a/nosuch/whatif")
    expect(tab.get_by_text("This analysis cannot be opened")).to_be_visible()
    tab.route("**/whatif", lambda route: route.fulfill(status=404, json={"error": {
        "code": "not_found", "message": "This analysis was made before there were what-if sessions.", "where": None,
        "fix": "Run it again to get one."}}) if "/api/" in route.request.url else route.continue_())
    tab.goto(f"{pages.url}/a/{pages.done}/whatif")
    expect(tab.locator(".wi")).to_contain_text("Run it again to get one.")
    tab.unroute_all()
    tab.set_viewport_size({"width": 390, "height": 844})
    open_session(tab, pages, "?sizes=160.40")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for slider in tab.locator(".wi-table .wi-range").all():
        box = slider.bounding_box()
        assert box is not None and box["width"] > 250 and box["x"] >= 0
    light = tab.evaluate("getComputedStyle(document.querySelector('.wi-number')).color")
    tab.locator("#shell-place").click()
    expect(tab.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
    assert tab.evaluate("getComputedStyle(document.querySelector('.wi-number')).color") != light
