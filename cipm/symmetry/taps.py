"""Taps: the values of the graph in which a group's units are observed, and how the units are read off them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

CHOSEN_WORDS = ("Units of experts that a router chooses: where it does not choose an expert, the activations of its units "
                "count as 0, as in the dense form of the layer. So their means, correlations and modules also tell which "
                "experts were chosen, and all units of an expert that never was are dead.")
"""What the statistics of units behind an index mean."""


@dataclass(frozen=True)
class Chosen:
    """Positions of an activation that show the units of one of `slices` slices each (experts): which, the integers of the value
    `index` say. Along its axes `among` are the several slices that one row was given to."""

    index: str
    slices: int
    among: tuple[int, ...]

    def spread(self, activation: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
        """Return [rows…, (other positions,) slices × units] of an activation with its units on `axis`: 0 for slices not chosen.

        Source: the dense form of a mixture of experts, y = Σ_e G(x)_e E_e(x) with G mostly 0 (Shazeer et al. 2017,
        "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", eq. 1).
        """
        x = activation.movedim(axis, -1)
        x = x.reshape(*index.shape, -1, x.shape[-1])
        rows = [n for at, n in enumerate(index.shape) if at not in self.among]
        order = [*(at for at in range(index.ndim) if at not in self.among), *self.among]
        x = x.permute(*order, -2, -1).reshape(*rows, -1, *x.shape[-2:])
        to = index.permute(order).reshape(*rows, -1, 1, 1).remainder(self.slices)
        dense = x.new_zeros(*rows, self.slices, *x.shape[-2:]).scatter_(len(rows), to.expand_as(x), x)
        dense = dense.movedim(len(rows), -2).flatten(-2)
        return dense.squeeze(-2) if dense.shape[-2] == 1 else dense


@dataclass(frozen=True, eq=False)
class Tap:
    """A graph value whose activations represent the group where its consumers read it.

    `value` is the value's name, `axis` the axis of the units, `index` [units, elements] the positions of each unit on
    it. `consumers` are the (tensor, axis) of the weights that contract over this axis of this value. With `outer`, positions
    are those of two axes taken as one, `outer` the slower: the units of every expert in [experts, samples, units]. With
    `chosen` they are those of all slices, one after the other, of which the value shows one at each position.
    """

    value: str
    axis: int
    index: np.ndarray
    consumers: tuple[tuple[str, int], ...]
    outer: int | None = None
    chosen: Chosen | None = None

    @property
    def key(self) -> str:
        """Name what is observed here, for storage: equal keys see equal samples."""
        content = np.ascontiguousarray(self.index, dtype=np.int64)
        axes = self.axis if self.outer is None else f"{self.outer}x{self.axis}"
        axes = axes if self.chosen is None else f"{axes}@{self.chosen.index}"
        return f"{self.value}@{axes}@{hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()[:16]}"

    def seen(self, activation: torch.Tensor, index: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
        """Return the activation with its units on one axis, and that axis; `index` is the value that `chosen` names."""
        if self.chosen is not None:
            assert index is not None, self.chosen.index
            x = self.chosen.spread(activation, index, self.axis)
            return x, x.ndim - 1
        if self.outer is None:
            return activation, self.axis % activation.ndim
        return activation.movedim((self.outer, self.axis), (-2, -1)).flatten(-2), activation.ndim - 2

    def to_json(self) -> dict[str, Any]:
        """Return the tap as JSON-ready values; `tap_from_json` gives it back."""
        return {"value": self.value, "axis": self.axis, "index": self.index.tolist(),
                "consumers": [list(c) for c in self.consumers], **({} if self.outer is None else {"outer": self.outer}),
                **({} if self.chosen is None else {"chosen": asdict(self.chosen)})}


def tap_from_json(payload: Mapping[str, Any]) -> Tap:
    """Rebuild a Tap from its `to_json`."""
    chosen = payload.get("chosen")
    return Tap(payload["value"], payload["axis"], np.asarray(payload["index"]),
               tuple((key, axis) for key, axis in payload["consumers"]), payload.get("outer"),
               Chosen(chosen["index"], chosen["slices"], tuple(chosen["among"])) if chosen else None)


def observers(taps: Sequence[Tap], see: Callable[[Tap, torch.Tensor, int], None]) -> dict[str, Callable[[torch.Tensor], None]]:
    """Return what `cipm.trace.run` takes as `observe`: `see(tap, x, axis)` gets what `tap.seen` makes of each tap's value."""
    held: dict[str, torch.Tensor | None] = {tap.chosen.index: None for tap in taps if tap.chosen}

    def observer(name: str) -> Callable[[torch.Tensor], None]:
        own = [tap for tap in taps if tap.value == name]

        def observe(value: torch.Tensor) -> None:
            if name in held:
                held[name] = value
            for tap in own:
                see(tap, *tap.seen(value, held[tap.chosen.index] if tap.chosen else None))
        return observe

    return {name: observer(name) for name in dict.fromkeys((*held, *(tap.value for tap in taps)))}


__all__ = ["CHOSEN_WORDS", "Chosen", "Tap", "observers", "tap_from_json"]
