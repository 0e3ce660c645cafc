"""Weights files that are hostile or contradict themselves, written opcode by opcode where torch.save would not."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import bad_models as make
import torch
from safetensors.torch import save_file

LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2)


def text(value: str) -> bytes:
    """Return the opcode that pushes a string."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    """Return the opcode that pushes an integer of any size."""
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    """Return the opcodes that push a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(name: str = "0", count: int = 6, kind: bytes = b"FloatStorage", more: bytes = b"") -> bytes:
    """Return the opcodes that push a reference to a storage."""
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(name) + text("cpu") + number(count) + more + b"tQ"


def tensor(shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), offset: int = 0, *, stored: bytes | None = None,
           hooks: bytes = b"ccollections\nOrderedDict\n)R", rebuild: bytes = b"_rebuild_tensor_v2") -> bytes:
    """Return the opcodes that push a tensor."""
    return (b"ctorch._utils\n" + rebuild + b"\n(" + (stored or storage()) + number(offset) + numbers(shape) + numbers(strides)
            + b"\x89" + hooks + b"tR")


def state(*items: tuple[str, bytes]) -> bytes:
    """Return the whole pickle of a dict with these entries."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items) + b"u."


def program(body: bytes) -> bytes:
    """Return a pickle with a tensor and, beside it, what these opcodes push."""
    return state(("fc.weight", tensor()), ("extra", body))


def torch_zip(path: Path, data: bytes, *, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED,
              **members: bytes) -> Path:
    """Write a file in the layout of torch.save with this pickle and storages (default: one of six floats)."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, value in (storages if storages is not None else {"0": bytes(24)}).items():
            archive.writestr(f"archive/data/{name}", value)
        archive.writestr("archive/version", b"3\n")
        for name, value in members.items():
            archive.writestr(f"archive/{name}", value)
    return path


def legacy(path: Path, data: bytes, *, head: bytes = LEGACY_HEAD, system: bytes = SYSTEM, names: bytes = pickle.dumps(["0"], 2),
           counts: tuple[int, ...] = (6,), tail: bytes = b"") -> Path:
    """Write a file in the layout of torch.save before 1.6."""
    body = b"".join(count.to_bytes(8, "little") + bytes(24) for count in counts)
    path.write_bytes(head + system + data + names + body + tail)
    return path


def described(path: Path, description: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a zip with safetensors (default: two linear layers) and an architecture.json."""
    tensors = tensors if tensors is not None else {
        "fc1.weight": torch.zeros(4, 6), "fc1.bias": torch.zeros(4), "fc2.weight": torch.zeros(3, 4)}
    save_file(tensors, path.parent / "weights.safetensors")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.parent / "weights.safetensors", "weights.safetensors")
        archive.writestr("architecture.json", description if isinstance(description, str) else json.dumps(description))
    return path


CALL = text(make.MARKER) + b"\x85R"
"""The end of a program that calls what stands on the stack with the marker's name."""
