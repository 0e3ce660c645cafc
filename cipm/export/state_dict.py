"""Write a weights file: the very same layout, keys, order and bytes, but for the tensors that moved and the record.

Of a torch.save file the pickle is kept as it is (it was read opcode by opcode: nothing in it runs), and the storages are
rewritten one by one; so are the tensors of a safetensors file.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from cipm.errors import LimitExceeded
from cipm.export.record import NAME
from cipm.load.checkpoint import Checkpoint
from cipm.load.pickles import Stored
from cipm.load.region import Ranges
from cipm.load.safetensors_file import MAX_HEADER, Header, header_bytes
from cipm.load.safetensors_file import write as write_safetensors
from cipm.load.state_dict import RECORD, Upload, find_weights, read_weights
from cipm.load.tensors import flat_tensor
from cipm.load.torch_file import TRAILER, TorchFile

_ALIGNED = 64
_CHUNK = 1 << 22


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], source: Path, record: str | None, out: Path) -> None:
    """Write the weights file with these tensors; where it came in a zip or folder, what lay beside it too.

    The record is an entry of the zip, of the safetensors metadata, or follows the last tensor of a file of the old layout.
    """
    upload = find_weights(source)
    if upload.source is None:
        _write_file(upload.file, tensors, record, out)
    elif source.is_dir() and out.suffix != ".zip":
        _fill(out, upload, tensors, record)
    else:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            _fill(Path(folder, "files"), upload, tensors, record)
            _zip(Path(folder, "files"), upload.source.root, out)


def _fill(folder: Path, upload: Upload, tensors: Mapping[str, torch.Tensor], record: str | None) -> None:
    assert upload.source is not None and upload.name is not None
    folder.mkdir(parents=True)
    _write_file(upload.file, tensors, None, folder / upload.name)
    for name in upload.source.files:
        if name not in (NAME, upload.name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(upload.source.read(name))
    if record is not None:
        (folder / NAME).write_text(record)


def _zip(folder: Path, root: str, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, root + file.relative_to(folder).as_posix())


def _write_file(file: Ranges, tensors: Mapping[str, torch.Tensor], record: str | None, out: Path) -> None:
    weights = read_weights(file)
    if isinstance(weights.file, Header):
        write_safetensors(out, _header(weights.file, record), tensors.__getitem__)
        return
    storages = _Storages(weights.file, tensors)
    if weights.file.source is None:
        _write_legacy(weights.file, storages, record, out)
    else:
        _write_zip(weights.file, storages, record, out)


# --- safetensors ------------------------------------------------------------------------------------------------------

def _header(header: Header, record: str | None) -> Header:
    """Return the header with the record in its metadata, or without it."""
    if record is None and RECORD not in header.metadata:
        return header
    metadata = {key: value for key, value in header.metadata.items() if key != RECORD}
    raw = header_bytes(header.entries, metadata | ({RECORD: record} if record is not None else {}))
    if len(raw) > MAX_HEADER:
        raise LimitExceeded(f"With its record the header of the file would have {len(raw):,} bytes; at most {MAX_HEADER:,} are "
                            "read.", fix="Upload the file in a zip: the record then lies beside it.")
    return Header(raw, header.entries)


# --- torch.save -------------------------------------------------------------------------------------------------------

class _Storages:
    """The storages of a file with the new values of their tensors, one at a time."""

    def __init__(self, file: TorchFile, tensors: Mapping[str, torch.Tensor]):
        self.file, self.tensors = file, tensors
        self.inside: dict[str, list[tuple[str, Stored]]] = {}
        for key, place in file.places.items():
            if key not in file.aliases and 0 not in place.shape:
                self.inside.setdefault(place.storage.name, []).append((key, place))

    def __call__(self, name: str) -> bytearray:
        """Return the bytes of a storage."""
        source = self.file.storages[name]
        data = source.read(0, source.size)
        for key, place in self.inside.get(name, ()):
            # along an axis of stride 0 all places are one, and so are its values in whatever order
            at = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in place.strides)
            view = flat_tensor(data, place.dtype).as_strided(place.shape, place.strides, place.offset)
            view[at].copy_(self.tensors[key][at])
        return data


def _write_legacy(file: TorchFile, storage: Callable[[str], bytearray], record: str | None, out: Path) -> None:
    with out.open("wb") as stream:
        stream.write(file.ranges.read(0, file.head))
        for name, source in file.storages.items():
            start = source.offset - file.ranges.offset
            stream.write(file.ranges.read(start - 8, start))
            stream.write(storage(name))
        if record is not None:
            stream.write(TRAILER + record.encode())


def _write_zip(file: TorchFile, storage: Callable[[str], bytearray], record: str | None, out: Path) -> None:
    source = file.source
    assert source is not None
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (real, size) in source.files.items():
            entry = name.removeprefix("data/")
            if name == NAME:
                continue
            with archive.open(_aligned(archive, real, size), "w") as target:
                if name != entry and entry in file.storages:
                    target.write(storage(entry))
                else:
                    with source.open(name) as member:
                        shutil.copyfileobj(member, target, _CHUNK)
        if record is not None:
            archive.writestr(source.root + NAME, record)


def _aligned(archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
    """Return an entry whose bytes start at a multiple of 64, as torch writes them, so that they can be mapped into memory."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    wide = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile puts the sizes of a large member before our field
    start = archive.start_dir + 30 + len(name.encode()) + wide + 4
    padding = -start % _ALIGNED
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return info
