"""Plan × Checkpoint → the uploaded format, with plan and certificate embedded; and the way back."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cipm.errors import Conflict
from cipm.export import huggingface, onnx, pt2, state_dict
from cipm.export.record import Form, check_plan, dump_record, make_record, read_plan, undoing
from cipm.load import Checkpoint, load
from cipm.load.checkpoint import metas_of, reordered
from cipm.permutation import Plan

Writer = Callable[[Checkpoint, Mapping[str, torch.Tensor], Path, "str | None", Path], None]
WRITERS: dict[str, Writer] = {"pt2": pt2.write, "huggingface": huggingface.write, "onnx": onnx.write,
                              "state_dict": state_dict.write}


def export(checkpoint: Checkpoint, source_path: str | Path, plan: Plan, certificate: dict[str, Any] | None,
           out_path: str | Path, *, order: str | None = None, form: Form | None = None) -> Path:
    """Write the model in its uploaded format with the plan applied; return the path written.

    `form` says what was done to the checkpoint's tensors before.
    The file appears whole or not at all. Its own tools load it without CIPM; cipm.json inside holds the record.
    Raises CorruptFile where the plan does not fit the model, Conflict where the folder exists already.
    """
    record = make_record(plan, certificate, checkpoint.sha256, order, form)
    return _write(checkpoint, Path(source_path), _planned(checkpoint, plan), dump_record(record), Path(out_path))


def restore(path: str | Path, out_path: str | Path) -> Path:
    """Write the tensors as they were before the export at `path`, bit for bit, and return the path written.

    Raises UnknownFormat where the file carries no plan, Conflict where it was brought into a form that rounds.
    """
    plan, record = read_plan(path)
    checkpoint = load(path)
    back = undoing(record, metas_of(checkpoint.tensors))
    tensors = _planned(checkpoint, plan.coinverse)
    return _write(checkpoint, Path(path), back.apply(tensors) if back else tensors, None, Path(out_path))


def _planned(checkpoint: Checkpoint, plan: Plan) -> Mapping[str, torch.Tensor]:
    check_plan(plan, metas_of(checkpoint.tensors))
    return reordered(checkpoint.tensors, plan)


def _write(checkpoint: Checkpoint, source: Path, tensors: Mapping[str, torch.Tensor], record: str | None, out: Path) -> Path:
    with whole(out) as temporary:
        WRITERS[checkpoint.format](checkpoint, tensors, source, record, temporary)
    return out


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a path to write to, and move it to `out` at once when all went well; leave nothing behind otherwise."""
    if out.is_dir():
        raise Conflict(f"The folder {out.name!r} exists already.", where=out.name, fix="Choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{uuid.uuid4().hex}.tmp"
    folder.mkdir()
    try:
        yield folder / out.name
        os.replace(folder / out.name, out)
    finally:
        shutil.rmtree(folder)
