"""A job while it runs, and how it ended where it did not end well. Pure layout from the API's Job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import html

from frontend import view_models as vm
from frontend import words
from frontend.ids import Analysis
from frontend.widgets import button, meter, problem

Json = Mapping[str, Any]
MARKS = {"done": "✓", "cached": "✓", "running": "", "waiting": "", "failed": "✕", "stopped": "–"}


def panel(job: Json, read_only: bool) -> html.Div:
    """Return the stages with state, the bar, the clocks and the button that fits the state."""
    return html.Div([html.Div(_head(job), className="progress-head"),
                     meter(job.get("progress"), "Progress of the analysis"),
                     problem(job.get("error")) if job["status"] == "failed" else None, stages(job),
                     html.Div(None if read_only else _action(job), className="progress-action"),
                     html.Div(id=Analysis.PROBLEM)], className="progress", **{"data-status": job["status"]})


def stages(job: Json) -> html.Ol:
    """Return the stages as a list."""
    return html.Ol([html.Li([html.Span(MARKS.get(row.state, ""), className="stage-mark", **{"aria-hidden": "true"}),
                             html.Span(row.title), html.Span(row.detail, className="quiet")],
                            className=f"stage {row.state}") for row in vm.stage_rows(job)], className="stages")


def _head(job: Json) -> list[Any]:
    titles = {"queued": "Waiting for a worker", "running": "Analysing", "failed": "Stopped by an error",
              "cancelled": "Cancelled", "done": "Done"}
    attempt = f"attempt {job['attempt']}" if job.get("attempt", 1) > 1 else None
    return [html.H2(titles[job["status"]]), html.Span(attempt, className="quiet"), html.Span(_clocks(job), className="clocks")]


def _clocks(job: Json) -> list[Any]:
    started = job.get("started") or job.get("created")
    until = {"data-until": job["finished"]} if job.get("finished") else {}
    clocks = [html.Span(**{"data-since": started, **until})]
    if job["status"] == "running" and job.get("eta_seconds") is not None:
        left = job["eta_seconds"]
        clocks.append(html.Span(f"about {words.seconds(left)} left" if left > 1 else "nearly done"))
    return clocks


def _action(job: Json) -> Any:
    if job["status"] in vm.ACTIVE:
        return button("Cancel", Analysis.CANCEL)
    return [button("Rerun", Analysis.RERUN, "filled"), html.Span("Finished stages are kept.", className="quiet")]
