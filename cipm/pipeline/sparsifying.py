"""The engine of `cipm sparsify`: the order in which zeros, n:m or in blocks, lose least, and the model in it with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cipm.errors import OptionError
from cipm.export.sparse import export_sparse
from cipm.load import load
from cipm.options import parse_options
from cipm.ordering import links
from cipm.pipeline.context import Context, Emit
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.exporting import certify
from cipm.pruning import swaps
from cipm.pruning.dense_blocks import block_orders, block_sparsify
from cipm.pruning.sparse_model import SparseModel, sparse_orders, sparsify, summary


def prepare() -> None:
    """Compile the search, or load it from numba's cache, before the process is locked."""
    swaps.prepare()


def sparsify_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Write the model `request["model"]` with zeros in the order that retains most: n of every m neighbouring weights left,
    `request["pattern"]` being [n, m], or that share of square blocks, `request["blocks"]` being [size or null, share].

    Where `request["masks"]` names a file, the masks go there, by tensor (bool, safetensors).
    """
    context = Context(request, parse_options({}), {}, emit, {"checkpoint": load(request["model"])})
    context.kept["symmetry"] = proved_groups(context)
    size, share = request["blocks"]
    made, said = _by_neighbours(context, *request["pattern"]) if size is None else _in_blocks(context, size, share)
    if not made.masks:
        raise OptionError("No weight of this model reads the units of a proved group, so there is nothing to reorder and mask.")
    facts = {**said, **summary(made)}
    certificate = certify(context, context.symmetry, made.plan)
    out = export_sparse(made, request["model"], scratch / request["filename"], certificate, facts)
    if request["masks"]:
        save_file(dict(made.masks), scratch / request["masks"])
    return {"filename": out.name, "certificate": certificate, **facts}


def _by_neighbours(context: Context, n: int, m: int) -> tuple[SparseModel, dict[str, Any]]:
    if not 0 < n < m:
        raise OptionError(f"Of every {m} neighbours {n} cannot stay: at least one must stay and one must go.", where="pattern",
                          fix="Ask for 2:4, which hardware runs, or 1:4.")
    found = sparse_orders(context.symmetry, context.checkpoint, n=n, m=m)
    made = sparsify(context.checkpoint, context.symmetry, {name: one.order for name, one in found.items()}, n=n, m=m)
    return made, {"pattern": f"{n}:{m}", "won_back": {name: one.won_back for name, one in found.items()}}


def _in_blocks(context: Context, size: int, share: float) -> tuple[SparseModel, dict[str, Any]]:
    tops = [group for group in context.symmetry.groups if not group.parent]
    between = links(tops, context.checkpoint.tensors)
    found = block_orders(between, size=size, share=share, blocks={group.name: group.blocks for group in tops})
    made = block_sparsify(context.checkpoint, context.symmetry, between, found)
    return made, {"pattern": f"{size} × {size} block", "share": share, "best_possible": found.best_possible}
