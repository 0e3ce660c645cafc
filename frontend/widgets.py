"""Pieces that several pages use: segmented controls bound to the address, problems, empty states, figures with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from frontend import words

Children = Component | str | Sequence[Any] | None


def choice(key: str, options: Mapping[str, str], default: str, label: str, title: str | None = None) -> html.Div:
    """Return a segmented control whose value is `key` of the address; the browser keeps it in step (assets/60)."""
    return html.Div([html.Button(text, type="button", role="radio", **{"data-key": key, "data-value": value})
                     for value, text in options.items()],
                    className="seg", role="radiogroup", title=title, **{"aria-label": label, "data-default": default})


def tabs(options: Mapping[str, str], label: str) -> html.Div:
    """Return a row of tabs whose value is `tab` of the address."""
    return html.Div([html.Button(text, type="button", role="tab", **{"data-key": "tab", "data-value": value})
                     for value, text in options.items()],
                    className="tabs", role="tablist", **{"aria-label": label})


def problem(error: Mapping[str, Any] | None, title: str | None = None) -> Component | None:
    """Return an alert with the API's sentence, where it is, and the fix; None for no error."""
    if not error:
        return None
    where = error.get("where")
    return html.Div([html.Div(title, className="problem-title") if title else None,
                     html.P([error.get("message"), html.Code(where, className="problem-where") if where else None]),
                     html.P(error["fix"], className="problem-fix") if error.get("fix") else None],
                    className="problem", role="alert")


def empty(title: str, *lines: Children) -> html.Div:
    """Return an empty state: what is not here, and what would put it here."""
    return html.Div([html.H3(title), *[html.P(line) for line in lines]], className="empty")


def facts(pairs: Sequence[tuple[str, Children]], className: str = "facts") -> html.Dl:
    """Return names with values as a definition list."""
    return html.Dl([html.Div([html.Dt(name), html.Dd(value)]) for name, value in pairs], className=className)


def big(value: Children, name: str, note: Children = None) -> html.Div:
    """Return one large figure with its name and a note."""
    return html.Div([html.Div(name, className="big-name"), html.Div(value, className="big-value"),
                     html.Div(note, className="big-note")], className="big")


def badge(text: str, tone: str = "plain", title: str | None = None) -> html.Span:
    """Return a small badge; tone is plain, good, warn or bad."""
    return html.Span(text, className=f"badge {tone}", title=title)


def copy_button(text: str, label: str = "Copy") -> html.Button:
    """Return a button that copies `text`."""
    return html.Button(label, type="button", className="cipm-link", **{"data-copy": text})


def power(log10: float | None) -> Children:
    """Return 10ⁿ as text with a superscript; `1` where there is only one."""
    parts = words.power_of_ten(log10)
    return "1" if parts is None else [parts[0], html.Sup(parts[1])]


def button(text: Children, id: Any, kind: str = "default", **props: Any) -> dmc.Button:
    """Return a button; kind is a Mantine variant."""
    return dmc.Button(text, id=id, variant=kind, **{"size": "xs", "fz": 13, "fw": 500, "px": 12, **props})


def meter(share: float | None, label: str) -> html.Div:
    """Return a thin bar filled to a share of its width."""
    width = 0 if share is None else max(0.0, min(1.0, share))
    return html.Div(html.I(style={"transform": f"scaleX({width:.4f})"}), className="meter", role="img",
                    **{"aria-label": label})
