"""Tensors from raw bytes: the dtype codes of torch.export archives, and strided views checked against their storage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from cipm.errors import CorruptFile

MAX_RANK = 8
EXPORT_FIX = "Export again with torch 2.13: torch.export.save(torch.export.export(model.eval(), …), file)."
EXPORT_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16, 28: torch.uint16,
    29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 34: torch.uint32, 35: torch.uint64,
}
EXPORT_LAYOUTS = {7: torch.strided}
EXPORT_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def export_dtype(code: object, where: str) -> torch.dtype:
    """Return the dtype of a torch.export code, or raise CorruptFile."""
    if isinstance(code, bool) or not isinstance(code, int) or code not in EXPORT_DTYPES:
        raise CorruptFile(f"Tensor {where!r} has dtype code {code!r}, which is not read here.", where=where, fix=EXPORT_FIX)
    return EXPORT_DTYPES[code]


def raw_tensor(data: bytearray, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: int,
               key: str) -> torch.Tensor:
    """Return the tensor of this shape over the bytes, contiguous, bit for bit.

    Raises CorruptFile where the view would reach beyond the bytes.
    """
    if len(shape) > MAX_RANK or len(shape) != len(strides) or min([offset, *shape, *strides], default=0) < 0:
        raise CorruptFile(f"Tensor {key!r} has an impossible shape {list(shape)} with strides {list(strides)}.", where=key,
                          fix=EXPORT_FIX)
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype)
    end = (offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))) * dtype.itemsize
    if max(end, math.prod(shape) * dtype.itemsize) > len(data):  # the second: zero strides would unfold without end
        raise CorruptFile(f"Tensor {key!r} of shape {list(shape)} needs more than the {len(data):,} bytes that the "
                          "archive holds for it.", where=key, fix=EXPORT_FIX)
    return flat_tensor(data, dtype).as_strided(tuple(shape), tuple(strides), offset).contiguous()


def flat_tensor(data: bytearray, dtype: torch.dtype) -> torch.Tensor:
    """Return the bytes as a one-dimensional tensor that shares their memory."""
    usable = len(data) - len(data) % dtype.itemsize
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch.frombuffer(data, dtype=dtype, count=usable // dtype.itemsize)


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the raw little-endian bytes of a tensor, row by row."""
    return tensor_view(tensor).tobytes()


def tensor_view(tensor: torch.Tensor) -> memoryview:
    """Return the raw little-endian bytes of a tensor, row by row, without a copy where it is contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
