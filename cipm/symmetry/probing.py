"""Try an op that has no rule: run it alone in float64, with and without units permuted, and see what its results do.

What this shows is used like a rule's facts; the proof of the whole model stands behind both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cipm.rules import FREE, Axis, Call, Value
from cipm.symmetry.trial import FAILURES, Trial, trials

MAX_ELEMENTS = 2**22
"""Largest op, in elements of operands and results, that is tried."""
MAX_TOGETHER = 4
"""Most axes that are moved together, but for all of one size."""
MAX_CHOSEN_FROM = 8
"""Most axes of one size among which every choice is tried."""
NEVER = frozenset({"fractional_max_pool2d", "fractional_max_pool3d", "segment_reduce", "ctc_loss", "put",
                   "nested_to_padded_tensor"})
"""Ops whose kernels trust the numbers that they are given as positions: they are not run on random ones."""

Spot = tuple[int, int]
"""An axis of an operand, or of a result: (number, axis)."""


@dataclass(frozen=True)
class Finding:
    """Units on these axes of operands, moved together, move each result along these of its axes and change nothing else.

    `carriers` are further axes that the units depend on (the heads they are in), each with its axis in every result (-1
    where the result does not move).
    """

    spots: tuple[Spot, ...]
    moves: tuple[tuple[int, ...], ...]
    carriers: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What trying an op showed: findings, the axes (result, axis) without any order, and why it was not tried."""

    findings: tuple[Finding, ...] = ()
    uniform: frozenset[Spot] = frozenset()
    failure: str = ""


def probe(call: Call, why: str) -> list[list[Axis]]:
    """Return the axes of every result of an op without a fitting rule, and state what trying it showed."""
    values = list({id(value): value for value in call.values()}.values())
    wanted = [(o, a) for o, value in enumerate(values) for a, axis in enumerate(value.axes)
              if isinstance(axis, np.ndarray) and value.shape[a] > 1]
    outcome = _outcome(call, values, wanted) if wanted else Outcome()
    name = f"{call.node.op.removeprefix('aten.')}, an op {why}"
    fixed = call.fixed(f"{name}, made it")
    results: list[list[Axis]] = [[FREE if (r, a) in outcome.uniform else fixed for a in range(len(shape))]
                                 for r, shape in enumerate(call.shapes)]
    for finding in outcome.findings:
        _state(call, values, finding, results)
    granted = {spot for finding in outcome.findings for spot in finding.spots}
    for o, a in wanted:
        if (o, a) not in granted:
            call.pin(values[o].axes[a], f"it enters {name} ({outcome.failure or 'tried: its order matters'})")
    if wanted:
        call.book.probed[call.node.op] = call.book.probed.get(call.node.op, False) or bool(granted)
    return results


def probe_notes(probed: Mapping[str, bool]) -> tuple[str, ...]:
    """Return a sentence for every op that was tried."""
    shown = {True: "units move through it along the axes whose order made no difference", False: "it pins what it reads"}
    return tuple(f"{op.removeprefix('aten.')} has no rule that fits, so it was tried alone: {shown[granted]}"
                 for op, granted in sorted(probed.items()))


def _state(call: Call, values: Sequence[Value], finding: Finding, results: list[list[Axis]]) -> None:
    """Tie the axes that move together, and let the axes of the results bear their labels."""
    for o, a in finding.spots:
        call.book.touch(values[o], a)
    (o, a), *others = finding.spots
    labels = values[o].axes[a]
    if not finding.carriers:
        labels = labels.ravel()
        for other, axis in others:
            labels = call.book.tie(labels, values[other].axes[axis].ravel())
    for r, axes in enumerate(finding.moves):
        for axis in axes:
            dims = {axis: a} | {image[r]: dim for dim, image in finding.carriers}
            results[r][axis] = _laid_out(labels, dims, len(call.shapes[r])) if finding.carriers else \
                labels.reshape([-1 if i == axis else 1 for i in range(len(call.shapes[r]))])


def _laid_out(labels: np.ndarray, dims: Mapping[int, int], ndim: int) -> np.ndarray:
    """Return labels with their dimension dims[i] at place i."""
    order = [dims[i] for i in sorted(dims)]
    rest = [i for i in range(labels.ndim) if i not in order]
    sizes = iter(labels.shape[i] for i in order)
    return labels.transpose(order + rest).reshape([next(sizes) if i in dims else 1 for i in range(ndim)])


# --- trying ---------------------------------------------------------------------------------------------------------

