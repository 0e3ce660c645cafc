"""Write a Hugging Face zip or folder: every small file as uploaded, the safetensors with the very same header."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from cipm.export.package import copy_files, zip_folder
from cipm.export.record import NAME
from cipm.load.archive import Source, open_source
from cipm.load.checkpoint import Checkpoint
from cipm.load.huggingface import read_upload, weight_files
from cipm.load.safetensors_file import read_header
from cipm.load.safetensors_file import write as write_safetensors


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], source: Path, record: str | None, out: Path) -> None:
    """Write the model with these tensors and the record beside them: a folder stays one unless `out` is called .zip."""
    upload = open_source(source)
    if source.is_dir() and out.suffix != ".zip":
        _fill(out, upload, checkpoint, tensors, record, "")
        return
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _fill(Path(folder), upload, checkpoint, tensors, record, upload.root)
        zip_folder(Path(folder), out)


def _fill(folder: Path, upload: Source, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], record: str | None,
          root: str) -> None:
    base = folder / root
    base.mkdir(parents=True, exist_ok=True)
    files = weight_files(upload)
    stored = _stored(checkpoint, tensors, upload)
    for file in files:
        write_safetensors(base / file, read_header(upload, file), stored)
    copy_files(upload, base, written=files)
    if record is not None:
        (base / NAME).write_text(record)


def _stored(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], upload: Source) -> Callable[[str], torch.Tensor]:
    """Return how to get a tensor by its key in the upload, one at a time; what was merged is taken apart again."""
    if checkpoint.origin.get("merged"):
        return read_upload(upload).layout.writer(tensors)
    return lambda key: tensors[checkpoint.aliases.get(key, key)]
