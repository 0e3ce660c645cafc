"""Collect statistics at the taps of a model while it runs over a probe set, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cipm.errors import InputError, ProbeError
from cipm.statistics.covariance import BLOCK_SAMPLES, Covariance
from cipm.statistics.halves import HalfSplit
from cipm.symmetry.groups import Tap

Observers = Mapping[str, Callable[[torch.Tensor], None]]
Forward = Callable[[Mapping[str, torch.Tensor], Observers], Any]


def collect(forward: Forward, taps: Sequence[Tap], batches: Iterable[Mapping[str, torch.Tensor]], *, positions: int,
            progress: Callable[[int], None] = lambda rows: None) -> dict[Tap, HalfSplit]:
    """Return the statistics of each tap over all batches, from one forward pass a batch.

    `forward(inputs, observe)` runs the model and calls observe[value](activation) for every tapped value. Axis 0 of an
    activation counts the rows (a tap whose units stand on axis 0 has one row). Every combination of the other
    positions and of the elements of a unit is one sample of the row; of these at most `positions` (0: all) are kept,
    evenly spaced and the same for every row. Even rows go to one half and odd rows to the other, whatever the batches.
    `progress(rows)` is called after each batch with the rows done.

    The result is keyed by the taps themselves (by identity; taps of the same value, axis and index share one). Raises
    ProbeError where an activation is not finite, naming the value, row and unit, or where there are no rows.
    """
    streams: dict[Any, _Stream] = {}
    by_tap = {tap: streams.setdefault((tap.value, tap.axis, tap.index.shape, tap.index.tobytes()),
                                      _Stream(tap, positions)) for tap in taps}
    observe = {value: _fan_out([s for s in streams.values() if s.tap.value == value])
               for value in dict.fromkeys(tap.value for tap in taps)}
    done = 0
    for inputs in batches:
        rows = next(iter(inputs.values())).shape[0]
        for stream in streams.values():
            stream.batch_rows = rows
        with torch.no_grad():
            forward(inputs, observe)
        done += rows
        progress(done)
    return {tap: stream.finish() for tap, stream in by_tap.items()}


def samples_of(activation: torch.Tensor, axis: int, index: np.ndarray, positions: int) -> torch.Tensor:
    """Return an activation as [rows, samples per row, units].

    `index` [units, elements] gives each unit's positions on the axis. The samples of a row are its other positions ×
    the elements of a unit, position by position; at most `positions` of them (0: all), evenly spaced.
    """
    if axis % activation.ndim == 0:
        activation, axis = activation.unsqueeze(0), axis % activation.ndim + 1
    x = activation.movedim(axis, -1)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    units, elements = index.shape
    total = x.shape[1] * elements
    chosen = evenly_spaced(total, positions)
    place, element = np.divmod(chosen, elements)
    if elements == 1:
        x = x if chosen.size == total else x[:, torch.from_numpy(place).to(x.device)]
        return x if np.array_equal(index[:, 0], np.arange(x.shape[-1])) else x[..., _on(index[:, 0], x)]
    if x.shape[1] == 1:  # a flattened image: gather whole elements
        return x[:, 0, _on(index[:, element].T, x)]
    return x[:, _on(place[:, None], x), _on(index[:, element].T, x)]


def evenly_spaced(total: int, wanted: int) -> np.ndarray:
    """Return `wanted` of the numbers 0 … total − 1, evenly spaced from half a step in (all where wanted is 0)."""
    if wanted == 0 or wanted >= total:
        return np.arange(total)
    return (2 * np.arange(wanted) + 1) * total // (2 * wanted)


@dataclass(eq=False)
class _Stream:
    """The two accumulators of one tap, and samples not yet added: small batches are added together."""

    tap: Tap
    positions: int
    halves: list[Covariance] = field(default_factory=list)
    held: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))
    held_samples: int = 0
    batch_rows: int = 0
    rows: int = 0
    per_row: int = 1

    def __post_init__(self) -> None:
        self.halves = [Covariance.create(len(self.tap.index)) for _ in range(2)]

    def add(self, activation: torch.Tensor) -> None:
        activation, axis = activation.detach(), self.tap.axis % activation.ndim
        if axis > 0 and activation.shape[0] != self.batch_rows and activation.shape[0] % self.batch_rows == 0:
            activation, axis = activation.unflatten(0, (self.batch_rows, -1)), axis + 1
        x = samples_of(activation, axis, self.tap.index, self.positions)
        self.per_row = x.shape[1]
        for offset in range(2):
            half = (self.rows + offset) % 2
            part = x[offset::2].reshape(-1, x.shape[2])
            self.held[half].append(part if activation.is_cuda else part.clone())
        self.rows, self.held_samples = self.rows + x.shape[0], self.held_samples + x.shape[0] * x.shape[1]
        if self.held_samples >= 2 * BLOCK_SAMPLES:
            self.flush()

    def flush(self) -> None:
        for half, parts in enumerate(self.held):
            before = self.halves[half].samples
            joined = torch.cat(parts) if parts else None
            try:
                self.halves[half] = self.halves[half] if joined is None else self.halves[half].update(joined)
            except InputError as error:
                raise self._named(error, half, before, joined) from None
            parts.clear()
        self.held_samples = 0

    def finish(self) -> HalfSplit:
        if not self.rows:
            raise ProbeError("The probe set has no rows.", where=self.tap.value)
        self.flush()
        return HalfSplit(self.halves[0], self.halves[1], self.rows)

    def _named(self, error: InputError, half: int, before: int, joined: torch.Tensor) -> InputError:
        """Return the error with the probe row and the tap in its place; any other error as it is."""
        bad = torch.nonzero(~torch.isfinite(joined))
        if not len(bad):
            return error
        sample, unit = (int(i) for i in bad[0])
        row = 2 * ((before + sample) // self.per_row) + half
        value = float(joined[sample, unit])
        return ProbeError(f"For probe row {row} the activation {self.tap.value} is {value} at unit {unit}; statistics "
                          "need finite numbers.", where=f"row {row}, {self.tap.value} axis {self.tap.axis}, unit {unit}",
                          fix="Leave the row out, or look for an overflow in the model.")


def _fan_out(streams: list[_Stream]) -> Callable[[torch.Tensor], None]:
    def observe(activation: torch.Tensor) -> None:
        for stream in streams:
            stream.add(activation)
    return observe


def _on(index: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(x.device)
