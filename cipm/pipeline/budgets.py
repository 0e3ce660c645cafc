"""The engine of `cipm prune`: one budget over all groups, the network it leads to, and the smaller file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cipm.allocation import Choice, Sizes, thinned, within
from cipm.errors import OptionError
from cipm.load import load
from cipm.options import parse_options
from cipm.pipeline.context import Context, Emit
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.lengths import read_with_probe
from cipm.pipeline.pruning import ROWS_NEEDED, Pruner
from cipm.pipeline.smaller import write_smaller
from cipm.pipeline.streams import with_turned_streams
from cipm.pipeline.timing import within_time

FRONT_SHARES = (1 / 3, 2 / 3, 14 / 15)
"""Where networks along a front are measured that predictions go through: shares of what can go that go."""
WHOLE_SHARES = (0.7, 0.3, 0.1)
"""Where networks off the front are: shares kept of every group."""
TRIES = 6
"""Most whole networks that are measured to find the smallest within an allowed loss."""
WORDS = {"params": "parameters", "flops": "FLOPs"}


def choose(pruner: Pruner, budget: str, value: float, *, locked: Collection[str] = (),
           sizes: Sizes | None = None) -> tuple[Sizes, list[str]]:
    """Return how many units each group keeps, and notes: `budget` is "keep" (share of every group), "max_loss" (allowed rise of
    the measured loss), "params" or "flops" (of one row) that the model may have, "latency" (share of the run time, measured).
    Raises OptionError where it cannot be met."""
    if pruner.context.probe.used_rows < 4:
        raise OptionError(ROWS_NEEDED, where="probe")
    if not pruner.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in pruner.reasons.items()) or "it has no free units."
        raise OptionError(f"No group of this model can be made smaller: {why}")
    pruner.session.checked(sizes or {}, locked)
    pruner.hold(locked, sizes)
    if budget == "keep":
        wanted = {**pruner.even(value, locked), **(sizes or {})}
        if any(size < pruner.groups[name].size for name, size in wanted.items()):
            pruner.calibrate({**pruner.even(share, locked), **(sizes or {})} for share in WHOLE_SHARES)
        return wanted, []
    if value <= 0:
        raise OptionError(f"The budget {budget.replace('_', '-')} must be more than 0; it cannot be {value:g}.", where=budget)
    count = "flops" if budget in ("flops", "latency") else "parameters"
    choices = pruner.front(count, locked, sizes)
    if budget == "max_loss":
        return _least_within_loss(pruner, choices, value).keep, []
    session, notes = pruner.session, []
    if budget == "latency":
        met = within_time(pruner.context, session, pruner.refitter.rows[0], choices, value, locked=locked)
        chosen = met.choice
        notes.append(met.words)
    else:
        chosen = within(choices, value, session.counts[count], session.rises[session.kinds[0]], pruner.groups,
                        what=WORDS[budget])
    if chosen.keep != choices[0].keep:
        pruner.calibrate(along(choices))
    return chosen.keep, notes


def along(choices: Sequence[Choice]) -> list[Sizes]:
    """Return the networks of a front that are measured so that predictions along it go through them."""
    few = thinned(choices)
    return [few[at].keep for at in sorted({round(share * (len(few) - 1)) for share in FRONT_SHARES} - {0})]


def least_within(pruner: Pruner, choices: tuple[Choice, ...], fits: Callable[[Mapping[str, Any]], bool],
                 seen: dict[int, Mapping[str, Any]], hoped: Callable[[Choice], bool] | None = None,
                 tries: int = TRIES) -> int:
    """Return the number of the smallest choice on the front found whose measurement `fits`, in at most so many measurements.

    `seen` holds what was measured by number, and gets what is measured here. What is `hoped` to fit is tried first; without
    hope the middle of what is left is. Where there is hope, predictions get to know of what is measured.
    """
    for _ in range(tries):
        best = max((number for number, measured in seen.items() if fits(measured)), default=0)
        inside = range(best + 1, min((number for number in seen if number > best), default=len(choices)))
        if not inside:
            break
        likely = [number for number in inside if hoped(choices[number])] if hoped and seen else []
        at = max(likely, default=inside[len(inside) // 2])
        point = pruner.point(choices[at].keep)
        if hoped:
            pruner.remember(point)
        seen[at] = point.measured
    return max((number for number, measured in seen.items() if fits(measured)), default=0)


def _least_within_loss(pruner: Pruner, choices: tuple[Choice, ...], allowed: float) -> Choice:
    """Return the smallest choice found that keeps within a rise of the loss. Raises OptionError where sizes of one's own lose
    more by themselves."""
    most = pruner.base["loss"] + allowed
    at = least_within(pruner, choices, lambda measured: measured["loss"] <= most, {},
                      lambda choice: pruner.predicted(choice.keep)["loss"] <= most)
    if at == 0 and any(size < pruner.groups[name].size for name, size in choices[0].keep.items()):
        rise = pruner.point(choices[0].keep).measured["loss"] - pruner.base["loss"]
        if rise > allowed:
            raise OptionError(f"With the sizes given the loss rises by {rise:.3g} though every other group stays whole: "
                              f"a rise of {allowed:.3g} cannot be met.", where="max_loss",
                              fix="Allow more, or give larger sizes.")
    return choices[at]


def prune_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write a smaller model; the jail's entry of `cipm prune`.

    `request` has model, probe, filename, options, `budget` and `value` as `choose` takes them, `locked`, `sizes`, `form`, and
    `turn_streams`: whether residual streams are turned onto their principal directions first.
    """
    options = parse_options(request["options"])
    checkpoint, probe = read_with_probe(load(request["model"]), request["model"], request["probe"], max_rows=options.max_rows)
    context = Context(request, options, {}, emit, {"checkpoint": checkpoint, "probe": probe})
    context.kept["symmetry"] = proved_groups(context)
    context, turned = with_turned_streams(context) if request["turn_streams"] else (context, [])
    pruner = Pruner(context, stage="prune")
    sizes, said = choose(pruner, request["budget"], request["value"], locked=request["locked"], sizes=request["sizes"])
    measured = request["budget"] == "max_loss"  # what was found to keep within it is what is written
    made = pruner.made(sizes) if measured else pruner.made_again(sizes)
    predicted = pruner.predicted(sizes) if made.keep else {kind: pruner.base[kind] for kind in pruner.kinds}
    out = scratch / request["filename"]
    facts = write_smaller(pruner.refitter, made, sizes, out, form=request["form"], predicted=predicted,
                          notes=[*turned, *said, *limits(pruner, made.keep), *pruner.refitter.notes], locked=request["locked"])
    return {**facts, "unavailable": pruner.reasons}


def limits(pruner: Pruner, names: Iterable[str]) -> list[str]:
    """Return what limits the curves of these groups, in words."""
    return [f"{name}: {note}" for name in names for note in pruner.alone[name].curve.notes]
