"""Stage `export`: the reorganised checkpoint in the format that was uploaded, with its certificate."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cipm.errors import OptionError
from cipm.export import Form, export
from cipm.load import Checkpoint
from cipm.load.checkpoint import reordered
from cipm.permutation import Permutation, Plan
from cipm.pipeline.context import Context
from cipm.pipeline.view import read_orders
from cipm.symmetry import Symmetry, compare, example_inputs
from cipm.trace import run


def export_order(context: Context, folder: Path) -> None:
    """Write the model with every group in the request's order."""
    name = context.request["order"]
    orders = read_orders(context)
    if name not in orders:
        raise OptionError(f"There is no order {name!r}; this analysis has {', '.join(sorted(orders))}.", where="order")
    record = write_reorganized(context, orders[name], name, folder / _file_name(context, name))
    (folder / "export.json").write_text(json.dumps(record))


def write_reorganized(context: Context, orders: dict[str, Permutation], name: str, out: Path,
                      original: Checkpoint | None = None, form: Form | None = None) -> dict[str, object]:
    """Export the checkpoint with these orders; return {filename, size, order, certificate}.

    Where the checkpoint was brought into a `form` before, it is compared with the `original`.
    """
    symmetry, checkpoint = context.symmetry, context.checkpoint
    plan = symmetry.plan({group: order for group, order in orders.items() if symmetry.group(group).proved})
    certificate = certify(context, symmetry, plan, original)
    written = export(checkpoint, Path(context.request["model"]), plan, certificate, out, order=name, form=form)
    size = sum(f.stat().st_size for f in written.rglob("*")) if written.is_dir() else written.stat().st_size
    return {"filename": written.name, "size": size, "order": name, "certificate": certificate}


def certify(context: Context, symmetry: Symmetry, plan: Plan, original: Checkpoint | None = None) -> dict[str, object]:
    """Return the groups' certificate with the difference that this very plan makes, in float64 on random inputs."""
    checkpoint = context.checkpoint
    first = (original or checkpoint).tensors
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(context.options.seed))
    before, after = (run(checkpoint.graph, tensors, checkpoint.constants, inputs, dtype=torch.float64)
                     for tensors in (first, reordered(checkpoint.tensors, plan)))
    max_abs, max_rel = compare(before, after)
    proved = symmetry.to_json()["certificate"]
    return {"groups": proved, "plan": {"dtype": "float64", "max_abs": max_abs, "max_rel": max_rel,
                                       "tolerance": proved["tolerance"], "passed": max_rel <= proved["tolerance"],
                                       "rows": next(iter(inputs.values())).shape[0]}}


def _file_name(context: Context, order: str) -> str:
    """Return a name of the contents alone: others may have the same model by another name."""
    single = context.checkpoint.format == "pt2" or not context.checkpoint.origin.get("packed", True)
    return f"model-{order}" + (context.checkpoint.origin.get("suffix", f".{context.checkpoint.format}") if single else ".zip")
