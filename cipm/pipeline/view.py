"""Stage `view`: what the dashboard reads — report.json, the matrices, and the index vectors of every order."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cipm import __version__
from cipm.options import ORDERS
from cipm.permutation import Permutation, compose
from cipm.pipeline.collecting import collection_facts, collection_notes
from cipm.pipeline.context import Context
from cipm.symmetry import Place, SymmetryGroup, lined_up
from cipm.views.artefact import AxisMeta, write_index, write_matrix, write_strip
from cipm.views.facts import freedom_facts

SCHEMA_VERSION = 1
REMOVABLE_LOSS = 0.01
"""Share of the consumers' input variance that may be lost for units to count as removable."""
LARGEST_MATRIX = 1 << 27
"""Entries of the largest weight matrix that is drawn (512 MB as float32)."""


def view(context: Context, folder: Path) -> None:
    """Write everything that is looked at."""
    orders = read_orders(context)
    organized = context.read("organize", "organize.json")["groups"]
    matrices = [*_weights(context, folder, orders), *_correlations(context, folder, orders, organized),
                *_class_means(context, folder, orders, organized)]
    for group in context.symmetry.groups:
        if group.name in organized:
            write_strip(folder, group.name, organized[group.name]["labels"])
    (folder / "orders.json").write_text(json.dumps(["original", *(name for name in ORDERS if name in orders)]))
    (folder / "report.json").write_text(json.dumps(report(context, matrices, organized), allow_nan=False))


def read_orders(context: Context) -> dict[str, dict[str, Permutation]]:
    """Return {order name: {group: permutation}} of everything `organize` found."""
    found: dict[str, dict[str, Permutation]] = {}
    for path in sorted((context.folders["organize"] / "orders").glob("*/*.npy")):
        found.setdefault(path.stem, {})[path.parent.name] = Permutation(np.load(path, allow_pickle=False))
    return found


def _weights(context: Context, folder: Path, orders: Mapping[str, dict[str, Permutation]]) -> Iterator[dict[str, Any]]:
    """Write every stored matrix that a group stands on, flattened to [axis 0, the rest]; axes that units share come first."""
    groups, tensors = lined_up(context.symmetry.groups, context.checkpoint.tensors)
    symmetry = replace(context.symmetry, groups=groups)
    plans = {name: symmetry.plan(chosen) for name, chosen in orders.items()}
    placed: dict[str, list[tuple[SymmetryGroup, Place]]] = {}
    for group in groups:
        for place in group.places:
            placed.setdefault(place.tensor, []).append((group, place))
    for number, (key, here) in enumerate(placed.items()):
        tensor = tensors[key]
        if tensor.ndim < 2 or tensor.numel() > LARGEST_MATRIX or not tensor.is_floating_point():
            continue
        name = f"w{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', key)}"
        matrix = tensor.to(torch.float32).reshape(tensor.shape[0], -1).numpy()
        axes = [_axis(key, axis, tensor.shape[axis], here) for axis in (0, 1)]
        tail = matrix.shape[1] // tensor.shape[1]
        cols = AxisMeta(axes[1].axis, None if axes[1].ids is None and tail == 1 else
                        np.repeat(_ids(axes[1], tensor.shape[1]), tail), axes[1].blocks)
        write_matrix(folder, name, matrix, title=key, rows=axes[0], cols=cols)
        for order, plan in plans.items():
            rows, columns = (_order(plan.axes, key, axis, tensor.shape[axis]) for axis in (0, 1))
            write_index(folder, order, name, rows, (columns[:, None] * tail + np.arange(tail)).ravel())
        yield {"id": name, "title": key, "tensor": key, "kind": "weight", "shape": list(matrix.shape),
               "groups": {side: [g.name for g, p in here if p.axis == axis] for axis, side in enumerate(("rows", "cols"))}}


