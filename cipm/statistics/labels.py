"""Labels of rows or of their positions: which class each sample of an activation has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cipm.statistics.samples import as_samples, on_host
from cipm.statistics.sampling import Layout, Padding

NOT_ROWS = "An activation whose first axis does not count the rows has no statistics by class."


@dataclass(frozen=True)
class Labelled:
    """What labels gave at one tap: `of` "rows" or "positions" (None: nothing), and in `words` why it is not more."""

    of: str | None = None
    words: tuple[str, ...] = ()

    def merge(self, other: Labelled) -> Labelled:
        """Return what holds for both shards of the rows."""
        return Labelled(self.of or other.of, tuple(dict.fromkeys((*self.words, *other.words))))


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of one batch: `values` [rows] or [rows, positions…]; negative: none. With `why_not` they are not used."""

    values: np.ndarray
    why_not: str | None = None

    @classmethod
    def of(cls, values: np.ndarray, inputs: Mapping[str, torch.Tensor], padding: Padding) -> Labels:
        """Return the labels of a batch with these inputs; positions that a mask of the same shape leaves out have none."""
        if values.size == len(values):
            return cls(values.reshape(-1))
        if values.ndim > 2:
            return cls(values)
        length = values.shape[1]
        decoder = [name.startswith("decoder") for name in inputs]
        if any(decoder) and any(x.ndim > 1 and x.shape[1] == length and not own
                                for x, own in zip(inputs.values(), decoder, strict=True)):
            return cls(values, f"There are no statistics by class: it is not certain whether the {length:,} labels of a row "
                               "belong to the encoder or to the decoder.")
        mask, _ = padding.about((*values.shape, 1), 2)
        return cls(values if mask is None else np.where(mask, values, -1))

    def about(self, layout: Layout, *, rows: bool, merged: bool) -> tuple[np.ndarray | None, str | None]:
        """Return the labels [rows] or [rows, positions] for values of this layout, and in words why there are none.

        `rows` tells whether axis 0 counts the rows; `merged` whether it held rows and positions as one. Positions fit where
        they are those of the labels axis by axis, or all on one axis, row by row; axes after them lie inside a position.
        """
        if not rows or self.why_not:
            return None, self.why_not or NOT_ROWS
        if self.values.ndim == 1:
            return self.values, None
        wanted, there = (tuple(n for n in sizes if n > 1) for sizes in (self.values.shape[1:], layout.sizes))
        if not _fit(wanted, there):
            return None, (f"An activation with {_positions(there)} a row has no statistics by class: the labels of a row name "
                          f"{_positions(wanted)}.")
        if (merged and len(there) > 1) or set(wanted) & set(there[len(wanted):]):
            return None, (f"An activation with {_positions(there)} a row has no statistics by class: it is not certain how "
                          f"they hold the {_positions(wanted)} that labels name.")
        return self.values.reshape(len(self.values), -1), None


def labels_at(labels: np.ndarray, layout: Layout, rows: np.ndarray | slice, samples: np.ndarray) -> np.ndarray:
    """Return the labels of the samples numbered `samples` of `rows`, taken from labels [rows, positions], as one list."""
    return labels[rows, samples // (layout.there // labels.shape[1])].ravel()


def with_labels(samples: torch.Tensor, labels: np.ndarray, *, copy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return those samples [samples, units] that have a class, and their classes [samples]; with `copy`, never the memory of
    `samples` itself."""
    known = np.flatnonzero(labels >= 0)
    if copy or known.size < len(labels):
        samples = samples.index_select(0, torch.from_numpy(known).to(samples.device))
    return on_host(as_samples(samples)), labels[known]


def _fit(wanted: tuple[int, ...], there: tuple[int, ...]) -> bool:
    if there[:len(wanted)] == wanted:
        return True
    one_axis = len(there) == 1 or (len(wanted) == 1 and len(there) == 2)  # an image, flattened on one side
    return one_axis and int(np.prod(wanted)) == int(np.prod(there))


def _positions(sizes: tuple[int, ...]) -> str:
    return f"{' × '.join(f'{n:,}' for n in sizes)} positions" if sizes else "one position"
