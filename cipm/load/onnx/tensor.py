"""TensorProto → torch tensor, checked before it is built, and back. Bytes beside the file come from the upload alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from cipm.errors import CorruptFile, LimitExceeded, UnsupportedModel
from cipm.load.archive import Source
from cipm.load.onnx.wire import DAMAGED
from cipm.load.ranges import Ranges, open_ranges
from cipm.load.tensors import MAX_RANK, flat_tensor, tensor_bytes

MAX_ELEMENTS = 2**40
DTYPES = {
    TensorProto.FLOAT: torch.float32, TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64, TensorProto.BOOL: torch.bool, TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64, TensorProto.UINT32: torch.uint32, TensorProto.UINT64: torch.uint64,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
}
# The typed field that holds a dtype where raw_data does not, and the NumPy type of the bits of one entry of it.
_BITS = {
    TensorProto.FLOAT: ("float_data", "<f4"), TensorProto.DOUBLE: ("double_data", "<f8"),
    TensorProto.INT64: ("int64_data", "<i8"), TensorProto.UINT64: ("uint64_data", "<u8"),
    TensorProto.UINT32: ("uint64_data", "<u4"), TensorProto.INT32: ("int32_data", "<i4"),
    TensorProto.INT16: ("int32_data", "<i2"), TensorProto.UINT16: ("int32_data", "<u2"),
    TensorProto.INT8: ("int32_data", "i1"), TensorProto.UINT8: ("int32_data", "u1"), TensorProto.BOOL: ("int32_data", "u1"),
    TensorProto.FLOAT16: ("int32_data", "<u2"), TensorProto.BFLOAT16: ("int32_data", "<u2"),
    TensorProto.FLOAT8E4M3FN: ("int32_data", "u1"), TensorProto.FLOAT8E5M2: ("int32_data", "u1"),
}
_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_PLAIN_FIX = ("Save the tensors in the .onnx file itself, or beside it under a plain file name, and upload both as one zip or "
              "folder.")


@dataclass(frozen=True)
class External:
    """Where a tensor's bytes lie beside the .onnx file: a file of the upload, first byte, number of bytes."""

    file: str
    offset: int
    length: int


def dtype_of(code: int, where: str) -> torch.dtype:
    """Return the dtype of an ONNX code, or raise UnsupportedModel."""
    if code not in DTYPES:
        known = code in TensorProto.DataType.values()
        label = TensorProto.DataType.Name(code).lower() if known else f"code {code}"
        raise UnsupportedModel(f"{where!r} has the data type {label}, which is not read here.", where=where,
                               fix="Export the model with plain floating and integer tensors.")
    return DTYPES[code]


def shape_of(tensor: TensorProto, where: str) -> tuple[int, ...]:
    """Return the shape of a tensor, or raise CorruptFile or LimitExceeded where it cannot be one."""
    shape = tuple(tensor.dims)
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise CorruptFile(f"Tensor {where!r} has an impossible shape {list(shape)[:20]}: at most {MAX_RANK} axes, none "
                          "negative.", where=where, fix=DAMAGED)
    if math.prod(shape) > MAX_ELEMENTS:
        raise LimitExceeded(f"Tensor {where!r} of shape {list(shape)} declares {math.prod(shape):,} elements; at most "
                            f"{MAX_ELEMENTS:,} are read.", where=where)
    return shape


def read_tensor(tensor: TensorProto, where: str, beside: Callable[[External], bytearray] | None = None,
                external: External | None = None) -> torch.Tensor:
    """Return the values of a tensor, bit for bit; its bytes may lie `beside` the file only where `external` says so.

    Raises UnsupportedModel, CorruptFile or LimitExceeded.
    """
    dtype, shape = dtype_of(tensor.data_type, where), shape_of(tensor, where)
    if tensor.HasField("segment"):
        raise UnsupportedModel(f"Tensor {where!r} is stored in segments, which no ONNX runtime reads.", where=where,
                               fix=DAMAGED)
    if external is not None:
        assert beside is not None
        return _from_bytes(beside(external), dtype, shape, where)
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise CorruptFile(f"Tensor {where!r} takes its bytes from another file, which only an initialiser of the main graph "
                          "may do: it was not opened.", where=where, fix=_PLAIN_FIX)
    filled = [field for field in _FIELDS if len(getattr(tensor, field))]
    field, bits = _BITS[tensor.data_type]
    if set(filled) - {"raw_data", field} or len(filled) > 1:
        raise CorruptFile(f"Tensor {where!r} holds its values in {' and '.join(filled)}, which contradicts its data type.",
                          where=where, fix=DAMAGED)
    if filled == [field]:
        return _from_bytes(bytearray(_typed(getattr(tensor, field), bits, where)), dtype, shape, where)
    return _from_bytes(bytearray(tensor.raw_data), dtype, shape, where)


