"""The algebra: permutations, their co-inverse, composition, and plans over the tensors of a checkpoint.

Convention (numpy take): `order[i]` is the old index of what stands at new place i, so `new = old[order]`.
This package is the only place that indexes by a permutation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
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
class View:
    """Several axes of a tensor taken as one line of positions: `axes` of the tensor in the shape `shape`, first ones slowest.

    A stack [experts, in, units] seen with axes (0, 2) has a position for every unit of every expert.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def length(self) -> int:
        """Return the number of positions."""
        return prod(self.shape[axis] for axis in self.axes)

    @property
    def rest(self) -> tuple[int, ...]:
        """Return the axes that are not taken together."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    def fits(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of this shape can be seen so."""
        return (prod(shape) == prod(self.shape) and len(set(self.axes)) == len(self.axes) > 0
                and all(0 <= axis < len(self.shape) for axis in self.axes))

    def line_up(self, tensor: Any) -> Any:
        """Return the tensor (torch or numpy) as [positions, the other axes…]."""
        seen = _transposed(tensor.reshape(self.shape), (*self.axes, *self.rest))
        return seen.reshape(self.length, *(self.shape[axis] for axis in self.rest))

    def take(self, tensor: Any, order: np.ndarray) -> Any:
        """Return a copy of the tensor with its positions in this order."""
        places = (*self.axes, *self.rest)
        moved = self.line_up(tensor)[order.copy()].reshape([self.shape[axis] for axis in places])
        back = _transposed(moved, np.argsort(places).tolist()).reshape(tensor.shape)
        return np.ascontiguousarray(back) if isinstance(back, np.ndarray) else back.contiguous()


Along = int | View
"""What a permutation moves of a tensor: the positions of one axis, or of several seen as one."""


Move = tuple[tuple[str, Along], int, np.ndarray, Permutation]
"""((tensor, axis or View), length, index, permutation): what `compose` composes."""


@dataclass(frozen=True)
class Plan:
    """What moves where: for every (tensor key, axis or View) that moves, the permutation of its positions.

    `orders` keeps, for the record, the permutation chosen for each group; `axes` is what is applied, in the order in which it
    is listed: what moves on several axes at once comes before what moves whole positions of one of them.
    """

    axes: Mapping[tuple[str, Along], Permutation]
    orders: Mapping[str, Permutation]

    def __hash__(self) -> int:
        return hash(frozenset(self.axes.items()))

    @property
    def coinverse(self) -> Plan:
        """Return the plan that gives back every tensor, bit for bit."""
        return Plan({key: p.coinverse for key, p in reversed(self.axes.items())}, {})

    def apply(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return new tensors (torch or numpy) with every planned axis reordered; the others are passed on as they are."""
        assert tensors.keys() >= self._axes_of.keys()
        return {key: self.move(key, tensor) for key, tensor in tensors.items()}

    def move(self, key: str, tensor: Any) -> Any:
        """Return one tensor (torch or numpy) with its planned axes reordered, or the tensor itself where none is."""
        for along, permutation in self._axes_of.get(key, ()):
            taken = along.take if isinstance(along, View) else partial(_take, axis=along)
            tensor = taken(tensor, permutation.order)
        return tensor

    @cached_property
    def _axes_of(self) -> dict[str, list[tuple[Along, Permutation]]]:
        found: dict[str, list[tuple[Along, Permutation]]] = {}
        for (key, axis), permutation in self.axes.items():
            found.setdefault(key, []).append((axis, permutation))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values: by key, and by axis where no order matters; a view is {"shape", "axes"}."""
        seen = {key for key, along in self.axes if isinstance(along, View)}
        listed = sorted(self.axes.items(), key=lambda item: (item[0][0], 0 if item[0][0] in seen else item[0][1]))
        return {"axes": [[key, {"shape": list(along.shape), "axes": list(along.axes)} if isinstance(along, View) else along,
                          p.order.tolist()] for (key, along), p in listed],
                "orders": {name: p.order.tolist() for name, p in sorted(self.orders.items())}}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Plan:
        """Rebuild a plan; raises OptionError where an order is not a permutation."""
        return cls({(key, _along(along)): Permutation(np.asarray(order)) for key, along, order in payload["axes"]},
                   {name: Permutation(np.asarray(order)) for name, order in payload["orders"].items()})


def compose(moves: Iterable[Move]) -> dict[tuple[str, Along], Permutation]:
    """Compose moves of units into one permutation per tensor axis or view.

    Each move is ((tensor, axis or View), length, index, permutation): `index` has shape [units, elements], row u
    holding the positions that unit u occupies on the axis. Moves are applied in the order given, so inner levels come
    before the outer levels that carry them; and those along views before those along the axes.
    """
    orders: dict[tuple[str, Along], np.ndarray] = {}
    for key, length, index, permutation in moves:
        before = orders.get(key, np.arange(length))
        after = before.copy()
        after[index] = before[index[permutation.order]]
        orders[key] = after
    return {key: Permutation(orders[key]) for key in sorted(orders, key=lambda key: not isinstance(key[1], View))
            if not np.array_equal(orders[key], np.arange(orders[key].size))}


def _take(tensor: Any, order: np.ndarray, axis: int) -> Any:
    return tensor[(slice(None),) * axis + (order.copy(),)]


def _along(payload: Any) -> Along:
    return View(tuple(payload["shape"]), tuple(payload["axes"])) if isinstance(payload, Mapping) else payload


def _transposed(tensor: Any, order: Sequence[int]) -> Any:
    return tensor.transpose(order) if isinstance(tensor, np.ndarray) else tensor.permute(order)
