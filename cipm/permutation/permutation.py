"""The algebra: permutations, their co-inverse, composition, and plans over the tensors of a checkpoint.

Convention (numpy take): `order[i]` is the old index of what stands at new place i, so `new = old[order]`.
This package is the only place that indexes by a permutation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cipm.errors import OptionError


@dataclass(frozen=True, eq=False)
class Permutation:
    """A bijection of {0, …, n−1}, as the array of old indices in new order (int64, read-only)."""

    order: np.ndarray

    def __post_init__(self) -> None:
        order = np.array(self.order, dtype=np.int64)
        if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(order.size)):
            raise OptionError(f"An order of {order.size} units must name each of 0 … {order.size - 1} exactly once.")
        order.flags.writeable = False
        object.__setattr__(self, "order", order)

    @classmethod
    def identity(cls, n: int) -> Permutation:
        """Return the permutation of n units that moves nothing."""
        return cls(np.arange(n))

    @classmethod
    def random(cls, n: int, *, generator: np.random.Generator, blocks: int = 1) -> Permutation:
        """Return a uniform permutation of n units that keeps each of `blocks` equal runs within itself."""
        width = n // blocks
        assert width * blocks == n
        return cls(np.concatenate([b * width + generator.permutation(width) for b in range(blocks)]) if n else np.arange(0))

    @cached_property
    def coinverse(self) -> Permutation:
        """Return the permutation that undoes this one."""
        inverse = np.empty_like(self.order)
        inverse[self.order] = np.arange(self.order.size)
        return Permutation(inverse)

    def then(self, other: Permutation) -> Permutation:
        """Return the permutation that applies this one first and `other` after it."""
        return Permutation(self.order[other.order])

    def apply(self, array: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return a copy of the array with this axis reordered."""
        return np.take(array, self.order, axis=axis)

    def keeps_blocks(self, blocks: int) -> bool:
        """Tell whether every unit stays within its one of `blocks` equal runs."""
        width = self.order.size // blocks
        return bool(np.array_equal(self.order // width, np.arange(self.order.size) // width))

    @property
    def is_identity(self) -> bool:
        return bool(np.array_equal(self.order, np.arange(self.order.size)))

    def __len__(self) -> int:
        return int(self.order.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permutation) and np.array_equal(self.order, other.order)

    def __hash__(self) -> int:
        return hash(self.order.tobytes())


@dataclass(frozen=True)
class Plan:
    """What moves where: for every (tensor key, axis) that moves, the permutation of that axis.

    `orders` keeps, for the record, the permutation chosen for each group; `axes` is what is applied.
    """

    axes: Mapping[tuple[str, int], Permutation]
    orders: Mapping[str, Permutation]

    def __hash__(self) -> int:
        return hash(tuple(sorted((key, hash(p)) for key, p in self.axes.items())))

    @property
    def coinverse(self) -> Plan:
        """Return the plan that gives back every tensor, bit for bit."""
        return Plan({key: p.coinverse for key, p in self.axes.items()}, {})

    def apply(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return new tensors (torch or numpy) with every planned axis reordered; the others are passed on as they are."""
        assert tensors.keys() >= self._axes_of.keys()
        return {key: self.move(key, tensor) for key, tensor in tensors.items()}

    def move(self, key: str, tensor: Any) -> Any:
        """Return one tensor (torch or numpy) with its planned axes reordered, or the tensor itself where none is."""
        for axis, permutation in self._axes_of.get(key, ()):
            tensor = _take(tensor, permutation.order, axis)
        return tensor

    @cached_property
    def _axes_of(self) -> dict[str, list[tuple[int, Permutation]]]:
        found: dict[str, list[tuple[int, Permutation]]] = {}
        for (key, axis), permutation in self.axes.items():
            found.setdefault(key, []).append((axis, permutation))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return {"axes": [[key, axis, p.order.tolist()] for (key, axis), p in sorted(self.axes.items())],
                "orders": {name: p.order.tolist() for name, p in sorted(self.orders.items())}}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Plan:
        """Rebuild a plan; raises OptionError where an order is not a permutation."""
        return cls({(key, axis): Permutation(np.asarray(order)) for key, axis, order in payload["axes"]},
                   {name: Permutation(np.asarray(order)) for name, order in payload["orders"].items()})


def compose(moves: Iterable[tuple[tuple[str, int], int, np.ndarray, Permutation]]) -> dict[tuple[str, int], Permutation]:
    """Compose moves of units into one permutation per tensor axis.

    Each move is ((tensor, axis), length of the axis, index, permutation): `index` has shape [units, elements], row u
    holding the positions that unit u occupies on the axis. Moves are applied in the order given, so inner levels come
    before the outer levels that carry them.
    """
    orders: dict[tuple[str, int], np.ndarray] = {}
    for key, length, index, permutation in moves:
        before = orders.get(key, np.arange(length))
        after = before.copy()
        after[index] = before[index[permutation.order]]
        orders[key] = after
    return {key: Permutation(order) for key, order in orders.items() if not np.array_equal(order, np.arange(order.size))}


def _take(tensor: Any, order: np.ndarray, axis: int) -> Any:
    return tensor[(slice(None),) * axis + (order.copy(),)]
