"""What symmetry discovery finds: groups, their places and taps, pins, and the certificate. JSON-ready frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cipm.errors import OptionError
from cipm.permutation import Along, Move, Permutation, Plan, View, compose
from cipm.symmetry.freedoms import ContinuousSymmetry, freedom_from_json
from cipm.symmetry.taps import Tap, tap_from_json


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group's units stand on one axis of one tensor: `index` [units, elements] of its `length` positions.

    With a `view`, positions are those of two axes taken as one (the units of every expert, in a stack of experts), and
    `axis` is the axis of the tensor along which the units of one of them stand.
    """

    tensor: str
    axis: int
    length: int
    index: np.ndarray
    view: View | None = None

    @property
    def along(self) -> Along:
        """Return what a plan moves here: the axis, or the view."""
        return self.axis if self.view is None else self.view

    @property
    def axes(self) -> tuple[int, ...]:
        """Return the axes of the tensor on which the units stand."""
        return (self.axis,) if self.view is None else tuple(sorted({self.view.axes[0], self.axis}))

    def move(self, permutation: Permutation) -> Move:
        """Return what `compose` takes: these units, moved."""
        return (self.tensor, self.along), self.length, self.index, permutation

    def line_up(self, tensor: Any) -> Any:
        """Return the tensor (torch or numpy) as [positions, the other axes…]."""
        if self.view is not None:
            return self.view.line_up(tensor)
        return np.moveaxis(tensor, self.axis, 0) if isinstance(tensor, np.ndarray) else tensor.movedim(self.axis, 0)

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return everything that stands at each position, as [positions, entries]."""
        return self.line_up(tensor).reshape(self.length, -1)

    def to_json(self) -> dict[str, Any]:
        """Return the place as JSON-ready values; `place_from_json` gives it back."""
        view = {} if self.view is None else {"view": {"shape": list(self.view.shape), "axes": list(self.view.axes)}}
        return {"tensor": self.tensor, "axis": self.axis, "length": self.length, "index": self.index.tolist(), **view}


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """Units that may be permuted freely, and every place that must move with them.

    `blocks` > 1: units may be permuted within each of `blocks` equal runs (the units inside each head). `parent` names
    the group that carries these units (the heads). `kind` is a word for people: "units", "channels", "heads", "units
    in blocks". `taps` may be empty (a group whose activations no contraction reads). `least` is the fewest units that a smaller
    model can keep, where that was asked for (`pruning.network.prunable`): as many experts as a router chooses.
    """

    name: str
    kind: str
    size: int
    blocks: int
    parent: str | None
    places: tuple[Place, ...]
    taps: tuple[Tap, ...]
    proved: bool = False
    least: int = 1

    @property
    def stacked(self) -> bool:
        """Tell whether the units stand on two axes of some tensor at once."""
        return any(place.view is not None for place in self.places)

    @property
    def log10_members(self) -> float:
        """Return log10 of the number of members: blocks × log10((size/blocks)!)."""
        width = self.size // self.blocks
        return self.blocks * float(np.log10(np.arange(1, width + 1)).sum())


@dataclass(frozen=True)
class Pin:
    """An axis, or positions of it, that may not move, with the op that pins it, the node's name, and the reason in words."""

    tensor: str
    axis: int
    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class GroupProof:
    """What was measured of one group by itself: differences where its values leave it, relative to the largest entry.

    `negative_control` is the change that moving one tied tensor alone made; 0 where no part made any.
    """

    name: str
    max_abs: float
    max_rel: float
    negative_control: float
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """The measured proof that reordering preserves the function.

    `inputs` says on what (shapes); `draws` random members of all groups together were compared at the outputs, `max_rel`
    relative to the largest absolute output of the same sample, and one of each group by itself (`groups`). The differences
    are the largest of all these. `negative_control` is the smallest relative change that moving one tied tensor
    alone caused over the groups; it must exceed the tolerance, or the check could not have failed.
    """

    dtype: str
    inputs: str
    draws: int
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    negative_control: float
    seconds: float
    groups: tuple[GroupProof, ...] = ()


