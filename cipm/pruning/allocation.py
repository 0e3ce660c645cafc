"""One budget over all groups: which to make how small, so that least is lost for what is saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import Symmetry, SymmetryGroup

STEPS = 64
"""Sizes of a group that are looked at on the way from whole to one unit."""
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Choice:
    """How many units each group keeps, what that is predicted to lose, and what it leaves of the budget's quantity."""

    keep: Mapping[str, int]
    loss: float
    count: float


@dataclass(frozen=True, eq=False)
class Count:
    """A quantity of the model (parameters, FLOPs) as a function of what groups keep.

    `fixed` plus, for each term, its size × Π over its axes of (1 − Σ share of the group on the axis × share of it that goes).
    """

    fixed: float
    terms: tuple[tuple[float, tuple[Mapping[str, float], ...]], ...]
    sizes: Mapping[str, int]

    def __call__(self, keep: Sizes) -> float:
        """Return the quantity where groups keep so many units; those that are not named stay whole."""
        gone = {name: 1 - units / self.sizes[name] for name, units in keep.items()}
        return self.fixed + sum(size * _left(axes, gone) for size, axes in self.terms)

    def of(self, group: str) -> Count:
        """Return the part of it that this group changes."""
        return Count(0.0, tuple(term for term in self.terms if any(group in axis for axis in term[1])), self.sizes)

    def groups(self) -> set[str]:
        """Return the groups that change it."""
        return {name for _, axes in self.terms for axis in axes for name in axis}


def _left(axes: Sequence[Mapping[str, float]], gone: Mapping[str, float]) -> float:
    left = 1.0
    for shares in axes:
        left *= 1 - sum(share * gone.get(name, 0.0) for name, share in shares.items())
    return left


def count_of(checkpoint: Checkpoint, symmetry: Symmetry, weights: Mapping[str, float], fixed: float = 0.0) -> Count:
    """Return the quantity that is `fixed` plus weights[key] for each stored tensor, in proportion to its numbers."""
    axes: dict[str, dict[int, dict[str, float]]] = {key: {} for key in weights}
    for group in symmetry.groups:
        for place in group.places:
            if place.tensor in axes:
                shares = axes[place.tensor].setdefault(place.axis, {})
                shares[group.name] = shares.get(group.name, 0.0) + place.index.size / place.length
    terms = tuple((float(size), tuple(axes[key].values())) for key, size in weights.items())
    return Count(fixed, terms, {group.name: group.size for group in symmetry.groups})


def parameter_count(checkpoint: Checkpoint, symmetry: Symmetry) -> Count:
    """Return the number of parameters as a function of what groups keep."""
    return count_of(checkpoint, symmetry, {key: checkpoint.meta(key).numel() for key in checkpoint.parameter_keys})


def front(losses: Mapping[str, np.ndarray], count: Count, groups: Mapping[str, SymmetryGroup], *,
          locked: Collection[str] = (), overrides: Sizes | None = None) -> tuple[Choice, ...]:
    """Return the Pareto front from the whole model to the smallest: each choice loses least for what it saves.

    losses[group] [units + 1] is the predicted loss of keeping k units of a group and all of the others; losses add up. From
    one choice to the next one group takes one step, that with the least rise of its convexified loss for what it saves.
    `locked` groups stay whole, those in `overrides` at the size given. Groups in blocks keep equally many units of each.
    """
    overrides = dict(overrides or {})
    unknown = sorted({*overrides, *locked} - set(groups))
    if unknown:
        raise OptionError(f"There is no prunable group {unknown[0]!r}; the groups are {', '.join(groups)}.", where=unknown[0])
    both = sorted(set(locked) & set(overrides))
    if both:
        raise OptionError(f"Group {both[0]} is locked and cannot be given a size.", where=both[0])
    keep = {name: _size(group, overrides.get(name, group.size)) for name, group in groups.items()}
    paths = {name: _path(losses[name], group.blocks) for name, group in groups.items()
             if name not in locked and name not in overrides}
    return _descend(keep, paths, losses, count)


def within(choices: Sequence[Choice], budget: float, count: Count, losses: Mapping[str, np.ndarray],
           groups: Mapping[str, SymmetryGroup], *, what: str) -> Choice:
    """Return the first choice on the front that leaves at most `budget`, with units given back as far as the budget allows.

    Raises OptionError where even the smallest choice leaves more.
    """
    at = next((number for number, choice in enumerate(choices) if choice.count <= budget), None)
    if at is None:
        raise OptionError(f"With every free group at its smallest the model still has {choices[-1].count:,.0f} {what}: a "
                          f"budget of {budget:,.0f} cannot be met.", where=what, fix="Allow more, or unlock groups.")
    if at == 0:
        return choices[0]
    free = [name for name in groups if name in losses and choices[at].keep[name] < choices[0].keep[name]]
    keep = _given_back(choices[at].keep, budget, count, losses, {name: groups[name].blocks for name in free}, choices[0].keep)
    return Choice(keep, _total(losses, keep), count(keep))


