"""Untrusted bytes → Checkpoint. One file per format, each with `match(path)` and `open(path)`; nothing is executed.

The package can be called: `cipm.load(path)` is `cipm.load.load(path)`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from cipm.errors import NotFound
from cipm.load import huggingface, onnx, pt2, state_dict
from cipm.load.checkpoint import Checkpoint
from cipm.load.describe import describe, refuse

FORMATS: tuple[ModuleType, ...] = (pt2, state_dict, huggingface, onnx)


def load(path: str | Path, *, rows: Mapping[str, Sequence[int]] | None = None) -> Checkpoint:
    """Return the checkpoint in a file or folder, its format found by content.

    `rows` has the shape of a row of each input. A Hugging Face model is traced for them; other formats say their shapes
    themselves. Raises NotFound, UnknownFormat, RefusedFormat, CorruptFile, UnsupportedModel or LimitExceeded, each with a
    sentence that says what the file is and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise NotFound(f"There is no file or folder {path.name!r}.", where=path.name)
    for format in FORMATS:
        if format.match(path):
            opened = huggingface.open(path, rows) if format is huggingface else format.open(path)
            return replace(opened, sha256=content_hash(path))
    raise refuse(path)


def content_hash(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files with their names in sorted order."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


class _Callable(ModuleType):
    """The facade's name for the function is the package's own name; this lets both be what people write."""

    def __call__(self, path: str | Path, *, rows: Mapping[str, Sequence[int]] | None = None) -> Checkpoint:
        return load(path, rows=rows)


sys.modules[__name__].__class__ = _Callable

__all__ = ["FORMATS", "Checkpoint", "content_hash", "describe", "load", "refuse"]
