"""Activations become samples: which positions of a value count, and the samples [samples, units] at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

GOLDEN = (5**0.5 - 1) / 2
EVERY_POSITION = "Every position counts."
MASKS = ("attention_mask", "decoder_attention_mask", "input_mask")
"""Names of inputs that say which positions of a sequence are real (1) and which are padding (0)."""
MEASURED_EXPONENT = 0.27
"""On images a quarter of the positions gave 1.45 × the error of all of them: 4^0.27."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a tap's samples lie in a value of one shape: rows on axis 0, units on `axis`, `index` [units, elements].

    Every combination of the other positions and of the elements of a unit is one sample of a row, position by position;
    of these at most `positions` (0: all) are kept, spread evenly and the same for every row.
    """

    shape: tuple[int, ...]
    axis: int
    index: np.ndarray
    positions: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the lengths of the axes that are neither rows nor units."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (0, self.axis))

    @property
    def there(self) -> int:
        """Return how many samples a row has."""
        return int(np.prod(self.sizes, dtype=np.int64)) * self.index.shape[1]

    @cached_property
    def chosen(self) -> np.ndarray:
        """Return the numbers of the samples that are kept."""
        spread = staggered if sum(n > 1 for n in self.sizes) > 1 else evenly_spaced
        return spread(self.there, self.positions)

    @cached_property
    def _plain(self) -> bool:
        """Tell whether units stand one after the other on the whole axis, one element each."""
        return self.index.shape[1] == 1 and np.array_equal(self.index[:, 0], np.arange(self.shape[self.axis]))

    @cached_property
    def _fixed(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        return self._coordinates(self.chosen)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the samples [rows, kept, units] of x, a value of this shape with any number of rows."""
        x = x.movedim(self.axis, -1)
        if self._plain and self.chosen.size == self.there:
            return x.reshape(x.shape[0], -1, x.shape[-1])
        places, columns = self._fixed
        if not self.sizes and columns is not None:  # a flattened image: gather whole elements
            return x[:, columns.to(x.device)]
        picked = (slice(None), *(place.to(x.device) for place in places))
        return x[picked] if columns is None else x[(*_upright(picked), columns.to(x.device))]

    def at(self, x: torch.Tensor, rows: np.ndarray, chosen: np.ndarray) -> torch.Tensor:
        """Return the samples [samples, units] numbered `chosen` of the rows `rows`, one for each pair."""
        places, columns = self._coordinates(chosen)
        picked = tuple(part.to(x.device) for part in (torch.from_numpy(rows), *places))
        x = x.movedim(self.axis, -1)
        return x[picked] if columns is None else x[(*(part[:, None] for part in picked), columns.to(x.device))]

    def _coordinates(self, chosen: np.ndarray) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Return positions on each of the other axes, and columns [samples, units] unless they are simply all."""
        place, element = np.divmod(chosen, self.index.shape[1])
        places = np.unravel_index(place, self.sizes) if self.sizes else ()
        columns = None if self._plain else torch.from_numpy(np.ascontiguousarray(self.index[:, element].T))
        return tuple(torch.from_numpy(np.ascontiguousarray(p)) for p in places), columns


@dataclass(frozen=True, eq=False)
class Padding:
    """Which positions of the sequences of one batch are real: the masks [rows, length] by the name of their input."""

    masks: Mapping[str, np.ndarray]
    unmasked: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: Mapping[str, torch.Tensor]) -> Padding:
        """Return the padding that the inputs of a model tell of: masks of zeros and ones, under a name of MASKS."""
        masks = {}
        for name in MASKS:
            mask = inputs.get(name)
            if mask is not None and mask.ndim == 2 and not mask.is_floating_point() and bool(((mask == 0) | (mask == 1)).all()):
                masks[name] = mask.bool().cpu().numpy()
        unmasked = [name for name in inputs if name.startswith("decoder") and "decoder_attention_mask" not in masks]
        return cls(masks, tuple(unmasked))

    def about(self, shape: tuple[int, ...], axis: int) -> tuple[np.ndarray | None, str | None]:
        """Return the mask for a value of this shape with its units on `axis`, and in words why none is used, if any could be.

        A mask is used where the axis after the rows has its length, no other axis has, and no other input could be meant.
        """
        fitting = {name: mask for name, mask in self.masks.items() if mask.shape[1] in _without(shape, 0, axis)}
        if not fitting:
            return None, None
        length = next(iter(fitting.values())).shape[1]
        if len(fitting) > 1 or (self.unmasked and "attention_mask" in fitting):
            return None, f"Padding is counted: it is not certain whose positions an axis of length {length} holds."
        if axis == 1 or shape[1] != length or sum(n == length for n in _without(shape, 0, axis)) > 1:
            return None, f"Padding is counted: it is not certain which axis holds the {length} positions of the sequence."
        return next(iter(fitting.values())), None


def real_samples(mask: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, number of the sample) of the samples to keep where `mask` [rows, length] says which positions are real.

    The sequence is the first of the layout's other axes. Of a row's real samples at most `layout.positions` are kept,
    evenly spaced among them, so that they do not depend on how far the row was padded.
    """
    inside = layout.there // mask.shape[1]
    rows, chosen = [], []
    for row, real in enumerate(mask):
        positions = np.flatnonzero(real)
        place, rest = np.divmod(evenly_spaced(positions.size * inside, layout.positions), inside)
        chosen.append(positions[place] * inside + rest)
        rows.append(np.full(place.size, row))
    return np.concatenate(rows), np.concatenate(chosen)


def evenly_spaced(total: int, wanted: int) -> np.ndarray:
    """Return `wanted` of the numbers 0 … total − 1, evenly spaced from half a step in (all where wanted is 0)."""
    if wanted == 0 or wanted >= total:
        return np.arange(total)
    return (2 * np.arange(wanted) + 1) * total // (2 * wanted)


def staggered(total: int, wanted: int) -> np.ndarray:
    """Return one number from each of `wanted` equal runs of 0 … total − 1, at places in the runs that spread evenly.

    Evenly spaced positions of an image in rows would all lie in a few of its columns.
    """
    if wanted == 0 or wanted >= total:
        return np.arange(total)
    run = np.arange(wanted + 1) * total // wanted
    within = (0.5 + np.arange(wanted) * GOLDEN) % 1
    return run[:-1] + np.floor(within * np.diff(run)).astype(np.int64)


def sampling_effect(there: float, kept: float) -> dict[str, float | str]:
    """Return what keeping `kept` of `there` samples a row does to the standard error of a correlation.

    `error_at_most` is the factor where positions are independent, 1/√share; `error_measured` what images showed.
    """
    share = min(1.0, kept / there) if there else 1.0
    most, measured = share**-0.5, share**-MEASURED_EXPONENT
    words = EVERY_POSITION if share > 1 - 1e-9 else (
        f"{kept:.5g} of {there:.5g} positions of a row are kept, which makes the standard error of a correlation at most "
        f"{most:.2g} × as large as all positions would; on images, whose positions are alike, about {measured:.2g} × "
        "(1.45 × was measured at a quarter).")
    return {"share": share, "error_at_most": most, "error_measured": measured, "words": words}


def _without(shape: tuple[int, ...], *axes: int) -> list[int]:
    return [n for axis, n in enumerate(shape) if axis not in axes]


def _upright(picked: tuple[slice | torch.Tensor, ...]) -> tuple[slice | torch.Tensor, ...]:
    return tuple(part if isinstance(part, slice) else part[:, None] for part in picked)
