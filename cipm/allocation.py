"""One budget over all groups: which to make how small, so that least is lost for what is saved. Numpy alone: the API uses it.

Source: spreading a budget by equal slopes of convexified curves is Shoham & Gersho 1988, "Efficient bit allocation for an
arbitrary set of quantizers".
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cipm.calibration import Line, Lines, excess, predicted_rise
from cipm.errors import OptionError

SESSION_FILE = "session.json.gz"
"""What stage `whatif` calls the session."""
STEPS = 64
"""Sizes of a group that are looked at on the way from whole to one unit."""
FRONT_CHOICES = 96
"""Most choices of a front that are listed."""
TOGETHER = 0.75
"""The power with which what groups lose alone adds up: of 1 where their errors have nothing to do with each other, of ½ where
they all point the same way. Found on whole networks that were measured (docs/pruning.md)."""
Sizes = Mapping[str, int]


class Units(Protocol):
    """What is asked of a group: its units, in how many equal blocks they lie, and the fewest that can be kept (of each block
    one at least)."""

    @property
    def size(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    @property
    def least(self) -> int: ...


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

    def to_json(self) -> dict[str, Any]:
        """Return {fixed, terms: [[size, [{group: share}]]]}."""
        return {"fixed": self.fixed, "terms": [[size, [dict(axis) for axis in axes]] for size, axes in self.terms]}

    @staticmethod
    def from_json(value: Mapping[str, Any], sizes: Sizes) -> Count:
        """Return what `to_json` gave, of groups with so many units."""
        return Count(value["fixed"], tuple((size, tuple(axes)) for size, axes in value["terms"]), sizes)

    def groups(self) -> set[str]:
        """Return the groups that change it."""
        return {name for _, axes in self.terms for axis in axes for name in axis}


def _left(axes: Sequence[Mapping[str, float]], gone: Mapping[str, float]) -> float:
    left = 1.0
    for shares in axes:
        left *= 1 - sum(share * gone.get(name, 0.0) for name, share in shares.items())
    return left


def front(losses: Mapping[str, np.ndarray], count: Count, groups: Mapping[str, Units], *,
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
    keep = {name: checked(name, group, overrides.get(name, group.size)) for name, group in groups.items()}
    paths = {name: _path(losses[name], group) for name, group in groups.items()
             if name not in locked and name not in overrides}
    return _descend(keep, paths, losses, count)


def within(choices: Sequence[Choice], budget: float, count: Count, losses: Mapping[str, np.ndarray],
           groups: Mapping[str, Units], *, what: str) -> Choice:
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


def checked(name: str, group: Units, units: object) -> int:
    """Return how many units a group is to keep; raises OptionError where that is no number of units it can keep."""
    whole, least = isinstance(units, int) and not isinstance(units, bool), fewest(group)
    if not whole or not least <= units <= group.size or units % group.blocks:
        each = f", a multiple of {group.blocks}" if group.blocks > 1 else ""
        why = f" The model chooses among them, and cannot run with fewer than {least}." if least > group.blocks else ""
        raise OptionError(f"Group {name} can keep {least} to {group.size} units{each}; it cannot keep {units!r}.{why}",
                          where=name)
    return units


def fewest(group: Units) -> int:
    """Return the fewest units that a group can keep: one of each block, or as many as the model chooses among them."""
    return max(group.least, group.blocks)


def nearest(group: Units, share: float) -> int:
    """Return the number of units that a group can keep which is nearest to a share of it, equally many of each block."""
    return max(fewest(group), round(group.size // group.blocks * share) * group.blocks)


def even(groups: Mapping[str, Units], share: float, *, locked: Collection[str] = ()) -> dict[str, int]:
    """Return sizes at which every group keeps this share of its units (at least its fewest); locked ones stay whole,
    and so do those that carry others of these (heads): what is inside of them goes instead.

    Raises OptionError for a share of zero or less, or more than one.
    """
    if not 0 < share <= 1:
        raise OptionError(f"What is kept must be more than 0 and at most 1 (all units); it cannot be {share:g}.", where="keep",
                          fix="Keep 0.5 for half of the units of every group.")
    whole = {*locked, *(getattr(group, "parent", None) for group in groups.values())}
    return {name: group.size if name in whole else nearest(group, share) for name, group in groups.items()}


def _path(loss: np.ndarray, group: Units) -> list[tuple[int, float]]:
    """Return (units, convexified loss) from whole to smallest, in at most STEPS steps."""
    whole = np.arange(group.size, fewest(group) - 1, -group.blocks)
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
    near = {name: part.groups() & keep.keys() for name, part in parts.items()}
    steps: dict[str, tuple[float, float]] = {}
    choices = [Choice(dict(keep), _total(losses, keep), count(keep))]
    while True:
        for name in paths.keys() - steps.keys():
            steps[name] = _step(name, at[name], paths[name], parts[name], {other: keep[other] for other in near[name]})
        best = min(paths, key=lambda name: steps[name][0], default=None)
        if best is None or not np.isfinite(steps[best][0]):
            return tuple(choices)
        before, units, saved = choices[-1], paths[best][at[best] + 1][0], steps[best][1]
        rise = float(losses[best][units] - losses[best][keep[best]])
        at[best] += 1
        keep = {**keep, best: units}
        choices.append(Choice(keep, before.loss + rise, before.count - saved))
        for name in near[best] & paths.keys() | {best}:
            steps.pop(name)


def _step(name: str, at: int, path: Sequence[tuple[int, float]], part: Count, keep: Sizes) -> tuple[float, float]:
    """Return (rise of the loss for each number saved, numbers saved) by the next step of a group; infinite at its end."""
    if at + 1 >= len(path):
        return float("inf"), 0.0
    saved = part(keep) - part({**keep, name: path[at + 1][0]})
    return (path[at + 1][1] - path[at][1]) / saved if saved > 0 else float("inf"), saved


def _total(losses: Mapping[str, np.ndarray], keep: Sizes) -> float:
    return float(sum(losses[name][units] for name, units in keep.items() if name in losses))


@dataclass(frozen=True)
class Group:
    """A group that can be made smaller: its units, in how many equal blocks they lie, and the fewest that can be kept."""

    size: int
    blocks: int = 1
    least: int = 1


@dataclass(frozen=True, eq=False)
class Session:
    """What a what-if session predicts with: rises[kind][group] [size + 1] of each group alone, and whole networks measured.

    `kinds` are the losses predicted, the one that budgets are spread by first; `baseline` is the whole model's loss;
    orders[group] are its units, removed first first; whole[kind] are the lines through networks measured, by their `total`;
    `counts` are quantities by name, `forms` the formats of smaller checkpoints; `power` says how rises add up (`total`);
    `frontier` what the front of the first kind of loss loses at how many parameters; `turned` names the groups that are a
    stream by principal direction, and that stream: a what-if cuts it by one of both. Made from a session file
    (docs/design.md), or while that comes to be.
    """

    groups: Mapping[str, Units]
    unavailable: Mapping[str, str]
    kinds: tuple[str, ...]
    baseline: float
    rises: Mapping[str, Mapping[str, np.ndarray]]
    orders: Mapping[str, np.ndarray]
    whole: Mapping[str, Lines]
    counts: Mapping[str, Count]
    forms: Sequence[str] = ()
    power: float = TOGETHER
    frontier: Line = ()
    turned: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Session:
        """Return the session of a session file's JSON."""
        groups = {group["name"]: Group(group["size"], group["blocks"], group.get("least", 1)) for group in value["groups"]}
        sizes = {name: group.size for name, group in groups.items()}
        rises = {kind: {group["name"]: np.array(group["rises"][kind]) for group in value["groups"]} for kind in value["kinds"]}
        orders = {group["name"]: np.array(group["removal_order"]) for group in value["groups"]}
        counts = {name: Count.from_json(count, sizes) for name, count in value["counts"].items()}
        return Session(groups, value["unavailable"], tuple(value["kinds"]), value["baseline"]["loss"], rises, orders,
                       value["whole"], counts, tuple(value["forms"]), value["power"], value["frontier"],
                       {group["name"]: group["of"] for group in value["groups"] if group.get("of")})

    def checked(self, keep: Mapping[str, object], locked: Collection[str] = ()) -> dict[str, int]:
        """Return a what-if without the groups that stay whole, in the groups' order. Raises OptionError where a group is not
        there, cannot be made smaller, cannot keep so many units, or is locked and does not stay whole."""
        self.check_names([*keep, *locked])
        held = next((name for name in locked if name in keep and keep[name] != self.groups[name].size), None)
        if held is not None:
            raise OptionError(f"Group {held} is locked and stays whole; it cannot keep {keep[held]!r} units.", where=held)
        found = {name: units for name, group in self.groups.items()
                 if name in keep and (units := checked(name, group, keep[name])) < group.size}
        both = next((name for name, of in self.turned.items() if name in found and of in found), None)
        if both is not None:
            raise OptionError(f"{both} and {self.turned[both]} are the same stream: cut it by one of both.", where=both)
        return found

    def check_names(self, names: Iterable[str]) -> None:
        """Raise OptionError where one is no group that can be made smaller, with the reason."""
        for name in names:
            if name in self.unavailable:
                raise OptionError(f"Group {name} cannot be made smaller: {self.unavailable[name]}", where=name)
            if name not in self.groups:
                there = f"those that can be made smaller are {', '.join(self.groups)}" if self.groups else \
                    "no group of this model can be made smaller"
                raise OptionError(f"There is no group {name!r}; {there}.", where=name)

    def units_kept(self, keep: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the units that stay of every group that loses any, in index order."""
        return {name: tuple(np.sort(self.orders[name][self.groups[name].size - units:]).tolist())
                for name, units in keep.items() if units < self.groups[name].size}

    def total(self, kind: str, keep: Sizes) -> float:
        """Return what the groups' rises are together: (Σ rise ^ power) ^ (1 / power), at least their sum."""
        together = sum(self.rises[kind][name][units] ** self.power for name, units in keep.items())
        return float(together) ** (1 / self.power)

    def predicted(self, keep: Sizes) -> dict[str, float]:
        """Return the predicted rise of every kind of loss."""
        far = self.excess(keep)
        return {kind: predicted_rise(self.whole.get(kind, {}), self.total(kind, keep), far) for kind in self.kinds}

    def excess(self, keep: Sizes) -> float:
        """Return how far off the front a what-if is (`calibration.excess`)."""
        return excess(self.frontier, self.counts["parameters"](keep), self.total(self.kinds[0], keep))

    def along_front(self, locked: Collection[str] = (), sizes: Sizes | None = None,
                    turned: Collection[str] = ()) -> list[list[float]]:
        """Return what choices along the front of parameters have of them and lose together, by rising parameters."""
        choices = thinned(self.front("parameters", locked, sizes, turned))
        return [[choice.count, self.total(self.kinds[0], choice.keep)] for choice in choices[::-1]]

    def held(self, locked: Collection[str] = (), sizes: Sizes | None = None, turned: Collection[str] = ()) -> Session:
        """Return the session for what-ifs with these groups locked or at these sizes: the front that they are on or off is that
        of the groups left free. Where none is free, it is that of all."""
        along = self.along_front(locked, sizes, turned) if locked or sizes or turned else []
        return replace(self, frontier=along) if len(along) > 1 else self

    def losses(self, keep: Sizes) -> dict[str, float]:
        """Return the predicted KL to the original, where there is one, and the predicted loss itself."""
        return {kind: rise + (self.baseline if kind == "loss" else 0.0) for kind, rise in self.predicted(keep).items()}

    def front(self, count: str, locked: Collection[str] = (), sizes: Sizes | None = None,
              turned: Collection[str] = ()) -> tuple[Choice, ...]:
        """Return the Pareto front of loss against this count, from the whole model to the smallest; streams that are `turned`,
        or have a size by direction, go by direction, the others by coordinate."""
        if count not in self.counts:
            raise OptionError(f"There is no count {count!r}; there are {', '.join(self.counts)}.", where="count")
        sizes = dict(sizes or {})
        self.check_names([*locked, *sizes, *turned])
        other = {of if name in turned or name in sizes else name for name, of in self.turned.items()}
        both = next((name for name in sizes if name in other), None)
        if both is not None:
            raise OptionError(f"The stream of {both} cannot be cut by coordinate and by direction at once.", where=both)
        groups = {name: group for name, group in self.groups.items() if name not in other}
        return front(self.rises[self.kinds[0]], self.counts[count], groups, locked=set(locked) - other, overrides=sizes)

    def listed(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Return the choices of a front as {keep, count, rises}, at most FRONT_CHOICES."""
        return [{"keep": dict(choice.keep), "count": choice.count, "rises": self.predicted(choice.keep)}
                for choice in thinned(choices)]


def write_session(folder: Path, session: Mapping[str, Any]) -> None:
    """Write a session file: JSON, gzipped, the same bytes for the same session."""
    (folder / SESSION_FILE).write_bytes(gzip.compress(json.dumps(session, allow_nan=False).encode(), mtime=0))


def read_session(file: Path) -> dict[str, Any]:
    """Return the JSON of a session file."""
    return json.loads(gzip.decompress(file.read_bytes()))


def thinned(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return at most FRONT_CHOICES of a front, evenly along the count, both ends among them."""
    counts = -np.array([choice.count for choice in choices])
    wanted = np.linspace(counts[0], counts[-1], FRONT_CHOICES)
    return tuple(choices[at] for at in np.unique(np.minimum(np.searchsorted(counts, wanted), len(choices) - 1)))