def _outcome(call: Call, values: Sequence[Value], wanted: Sequence[Spot]) -> Outcome:
    """Return what trying the op shows; the same op on the same kinds of operands is tried once."""
    known = [item for item in call.bound.values() if not isinstance(item, Value)]
    kinds = [(v.shape, str(v.dtype), id(v.content), tuple(_kind(axis) for axis in v.axes)) for v in values]
    key = (call.node.op, call.shapes, repr([_plain(item) for item in known]), repr(kinds))
    if key not in call.book.outcomes:
        call.book.outcomes[key] = _try(call, values, wanted)
    return call.book.outcomes[key]


def _kind(axis: Axis) -> object:
    return axis.shape if isinstance(axis, np.ndarray) else type(axis).__name__


def _plain(item: object) -> object:
    if isinstance(item, tuple):
        return tuple(_plain(part) for part in item)
    return "value" if isinstance(item, Value) else item


def _try(call: Call, values: Sequence[Value], wanted: Sequence[Spot]) -> Outcome:
    if call.node.op.removeprefix("aten.").split(".")[0] in NEVER:
        return Outcome(failure="it cannot be tried alone")
    if sum(int(np.prod(shape)) for shape in (*(v.shape for v in values), *call.shapes)) > MAX_ELEMENTS:
        return Outcome(failure="too large to be tried")
    try:
        made = trials(call, values)
    except FAILURES:
        made = []
    if not made:
        return Outcome(failure="it cannot be tried alone")
    alone = [spot for spot in wanted if values[spot[0]].axes[spot[1]].size == values[spot[0]].shape[spot[1]]]
    findings = [*_together(made, values, alone),
                *(f for spot in wanted if spot not in alone if (f := _nested(made, values, spot)) is not None)]
    taken: dict[Spot, Finding] = {}
    for finding in findings:  # a result's axis bears the units of one finding
        spots = [(r, axis) for r, axes in enumerate(finding.moves) for axis in axes]
        if not any(spot in taken for spot in spots):
            taken.update(dict.fromkeys(spots, finding) if spots else {(-1, len(taken)): finding})
    shapes = enumerate(call.shapes)
    uniform = frozenset((r, a) for r, shape in shapes for a in range(len(shape)) if all(t.uniform(r, a) for t in made))
    return Outcome(tuple(dict.fromkeys(taken.values())), uniform)


def _together(made: Sequence[Trial], values: Sequence[Value], spots: Sequence[Spot]) -> Iterator[Finding]:
    """Yield the smallest sets of axes that may be moved together."""
    for size in dict.fromkeys(values[o].shape[a] for o, a in spots):
        left = [(o, a) for o, a in spots if values[o].shape[a] == size]
        for chosen in list(_choices(left)):
            if all(spot in left for spot in chosen) and (moves := _moves(made, chosen)) is not None:
                left = [spot for spot in left if spot not in chosen]
                yield Finding(chosen, moves)


def _choices(spots: Sequence[Spot]) -> Iterator[tuple[Spot, ...]]:
    for count in range(1, MAX_TOGETHER + 1 if len(spots) <= MAX_CHOSEN_FROM else 2):
        yield from combinations(spots, count)
    for axis in dict.fromkeys(a for _, a in spots):
        yield tuple((o, a) for o, a in spots if a == axis)
    yield tuple(spots)


def _moves(made: Sequence[Trial], spots: Sequence[Spot]) -> tuple[tuple[int, ...], ...] | None:
    """Return the axes along which each result moves with these axes of operands in every trial, or None."""
    found: list[tuple[int, ...]] = []
    moved = [trial.moved(spots) for trial in made]
    if any(item is None for item in moved):
        return None
    for r in range(len(made[0].results)):
        fitting = [axes for axes in made[0].axes_of_size(r, spots[0])
                   if all(trial.agrees(r, axes, item) for trial, item in zip(made, moved, strict=True))]
        if not fitting:
            return None
        found.append(fitting[0])
    return tuple(found)


def _nested(made: Sequence[Trial], values: Sequence[Value], spot: Spot) -> Finding | None:
    """Return what units do that depend on other axes (each head has its own), permuted apart for each position of those."""
    o, a = spot
    labels = values[o].axes[a]
    above = [dim for dim in range(labels.ndim) if dim != a and labels.shape[dim] > 1]
    moves = _moves(made, [spot])
    images = {dim: _moves(made, [(o, dim)]) for dim in above}
    if moves is None or any(image is None for image in images.values()):
        return None
    carriers: list[tuple[int, tuple[int, ...]]] = []
    for dim in above:
        places = [axes[0] if len(axes) == 1 else -1 for axes in images[dim]]
        if any(place < 0 and own for place, own in zip(places, moves, strict=True)):
            return None
        carriers.append((dim, tuple(places)))
    if any(len(own) > 1 for own in moves) or not all(trial.agrees_apart(spot, moves, carriers) for trial in made):
        return None
    return Finding((spot,), moves, tuple(carriers))
