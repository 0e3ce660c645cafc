"""A budget of measured run time: choices along the front of FLOPs are made smaller for real and timed until one keeps it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cipm.allocation import SESSION_FILE, Choice, Session, read_session
from cipm.errors import OptionError
from cipm.export import export_pruned
from cipm.pipeline.context import Context
from cipm.pipeline.latency import ROWS, Inputs, in_onnx, latency
from cipm.pipeline.refitting import Refitter
from cipm.pruning import shrink

TIMED = 6
"""Most choices that are timed, the smallest among them."""
NEAR = 0.97
"""What takes this share of the allowed time is near enough."""
Times = Mapping[str, Any]


@dataclass(frozen=True)
class Met:
    """A choice that keeps a run time: what was timed of it (`latency`), its share of the whole model's run time, and in words
    what was measured on the way."""

    choice: Choice
    times: Times
    share: float
    words: str


def fit_latency(context: Context, folder: Path) -> None:
    """Stage `latency`: the sizes of the front, with the request's `locked` groups, `sizes` and `turned` streams, that take at
    most its `share` of the whole model's run time on this machine."""
    request = context.request
    session = Session.from_json(read_session(context.folders["whatif"] / SESSION_FILE))
    choices = session.front("flops", request["locked"], request["sizes"], request["turned"])
    met = within_time(context, session, Refitter(context).rows[0], choices, request["share"], locked=request["locked"])
    keep = session.checked(met.choice.keep)
    told = session.held(request["locked"], request["sizes"], request["turned"])
    facts = {"keep": keep, "share": met.share, "latency": met.times, "words": met.words, "predicted": told.losses(keep)}
    (folder / "latency.json").write_text(json.dumps(facts, allow_nan=False))


def within_time(context: Context, session: Session, inputs: Inputs, choices: Sequence[Choice], allowed: float, *,
                locked: Collection[str] = ()) -> Met:
    """Return the largest choice found on a front of FLOPs, with the whole model before it, that takes at most `allowed` of the
    whole model's run time on some of these rows. Raises OptionError where the share is not between 0 and 1, or the smallest
    choice takes more.

    FLOPs say how groups shrink, run times where to stop. Weights are not refitted for it: time does not depend on them.
    Cost: for at most TIMED choices `shrink` with its proof, and some seconds of runs.
    """
    if not 0 < allowed < 1:
        raise OptionError(f"The latency is a share of the whole model's, between 0 and 1; it cannot be {allowed:g}.",
                          where="latency", fix="Ask for 0.5 to have half of the run time.")
    choices = _from_whole(session, choices)
    times = search(choices, allowed, lambda choice: _timed(context, session, inputs, choice, choices[0].count, locked))
    if not times:
        raise OptionError("All groups are locked: nothing can be made faster.", where="latency", fix="Unlock groups.")
    words, fitting = _words(choices, times), [number for number, one in times.items() if _share(one) <= allowed]
    if not fitting:
        least = _share(times[len(choices) - 1])
        raise OptionError(f"With every free group at its smallest the model still takes {least:.0%} of its run time here: "
                          f"{allowed:.2g} of it cannot be met. {words}", where="latency",
                          fix="Allow more, or unlock groups.")
    return Met(choices[min(fitting)], times[min(fitting)], _share(times[min(fitting)]), words)


def _from_whole(session: Session, choices: Sequence[Choice]) -> Sequence[Choice]:
    """Return a front that begins with the whole model, whose run time is known: with sizes of one's own it begins smaller."""
    if all(size == session.groups[name].size for name, size in choices[0].keep.items()):
        return choices
    return (Choice({}, 0.0, session.counts["flops"]({})), *choices)


def search(choices: Sequence[Choice], allowed: float, timed: Callable[[Choice], Times]) -> dict[int, Times]:
    """Time the smallest choice of a front that begins with the whole model, then those where a straight line between the
    nearest timed on either side meets the limit; return what was timed, by number."""
    times: dict[int, Times] = {}
    slow, fast, at = (0, 1.0), (len(choices) - 1, 0.0), len(choices) - 1
    while slow[0] < at and len(times) < TIMED:
        times[at] = timed(choices[at])
        share = _share(times[at])
        if share > allowed:
            slow = at, share
        else:
            fast = at, share
        if fast[0] not in times or NEAR * allowed <= share <= allowed:
            break
        at = _between(choices, slow, fast, allowed)
    return times


def _between(choices: Sequence[Choice], slow: tuple[int, float], fast: tuple[int, float], allowed: float) -> int:
    """Return the number of the choice, between two of them with their times, that should take the time allowed."""
    (large, most), (small, least) = ((choices[number].count, share) for number, share in (slow, fast))
    wanted = small + (large - small) * (allowed - least) / (most - least)
    near = next(number for number in range(slow[0], fast[0] + 1) if choices[number].count <= wanted or number == fast[0])
    return min(max(near, slow[0] + 1), fast[0] - 1)


def _share(times: Times) -> float:
    """Return the run time of the smaller model as a share of the whole one's."""
    return 1 / times["times"]


def _timed(context: Context, session: Session, inputs: Inputs, choice: Choice, flops: float,
           locked: Collection[str]) -> Times:
    turned, units = session.turned, session.units_kept(choice.keep)  # directions take the time that coordinates take
    shrunk = shrink(context.checkpoint, context.symmetry, {turned.get(name, name): kept for name, kept in units.items()},
                    locked=[turned.get(name, name) for name in locked], seed=context.options.seed)
    few = {name: tensor[:ROWS] for name, tensor in inputs.items()}
    source, form = Path(context.request["model"]), context.request.get("form")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "smaller.onnx"
        if in_onnx(context.checkpoint, form):
            export_pruned(shrunk, source, out, form=form)
        return latency(context.checkpoint, shrunk.checkpoint, (source, out) if out.exists() else None, few, flops)


def _words(choices: Sequence[Choice], times: Mapping[int, Times]) -> str:
    one = next(iter(times.values()))
    shares = ", ".join(f"{_share(times[number]):.0%} with {choices[number].count / choices[0].count:.0%} of the FLOPs"
                       for number in sorted(times))
    return (f"Run time was measured on {one['rows']} rows in {one['runtime']} with {one['threads']} threads, the fastest of "
            f"{one['runs']} runs beside the whole model's: {shares}.")
