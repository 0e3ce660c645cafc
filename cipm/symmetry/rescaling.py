"""Powers of two and signs along axes: changes of scale that floating point makes, and undoes, without a rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cipm.load.checkpoint import LazyTensors, metas_of

Place = tuple[str, int, int]
"""Tensor, axis, and the equal runs of axis 0 through which positions count (1: none)."""
FACTORS = 1000
"""Exponents are applied in steps of at most this, so that no factor overflows by itself."""


@dataclass(frozen=True, eq=False)
class Rescaling:
    """For every place the exponents of two [runs × length] and the positions whose sign is turned."""

    exponents: Mapping[Place, np.ndarray]
    flips: Mapping[Place, np.ndarray]

    @property
    def is_identity(self) -> bool:
        return not any(e.any() for e in self.exponents.values()) and not any(f.any() for f in self.flips.values())

    @property
    def inverse(self) -> Rescaling:
        """Return what undoes this, bit for bit."""
        return Rescaling({place: -e for place, e in self.exponents.items()}, dict(self.flips))

    def then(self, other: Rescaling) -> Rescaling:
        """Return this and another together."""
        exponents = {p: self.exponents.get(p, 0) + other.exponents.get(p, 0) for p in {**self.exponents, **other.exponents}}
        flips = {p: self.flips.get(p, False) ^ other.flips.get(p, False) for p in {**self.flips, **other.flips}}
        return Rescaling(exponents, flips)

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> LazyTensors:
        """Return the tensors rescaled, each when it is asked for."""
        return LazyTensors(metas_of(tensors), lambda key: self.move(key, tensors[key]))

    def move(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return one tensor rescaled, in its own dtype; the tensor itself where nothing changes."""
        exponents, flips = self._of(key, tensor)
        if exponents is None and flips is None:
            return tensor
        made = tensor
        if exponents is not None:
            wide = tensor.double()
            for step in _steps(exponents):
                wide = wide * step
            made = torch.where(exponents == 0, tensor, wide.to(tensor.dtype))
        return made if flips is None else torch.where(flips, -made, made)

    def lost(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return which entries do not come back bit for bit: what overflows or underflows."""
        tensor = tensor.detach()
        back = self.inverse.move(key, self.move(key, tensor))
        width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        return back.contiguous().view(width) != tensor.contiguous().view(width)

    @cached_property
    def keys(self) -> frozenset[str]:
        """Return the tensors that change."""
        found = [p[0] for p, e in self.exponents.items() if e.any()] + [p[0] for p, f in self.flips.items() if f.any()]
        return frozenset(found)

    def _of(self, key: str, tensor: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        total = turned = None
        for (name, axis, runs), exponents in self.exponents.items() if key in self.keys else ():
            if name == key and exponents.any():
                own = laid_out(torch.from_numpy(exponents), tensor.shape, axis, runs)
                total = own if total is None else total + own
        for (name, axis, runs), flips in self.flips.items() if key in self.keys else ():
            if name == key and flips.any():
                own = laid_out(torch.from_numpy(flips), tensor.shape, axis, runs)
                turned = own if turned is None else turned ^ own
        return total, turned

    def to_json(self) -> list[list[Any]]:
        """Return [tensor, axis, runs, exponents, positions turned] for every place that changes."""
        rows = []
        for place in sorted({**self.exponents, **self.flips}):
            exponents, flips = self.exponents.get(place), self.flips.get(place)
            powers = exponents.tolist() if exponents is not None and exponents.any() else []
            turned = np.flatnonzero(flips).tolist() if flips is not None else []
            if powers or turned:
                rows.append([*place, powers, turned])
        return rows


def rescaling_from_json(payload: Sequence[Any], metas: Mapping[str, torch.Tensor]) -> Rescaling:
    """Rebuild a rescaling for tensors of these shapes; raises ValueError where it does not fit them."""
    exponents: dict[Place, np.ndarray] = {}
    flips: dict[Place, np.ndarray] = {}
    for key, axis, runs, powers, turned in payload:
        if not isinstance(key, str) or key not in metas or not metas[key].is_floating_point():
            raise ValueError(f"it rescales {key!r}, which is no tensor of numbers of the model")
        if not all(type(n) is int for part in ([axis, runs], powers, turned) for n in part):
            raise ValueError(f"it rescales {key!r} by what are no integers")
        shape = metas[key].shape
        if not 0 <= axis < len(shape) or runs < 1 or (runs > 1 and (axis != 1 or shape[0] % runs)):
            raise ValueError(f"it rescales an axis that {key!r} does not have")
        length = runs * shape[axis]
        if len(powers) not in (0, length) or any(not 0 <= n < length for n in turned) or any(abs(n) > 4096 for n in powers):
            raise ValueError(f"its scales do not fit axis {axis} of {key!r}")
        place = (key, axis, runs)
        exponents[place] = np.array(powers or [0] * length, dtype=np.int64)
        flips[place] = np.isin(np.arange(length), turned)
    return Rescaling(exponents, flips)


def laid_out(values: torch.Tensor, shape: Sequence[int], axis: int, runs: int) -> torch.Tensor:
    """Return values of the positions of an axis, broadcastable to a tensor's shape."""
    if runs > 1:
        rows = values.reshape(runs, 1, -1).expand(runs, shape[0] // runs, -1)
        return rows.reshape(shape[0], -1, *[1] * (len(shape) - 2))
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _steps(exponents: torch.Tensor | None) -> list[torch.Tensor]:
    """Return powers of two whose product is 2^exponents, none of which overflows."""
    if exponents is None:
        return []
    count = max(1, math.ceil(int(exponents.abs().max()) / FACTORS))
    parts = [torch.div(exponents, count, rounding_mode="trunc")] * (count - 1)
    rest = exponents - sum(parts) if parts else exponents
    return [torch.exp2(part.double()) for part in (*parts, rest)]
