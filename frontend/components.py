"""The hand-written components: Python faces of the objects in assets/*.js, under the namespace `cipm_ui`."""

from __future__ import annotations

from typing import Any

from dash.development.base_component import Component

_js_dist: list[dict[str, Any]] = []


class _Own(Component):
    """A component whose browser side is an asset; what it does not know it refuses."""

    _children_props: list[str] = []
    _base_nodes: list[str] = []
    _namespace = "cipm_ui"
    _type = ""
    _valid_wildcard_attributes: list[str] = []
    available_wildcard_properties: list[str] = []

    def __init__(self, **props: Any):
        self._prop_names = list(self.known)
        self.available_properties = self._prop_names
        super().__init__(**props)

    known: tuple[str, ...] = ("id", "className")


class Heatmap(_Own):
    """The tile viewer of one matrix.

    src: address of the matrix under /api; share: a share's token; kind: "weight" or "correlation" (range fixed at ±1);
    pane: "original" or "reordered"; order: the order shown where the address names none; orders: those it may name.
    """

    _type = "Heatmap"
    known = ("id", "className", "src", "share", "kind", "pane", "order", "orders", "caption")


class ModelGraph(_Own):
    """The drawing of a model's graph with its groups. src: address of the symmetry report; share: a share's token."""

    _type = "ModelGraph"
    known = ("id", "className", "src", "share")


class WhatIfSession(_Own):
    """The what-if session. src: address of the analysis under /api; share: a share's token; readOnly: only to look;
    page: address of the analysis page, to whose heatmaps the groups lead."""

    _type = "WhatIfSession"
    known = ("id", "className", "src", "share", "readOnly", "page")


class Uploader(_Own):
    """Two slots for files; `model` and `probe` are the finished uploads as the API describes them, else None."""

    _type = "Uploader"
    known = ("id", "className", "model", "probe")


class JobStream(_Own):
    """Follow a job: `job` is its newest state. src: its event stream; fallback: an address that carries it as JSON."""

    _type = "JobStream"
    known = ("id", "className", "src", "fallback", "job")
