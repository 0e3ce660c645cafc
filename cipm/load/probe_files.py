"""Recognise a probe file by its first bytes and list its columns; whatever else it is, it is told what it is."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from cipm.errors import LimitExceeded, ProbeError
from cipm.load.probe_csv import looks_like_csv, open_csv
from cipm.load.probe_images import IMAGE_SUFFIXES, open_images
from cipm.load.probe_match import Column
from cipm.trace.graph import Input

Table = tuple[list[Column], list[str]]

FREE_UNPACKED, MOST_RATIO = 256 << 20, 100  # below so many bytes any ratio of unpacked to packed is harmless
MOST_MEMBERS, MOST_HEADER, CHUNK = 200_000, 16 << 20, 16 << 20
HOW = "A probe is an npz, npy or safetensors file, a csv table, or a zip of images."

OTHERS: dict[bytes, tuple[str, str]] = {
    b"\x89PNG": ("a PNG image", "Put the images into a zip, one folder per class."),
    b"\xff\xd8\xff": ("a JPEG image", "Put the images into a zip, one folder per class."),
    b"GIF8": ("a GIF image", "Put the images into a zip, one folder per class."),
    b"\x89HDF": ("an HDF5 file", "Save the arrays with numpy.savez."),
    b"PAR1": ("a Parquet table", "Save it as csv, or its columns with numpy.savez."),
    b"\x1f\x8b": ("a gzip file", "Unpack it first."),
    b"%PDF": ("a PDF document", HOW),
    b"\x7fELF": ("a program", HOW),
    b"GGUF": ("a GGUF model", HOW),
}


def open_table(path: Path, inputs: Sequence[Input]) -> Table:
    """Return the columns of a probe file and what is to be said about them; raises ProbeError naming what it is."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head:
        raise ProbeError("The probe file is empty.", fix=HOW)
    if head.startswith(b"\x93NUMPY"):
        return _open_npy(path)
    if head.startswith(b"PK"):
        return _open_zip(path, inputs)
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        raise ProbeError("The probe is a Python pickle, which can run code when it is opened, so it was not opened.",
                         fix="Save the arrays with numpy.savez.")
    for magic, (name, fix) in OTHERS.items():
        if head.startswith(magic):
            raise ProbeError(f"The probe is {name}, not a table of rows.", fix=fix)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MOST_HEADER:
        return _open_safetensors(path)
    if looks_like_csv(head):
        return open_csv(path, inputs)
    kind = "a text file" if b"\x00" not in head else "a file of unknown kind"
    raise ProbeError(f"The probe is {kind}, not a table of rows.", fix=HOW)


def _open_npy(path: Path) -> Table:
    try:
        with path.open("rb") as file:
            empty = 0 in _npy_header(file, "x")[0]  # what is empty cannot be mapped
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _npy_error("x", str(error)) from None
    _check_rank("x", array.shape)
    return [Column("x", array.shape, array.dtype, lambda rows: np.asarray(array[rows]))], []


