"""Jail entries of the command line: reorganize, canonicalize, fingerprint, restore and verify on files of unknown origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cipm.errors import OptionError, UnsupportedModel
from cipm.export import Form, restore
from cipm.load import Checkpoint, load
from cipm.options import parse_options
from cipm.ordering import canonical_orders, fingerprint
from cipm.ordering.matching import match_units
from cipm.permutation import Permutation
from cipm.pipeline.context import Context, Emit, batches
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.exporting import write_reorganized
from cipm.pipeline.lengths import read_with_probe
from cipm.pipeline.orders import PLAIN_ORDERS, plain_order
from cipm.symmetry import TOLERANCE, compare, example_inputs, normalise, with_continuous
from cipm.trace import run

VERIFY_DRAWS = 3


def reorganize_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write the model `request["model"]` in the order named, from an analysis' orders or from the weights alone.

    `request["forms"]` names the normal forms it is brought into first; orders that come from the weights see it in that form.
    """
    original, out = load(request["model"]), scratch / request["filename"]
    context = Context(request, parse_options({"seed": request["seed"]}), {}, emit, {"checkpoint": original})
    context.kept["symmetry"] = proved_groups(context)
    if not request["forms"]:
        return write_reorganized(context, _orders(request, context), request["order"], out)
    made = normalise(original, with_continuous(original, context.symmetry, seed=request["seed"]), request["forms"])
    context = Context(request, context.options, context.folders, emit,
                      {"checkpoint": made.checkpoint, "symmetry": context.symmetry})
    form = Form(tuple(request["forms"]), made.rescaling, made.rounded)
    result = write_reorganized(context, _orders(request, context), request["order"], out, original, form)
    return {**result, "forms": list(form.kinds), "restorable": not form.rounded, "notes": list(made.notes)}


def canonicalize_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write the model `request["model"]` in canonical order, or with its units where those of `request["other"]` stand.

    Beside what reorganising gives: `unresolved` (units by group that may stand otherwise in a copy), or `matching`.
    """
    context = _proved(request, emit)
    if request["other"]:
        found = match_units(context.symmetry, context.checkpoint, load(request["other"]))
        more, name = {"matching": found.to_json()}, "reference"
    else:
        found = canonical_orders(context.symmetry, context.checkpoint.tensors)
        more, name = {"unresolved": dict(found.unresolved)}, "canonical"
    return write_reorganized(context, dict(found.orders), name, scratch / request["filename"]) | more


def fingerprint_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Return {fingerprint, certain, unresolved: {group: units}, groups, notes} of the model `request["model"]`."""
    context = _proved(request, emit)
    found = fingerprint(context.checkpoint, context.symmetry)
    return {"fingerprint": found.digest, "certain": found.certain, "unresolved": dict(found.unresolved),
            "groups": len(context.symmetry.groups), "notes": list(context.symmetry.notes)}


def restore_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write the tensors of `request["model"]` as they were before it was reorganised."""
    return {"filename": restore(request["model"], scratch / request["filename"]).name}


def verify_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Compare two models in float64 on the probe, or on random inputs; return {same, max_abs, max_rel, rows, dtype, inputs}."""
    first, second, given = _read_both(request)
    max_abs = max_rel = 0.0
    rows = 0
    for inputs in given:
        outputs = [run(c.graph, c.tensors, c.constants, {i.name: inputs[a.name] for i, a in
                                                         zip(c.graph.inputs, first.graph.inputs, strict=True)},
                       dtype=torch.float64) for c in (first, second)]
        _check_outputs(*outputs)
        absolute, relative = compare(*outputs)
        max_abs, max_rel, rows = max(max_abs, absolute), max(max_rel, relative), rows + len(next(iter(inputs.values())))
    return {"same": max_rel <= TOLERANCE, "max_abs": max_abs, "max_rel": max_rel, "rows": rows, "dtype": "float64",
            "tolerance": TOLERANCE, "inputs": "probe" if request["probe"] else "random"}


def _proved(request: Mapping[str, Any], emit: Emit) -> Context:
    """Return a context with the model of a request and its proved groups."""
    context = Context(request, parse_options({}), {}, emit, {"checkpoint": load(request["model"])})
    context.kept["symmetry"] = proved_groups(context)
    return context


def _orders(request: Mapping[str, Any], context: Context) -> dict[str, Permutation]:
    if request["order"] == "original":
        return {}
    return _given_orders(request, context) if request["orders"] else _own_orders(request, context)


def _given_orders(request: Mapping[str, Any], context: Context) -> dict[str, Permutation]:
    known = {group.name for group in context.symmetry.groups}
    return {name: Permutation(np.load(path, allow_pickle=False)) for name, path in request["orders"].items()
            if name in known}


def _own_orders(request: Mapping[str, Any], context: Context) -> dict[str, Permutation]:
    groups, name = [group for group in context.symmetry.groups if group.proved], request["order"]
    if groups and name not in PLAIN_ORDERS:
        raise OptionError(f"The order {name!r} needs activations: give --analysis DIR, or one of "
                          f"{', '.join(sorted(PLAIN_ORDERS))}.", where="--order")
    canonical = canonical_orders(context.symmetry, context.checkpoint.tensors).orders if name == "canonical" else {}
    return {group.name: plain_order(context, group, name, canonical) for group in groups}


def _read_both(request: Mapping[str, Any]) -> tuple[Checkpoint, Checkpoint, list[dict[str, torch.Tensor]]]:
    """Return the two models and batches of the probe, or of random rows, that both are given."""
    first, second = load(request["model"]), load(request["other"])
    _check_inputs(first, second)
    if not request["probe"]:
        draws = (torch.Generator().manual_seed(draw) for draw in range(VERIFY_DRAWS))
        return first, second, [example_inputs(first, generator=generator) for generator in draws]
    read, probe = read_with_probe(first, request["model"], request["probe"], max_rows=parse_options({}).max_rows)
    if read is not first:
        second = load(request["other"], rows={name: tuple(tensor.shape[1:]) for name, tensor in probe.inputs.items()})
    return read, second, list(batches(probe, read, 256))


def _check_inputs(first: Checkpoint, second: Checkpoint) -> None:
    shapes = [[(i.dtype, tuple(d if isinstance(d, int) else "*" for d in i.shape)) for i in c.graph.inputs]
              for c in (first, second)]
    if shapes[0] != shapes[1]:
        raise UnsupportedModel("The two models take different inputs and cannot be compared: "
                               f"{_spell(first)} and {_spell(second)}.")


def _check_outputs(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    shapes = [[None if t is None else list(t.shape) for t in outputs] for outputs in (first, second)]
    if shapes[0] != shapes[1]:
        raise UnsupportedModel(f"The two models give outputs of different shapes, {shapes[0]} and {shapes[1]}.")


def _spell(checkpoint: Checkpoint) -> str:
    return ", ".join(f"{i.name} {list(i.shape)} {str(i.dtype).removeprefix('torch.')}" for i in checkpoint.graph.inputs)
