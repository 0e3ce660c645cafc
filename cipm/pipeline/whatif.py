"""Stages `whatif` and `measure`: what smaller networks would cost, predicted and measured.

The kept units take over for the removed ones by least squares fitted on the even probe rows; the loss is measured on odd
rows, so that fitting cannot flatter it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cipm.allocation import SESSION_FILE, Session, read_session, write_session
from cipm.pipeline.context import Context
from cipm.pipeline.pruning import Pruner
from cipm.pipeline.refitting import Refitter
from cipm.pipeline.session import session_facts, wholes_planned
from cipm.pipeline.streams import turned_for
from cipm.symmetry import SymmetryGroup


def whatif(context: Context, folder: Path) -> None:
    """Compute the curve of every group, measure a few points of each and a few whole networks, and predict the rest."""
    pruner = Pruner(context, wholes_planned(context))
    with pruner.refitter.threads():
        session = session_facts(pruner)
        groups = {group.name: _whatif_of(pruner, group) for group in context.symmetry.groups}
    facts = {"baseline": session["baseline"], "notes": pruner.refitter.notes, "groups": groups}
    (folder / "whatif.json").write_text(json.dumps(facts, allow_nan=False))
    write_session(folder, session)


def measure(context: Context, folder: Path) -> None:
    """Measure one what-if: the request's `keep` {group: units}; the result has what was predicted beside it."""
    known = read_session(context.folders["whatif"] / SESSION_FILE)
    session = Session.from_json(known)
    sizes = session.checked(context.request["keep"])
    context, units, said = turned_for(context, session, sizes)
    refitter = Refitter(context, rows=known["rows"])
    with refitter.threads():
        made = refitter.made(units)
    facts = {"keep": sizes, **made.measured, "predicted": session.losses(sizes), "notes": [*said, *made.notes]}
    (folder / "measure.json").write_text(json.dumps(facts, allow_nan=False))


def _whatif_of(pruner: Pruner, group: SymmetryGroup) -> dict[str, Any]:
    """Return what the report says of a group by itself."""
    facts: dict[str, Any] = {"keep": list(range(group.size + 1)), "parameters": _parameters(pruner, group), "predicted": [],
                             "predicted_cost": [], "removal_order": [], "measured": [], "notes": [],
                             "merges": None, "unavailable": pruner.reasons.get(group.name)}
    if group.name not in pruner.groups:
        return facts
    one = pruner.alone[group.name]
    cost, rises = one.curve.cost, pruner.session.rises["loss"][group.name]
    measured = [{**one.measured[number], "predicted": pruner.by_the_others(group.name, number)}
                for number in reversed(range(len(one.measured)))]  # the fewest units first
    return facts | {"predicted": (pruner.base["loss"] + rises).tolist(), "measured": measured,
                    "predicted_cost": (cost / max(cost[0], np.finfo(float).tiny)).tolist(),
                    "removal_order": one.curve.removal_order.tolist(), "notes": list(one.curve.notes),
                    "merges": one.merges.to_json() if one.merges else None}


def _parameters(pruner: Pruner, group: SymmetryGroup) -> list[int]:
    count = pruner.counts["parameters"]
    return [round(count({group.name: keep})) for keep in range(group.size + 1)]
