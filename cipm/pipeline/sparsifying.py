"""The engine of `cipm sparsify`: the order in which n:m sparsity loses least, and the model in it with zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cipm.errors import OptionError
from cipm.export.sparse import export_sparse
from cipm.load import load
from cipm.options import parse_options
from cipm.pipeline.context import Context, Emit
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.exporting import certify
from cipm.pruning import swaps
from cipm.pruning.sparse_model import sparse_orders, sparsify, summary


def prepare() -> None:
    """Compile the search, or load it from numba's cache, before the process is locked."""
    swaps.prepare()


def sparsify_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write the model `request["model"]` with n of every m neighbouring weights left, in the order that retains most.

    `request["pattern"]` is [n, m]. Where `request["masks"]` names a file, the masks go there, by tensor (bool, safetensors).
    """
    n, m = request["pattern"]
    if not 0 < n < m:
        raise OptionError(f"Of every {m} neighbours {n} cannot stay: at least one must stay and one must go.", where="pattern",
                          fix="Ask for 2:4, which hardware runs, or 1:4.")
    context = Context(request, parse_options({}), {}, emit, {"checkpoint": load(request["model"])})
    context.kept["symmetry"] = proved_groups(context)
    symmetry = context.symmetry
    found = sparse_orders(symmetry, context.checkpoint, n=n, m=m)
    made = sparsify(context.checkpoint, symmetry, {name: one.order for name, one in found.items()}, n=n, m=m)
    if not made.masks:
        raise OptionError("No weight of this model reads the units of a proved group, so there is nothing to reorder and mask.")
    facts = {"pattern": f"{n}:{m}", "won_back": {name: one.won_back for name, one in found.items()}, **summary(made)}
    certificate = certify(context, symmetry, made.plan)
    out = export_sparse(made, request["model"], scratch / request["filename"], certificate, facts)
    if request["masks"]:
        save_file(dict(made.masks), scratch / request["masks"])
    return {"filename": out.name, "certificate": certificate, **facts}
