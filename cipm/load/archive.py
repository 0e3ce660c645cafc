"""Read the members of an untrusted zip file or folder: names checked, sizes bounded, nothing unpacked to disk.

An archive is refused as a whole before the first byte of a member is read: too many members, names that leave the
archive, the same name twice, encryption, links, members that overlap, or a declared size out of proportion.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cipm.errors import CorruptFile, LimitExceeded
from cipm.load.region import Ranges

MAX_MEMBERS = 100_000
MAX_UNPACKED = 256 * 2**30
MAX_RATIO = 20
FREE_UNPACKED = 256 * 2**20  # below this, a high compression ratio does no harm
MAX_JSON = 256 * 2**20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)  # all that zipfile raises
_REPACK = "Pack the files again with an ordinary zip tool."
_IGNORED = ("__MACOSX/", ".DS_Store")


@dataclass(frozen=True)
class Source:
    """The files of an upload by their names inside it (common top folder removed): name → (real name, bytes).

    `path` is a folder or zip file, or the bytes of a zip within another.
    """

    path: Path | Ranges
    root: str
    files: Mapping[str, tuple[str, int]]

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def size(self, name: str) -> int:
        """Return the size of a file in bytes, or raise CorruptFile where it is missing."""
        if name not in self.files:
            raise CorruptFile(f"The upload lacks {name!r}, which its other files refer to.", where=name,
                              fix="Upload all files of the model.")
        return self.files[name][1]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading; damage found while reading becomes CorruptFile."""
        self.size(name)
        real = self.files[name][0]
        try:
            if isinstance(self.path, Path) and self.path.is_dir():
                with (self.path / real).open("rb") as stream:
                    yield stream
            else:
                with self.archive() as archive, archive.open(real) as stream:
                    yield stream
        except _DAMAGE as error:
            raise CorruptFile(f"{name!r} is damaged: {error}.", where=name, fix="Upload the file again.") from error

    def archive(self) -> zipfile.ZipFile:
        """Open the zip that the files lie in."""
        return _zip_file(self.path)

    def read(self, name: str, limit: int = MAX_UNPACKED) -> bytearray:
        """Return the bytes of a file, checked against its declared size and (in a zip) its checksum."""
        size = self.size(name)
        if size > limit:
            raise LimitExceeded(f"{name!r} has {size:,} bytes; at most {limit:,} are read.", where=name)
        data = bytearray(size)
        with self.open(name) as stream:
            filled = _fill(stream, data)
            if filled != size or stream.read(1):
                raise CorruptFile(f"{name!r} declares {size:,} bytes but holds {filled:,}.", where=name,
                                  fix="Upload the file again.")
        return data

    def json(self, name: str, limit: int = MAX_JSON) -> Any:
        """Return a parsed JSON file, or raise CorruptFile."""
        try:
            return json.loads(self.read(name, limit).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise CorruptFile(f"{name!r} is not valid JSON: {reason}.", where=name, fix="Save the model again.") from error


def open_source(path: Path | Ranges) -> Source:
    """List an upload, or a zip within one, or raise CorruptFile or LimitExceeded."""
    names = _folder(path) if isinstance(path, Path) and path.is_dir() else _zip(path)
    root = _common_root(names)
    return Source(path, root, {name.removeprefix(root): (name, size) for name, size in names.items()})


def is_zip(path: Path) -> bool:
    """Tell whether a file is a zip archive with a readable directory."""
    return path.is_file() and zipfile.is_zipfile(path)


def _zip_file(path: Path | Ranges) -> zipfile.ZipFile:
    return zipfile.ZipFile(path if isinstance(path, Path) else path.stream())


def _fill(stream: IO[bytes], data: bytearray) -> int:
    view, filled = memoryview(data), 0
    while filled < len(data):
        chunk = stream.read(min(1 << 22, len(data) - filled))
        if not chunk:
            break
        view[filled:filled + len(chunk)] = chunk
        filled += len(chunk)
    return filled


def _zip(path: Path | Ranges) -> dict[str, int]:
    try:
        with _zip_file(path) as archive:
            infos = archive.infolist()
    except _DAMAGE as error:
        raise CorruptFile(f"The zip archive is damaged or cut short: {error}.", fix="Upload the file again.") from error
    _check_sizes(infos, path.stat().st_size if isinstance(path, Path) else path.size)
    sizes: dict[str, int] = {}
    for info in infos:
        if info.is_dir() or info.filename.startswith(_IGNORED[0]) or info.filename.endswith(_IGNORED[1]):
            continue
        _check_member(info)
        if info.filename in sizes:
            raise CorruptFile(f"The archive holds {info.filename!r} twice.", where=info.filename, fix=_REPACK)
        sizes[info.filename] = info.file_size
    return sizes


def _check_sizes(infos: list[zipfile.ZipInfo], size: int) -> None:
    if len(infos) > MAX_MEMBERS:
        raise LimitExceeded(f"The archive has {len(infos):,} members; at most {MAX_MEMBERS:,} are read.")
    packed, unpacked = sum(i.compress_size for i in infos), sum(i.file_size for i in infos)
    if packed > size:
        raise CorruptFile("The members of the archive overlap, as in a zip bomb: it was not opened.",
                          fix=_REPACK)
    if unpacked > MAX_UNPACKED or unpacked > max(FREE_UNPACKED, MAX_RATIO * size):
        raise LimitExceeded(f"The archive would unpack to {unpacked:,} bytes, more than {MAX_RATIO} times its size, as a "
                            "zip bomb does: it was not opened.", fix="Pack the files without compression and upload again.")


def _check_member(info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or "\x00" in info.orig_filename:
        raise CorruptFile(f"The archive names a file outside itself: {info.filename!r}.", where=info.filename, fix=_REPACK)
    if info.flag_bits & 1:
        raise CorruptFile("The archive is encrypted.", where=info.filename, fix="Upload it without a password.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise CorruptFile(f"The archive holds a link: {info.filename!r}.", where=info.filename,
                          fix="Pack the files themselves.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CorruptFile(f"{info.filename!r} is packed by a method that is not read here.", where=info.filename,
                          fix=_REPACK)


def _folder(path: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            file = Path(folder, name)
            relative = file.relative_to(path).as_posix()
            if file.is_symlink():
                raise CorruptFile(f"The folder holds a link: {relative!r}.", where=relative,
                                  fix="Copy the files themselves (cp -rL).")
            sizes[relative] = file.stat().st_size
            if len(sizes) > MAX_MEMBERS:
                raise LimitExceeded(f"The folder has more than {MAX_MEMBERS:,} files.")
    return sizes


def _common_root(names: Mapping[str, int]) -> str:
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
