"""One op run alone on random operands, and again with some of their axes permuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from cipm.rules import Call, Free, Value
from cipm.trace.interpret import resolve

TOLERANCE = 1e-9
"""Largest relative difference that counts as the same result."""
FAILURES = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, AssertionError)
_REDUCED = (torch.float16, torch.bfloat16, torch.float32)

Spot = tuple[int, int]
Moved = tuple[np.ndarray, list[torch.Tensor]]
"""A permutation, and the results after it."""


@dataclass(frozen=True, eq=False)
class Trial:
    """The operands of one run, by the values they stand for, and its results."""

    call: Call
    values: Sequence[Value]
    operands: Sequence[torch.Tensor]
    results: Sequence[torch.Tensor]
    seed: int

    def moved(self, spots: Sequence[Spot]) -> Moved | None:
        """Run again with these axes permuted alike; None where that fails."""
        o, a = spots[0]
        order = _derangement(self.operands[o].shape[a], self.seed)
        operands = list(self.operands)
        for other, axis in spots:
            operands[other] = operands[other].index_select(axis, torch.from_numpy(order))
        try:
            return order, _run(self.call, self.values, operands)
        except FAILURES:
            return None

    def axes_of_size(self, result: int, spot: Spot) -> list[tuple[int, ...]]:
        """Return what axes of a result may move with an axis of an operand: none, one, or two of its size."""
        size = self.operands[spot[0]].shape[spot[1]]
        axes = [i for i, n in enumerate(self.results[result].shape) if n == size]
        return [(), *((i,) for i in axes), *combinations(axes, 2)]

    def agrees(self, result: int, axes: Sequence[int], moved: Moved) -> bool:
        """Tell whether a result moved along these axes and did not change otherwise."""
        order, after = moved
        expected = self.results[result]
        for axis in axes:
            if expected.shape[axis] != order.size:
                return False
            expected = expected.index_select(axis, torch.from_numpy(order))
        return _same(expected, after[result])

    def agrees_apart(self, spot: Spot, moves: Sequence[Sequence[int]],
                     carriers: Sequence[tuple[int, Sequence[int]]]) -> bool:
        """Tell the same where an axis is permuted in another order for each position of its carriers."""
        (o, a), operand = spot, self.operands[spot[0]]
        dims = [a, *(dim for dim, _ in carriers)]
        sizes = [operand.shape[dim] for dim in dims]
        orders = np.argsort(np.random.default_rng(self.seed).random(sizes), axis=0)
        operands = list(self.operands)
        operands[o] = operand.take_along_dim(_spread(orders, dims, operand), a)
        try:
            after = _run(self.call, self.values, operands)
        except FAILURES:
            return False
        for r, axes in enumerate(moves):
            expected = self.results[r]
            if axes:
                places = [axes[0], *(image[r] for _, image in carriers)]
                if [expected.shape[place] for place in places] != sizes:
                    return False
                expected = expected.take_along_dim(_spread(orders, places, expected), axes[0])
            if not _same(expected, after[r]):
                return False
        return True

    def uniform(self, result: int, axis: int) -> bool:
        """Tell whether a result is the same at all positions of an axis."""
        found = self.results[result]
        return found.shape[axis] > 1 and bool((found == found.narrow(axis, 0, 1)).all())


def trials(call: Call, values: Sequence[Value]) -> list[Trial]:
    """Return runs on operands of two seeds, and on larger ones where the op takes them; none where a result is not finite.

    Raises what torch raises where the op does not run.
    """
    shapes = [value.shape for value in values]
    made = [_trial(call, values, shapes, seed) for seed in (1, 2)]
    for size in sorted({n for value in values if value.content is None for n in value.shape if n > 1}):
        grown = [shape if value.content is not None else tuple(n + 1 if n == size else n for n in shape)
                 for value, shape in zip(values, shapes, strict=True)]
        try:
            larger = _trial(call, values, grown, 3)
        except FAILURES:
            continue
        if [result.ndim for result in larger.results] == [result.ndim for result in made[0].results]:
            shapes, made = grown, [*made[:2], larger]
    finite = all(bool(torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all()) for m in made for t in m.results)
    return made if finite else []


def _trial(call: Call, values: Sequence[Value], shapes: Sequence[tuple[int, ...]], seed: int) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    smallest = min([n for shape in shapes for n in shape if n > 1], default=1)
    operands = [_operand(value, shape, smallest, generator) for value, shape in zip(values, shapes, strict=True)]
    return Trial(call, values, operands, _run(call, values, operands), seed)


def _operand(value: Value, shape: tuple[int, ...], limit: int, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers in float64 (integers below `limit`); uniform along axes without any order."""
    if isinstance(value.content, torch.Tensor):
        return value.content.double() if value.content.is_floating_point() else value.content
    narrow = [1 if isinstance(axis, Free) else n for n, axis in zip(shape, value.axes, strict=True)]
    dtype = value.dtype or torch.float64
    if dtype.is_complex:
        made = torch.randn(narrow, generator=generator, dtype=torch.complex128)
    elif dtype.is_floating_point:
        made = torch.randn(narrow, generator=generator, dtype=torch.float64)
    else:
        high = 2 if dtype is torch.bool else limit
        made = torch.randint(0, high, narrow, generator=generator).to(dtype)
    return made.expand(shape).contiguous()


def _run(call: Call, values: Sequence[Value], operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    function = resolve(call.node.op)
    assert isinstance(function, torch._ops.OpOverload), "not an op of tensors"
    standing = {id(value): operand for value, operand in zip(values, operands, strict=True)}
    with torch.no_grad():
        made = function(**{name: _filled(item, standing) for name, item in call.bound.items()})
    results = list(made) if isinstance(made, list | tuple) else [made]
    assert len(results) == len(call.shapes) and all(isinstance(result, torch.Tensor) for result in results)
    return results


def _filled(item: Any, standing: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(item, Value):
        return standing[id(item)]
    if isinstance(item, tuple):
        return [_filled(part, standing) for part in item]
    return torch.float64 if isinstance(item, torch.dtype) and item in _REDUCED else item


def _derangement(size: int, seed: int) -> np.ndarray:
    """Return a random permutation that moves something."""
    order = np.random.default_rng(seed).permutation(size)
    return np.roll(order, 1) if np.array_equal(order, np.arange(size)) else order


def _spread(orders: np.ndarray, dims: Sequence[int], tensor: torch.Tensor) -> torch.Tensor:
    """Lay orders out over the axes `dims` of a tensor."""
    moved = orders.transpose(np.argsort(dims))
    sizes = iter(moved.shape)
    index = torch.from_numpy(np.ascontiguousarray(moved)).reshape([next(sizes) if i in dims else 1 for i in range(tensor.ndim)])
    return index.expand([orders.shape[0] if i == dims[0] else n for i, n in enumerate(tensor.shape)])


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    if not (first.is_floating_point() or first.is_complex()):
        return bool((first == second).all())
    scale = max(float(first.abs().max()), float(second.abs().max())) if first.numel() else 0.0
    return not first.numel() or float((first - second).abs().max()) <= TOLERANCE * scale
