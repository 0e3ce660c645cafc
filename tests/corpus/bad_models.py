"""Files that are not models, or not honest ones, made with the tools that make the real ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.export.pt2_archive._package import PT2ArchiveWriter

MARKER = "marker"
CODE = f"__import__('os').mkdir('{MARKER}')"
CONFIG = {"model_type": "resnet", "architectures": ["ResNetModel"], "embedding_size": 4, "hidden_sizes": [4], "depths": [1],
          "layer_type": "basic", "num_channels": 1}


class Payload:
    """An object whose pickle makes a folder in the working directory when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (MARKER,)


class TinyNet(nn.Module):
    """Two layers, a batch norm, a lifted constant, a buffer that is not stored, and a dynamic batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(torch.relu(self.norm(self.first(x))))) * self.scale + torch.tensor([1.0, 2.0, 3.0])


def save_export(module: nn.Module, path: Path, example: torch.Tensor, *, dynamic: bool = True, **options: Any) -> Path:
    """Write a real .pt2 file of a module."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False), path, **options)
    return path


def tiny_export(path: Path) -> Path:
    """Write a .pt2 file of TinyNet in evaluation mode."""
    torch.manual_seed(0)
    return save_export(TinyNet().eval(), path, torch.randn(3, 4))


def pickled() -> bytes:
    """Return a pickle that makes the marker when it is loaded."""
    return pickle.dumps(Payload(), protocol=2)


def rewrite(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    """Copy an archive with some members changed: name (without root) → bytes, a function of the JSON, or None to drop."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        pending = dict(changes)
        for info in old.infolist():
            name = info.filename.split("/", 1)[1]
            change = pending.pop(name, old.read(info))
            if change is not None:
                new.writestr(info.filename, _changed(change, old.read(info)))
        root = old.namelist()[0].split("/", 1)[0]
        for name, change in pending.items():
            new.writestr(f"{root}/{name}", change)
    return target


def _changed(change: Any, data: bytes) -> bytes:
    if isinstance(change, bytes):
        return change
    payload = json.loads(data)
    change(payload)
    return json.dumps(payload).encode()


def edit_model(tmp: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return TinyNet's archive with its model JSON edited."""
    return rewrite(tiny_export(tmp / "good.pt2"), tmp / "bad.pt2", {"models/model.json": change})


def edit_weights(tmp: Path, change: Callable[[dict[str, Any]], None], **members: bytes) -> Path:
    """Return TinyNet's archive with its weights config edited."""
    changes = {"data/weights/model_weights_config.json": lambda p: change(p["config"]), **members}
    return rewrite(tiny_export(tmp / "good.pt2"), tmp / "bad.pt2", changes)


def hub_folder(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a folder with config.json and, with tensors, model.safetensors."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def image(path: Path, format: str) -> Path:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, format)
    return path


def torch_saved(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def scripted(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    return path


def compiled(path: Path) -> Path:
    with PT2ArchiveWriter(str(path)) as writer:
        writer.write_string("data/aotinductor/model/model.so", "\x7fELF")
        writer.write_string("data/aotinductor/model/model.cpp", "int main() {}")
    return path


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def zip_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("model.safetensors", "w") as stream:
            for _ in range(300):
                stream.write(bytes(1 << 20))
    return path


def overlapping_zip(path: Path) -> Path:
    """Write a zip whose directory lists one stored member a thousand times under different names."""
    name, data = b"a0000", bytes(4096)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(data), len(data), len(name), 0) + name + data
    entries = b"".join(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, len(data), len(data),
                                   len(name), 0, 0, 0, 0, 0, 0) + b"a%04d" % i for i in range(1000))
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), len(local), 0)
    path.write_bytes(local + entries + end)
    return path


def zip_with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("config.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return path


def zip_with_twins(path: Path) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")
        archive.writestr("config.json", "[]")
    return path


def npz(path: Path) -> Path:
    np.savez(path, x=np.zeros((2, 3), np.float32))
    return path


def custom_op_export(path: Path) -> Path:
    """Write a real .pt2 whose model calls an operator registered with torch.library."""
    @torch.library.custom_op("cipm_corpus::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(lambda x: torch.empty_like(x))

    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.cipm_corpus.twice(x)

    return save_export(Custom(), path, torch.randn(2, 3), dynamic=False)


def branching_export(path: Path) -> Path:
    """Write a real .pt2 whose model calls torch.cond."""
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    return save_export(Branching(), path, torch.randn(2, 3), dynamic=False)


def random_export(path: Path) -> Path:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    return save_export(Noisy(), path, torch.randn(2, 3), dynamic=False)


def in_memory(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()