def _given_back(keep: Sizes, budget: float, count: Count, losses: Mapping[str, np.ndarray], blocks: Sizes,
                most: Sizes) -> dict[str, int]:
    """Return sizes that grew by one unit (of each block) at a time, the one that wins most, while the budget is met."""
    keep, parts, left = dict(keep), {name: count.of(name) for name in blocks}, budget - count(keep)
    while True:
        gains = {}
        for name, step in blocks.items():
            grown = {**keep, name: keep[name] + step}
            if grown[name] <= most[name] and (more := parts[name](grown) - parts[name](keep)) <= left:
                gains[name] = losses[name][keep[name]] - losses[name][grown[name]], more
        if not gains:
            return keep
        best = max(gains, key=lambda name: gains[name][0])
        keep[best] += blocks[best]
        left -= gains[best][1]


def even(groups: Mapping[str, SymmetryGroup], share: float, *, locked: Collection[str] = ()) -> dict[str, int]:
    """Return sizes at which every group keeps this share of its units (at least one of each block); locked ones stay whole.

    Raises OptionError for a share of zero or less, or more than one.
    """
    if not 0 < share <= 1:
        raise OptionError(f"What is kept must be more than 0 and at most 1 (all units); it cannot be {share:g}.", where="keep",
                          fix="Keep 0.5 for half of the units of every group.")
    return {name: group.size if name in locked else max(1, round(group.size // group.blocks * share)) * group.blocks
            for name, group in groups.items()}


def _size(group: SymmetryGroup, units: int) -> int:
    if not group.blocks <= units <= group.size or units % group.blocks:
        each = f", a multiple of {group.blocks}" if group.blocks > 1 else ""
        raise OptionError(f"Group {group.name} can keep {group.blocks} to {group.size} units{each}; it cannot keep {units}.",
                          where=group.name)
    return units


def _path(loss: np.ndarray, blocks: int) -> list[tuple[int, float]]:
    """Return (units, convexified loss) from whole to smallest, in at most STEPS steps."""
    n = len(loss) - 1
    whole = np.arange(n, blocks - 1, -blocks)
    sizes = whole[np.unique(np.linspace(0, len(whole) - 1, min(STEPS + 1, len(whole))).round().astype(int))]
    hull: list[int] = []
    for k in sizes:
        while len(hull) > 1 and _slope(loss, hull[-2], hull[-1]) >= _slope(loss, hull[-1], k):
            hull.pop()
        hull.append(int(k))
    line = np.interp(sizes, hull[::-1], [loss[k] for k in hull[::-1]])
    return [(int(k), float(value)) for k, value in zip(sizes, line, strict=True)]


def _slope(loss: np.ndarray, one: int, other: int) -> float:
    return float(loss[other] - loss[one]) / (one - other)


def _descend(keep: dict[str, int], paths: Mapping[str, list[tuple[int, float]]], losses: Mapping[str, np.ndarray],
             count: Count) -> tuple[Choice, ...]:
    at = dict.fromkeys(paths, 0)
    parts = {name: count.of(name) for name in paths}
    price: dict[str, float] = {}
    choices = [Choice(dict(keep), _total(losses, keep), count(keep))]
    while True:
        for name in paths:
            if name not in price:
                price[name] = _price(name, at[name], paths[name], parts[name], keep)
        best = min(price, key=lambda name: price[name], default=None)
        if best is None or not np.isfinite(price[best]):
            return tuple(choices)
        at[best] += 1
        keep = {**keep, best: paths[best][at[best]][0]}
        choices.append(Choice(keep, _total(losses, keep), count(keep)))
        for name in parts[best].groups() & set(paths) | {best}:
            price.pop(name, None)


def _price(name: str, at: int, path: Sequence[tuple[int, float]], part: Count, keep: Sizes) -> float:
    """Return the rise of the loss for each number saved by the next step of a group; infinite at its end."""
    if at + 1 >= len(path):
        return float("inf")
    saved = part(keep) - part({**keep, name: path[at + 1][0]})
    return (path[at + 1][1] - path[at][1]) / saved if saved > 0 else float("inf")


def _total(losses: Mapping[str, np.ndarray], keep: Sizes) -> float:
    return float(sum(losses[name][units] for name, units in keep.items() if name in losses))
