"""A model with n:m zeros in the uploaded format: dense tensors that every tool reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cipm.export.record import dump_record, make_record
from cipm.export.write import WRITERS, whole
from cipm.permutation import Plan
from cipm.pruning.sparse_model import SparseModel


def export_sparse(model: SparseModel, source_path: str | Path, out_path: str | Path, certificate: Mapping[str, Any],
                  facts: Mapping[str, Any]) -> Path:
    """Write a masked model in its uploaded format; return the path. Its own tools load it without CIPM.

    The record holds `certificate` (of the order, before masking) and `facts`; `restore` refuses it: what was masked is gone.
    """
    out, checkpoint = Path(out_path), model.checkpoint
    pruned = {"keep": {}, "notes": [f"{facts['pattern']} sparsity: {facts['masked']:,} weights are zero."], **facts}
    record = make_record(Plan({}, {}), dict(certificate), checkpoint.sha256, None) | {"pruned": pruned}
    with whole(out) as temporary:
        WRITERS[checkpoint.format](checkpoint, checkpoint.tensors, Path(source_path), dump_record(record), temporary)
    return out
