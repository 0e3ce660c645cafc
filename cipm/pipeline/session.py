"""What a page needs to predict what-ifs by itself: the session file, as docs/design.md describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cipm.allocation import TOGETHER, Sizes, fewest, nearest, thinned
from cipm.export import forms
from cipm.pipeline.budgets import FRONT_SHARES, WHOLE_SHARES, along, least_within, limits
from cipm.pipeline.context import Context
from cipm.pipeline.pruning import ROWS_NEEDED, Point, Pruner
from cipm.pipeline.reference import LOSSES
from cipm.pipeline.refitting import Refitter
from cipm.pipeline.streams import by_direction, counted, directions

SCHEMA_VERSION = 4
ALONG = len(FRONT_SHARES)
CALIBRATING = ALONG + len(WHOLE_SHARES)
HELD_BACK = 7
"""Whole networks that predictions are held against: half of them random what-ifs, the others on the way along the front."""
ALLOWED = (0.001, 0.01, 0.05)
"""Rises of the loss (falls of the accuracy, where there is one) that advice is given for, as shares of the baseline."""
ADVICE_TRIES = 3
"""Most whole networks measured for each of them, beside those held back."""
MOST = CALIBRATING + HELD_BACK + len(ALLOWED) * ADVICE_TRIES
"""Most whole networks measured."""
WHOLE_FLOPS = 2e13
"""Work spent on measuring whole networks beside those along the front that predictions go through: some minutes on two cores.
A count, not a clock, so that the same analysis always gives the same result."""
UNITS = {"parameters": "parameters", "flops": "floating-point operations of one row (a multiply-add is two)",
         "bytes": "bytes of all stored tensors"}
FLOOR = 1e-3
"""What is added to predicted and measured rises before they are compared, as a share of the largest measured."""


def wholes_planned(context: Context) -> int:
    """Return how many whole networks a session measures at most."""
    return ALONG + min(MOST - ALONG, int(WHOLE_FLOPS / Refitter(context).work))


def session_facts(pruner: Pruner) -> dict[str, Any]:
    """Return the session: measure whole networks for `whole`, others to hold predictions against, and search for advice."""
    facts = {"schema_version": SCHEMA_VERSION, "baseline": _baseline(pruner), "kinds": list(pruner.kinds), "groups": [],
             "unavailable": pruner.reasons, "counts": {}, "whole": {}, "points": [], "band": {}, "fronts": {}, "advice": [],
             "frontier": [], "power": TOGETHER, "forms": list(forms(pruner.context.checkpoint)),
             "rows": pruner.refitter.reference.rows}
    if not pruner.groups:
        few = pruner.context.probe.used_rows < 4
        why = ROWS_NEEDED if few else "No group of this model can be made smaller."
        return facts | {"notes": [why, *pruner.refitter.reference.notes]}
    pruner.calibrate(calibrating(pruner)[:max(ALONG, pruner.wholes)])
    held = [pruner.point(keep) for keep in _held_back(pruner)]
    advice, session = _advice(pruner), pruner.session
    turned, reasons = directions(pruner)
    both = ([(pruner, name, None), *([(turned[name], name, name)] if name in turned else [])] for name in pruner.groups)
    counts = {name: count.to_json() for name, count in session.counts.items()}
    return facts | {
        "groups": [_group(*one) for some in both for one in some], "unavailable": pruner.reasons | reasons,
        "counts": {name: {**count, "terms": counted(count["terms"], turned), "unit": UNITS[name]}
                   for name, count in counts.items()},
        "whole": session.whole, "frontier": session.frontier,
        "points": [_point(point) for point in pruner.points],
        "band": {kind: _band(pruner, kind, held) for kind in pruner.kinds},
        "fronts": {count: session.listed(pruner.front(count)) for count in ("parameters", "flops")},
        "advice": advice, "notes": _notes(pruner)}


def calibrating(pruner: Pruner) -> list[Sizes]:
    """Return the networks that predictions go through: along the front of parameters, then off it."""
    return [*along(pruner.front("parameters")), *(pruner.even(share) for share in WHOLE_SHARES)]


def _baseline(pruner: Pruner) -> dict[str, Any]:
    baseline = pruner.refitter.reference.baseline
    return {name: baseline[name] for name in ("loss_kind", "loss", "accuracy", "perplexity", "rows")}


def _group(pruner: Pruner, name: str, of: str | None) -> dict[str, Any]:
    group, one = pruner.groups[name], pruner.alone[name]
    return {"name": by_direction(of) if of else name, "of": of, "kind": "principal directions" if of else group.kind,
            "size": group.size, "blocks": group.blocks, "least": fewest(group),
            "level": group.parent if group.parent in pruner.groups else None,
            "removal_order": one.curve.removal_order.tolist(),
            "rises": {kind: pruner.rises(kind)[name].tolist() for kind in pruner.kinds},
            "measured": [{field: point[field] for field in ("keep", *LOSSES)} for point in one.measured],
            "notes": list(one.curve.notes)}


def _point(point: Point) -> dict[str, Any]:
    return {"keep": dict(point.keep), "predicted": dict(point.predicted),
            "measured": {name: point.measured[name] for name in LOSSES}}


def _held_back(pruner: Pruner) -> list[Sizes]:
    """Return what-ifs to hold predictions against, as many as the work allows."""
    most = min(HELD_BACK, pruner.wholes - CALIBRATING)
    generator = np.random.default_rng(pruner.context.options.seed)
    choices = thinned(pruner.front("parameters"))
    inside = [choices[round(at * (len(choices) - 1))].keep for at in np.linspace(0, 1, most - (most + 1) // 2 + 2)[1:-1]]
    drawn = [{name: nearest(group, generator.uniform(0.1, 1)) for name, group in pruner.groups.items()}
             for _ in range((most + 1) // 2)]
    return [*drawn, *inside][:max(most, 0)]


def _band(pruner: Pruner, kind: str, held: Sequence[Point]) -> dict[str, Any] | None:
    """Return by which factors held-back networks were missed."""
    if not held:
        return None
    pairs = np.array([(point.predicted[kind], point.measured[kind]) for point in held]) - pruner.base[kind]
    pairs = np.maximum(pairs, 0) + FLOOR * max(float(pairs[:, 1].max()), np.finfo(float).tiny)
    factors = np.exp(np.abs(np.diff(np.log(pairs), axis=1))).ravel()
    return {"median": float(np.median(factors)), "p90": float(np.quantile(factors, 0.9)), "points": len(held)}


def _advice(pruner: Pruner) -> list[dict[str, Any]]:
    """Return the smallest networks found, along the front of parameters, whose measured loss rises by no more than this."""
    baseline, choices = pruner.refitter.reference.baseline, pruner.front("parameters")
    known = {tuple(point.keep.items()): point.measured for point in pruner.points}
    seen = {number: known[keep] for number, choice in enumerate(choices) if (keep := tuple(choice.keep.items())) in known}
    seen[0] = {**baseline, "kl": None if baseline["kl"] is None else 0.0}
    found = []
    for allowed in ALLOWED if pruner.wholes > CALIBRATING + HELD_BACK else ():
        at = least_within(pruner, choices, lambda measured, share=allowed: _within(baseline, measured, share), seen,
                          tries=ADVICE_TRIES)
        found.append({"allowed": allowed, "keep": dict(choices[at].keep), "parameters": round(choices[at].count),
                      "measured": {name: seen[at][name] for name in LOSSES}})
    return found


def _within(baseline: Mapping[str, Any], measured: Mapping[str, Any], share: float) -> bool:
    """Tell whether the accuracy fell, or else the loss rose, by at most this share; a loss of zero (outputs are compared with
    the whole model's own) may rise to the share itself."""
    if baseline["accuracy"] is not None:
        return measured["accuracy"] >= baseline["accuracy"] * (1 - share)
    return measured["loss"] - baseline["loss"] <= share * (baseline["loss"] or 1.0)


def _notes(pruner: Pruner) -> list[str]:
    fewer = pruner.wholes < MOST
    said = [f"At most {pruner.wholes} whole networks were measured, because each is refitted layer by layer."] if fewer else []
    return [*pruner.refitter.notes, *said, *limits(pruner, pruner.groups)]


