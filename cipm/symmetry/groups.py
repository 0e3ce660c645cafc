"""What symmetry discovery finds: groups, their places and taps, pins, and the certificate. JSON-ready frozen values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cipm.errors import OptionError
from cipm.permutation import Permutation, Plan, compose
from cipm.symmetry.freedoms import ContinuousSymmetry, freedom_from_json


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group's units stand on one axis of one tensor: `index` [units, elements] of positions on that axis."""

    tensor: str
    axis: int
    length: int
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Tap:
    """A graph value whose activations represent the group where its consumers read it.

    `value` is the value's name, `axis` the axis of the units, `index` [units, elements] the positions of each unit on
    it. `consumers` are the (tensor, axis) of the weights that contract over this axis of this value.
    """

    value: str
    axis: int
    index: np.ndarray
    consumers: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """Name what is observed here, for storage: equal keys see equal samples."""
        content = np.ascontiguousarray(self.index, dtype=np.int64)
        return f"{self.value}@{self.axis}@{hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()[:16]}"


@dataclass(frozen=True, eq=False)
class SymmetryGroup:
    """Units that may be permuted freely, and every place that must move with them.

    `blocks` > 1: units may be permuted within each of `blocks` equal runs (the units inside each head). `parent` names
    the group that carries these units (the heads). `kind` is a word for people: "units", "channels", "heads", "units
    in blocks". `taps` may be empty (a group whose activations no contraction reads).
    """

    name: str
    kind: str
    size: int
    blocks: int
    parent: str | None
    places: tuple[Place, ...]
    taps: tuple[Tap, ...]
    proved: bool = False

    @property
    def log10_members(self) -> float:
        """Return log10 of the number of members: blocks × log10((size/blocks)!)."""
        width = self.size // self.blocks
        return self.blocks * float(np.log10(np.arange(1, width + 1)).sum())


@dataclass(frozen=True)
class Pin:
    """An axis that may not move, with the op that pins it, the node's name, and the reason in words."""

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
        moves = [((place.tensor, place.axis), place.length, place.index, orders[group.name])
                 for group in self.groups if group.name in orders for place in group.places]
        return Plan(compose(moves), dict(orders))

    def with_proof(self, certificate: Certificate, proved: set[str]) -> Symmetry:
        """Return the same symmetry with its certificate and the proved groups marked."""
        groups = tuple(replace(group, proved=group.name in proved) for group in self.groups)
        return replace(self, groups=groups, certificate=certificate)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; `symmetry_from_json` gives it back."""
        return {
            "groups": [{"name": g.name, "kind": g.kind, "size": g.size, "blocks": g.blocks, "parent": g.parent,
                        "proved": g.proved,
                        "places": [{"tensor": p.tensor, "axis": p.axis, "length": p.length, "index": p.index.tolist()}
                                   for p in g.places],
                        "taps": [{"value": t.value, "axis": t.axis, "index": t.index.tolist(),
                                  "consumers": [list(c) for c in t.consumers]} for t in g.taps]}
                       for g in self.groups],
            "pins": [asdict(pin) for pin in self.pins],
            "certificate": asdict(self.certificate) if self.certificate else None,
            "movable_share": self.movable_share,
            "log10_equivalents": self.log10_equivalents,
            "notes": list(self.notes),
            "carried": {name: list(groups) for name, groups in self.carried.items()},
            "continuous": [freedom.to_json() for freedom in self.continuous],
        }


def symmetry_from_json(payload: Mapping[str, Any]) -> Symmetry:
    """Rebuild a Symmetry from its `to_json`."""
    groups = tuple(
        SymmetryGroup(g["name"], g["kind"], g["size"], g["blocks"], g["parent"],
                      tuple(Place(p["tensor"], p["axis"], p["length"], np.asarray(p["index"])) for p in g["places"]),
                      tuple(Tap(t["value"], t["axis"], np.asarray(t["index"]), tuple((k, a) for k, a in t["consumers"]))
                            for t in g["taps"]),
                      g["proved"])
        for g in payload["groups"])
    certificate = _certificate(payload["certificate"]) if payload["certificate"] else None
    return Symmetry(groups, tuple(Pin(**pin) for pin in payload["pins"]), certificate, payload["movable_share"],
                    tuple(payload["notes"]), {name: tuple(groups) for name, groups in payload["carried"].items()},
                    tuple(freedom_from_json(freedom) for freedom in payload["continuous"]))


def _certificate(payload: Mapping[str, Any]) -> Certificate:
    return Certificate(**{**payload, "groups": tuple(GroupProof(**group) for group in payload["groups"])})
