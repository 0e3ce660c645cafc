"""Write smaller weights without a model: one flat file of the upload's kind, and what lay beside it."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from cipm.export.package import copy_files, zip_folder
from cipm.export.pruned_check import check_reloaded
from cipm.export.record import NAME
from cipm.load.checkpoint import Checkpoint
from cipm.load.safetensors_file import Header, make_header
from cipm.load.safetensors_file import write as write_safetensors
from cipm.load.state_dict import RECORD, find_weights, read_weights

WHY = "the description beside the weights cannot say these widths"


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], source: Path, record: str | None, out: Path) -> None:
    """Write the tensors under their keys in the upload, in its order: a safetensors file, or a file of torch.save that holds
    them alone. A zip or folder stays one, with its description, which has no widths of its own.

    Raises UnsupportedModel where the description says the wrong widths.
    """
    upload = find_weights(source)
    if upload.source is None:
        _write_file(checkpoint, tensors, upload.file, record, out)
        check_reloaded(checkpoint, out, WHY)
        return
    assert upload.name is not None
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        base = Path(folder, upload.source.root) if out.suffix == ".zip" or not source.is_dir() else out
        base.mkdir(parents=True, exist_ok=True)
        _write_file(checkpoint, tensors, upload.file, None, base / upload.name)
        copy_files(upload.source, base, written={upload.name})
        if record is not None:
            (base / NAME).write_text(record)
        if base != out:
            zip_folder(Path(folder), out)
    check_reloaded(checkpoint, out, WHY)


def _write_file(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], file: object, record: str | None,
                out: Path) -> None:
    old = read_weights(file)  # type: ignore[arg-type]
    keys = [*tensors, *checkpoint.aliases]
    values = {key: tensors[checkpoint.aliases.get(key, key)].contiguous() for key in keys}
    if isinstance(old.file, Header):
        kept = {key: value for key, value in old.stated.items() if key != RECORD}
        header = make_header(values, kept | ({RECORD: record} if record is not None else {}))
        write_safetensors(out, header, values.__getitem__)
        return
    held = io.BytesIO()
    torch.save(values, held)
    out.write_bytes(held.getvalue())
    if record is not None:
        with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/{NAME}", json.dumps(json.loads(record), separators=(",", ":")))
