"""The files of an upload as bytes to read at any place, without holding them: models larger than memory.

A file of a folder and a stored member of a zip are read where they lie; a deflated member is unpacked once into a temporary
file. A member's checksum is verified when it is opened.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from cipm.errors import CorruptFile
from cipm.load.archive import Source
from cipm.load.region import Ranges

__all__ = ["Ranges", "open_all", "open_ranges"]
_CHUNK = 1 << 22


def open_ranges(source: Source, name: str) -> Ranges:
    """Return the bytes of a file of the upload; raises CorruptFile where it is damaged."""
    return open_all(source, (name,))[name]


def open_all(source: Source, names: Iterable[str]) -> dict[str, Ranges]:
    """Return the bytes of several files of the upload by name; the directory of a zip is read once."""
    sizes = {name: source.size(name) for name in names}
    if isinstance(source.path, Path) and source.path.is_dir():
        return {name: Ranges(name, source.path / source.files[name][0], 0, size) for name, size in sizes.items()}
    whole = source.path if isinstance(source.path, Ranges) else Ranges.of_file(source.path)
    with source.archive() as archive:
        infos = {name: archive.getinfo(source.files[name][0]) for name in sizes}
    return {name: _stored(whole, name, info) if info.compress_type == zipfile.ZIP_STORED
            else _unpacked(source, name, sizes[name]) for name, info in infos.items()}


class _Folder:
    """A temporary folder that goes with the last reader."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _unpacked(source: Source, name: str, size: int) -> Ranges:
    folder = _Folder()
    file = folder.path / "member"
    with source.open(name) as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out, _CHUNK)  # zipfile stops at the declared size and verifies the checksum
    if file.stat().st_size != size:
        raise CorruptFile(f"{name!r} declares {size:,} bytes but holds {file.stat().st_size:,}.", where=name,
                          fix="Upload the file again.")
    return Ranges(name, file, 0, size, folder)


def _stored(whole: Ranges, name: str, info: zipfile.ZipInfo) -> Ranges:
    """Return the bytes of a stored member: after its local header, name and extra field."""
    header = whole.part(name, info.header_offset, 30).read(0, 30)
    if header[:4] != b"PK\x03\x04" or info.compress_size != info.file_size:
        raise CorruptFile(f"{info.filename!r} is damaged: its header in the archive contradicts the directory.",
                          where=info.filename, fix="Pack the files again with an ordinary zip tool.")
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    found = whole.part(name, start, info.file_size)
    _verify(found, info.CRC)
    return found


def _verify(ranges: Ranges, checksum: int) -> None:
    found = 0
    for start in range(0, ranges.size, _CHUNK):
        found = zlib.crc32(ranges.read(start, min(start + _CHUNK, ranges.size)), found)
    if found != checksum:
        raise CorruptFile(f"{ranges.name!r} is damaged: Bad CRC-32 for file {ranges.name!r}.", where=ranges.name,
                          fix="Upload the file again.")