@dataclass(frozen=True)
class Symmetry:
    """Everything discovery knows about one checkpoint. Groups are listed inner levels first.

    `carried` maps the name of every value of the graph on which units stand to the names of their groups. `continuous` are the
    symmetries beside permutations: scale, sign, orthogonal and invertible maps.
    """

    groups: tuple[SymmetryGroup, ...]
    pins: tuple[Pin, ...]
    certificate: Certificate | None
    movable_share: float
    notes: tuple[str, ...] = ()
    carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    continuous: tuple[ContinuousSymmetry, ...] = ()

    def group(self, name: str) -> SymmetryGroup:
        """Return the group called `name`, or raise OptionError listing the names."""
        for group in self.groups:
            if group.name == name:
                return group
        raise OptionError(f"There is no group {name!r}; the groups are {', '.join(g.name for g in self.groups)}.")

    @property
    def views(self) -> dict[tuple[str, int], View]:
        """Return the views of stored axes along which groups stand: what `walk` needs to tell their units apart."""
        return {(p.tensor, p.axis): p.view for group in self.groups for p in group.places if p.view is not None}

    @property
    def log10_equivalents(self) -> float:
        """Return log10 of the number of equivalent parameterisations that the proved groups generate."""
        return sum(group.log10_members for group in self.groups if group.proved)

    def plan(self, orders: Mapping[str, Permutation]) -> Plan:
        """Return the plan that applies one order per named group; raises OptionError where one does not fit."""
        for name, permutation in orders.items():
            group = self.group(name)
            if len(permutation) != group.size or not permutation.keeps_blocks(group.blocks):
                raise OptionError(f"The order for {name} must permute {group.size} units within {group.blocks} blocks; "
                                  f"it has {len(permutation)}.", where=name)
        return Plan(compose(place.move(orders[group.name]) for group in self.groups if group.name in orders
                            for place in group.places), dict(orders))

    def with_proof(self, certificate: Certificate, proved: set[str]) -> Symmetry:
        """Return the same symmetry with its certificate and the proved groups marked."""
        groups = tuple(replace(group, proved=group.name in proved) for group in self.groups)
        return replace(self, groups=groups, certificate=certificate)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; `symmetry_from_json` gives it back."""
        return {
            "groups": [{"name": g.name, "kind": g.kind, "size": g.size, "blocks": g.blocks, "parent": g.parent,
                        "proved": g.proved,
                        "places": [place.to_json() for place in g.places],
                        "taps": [tap.to_json() for tap in g.taps]}
                       for g in self.groups],
            "pins": [asdict(pin) for pin in self.pins],
            "certificate": asdict(self.certificate) if self.certificate else None,
            "movable_share": self.movable_share,
            "log10_equivalents": self.log10_equivalents,
            "notes": list(self.notes),
            "carried": {name: list(groups) for name, groups in self.carried.items()},
            "continuous": [freedom.to_json() for freedom in self.continuous],
        }


def place_from_json(payload: Mapping[str, Any]) -> Place:
    """Rebuild a Place from its `to_json`."""
    view = payload.get("view")
    return Place(payload["tensor"], payload["axis"], payload["length"], np.asarray(payload["index"]),
                 View(tuple(view["shape"]), tuple(view["axes"])) if view else None)


def symmetry_from_json(payload: Mapping[str, Any]) -> Symmetry:
    """Rebuild a Symmetry from its `to_json`."""
    groups = tuple(
        SymmetryGroup(g["name"], g["kind"], g["size"], g["blocks"], g["parent"],
                      tuple(map(place_from_json, g["places"])),
                      tuple(map(tap_from_json, g["taps"])),
                      g["proved"])
        for g in payload["groups"])
    certificate = _certificate(payload["certificate"]) if payload["certificate"] else None
    return Symmetry(groups, tuple(Pin(**pin) for pin in payload["pins"]), certificate, payload["movable_share"],
                    tuple(payload["notes"]), {name: tuple(groups) for name, groups in payload["carried"].items()},
                    tuple(freedom_from_json(freedom) for freedom in payload["continuous"]))


def _certificate(payload: Mapping[str, Any]) -> Certificate:
    return Certificate(**{**payload, "groups": tuple(GroupProof(**group) for group in payload["groups"])})
