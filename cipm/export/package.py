"""Folders and zips of model files: what is copied along, and how it is packed."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Container
from pathlib import Path, PurePosixPath

from cipm.export.record import NAME
from cipm.load.archive import Source

# other copies of the weights, which would keep the old order, and code
LEFT_OUT = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".py")


def copy_files(upload: Source, folder: Path, *, written: Container[str], kept: Container[str] = ()) -> None:
    """Copy what else is in an upload: not what is `written` anew, other weights, code or an old record, unless `kept`."""
    for name in upload.files:
        wanted = name in kept or PurePosixPath(name).suffix.lower() not in LEFT_OUT
        if wanted and name != NAME and name not in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with upload.open(name) as old, (folder / name).open("wb") as new:
                shutil.copyfileobj(old, new)


def zip_folder(folder: Path, out: Path) -> None:
    """Write all files of a folder as a zip archive, not compressed, so that each can be read where it lies."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
