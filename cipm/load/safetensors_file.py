"""safetensors files read and rewritten from their own header, which is checked against the file before any tensor is.

Layout: 8 bytes little-endian header length, JSON header `{key: {dtype, shape, data_offsets}}`, tensor bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from cipm.errors import CorruptFile, LimitExceeded
from cipm.load.archive import Source
from cipm.load.checkpoint import LazyTensors
from cipm.load.region import Ranges
from cipm.load.tensors import MAX_RANK, SAFE_DTYPES, flat_tensor, tensor_view

MAX_HEADER, MAX_TENSORS, MAX_KEY = 16 * 2**20, 100_000, 512
_CODES = {dtype: code for code, dtype in SAFE_DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: dtype, shape and byte range from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file: its raw bytes (length prefix included) and its entries in file order."""

    raw: bytes
    entries: Mapping[str, Entry]

    @property
    def size(self) -> int:
        """Return the size of the whole file in bytes."""
        return len(self.raw) + max((entry.end for entry in self.entries.values()), default=0)

    @property
    def metadata(self) -> dict[str, str]:
        """Return what the file says of itself beside its tensors."""
        found = json.loads(self.raw[8:].decode("utf-8")).get("__metadata__")
        return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def read_header(source: Source, name: str) -> Header:
    """Return the header of a safetensors file, or raise CorruptFile or LimitExceeded naming what is wrong."""
    with source.open(name) as stream:
        return _read_header(stream, source.size(name), name)


def header_of(ranges: Ranges) -> Header:
    """Return the header of a safetensors file, or raise CorruptFile or LimitExceeded naming what is wrong."""
    return _read_header(ranges.stream(), ranges.size, ranges.name)


def _read_header(stream: IO[bytes], size: int, name: str) -> Header:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise _corrupt(name, f"its header declares {length:,} bytes, but the file has {size:,}")
    if length > MAX_HEADER:
        raise LimitExceeded(f"The header of {name!r} has {length:,} bytes; at most {MAX_HEADER:,} are read.", where=name)
    raw = stream.read(length)
    header = Header(prefix + raw, _entries(raw, name))
    if header.size != size:
        raise _corrupt(name, f"its tensors end at byte {header.size:,}, but the file has {size:,}")
    return header


def read_tensors(source: Source, name: str, header: Header) -> dict[str, torch.Tensor]:
    """Return every tensor of the file by key, in file order, bit for bit."""
    data = memoryview(source.read(name))[len(header.raw):]
    return {key: flat_tensor(bytearray(data[e.start:e.end]), e.dtype).reshape(e.shape) if e.end > e.start
            else torch.empty(e.shape, dtype=e.dtype) for key, e in header.entries.items()}


def lazy_tensors(files: Iterable[tuple[Ranges, Header]]) -> LazyTensors:
    """Return the tensors of safetensors files, in file order, each read from its place when it is asked for."""
    places = {key: (ranges, header) for ranges, header in files for key in header.entries}
    metas = {key: torch.empty(header.entries[key].shape, dtype=header.entries[key].dtype, device="meta")
             for key, (_, header) in places.items()}
    return LazyTensors(metas, lambda key: read_tensor(*places[key], key))


def make_header(metas: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Header:
    """Return the header of a new file with tensors of these shapes and dtypes, in the order that aligns them: widest first."""
    entries: dict[str, Entry] = {}
    end = 0
    for key, meta in sorted(metas.items(), key=lambda item: -item[1].dtype.itemsize):
        start, end = end, end + meta.numel() * meta.dtype.itemsize
        entries[key] = Entry(meta.dtype, tuple(meta.shape), start, end)
    return Header(header_bytes(entries, metadata), entries)


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str] | None) -> bytes:
    """Return a header as the safetensors library writes it, its length before it."""
    items: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    items |= {key: {"dtype": _CODES[e.dtype], "shape": list(e.shape), "data_offsets": [e.start, e.end]}
              for key, e in entries.items()}
    raw = json.dumps(items, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def read_tensor(ranges: Ranges, header: Header, key: str) -> torch.Tensor:
    """Return one tensor of the file, bit for bit."""
    entry, start = header.entries[key], len(header.raw)
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return flat_tensor(ranges.read(start + entry.start, start + entry.end), entry.dtype).reshape(entry.shape)


def write(path: Path, header: Header, tensor: Callable[[str], torch.Tensor]) -> None:
    """Write a file with the very same header (keys, order, dtypes, metadata) and other values for its tensors.

    Tensors are asked for one by one, in file order, and not kept.
    """
    with path.open("wb") as stream:
        stream.write(header.raw)
        for key, entry in sorted(header.entries.items(), key=lambda item: item[1].start):
            value = tensor(key)
            assert value.dtype == entry.dtype and tuple(value.shape) == entry.shape, key
            stream.write(tensor_view(value))


def _entries(raw: bytes, name: str) -> dict[str, Entry]:
    try:
        items = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise _corrupt(name, "its header is nested too deeply") from error
    except ValueError as error:
        raise _corrupt(name, f"its header is not valid JSON ({error})") from error
    if not isinstance(items, dict):
        raise _corrupt(name, "its header is not a JSON object")
    items.pop("__metadata__", None)
    if len(items) > MAX_TENSORS:
        raise LimitExceeded(f"{name!r} holds {len(items):,} tensors; at most {MAX_TENSORS:,} are read.", where=name)
    entries = {key: _entry(key, item, name) for key, item in items.items()}
    at = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise _corrupt(name, f"tensor {key!r} starts at byte {entry.start:,} instead of {at:,}: the tensors overlap or "
                           "leave gaps")
        at = entry.end
    return entries


def _entry(key: str, item: Any, name: str) -> Entry:
    try:
        dtype, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
        plain = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(name, f"it describes tensor {key[:80]!r} incompletely") from error
    if dtype not in SAFE_DTYPES:
        raise _corrupt(name, f"tensor {key[:80]!r} has dtype {str(dtype)[:20]!r}, which is not read here")
    if not plain or len(key) > MAX_KEY or len(shape) > MAX_RANK:
        raise _corrupt(name, f"tensor {key[:80]!r} has an impossible shape or place: {str(shape)[:80]} at {start} to {end}")
    if math.prod(shape) * SAFE_DTYPES[dtype].itemsize != end - start:
        raise _corrupt(name, f"tensor {key[:80]!r} of shape {shape} and dtype {dtype} cannot have {end - start:,} bytes")
    return Entry(SAFE_DTYPES[dtype], tuple(shape), start, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _corrupt(name: str, what: str) -> CorruptFile:
    return CorruptFile(f"{name!r} is damaged: {what}.", where=name, fix="Save the model again and upload the new file.")
