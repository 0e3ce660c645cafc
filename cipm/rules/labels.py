"""The label book: element labels of every axis, and what the graph says about them.

Every position on every axis of every stored tensor starts with a label of its own. Walking the graph adds facts:

* *tie*: two labels are the same unit (a bijection between two axes);
* *map*: a label moves only as another one does (`child ↦ parent`): an element of a head moves with its head, the
  position (c, p) of a flattened convolution with channel c. A soft map counts only if some op really uses the outer axis;
* *colour*: labels with different colours play different roles (inside or outside a slice);
* *pin*: a label may not move;
* *route*: what stands at a place chosen by an index (the hidden units of the expert that a token was given to) has a label
  that is another one for every number of the index.

All facts are equivariant functions between sets of labels, so their automorphisms are the symmetries of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Fixed:
    """An axis whose positions may not move, with the reason in words."""

    op: str
    node: str
    reason: str


@dataclass(frozen=True)
class Free:
    """An axis along which the value is uniform (a broadcast): its positions carry no identity and tie nothing."""


FREE = Free()
UNKNOWN, FIXED_FACTOR, FREE_FACTOR, FIXED_OUTER = -1, -2, -3, -10
Offer = tuple[int, int, int]
"""A label on a stored axis, another axis of its tensor, and the runs of that one by which the first could be told apart."""
Axis = np.ndarray | Fixed | Free
"""What is known of one axis: an int64 array of labels, broadcastable to the value's shape (an array that is longer
than 1 on another axis *depends* on it: the elements of each head), or Fixed, or Free."""


@dataclass(frozen=True)
class Value:
    """A value of the graph as the rules see it: its shape, its axes, and its content where that is a known constant.

    `codes` are the labels that the integers of an index stand for: number i names the unit codes[i] (an expert chosen by
    its score). They move with their units; an op that does not know so pins them.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    content: object = None
    codes: np.ndarray | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Coded:
    """What a rule returns for an integer result whose numbers are positions on an axis: its axes and their labels."""

    axes: Sequence[Axis]
    codes: np.ndarray | None


@dataclass
class LabelBook:
    """Collect facts about labels while the graph is walked. The only mutable value of discovery."""

    count: int = 0
    factors: np.ndarray = field(default_factory=lambda: np.full((2, 1024), UNKNOWN))
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    maps: list[tuple[np.ndarray, np.ndarray, bool]] = field(default_factory=list)
    hard: list[np.ndarray] = field(default_factory=list)
    colours: list[np.ndarray] = field(default_factory=list)
    roles: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    held: list[tuple[np.ndarray, Fixed]] = field(default_factory=list)
    pins: list[tuple[np.ndarray, Fixed]] = field(default_factory=list)
    products: dict[tuple[bytes, bytes], np.ndarray] = field(default_factory=dict)
    coloured: dict[tuple[object, ...], None] = field(default_factory=dict)
    probed: dict[str, bool] = field(default_factory=dict)
    outcomes: dict[tuple[object, ...], object] = field(default_factory=dict)
    routes: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    offers: list[Offer] = field(default_factory=list)

    def mint(self, *shape: int) -> np.ndarray:
        """Return new labels, all different, in an array of this shape."""
        size = int(np.prod(shape))
        labels = np.arange(self.count, self.count + size, dtype=np.int64).reshape(shape)
        self.count += size
        while self.count > self.factors.shape[1]:
            self.factors = np.concatenate([self.factors, np.full_like(self.factors, UNKNOWN)], axis=1)
        return labels

    def factor(self, labels: np.ndarray, outer: np.ndarray, inner: np.ndarray | int) -> None:
        """Remember that each label is the pair (outer, inner), so that splitting its axis gives the pair back."""
        self.factors[0, labels], self.factors[1, labels] = outer, inner

    def route(self, labels: np.ndarray, dim: int, index: str) -> np.ndarray:
        """Return labels for what stands where an index chooses along `dim`, on which these labels depend.

        The same labels chosen by the same index (by name, `sources` saying which are copies) are the same units.
        """
        index = self.sources.get(index, index)
        rows = np.moveaxis(labels, dim, -1)
        key = index, repr(labels.shape).encode() + labels.tobytes()
        if key not in self.routes:
            self.routes[key] = self.mint(rows.size // rows.shape[-1]), rows.reshape(-1, rows.shape[-1])
        return np.expand_dims(self.routes[key][0].reshape(rows.shape[:-1]), dim)

    def chosen(self, labels: Axis) -> tuple[str, np.ndarray] | None:
        """Return the name of the index that chose all of these labels, and what each of them can be [numbers of the index,
        labels]; None where they are not all chosen by one."""
        if not isinstance(labels, np.ndarray) or not labels.size:
            return None
        low, high = labels.min(), labels.max()
        for (index, _), (made, options) in self.routes.items():
            if made[0] <= low and high <= made[-1]:
                return index, options[labels.ravel() - made[0]].T
        return None

    def offer(self, labels: Axis, dim: int, blocks: int) -> None:
        """Say that a stored axis is read by itself in each of `blocks` runs of another axis of its tensor."""
        if isinstance(labels, np.ndarray):
            self.offers.append((int(labels.flat[0]), dim, blocks))

    def pin(self, axis: Axis, why: Fixed) -> None:
        """Say that no label on this axis may move."""
        if isinstance(axis, np.ndarray):
            self.pins.append((np.unique(axis), why))

    def colour(self, labels: np.ndarray, key: tuple[object, ...]) -> None:
        """Give these labels a role of their own; the same key colours once."""
        if key not in self.coloured:
            self.coloured[key] = None
            self.colours.append(np.unique(labels))

    def child(self, children: np.ndarray, parents: np.ndarray, *, soft: bool = False) -> None:
        """Say that each child moves only as its parent does (arrays of equal shape)."""
        self.maps.append((children.ravel(), parents.ravel(), soft))

    def tie(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Say that two label arrays (broadcast against each other) name the same units; return the finer one.

        One-to-one pairs become one unit. Where several labels of one side meet a single label of the other, each
        moves as that one does: a map. Anything less regular is merged, which only costs freedom.
        """
        if first is second or (first.shape == second.shape and np.array_equal(first, second)):
            return first
        a, b = np.broadcast_arrays(first, second)
        pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
        many_per_a, many_per_b = _repeated(pairs[0]), _repeated(pairs[1])
        self.ties.append(tuple(pairs[:, many_per_a == many_per_b]))  # 1:1, or m:n merged
        for child, parent, chosen in ((0, 1, many_per_b & ~many_per_a), (1, 0, many_per_a & ~many_per_b)):
            if chosen.any():
                self.child(pairs[child, chosen], pairs[parent, chosen])
        return b.copy() if many_per_a.any() and not many_per_b.any() else a.copy() if a.size > first.size else first

    def touch(self, value: Value, axis: int) -> None:
        """Say that an op treats this axis as an axis: a split that made it or that it depends on is real."""
        labels = value.axes[axis]
        if isinstance(labels, np.ndarray):
            self.hard.append(np.unique(labels))
        for other, outer in enumerate(value.axes):
            depends = isinstance(labels, np.ndarray) and other != axis and labels.shape[other] > 1
            if depends and isinstance(outer, np.ndarray):
                self.hard.append(np.unique(outer))


def _repeated(values: np.ndarray) -> np.ndarray:
    """Tell for each entry whether its value occurs more than once."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse] > 1
