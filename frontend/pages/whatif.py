"""The pruning what-if of one group: slider, curve, numbers, and measuring a point on a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from frontend import symmetry_model as sm
from frontend import view_models as vm
from frontend import words
from frontend.components import JobStream
from frontend.figures import whatif_curve
from frontend.ids import WhatIf
from frontend.widgets import big, button, empty

Json = Mapping[str, Any]
MOST_PAIRS = 50


def panel(group: Json, baseline: Json, page: Json) -> Any:
    """Return the what-if of a group, or why there is none."""
    reason = vm.whatif_reason(group)
    if reason:
        return [empty("No pruning what-if", reason), session_link(group, page)]
    keep = min(group["size"], max(1, int(page.get("keep") or vm.suggested_keep(group))))
    ask = None if page.get("read_only") else button("Measure this", WhatIf.MEASURE)
    measure = html.Div([ask, html.Div(id=WhatIf.STATE, className="quiet", role="status"), session_link(group, page)],
                       className="measure")
    return html.Div([
        dcc.Graph(id=WhatIf.CURVE, figure=whatif_curve(group, baseline, keep), config={"displayModeBar": False},
                  style={"height": "340px"}, className="curve"),
        html.Div(dmc.Slider(id=WhatIf.KEEP, value=keep, min=1, max=group["size"], step=1, updatemode="drag", size="sm",
                            mb=30, marks=[{"value": at, "label": words.integer(at)} for at in vm.keep_marks(group["size"])],
                            thumbLabel="Units kept"), className="slider"),
        html.Div(numbers(group, baseline, keep), id=WhatIf.NUMBERS), measure,
        JobStream(id=WhatIf.STREAM), _merges(group), html.P(_how(group, baseline), className="quiet how")], className="whatif")


def _merges(group: Json) -> Any:
    """Return the near-duplicates: units that one other unit nearly gives, and what merging all of them costs."""
    merges = (group.get("whatif") or {}).get("merges")
    if merges is None:
        return None
    pairs = merges["pairs"]
    if not pairs:
        return html.P("No unit is nearly a copy of one other (R² ≥ 0.95).", className="quiet")
    heads = [html.Th(title) for title in ("Unit", "nearly", "R²")]
    rows = [html.Tr([html.Td(str(pair["removed"])), html.Td(vm.merge_words(pair)), html.Td(words.fixed(pair["r2"], 3))])
            for pair in pairs[:MOST_PAIRS]]
    more = len(pairs) - MOST_PAIRS
    return html.Details([
        html.Summary(f"{words.plural(len(pairs), 'near-duplicate')}: merging all of them loses "
                     f"{words.percent(merges['merged'], 2)} of what these units give, "
                     f"{words.percent(merges['refitted'], 2)} where all others are refitted"),
        html.Table([html.Thead(html.Tr(heads)), html.Tbody(rows)], className="pins"),
        html.P(f"{more} more pairs are in report.json.", className="quiet") if more > 0 else None], className="merges")


def session_link(group: Json, page: Json) -> dcc.Link:
    """Return the way to the session in which this group is one of many."""
    return dcc.Link("Together with the other groups", href=sm.whatif_address(page, group=group["name"]), className="to-session",
                    title="One slider for the whole model and one for every group")


def numbers(group: Json, baseline: Json, keep: int) -> html.Div:
    """Return the figures of keeping `keep` units: parameters, predicted loss, and what was measured there."""
    known = vm.keep_numbers(group, keep)
    loss = vm.LOSS_WORDS.get(baseline.get("loss_kind") or "", "loss")
    point = known.measured or {}
    cells = [big(f"{words.integer(keep)} of {words.integer(known.total)}", "units kept",
                 f"{words.percent(1 - keep / known.total, 0)} removed"),
             big(words.compact(known.parameters), "parameters left", "in the whole model"),
             big(words.number(known.predicted), f"predicted {loss}", _against(baseline)),
             big(words.number(point.get("loss")) if point else words.NONE, f"measured {loss}",
                 f"on {words.integer(point.get('rows'))} rows" if point else "not measured at this number")]
    if baseline.get("accuracy") is not None:
        cells.append(big(words.percent(point.get("accuracy")) if point else words.NONE, "measured accuracy",
                         f"{words.percent(baseline['accuracy'])} unpruned"))
    return html.Div(cells, className="bigs")


def _against(baseline: Json) -> str:
    return f"{words.number(baseline['loss'])} unpruned" if baseline.get("loss") is not None else ""


def _how(group: Json, baseline: Json) -> str:
    points = (group.get("whatif") or {}).get("measured") or []
    rows = words.integer(points[0].get("rows")) if points else words.integer(baseline.get("rows"))
    notes = " ".join((group.get("whatif") or {}).get("notes") or [])
    return ("Predicted from the covariance of the units' activations, through the points measured with the analysis; at such a "
            "point the figure is what the other points predict. The least useful units go first, and the others take over by "
            "least squares, without retraining, fitted on the even probe rows. Measured points run the whole model in this way "
            f"on {rows} odd rows. The dotted line is the unpruned model. {notes}")
