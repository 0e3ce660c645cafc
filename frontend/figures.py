"""The plotly figures, as pure functions of the report. Colours suit light and dark; text colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from frontend.view_models import LOSS_WORDS, keep_marks

PREDICTED, MEASURED, GRID = "#4c8fd6", "#e07a3f", "rgba(128,134,145,0.22)"


def whatif_curve(group: Mapping[str, Any], baseline: Mapping[str, Any], keep: int) -> go.Figure:
    """Return loss against units kept: predicted curve, measured points, the unpruned loss, and the slider's place."""
    whatif = group.get("whatif") or {}
    figure = go.Figure(layout=_layout(group["size"], LOSS_WORDS.get(baseline.get("loss_kind") or "", "loss")))
    figure.update_yaxes(_loss_axis(whatif, baseline.get("loss")))
    figure.add_scatter(x=whatif.get("keep") or [], y=whatif.get("predicted") or [], name="predicted", mode="lines",
                       line={"color": PREDICTED, "width": 2}, hovertemplate="%{y:.4g}")
    measured = whatif.get("measured") or []
    figure.add_scatter(x=[point["keep"] for point in measured], y=[point["loss"] for point in measured],
                       name="measured", mode="markers", marker={"color": MEASURED, "size": 9}, cliponaxis=False,
                       customdata=[point.get("rows") for point in measured],
                       hovertemplate="%{y:.4g} on %{customdata:,} rows")
    if baseline.get("loss") is not None and (baseline["loss"] > 0 or figure.layout.yaxis.type != "log"):
        figure.add_hline(y=baseline["loss"], line={"color": "rgba(128,134,145,0.7)", "dash": "dot", "width": 1})
    figure.add_shape(**marker(keep))
    return figure


def _loss_axis(whatif: Mapping[str, Any], baseline: float | None) -> dict[str, Any]:
    """Return a logarithmic axis where the losses span more than a factor of 20, else one from zero.

    Losses that fall to zero are shown down to a ten-thousandth of the largest.
    """
    losses = [*(whatif.get("predicted") or []), *(point["loss"] for point in whatif.get("measured") or []), baseline or 0.0]
    positive = [loss for loss in losses if loss > 0]
    if not positive or max(positive) <= 20 * min(positive):
        return {"rangemode": "tozero"}
    low, high = max(min(positive), 1e-4 * max(positive)), max(positive)
    return {"type": "log", "range": [math.log10(low) - 0.1, math.log10(high) + 0.1], "dtick": 1, "exponentformat": "power"}


def marker(keep: int) -> dict[str, Any]:
    """Return the vertical line at the slider's place; it is the figure's last shape."""
    return {"type": "line", "x0": keep, "x1": keep, "y0": 0, "y1": 1, "yref": "paper", "name": "keep",
            "line": {"color": "rgba(128,134,145,0.9)", "width": 1.5}}


def _layout(size: int, loss: str) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": ""}
    return {"margin": {"l": 56, "r": 12, "t": 8, "b": 10}, "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)", "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#868e96"},
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "top"}, "hovermode": "x",
            "xaxis": {**axis, "range": [1, max(2, size)], "showticklabels": False,
                      "tickvals": keep_marks(size)},
            "yaxis": {**axis, "title": {"text": loss}}, "uirevision": "keep", "height": 340}


def module_colour(module: int) -> str:
    """Return the CSS colour of a module: golden-angle hues; lightness follows the scheme (see assets/10-core.js)."""
    hue = (module * 137.508 + 250) % 360
    shade = (module % 3 - 1) * 0.07
    return f"oklch(calc(var(--module-light) + {shade:.2f}) 0.13 {hue:.1f})"