def write_tensor(tensor: TensorProto, value: torch.Tensor) -> None:
    """Put other values of the same shape and dtype into a tensor that holds its own, in the field that held them."""
    data = tensor_bytes(value)
    field, bits = _BITS[tensor.data_type]
    if len(getattr(tensor, field)):
        values = getattr(tensor, field)
        del values[:]
        values.extend(np.frombuffer(data, bits).tolist())
    else:
        tensor.raw_data = data


def external_place(tensor: TensorProto, where: str, folder: str, source: Source) -> External | None:
    """Return where a top-level initialiser's bytes lie beside the file, or None where it holds them itself.

    Raises CorruptFile where that is not a plain file of the upload.
    """
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
        return None
    entries = {item.key: item.value for item in tensor.external_data}
    name = _checked_name(entries.get("location", ""), where, folder, source)
    size, needed = source.size(name), math.prod(shape_of(tensor, where)) * dtype_of(tensor.data_type, where).itemsize
    offset, length = _number(entries, "offset", 0, where), _number(entries, "length", needed, where)
    if length != needed or offset + length > size:
        raise CorruptFile(f"Tensor {where!r} of shape {list(tensor.dims)} needs {needed:,} bytes, and the file names {length:,}"
                          f" bytes from byte {offset:,} of {name!r}, which has {size:,}.", where=where, fix=DAMAGED)
    return External(name, offset, length)


def reader(source: Source) -> Callable[[External], bytearray]:
    """Return a function that reads the bytes of one tensor beside the file."""
    opened: dict[str, Ranges] = {}

    def read(place: External) -> bytearray:
        if place.file not in opened:
            opened[place.file] = open_ranges(source, place.file)
        return opened[place.file].read(place.offset, place.offset + place.length)
    return read


def _checked_name(location: str, where: str, folder: str, source: Source) -> str:
    path = PurePosixPath(location)
    plain = len(path.parts) == 1 and path.name == location and location not in (".", "..") and not set(location) & set("\\:\0")
    if not plain:
        raise CorruptFile(f"Tensor {where!r} takes its bytes from {location[:80]!r}, which is not a plain file name: it was "
                          "not opened.", where=where, fix=_PLAIN_FIX)
    name = f"{folder}{location}"
    if name not in source:
        raise CorruptFile(f"Tensor {where!r} takes its bytes from {location[:80]!r}, which is not in the upload.", where=where,
                          fix="Upload the .onnx file and its data files together, as one zip or folder.")
    if source.path.is_dir() and (source.path / source.files[name][0]).stat().st_nlink != 1:
        raise CorruptFile(f"{location[:80]!r} is a hard link, so it may be a file from elsewhere: it was not opened.",
                          where=location[:80], fix="Copy the file itself.")
    return name


def _number(entries: Mapping[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise CorruptFile(f"Tensor {where!r} has the {key} {text[:40]!r}, which is not a number of bytes.", where=where,
                          fix=DAMAGED)
    return int(text) if text else default


def _typed(values: Any, bits: str, where: str) -> bytes:
    array = np.fromiter(values, dtype=np.float64 if bits[1:] in ("f4", "f8") else object, count=len(values))
    with np.errstate(over="ignore"):
        if array.dtype == object:
            low, high = np.iinfo(bits).min, np.iinfo(bits).max
            if any(not low <= value <= high for value in array):
                raise CorruptFile(f"Tensor {where!r} holds values beyond its data type.", where=where, fix=DAMAGED)
        return array.astype(bits).tobytes()


def _from_bytes(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> torch.Tensor:
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise CorruptFile(f"Tensor {where!r} of shape {list(shape)} needs {needed:,} bytes, and the file holds {len(data):,} "
                          "for it.", where=where, fix=DAMAGED)
    if not needed:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        return (flat_tensor(data, torch.uint8) != 0).reshape(shape)
    return flat_tensor(data, dtype).reshape(shape)
