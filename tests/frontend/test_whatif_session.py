"""The frame of the what-if session's page, and the ways to it; what the browser makes of it is tested in Chromium."""

from __future__ import annotations

import json
from typing import Any

import plotly.utils
import pytest

from frontend import symmetry_model as sm
from frontend.pages import analysis, sharing, whatif, whatif_session

OWNER = {"id": "abc", "share": None, "read_only": False}
GUEST = {"id": "abc", "share": "tok/en", "read_only": True}


def made(status: str) -> dict[str, Any]:
    stages = [{"name": "whatif", "state": "running", "seconds": None}]
    return {"id": "abc", "title": "Digits", "job": {"id": "j", "status": status, "stages": stages}}


def said(*components: Any) -> str:
    return json.dumps([component.to_plotly_json() for component in components if component is not None],
                      cls=plotly.utils.PlotlyJSONEncoder, ensure_ascii=False)


@pytest.mark.parametrize(("page", "home"), [(OWNER, "/a/abc"), (GUEST, "/s/tok/en")])
def test_a_finished_analysis_has_its_session(page: dict[str, Any], home: str) -> None:
    session = whatif_session.body(page, made("done"))[-1].to_plotly_json()
    assert session["type"] == "WhatIfSession" and session["props"] == {
        "id": "session", "src": "/api/analyses/abc", "share": page["share"], "readOnly": page["read_only"], "page": home}
    text = said(whatif_session.head(page, made("done")))
    assert f'"{home}"' in text and f'"{home}/symmetry"' in text and ("read only" in text) == page["read_only"]


def test_one_that_is_not_so_far_is_followed_and_one_that_ended_says_so() -> None:
    waiting = said(*whatif_session.body(GUEST, made("running")))
    assert "JobStream" in waiting and "/api/analyses/abc/events?share=tok/en" in waiting and "Try pruning" in waiting
    for status in ("failed", "cancelled"):
        text = said(*whatif_session.body(OWNER, made(status)))
        assert "There is no what-if session" in text and "JobStream" not in text


@pytest.mark.parametrize("status", ["running", "failed"])
def test_the_session_is_shown_before_the_last_stage_ends(status: str) -> None:
    analysed = made(status)
    analysed["job"]["stages"][0]["state"] = "done"
    assert whatif_session.body(OWNER, analysed)[-1].to_plotly_json()["type"] == "WhatIfSession"


def test_the_ways_to_the_session() -> None:
    assert sm.whatif_address(OWNER, group="a b") == "/a/abc/whatif?group=a+b"
    assert "/a/abc/whatif" in said(*analysis.ways(OWNER)) and "/s/tok/en/whatif" in said(*analysis.ways(GUEST))
    without = whatif.panel({"name": "fc", "size": 4, "whatif": {"unavailable": "no consumer"}}, {}, OWNER)
    assert "no consumer" in said(*without) and "/a/abc/whatif?group=fc" in said(*without)


def test_smaller_checkpoints_are_listed_with_their_what_ifs_alone() -> None:
    job = {"id": "j", "status": "queued", "created": "2026-01-01T00:00:00Z", "progress": 0.0, "error": None}
    exports = [{"id": "1", "order": None, "keep": {"fc": 2}, "job": job},
               {"id": "2", "order": "modules", "keep": None, "job": job}]
    assert said(sharing.export_list(exports)).count("writing") == 1
    assert "Nothing was exported yet" in said(sharing.export_list(exports[:1]))
