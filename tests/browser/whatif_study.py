"""The what-if session of the study's MLP: sizes, orders and losses are those of its report; whole networks lie a little off
what their groups' rises add up to, so that lines, bands and fronts have something to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cipm.allocation import Session
from cipm.allocation import write_session as write_session_file
from cipm.calibration import lines

ALLOWED = (0.001, 0.01, 0.05)
SHARES = (0.85, 0.6, 0.35, 0.15)


def write_session(folder: Path, study: Path) -> Path:
    """Write the session of the study into `folder` as stage `whatif` does, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_session_file(folder, session_of(study))
    return folder


def session_of(study: Path) -> dict[str, Any]:
    """Return the session of the study that lies in this folder."""
    report = json.loads((study / "report.json").read_text())
    baseline = {**{name: report["baseline"][name] for name in ("loss_kind", "loss", "accuracy", "rows")}, "perplexity": None}
    groups = [group(made, baseline["loss"]) for made in report["groups"]]
    shapes = {matrix["tensor"]: (matrix["shape"], matrix["groups"]) for matrix in report["matrices"] if matrix["tensor"]}
    made: dict[str, Any] = {
        "schema_version": 4, "baseline": baseline, "kinds": ["kl", "loss"], "groups": groups, "whole": {},
        "rows": baseline["rows"], "unavailable": {"outputs": "its units are the model's answers."},
        "counts": counts(shapes, groups), "points": [],
        "band": {kind: {"median": 1.12, "p90": 1.4, "points": len(SHARES)} for kind in ("kl", "loss")},
        "fronts": {}, "advice": [], "power": 0.75, "frontier": [],
        "forms": ["pt2", "onnx", "state_dict"], "notes": ["Measured on rows of the digits."]}
    made["frontier"] = Session.from_json(made).along_front()
    choices = Session.from_json(made).front("parameters")
    wholes = [choices[round((1 - share) * (len(choices) - 1))].keep for share in SHARES]
    for number, keep in enumerate(wholes):
        point = measured(made, keep, 1 + 0.1 * (number % 3))
        made["points"].append({"keep": dict(keep), "predicted": Session.from_json(made).predicted(keep), "measured": point})
    session = Session.from_json(made)
    for kind, base in (("kl", 0.0), ("loss", baseline["loss"])):
        made["whole"][kind] = lines((session.total(kind, one["keep"]), one["measured"][kind] - base,
                                     session.excess(one["keep"]))
                                    for one in made["points"])
    return finished(made)


def finished(made: dict[str, Any]) -> dict[str, Any]:
    """Return the session with its fronts and advice."""
    session = Session.from_json(made)
    made["fronts"] = {count: session.listed(session.front(count)) for count in ("parameters", "flops")}
    for allowed in ALLOWED:
        fits = [one for one in made["fronts"]["parameters"] if one["rises"]["loss"] <= 5 * allowed * made["baseline"]["loss"]]
        keep = fits[-1]["keep"]
        made["advice"].append({"allowed": allowed, "keep": keep, "measured": measured(made, keep, 1.05),
                               "parameters": session.counts["parameters"](keep)})
    return made


def group(made: dict[str, Any], base: float) -> dict[str, Any]:
    """Return a group whose loss rises as the report's own curve says."""
    whatif, size = made["whatif"], made["size"]
    rise = np.interp(np.arange(size + 1), whatif["keep"], np.array(whatif["predicted"]) - base, left=2.5)
    rise = np.maximum.accumulate(np.maximum(rise - rise[-1], 1e-5 * (size - np.arange(size + 1)))[::-1])[::-1]
    return {"name": made["name"], "kind": made["kind"], "size": size, "blocks": 1, "level": None,
            "removal_order": whatif["removal_order"], "rises": {"kl": (0.8 * rise).tolist(), "loss": rise.tolist()},
            "measured": [], "notes": []}


def counts(shapes: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of a chain of dense layers: weights and biases, multiply-adds twice, four bytes a number."""
    names = {made["name"] for made in groups}
    weights = [(float(np.prod(shape)), [{side[0]: 1.0} for side in (ends["rows"], ends["cols"]) if side[0] in names])
               for shape, ends in shapes.values()]
    biases = [(float(shape[0]), [{ends["rows"][0]: 1.0}]) for shape, ends in shapes.values() if ends["rows"][0] in names]
    fixed = float(sum(shape[0] for shape, ends in shapes.values() if ends["rows"][0] not in names))
    times = {"parameters": (1, ""), "flops": (2, "a row"), "bytes": (4, "bytes")}
    return {name: {"fixed": by * fixed, "unit": unit, "terms": [[by * size, axes] for size, axes in [*weights, *biases]]}
            for name, (by, unit) in times.items()}


def measured(made: dict[str, Any], keep: dict[str, int], factor: float) -> dict[str, Any]:
    """Return what this what-if measures: its predicted rises times a factor."""
    rises = Session.from_json(made).predicted(keep)
    loss = factor * rises["loss"]
    return {"loss": made["baseline"]["loss"] + loss, "kl": factor * rises["kl"], "rows": made["rows"],
            "accuracy": made["baseline"]["accuracy"] - 0.05 * loss, "agreement": 1 - 0.06 * loss, "perplexity": None}