def _correlations(context: Context, folder: Path, orders: Mapping[str, dict[str, Permutation]],
                  organized: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write the correlation of every group and, where they were collected, those within classes and of each class."""
    made = context.folders["organize"]
    for number, group in enumerate(context.symmetry.groups):
        if not (path := made / "correlation" / f"{group.name}.npy").exists():
            continue
        name, axis, title = f"c{number}-{group.name}", AxisMeta(group.name, None, group.blocks), f"correlation of {group.name}"
        facts = {"tensor": None, "kind": "correlation", "shape": [group.size, group.size],
                 "groups": {"rows": [group.name], "cols": [group.name]}}
        write_matrix(folder, name, np.load(path, allow_pickle=False), title=title, rows=axis, cols=axis)
        for order, chosen in orders.items():
            index = own_order(context, group, chosen)
            write_index(folder, order, name, index, index)
        yield {"id": name, "title": title, **facts}
        for of, samples in ((organized[group.name].get("classes") or {}).get("samples") or {}).items():
            matrix, said = np.load(made / "classes" / group.name / f"{of}.npy", allow_pickle=False), _class_title(title, of)
            write_matrix(folder, f"{name}-{of}", matrix, title=said, rows=axis, cols=axis, index=name)
            yield {"id": f"{name}-{of}", "title": said, "class": of, "samples": samples, **facts}


def _class_means(context: Context, folder: Path, orders: Mapping[str, dict[str, Permutation]],
                 organized: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Write the class means of every group with classes, [units, classes], as standard deviations from the unit's mean; 0
    where the unit is constant."""
    for number, group in enumerate(context.symmetry.groups):
        if not (organized.get(group.name) or {}).get("classes"):
            continue
        means = np.load(context.folders["organize"] / "classes" / group.name / "means.npy", allow_pickle=False)
        activity, name, title = organized[group.name]["activity"], f"m{number}-{group.name}", f"class means of {group.name}"
        labels, mean, sd = activity["classes"]["labels"], np.array(activity["mean"]), np.array(activity["sd"])
        apart = np.divide(means[labels] - mean, sd, out=np.zeros((len(labels), group.size)), where=sd > 0).T
        write_matrix(folder, name, apart, title=title, rows=AxisMeta(group.name, None, group.blocks),
                     cols=AxisMeta("class", labels))
        for order, chosen in orders.items():
            write_index(folder, order, name, own_order(context, group, chosen), np.arange(len(labels)))
        yield {"id": name, "title": title, "tensor": None, "kind": "classes", "shape": list(apart.shape),
               "groups": {"rows": [group.name], "cols": []}}


def _class_title(title: str, of: str) -> str:
    return f"{title} within classes" if of == "within" else f"{title} in class {of}"


def own_order(context: Context, group: SymmetryGroup, chosen: Mapping[str, Permutation]) -> np.ndarray:
    """Return the order of a group's own units where its parent, which carries them in blocks, moves as well."""
    units = np.arange(group.size)
    moves = [(("", 0), group.size, units[:, None], chosen[group.name])] if group.name in chosen else []
    if group.parent in chosen and len(chosen[group.parent]) == group.blocks:
        moves.append((("", 0), group.size, units.reshape(group.blocks, -1), chosen[group.parent]))
    return next((p.order for p in compose(moves).values()), units)


def _axis(key: str, axis: int, length: int, here: list[tuple[SymmetryGroup, Place]]) -> AxisMeta:
    """Name an axis after the innermost group that stands on all of it."""
    for group, place in here:
        if place.axis == axis and place.index.size == length:
            ids = np.empty(length, np.int64)
            ids[place.index] = np.arange(group.size)[:, None]
            plain = np.array_equal(ids, np.arange(length))
            return AxisMeta(group.name, None if plain else ids, group.blocks)
    return AxisMeta(f"{key}:{axis}")


def _ids(axis: AxisMeta, length: int) -> np.ndarray:
    return np.arange(length) if axis.ids is None else np.asarray(axis.ids)


def _order(axes: Mapping[tuple[str, int], Permutation], key: str, axis: int, length: int) -> np.ndarray:
    return axes[key, axis].order if (key, axis) in axes else np.arange(length)


def report(context: Context, matrices: list[dict[str, Any]], organized: Mapping[str, Any]) -> dict[str, Any]:
    """Return report.json as docs/design.md describes it.

    It holds no file names: the artefact belongs to the contents, and others may have the same contents by another name.
    """
    checkpoint, symmetry, probe = context.checkpoint, context.symmetry, context.probe
    shown = symmetry.to_json()
    whatif = context.read("whatif", "whatif.json")
    return {
        "schema_version": SCHEMA_VERSION, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"cipm": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "hashes": {"model": checkpoint.sha256, "probe": context.request.get("probe_sha256"),
                   "stages": dict(context.request.get("addresses", {}))},
        "model": {"format": checkpoint.format, "sha256": checkpoint.sha256, "parameters": checkpoint.parameters,
                  "tensors": len(checkpoint.tensors)},
        "probe": {"rows": probe.rows, "used_rows": probe.used_rows, "labels": probe.labels is not None,
                  "inputs": [{"name": n, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
                             for n, t in probe.inputs.items()],
                  "notes": list(probe.notes)},
        "options": context.options.model_dump(),
        **{name: shown[name] for name in ("log10_equivalents", "movable_share", "certificate", "pins")},
        "continuous": [freedom_facts(freedom) for freedom in shown["continuous"]],
        "notes": [*shown["notes"], *collection_notes(context), *whatif["notes"]],
        "timings": dict(context.kept.get("timings", {})),
        "baseline": whatif["baseline"], "matrices": matrices,
        **{name: context.read("organize", "organize.json")[name] for name in ("coordination", "interactions")},
        "collection": {name: said for name, said in collection_facts(context).items() if name != "taps"},
        "groups": [_group(group, matrices, organized.get(group.name), whatif["groups"].get(group.name))
                   for group in symmetry.groups],
    }


def _group(group: SymmetryGroup, matrices: list[dict[str, Any]], organized: Mapping[str, Any] | None,
           whatif: Mapping[str, Any] | None) -> dict[str, Any]:
    seen = organized or {"unavailable": "The group is not proved.", "modules": []}
    mine = [m["id"] for m in matrices if group.name in (*m["groups"]["rows"], *m["groups"]["cols"])]
    return {"name": group.name, "kind": group.kind, "size": group.size, "blocks": group.blocks, "parent": group.parent,
            "places": [{"tensor": p.tensor, "axis": p.axis, **({"axes": p.axes} if p.view else {})} for p in group.places],
            "taps": [{name: said for name, said in tap.to_json().items() if name != "index"} for tap in group.taps],
            "proved": group.proved, "log10_members": group.log10_members, "matrices": mine,
            "similarity": seen.get("similarity"), "samples": seen.get("samples"), "rows": seen.get("rows"),
            "dead": seen.get("dead", []), "modules": seen["modules"], "levels": seen.get("levels", []),
            "partition": seen.get("partition"),
            "orders": seen.get("scores", {}), "chance": seen.get("chance"), "portfolio": seen.get("portfolio"),
            "policies": seen.get("policies", {}), "activity": seen.get("activity"), "classes": seen.get("classes"),
            "effective_dimension": seen.get("effective_dimension"),
            "redundancy": _with_removable(seen.get("redundancy"), whatif, group.size),
            "canonical_ties": seen.get("canonical_ties", 0), "nodesort_overflow": seen.get("nodesort_overflow", 0),
            "whatif": whatif, "unavailable": seen.get("unavailable")}


def _with_removable(redundancy: Mapping[str, Any] | None, whatif: Mapping[str, Any] | None, size: int) -> dict[str, Any] | None:
    """Add to a group's redundancy the share of units that can go while what reads them changes by at most REMOVABLE_LOSS."""
    cost = (whatif or {}).get("predicted_cost")
    if redundancy is None or not cost:
        return None if redundancy is None else {**redundancy, "removable": None, "removable_loss": REMOVABLE_LOSS}
    fewest = next(keep for keep, share in enumerate(cost) if share <= REMOVABLE_LOSS)
    return {**redundancy, "removable": 1 - fewest / size, "removable_loss": REMOVABLE_LOSS}
