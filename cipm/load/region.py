"""A run of bytes in a file on disk, read where they are asked for and never held: models larger than memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from cipm.errors import CorruptFile


@dataclass(frozen=True)
class Ranges:
    """`size` bytes of `file` from `offset` on. `name` is what messages call them; `kept` lives as long as they are read."""

    name: str
    file: Path
    offset: int
    size: int
    kept: object = None

    @classmethod
    def of_file(cls, path: Path) -> Ranges:
        """Return the whole of a file."""
        return cls(path.name, path, 0, path.stat().st_size)

    def part(self, name: str, start: int, size: int) -> Ranges:
        """Return a run of these bytes by a name of its own; raises CorruptFile where they do not reach so far."""
        if not 0 <= start <= start + size <= self.size:
            raise self._short(name)
        return Ranges(name, self.file, self.offset + start, size, self.kept)

    def read(self, start: int, end: int) -> bytearray:
        """Return the bytes [start, end); raises CorruptFile where the file is shorter than it was or should be."""
        if not 0 <= start <= end <= self.size:
            raise self._short(self.name)
        data = bytearray(end - start)
        view, filled = memoryview(data), 0
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset + start)
            while filled < len(data) and (count := stream.readinto(view[filled:filled + (1 << 28)])):
                filled += count
        if filled < len(data):
            raise self._short(self.name)
        return data

    def stream(self) -> io.BufferedReader:
        """Return the bytes as a file to read and seek in."""
        return io.BufferedReader(_Stream(self), 1 << 16)

    def _short(self, name: str) -> CorruptFile:
        what = f"{name!r} reaches beyond the {self.size:,} bytes of {self.name!r}" if name != self.name else \
            f"{name!r} has {self.size:,} bytes, and its contents should go on: it was cut short"
        return CorruptFile(f"{what}.", where=name, fix="Upload the file again.")


class _Stream(io.RawIOBase):
    def __init__(self, ranges: Ranges):
        self._ranges, self._at = ranges, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ranges.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._ranges.size - self._at))
        if size:
            buffer[:size] = self._ranges.read(self._at, self._at + size)
            self._at += size
        return size
