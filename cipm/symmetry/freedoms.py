"""The symmetries beside permutations, as frozen values: what may be scaled, flipped, rotated or mixed, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SCALE, SIGN, ORTHOGONAL, INVERTIBLE = "scale", "sign", "orthogonal", "invertible"
ROTATION = "rotation+scale per pair"
KINDS = (SCALE, SIGN, ORTHOGONAL, INVERTIBLE, ROTATION)


@dataclass(frozen=True, eq=False)
class FreedomPlace:
    """Where units stand on one axis of a tensor: `index` [units, elements] of positions.

    `power` is the exponent of a unit's factor there; of a matrix M, 1 means M (covariant) and −1 its inverse transpose
    (contravariant). `blocks` > 1: a convolution's filters share the axis, and positions count through so many equal runs of
    axis 0. `offset`: the model reads the tensor plus this number, and the sum transforms.
    """

    tensor: str
    axis: int
    length: int
    power: int
    index: np.ndarray
    blocks: int = 1
    offset: float = 0.0


@dataclass(frozen=True)
class Absorption:
    """A norm's weight that its readers take over first: scaled by the freedom called `by`, `tensor` becomes ones."""

    tensor: str
    by: str


@dataclass(frozen=True)
class FreedomCertificate:
    """The measured proof of one kind: random members, all freedoms of the kind together, in float64.

    `negative_control` is the change when one place alone is moved; it must exceed the tolerance.
    """

    dtype: str
    inputs: str
    members: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    negative_control: float | None


@dataclass(frozen=True, eq=False)
class ContinuousSymmetry:
    """One freedom: `units` in `blocks` equal runs transform as `kind` says at all places together.

    `dimension` is the number of parameters that say nothing about the function: n factors, n signs (2ⁿ members),
    n(n−1)/2 angles, n² entries of a matrix; per block. `fixes_ones`: the orthogonal maps keep the vector of ones.
    `group` names the permutation group of the same units, where there is one.
    """

    name: str
    kind: str
    group: str | None
    units: int
    blocks: int
    places: tuple[FreedomPlace, ...]
    fixes_ones: bool = False
    absorbs: tuple[Absorption, ...] = ()
    conditions: tuple[str, ...] = ()
    certificate: FreedomCertificate | None = None

    @property
    def width(self) -> int:
        """Return the units of one block."""
        return self.units // self.blocks

    @property
    def dimension(self) -> int:
        """Return the number of free parameters (for signs: of free signs)."""
        n = self.width - self.fixes_ones
        each = {SCALE: n, SIGN: n, ORTHOGONAL: n * (n - 1) // 2, INVERTIBLE: n * n, ROTATION: 2 * n}[self.kind]
        return self.blocks * each

    @property
    def proved(self) -> bool:
        return self.certificate is not None and self.certificate.passed

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; `freedom_from_json` gives it back."""
        return {"kind": self.kind, "name": self.name, "group": self.group, "units": self.units, "blocks": self.blocks,
                "dimension": self.dimension, "conditions": list(self.conditions), "proved": self.proved,
                "fixes_ones": self.fixes_ones, "absorbs": [asdict(a) for a in self.absorbs],
                "places": [{"tensor": p.tensor, "axis": p.axis, "length": p.length, "power": p.power, "blocks": p.blocks,
                            "offset": p.offset, "index": p.index.tolist()} for p in self.places],
                "certificate": asdict(self.certificate) if self.certificate else None}


def freedom_from_json(payload: Mapping[str, Any]) -> ContinuousSymmetry:
    """Rebuild a ContinuousSymmetry from its `to_json`."""
    places = tuple(FreedomPlace(p["tensor"], p["axis"], p["length"], p["power"], np.asarray(p["index"], dtype=np.int64),
                                p["blocks"], p["offset"]) for p in payload["places"])
    certificate = FreedomCertificate(**payload["certificate"]) if payload["certificate"] else None
    return ContinuousSymmetry(payload["name"], payload["kind"], payload["group"], payload["units"], payload["blocks"], places,
                              payload["fixes_ones"], tuple(Absorption(**a) for a in payload["absorbs"]),
                              tuple(payload["conditions"]), certificate)