def _open_zip(path: Path, inputs: Sequence[Input]) -> Table:
    with reading(), zipfile.ZipFile(path) as archive:
        listed = archive.infolist()
    members = [info for info in listed if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    _check_sizes(members, path.stat().st_size)
    names = [PurePosixPath(info.filename) for info in members]
    if any(name.suffix == ".npy" for name in names):
        return [_npz_column(path, info) for info in members if info.filename.endswith(".npy")], []
    if any(name.suffix.lower() in IMAGE_SUFFIXES for name in names):
        return open_images(path, members, inputs)
    if any(name.name in ("config.json", "archive_format", "data.pkl") for name in names):
        raise ProbeError("The probe is a packed model, not a table of rows.", fix="Upload it as the model. " + HOW)
    held = ", ".join(repr(str(name)) for name in names[:5]) + (", …" if len(names) > 5 else "") or "nothing"
    raise ProbeError(f"The probe is a zip without arrays or images; it holds {held}.", fix=HOW)


@contextmanager
def reading() -> Any:
    """Turn what goes wrong in reading a zip into ProbeError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ProbeError(f"The probe is a zip file that is damaged or cut short ({error}).",
                         fix="Save or upload it again.") from None


def _check_sizes(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    unpacked = sum(info.file_size for info in members)
    if unpacked > max(FREE_UNPACKED, MOST_RATIO * size):
        raise LimitExceeded(f"The probe is {size:,} bytes and would unpack to {unpacked:,}, as a zip bomb does, so it "
                            "was not unpacked.", fix="Save it with numpy.savez, which does not compress.")
    if len(members) > MOST_MEMBERS:
        raise LimitExceeded(f"The probe holds {len(members):,} files; at most {MOST_MEMBERS:,} are read.")


def _npz_column(path: Path, info: zipfile.ZipInfo) -> Column:
    """Return a member of an npz by its header alone; raises ProbeError where header and size disagree."""
    name = info.filename.removesuffix(".npy")
    with reading(), zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        shape, fortran, dtype = _npy_header(stream, name)
        start = stream.tell()
    if dtype.hasobject:
        raise _npy_error(name, "Object arrays cannot be loaded when allow_pickle=False")
    _check_rank(name, shape)
    if start + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ProbeError(f"The probe's {name!r} says it is {list(shape)} {dtype.name}, but holds "
                         f"{info.file_size - start:,} bytes.", where=name, fix="Save or upload it again.")
    reader = _read_fortran if fortran else _read_rows
    return Column(name, shape, dtype, partial(reader, path, info, start, shape, dtype))


def _npy_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise _npy_error(name, str(error)) from None


def _npy_error(name: str, text: str) -> ProbeError:
    if "object" in text.lower():
        return ProbeError(f"The probe's {name!r} holds Python objects, which can run code when they are read, so it was "
                          "not read.", where=name, fix="Save it as an array of numbers, and leave other objects out.")
    return ProbeError(f"The probe's {name!r} is not a readable numpy array ({text.splitlines()[0][:200]}).", where=name,
                      fix="Save it again with numpy.savez.")


def _check_rank(name: str, shape: Sequence[int]) -> None:
    if len(shape) > 8 or any(n < 0 for n in shape):
        raise ProbeError(f"The probe's {name!r} has the shape {list(shape)}; at most 8 axes are read.", where=name)


def _read_rows(path: Path, info: zipfile.ZipInfo, start: int, shape: tuple[int, ...], dtype: np.dtype,
               rows: np.ndarray) -> np.ndarray:
    """Return these rows in one pass over the member, holding one chunk beside them."""
    width = math.prod(shape[1:]) * dtype.itemsize
    taken = np.empty((len(rows), *shape[1:]), dtype)
    if not width:
        return taken
    step = max(1, CHUNK // width)
    with reading(), zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        stream.read(start)
        for first in range(0, shape[0], step):
            expected = min(step, shape[0] - first) * width
            data = stream.read(expected)
            if len(data) != expected:
                raise EOFError(f"{info.filename!r} ends early")
            chunk = np.frombuffer(data, dtype).reshape(-1, *shape[1:])
            low, high = np.searchsorted(rows, (first, first + step))
            taken[low:high] = chunk[rows[low:high] - first]
    return taken


def _read_fortran(path: Path, info: zipfile.ZipInfo, start: int, shape: tuple[int, ...], dtype: np.dtype,
                  rows: np.ndarray) -> np.ndarray:
    """Return these rows of an array stored column by column, which has to be read as a whole."""
    with reading(), zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        stream.read(start)
        return np.frombuffer(stream.read(), dtype).reshape(shape, order="F")[rows]


def _open_safetensors(path: Path) -> Table:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ProbeError(f"The probe is a safetensors file that is damaged ({error}).",
                         fix="Save or upload it again.") from None
    return [_tensor_column(name, tensor) for name, tensor in tensors.items()], []


def _tensor_column(name: str, tensor: torch.Tensor) -> Column:
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):  # float32 holds each value exactly
        dtype, read = np.dtype(np.float32), lambda rows: tensor[torch.from_numpy(rows)].float().numpy()
    else:
        dtype, read = tensor.numpy().dtype, lambda rows: tensor.numpy()[rows]
    return Column(name, tuple(tensor.shape), dtype, read)
