"""Write an ONNX model: the very protobuf of the upload with other values for its initialisers, and its data files alike."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from onnx import ModelProto, TensorProto

from cipm.errors import LimitExceeded
from cipm.export.package import copy_files, zip_folder
from cipm.export.record import NAME
from cipm.load.archive import Source, is_zip
from cipm.load.checkpoint import Checkpoint
from cipm.load.onnx.proto import folder_of, open_upload
from cipm.load.onnx.tensor import External, external_place, write_tensor
from cipm.load.onnx.wire import MAX_BYTES
from cipm.load.tensors import tensor_bytes

BESIDE = 4 * 2**20
"""A record of more bytes lies beside the model where the upload is a zip or folder, so that runtimes need not carry it."""


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], source: Path, record: str | None, out: Path) -> None:
    """Write the model with these tensors; names, versions, node order, metadata and the places of all bytes are kept.

    A single file stays one, with the record in its metadata. Raises LimitExceeded where it would grow beyond what
    protobuf can hold.
    """
    upload, name, proto = open_upload(source)
    patches = _patches(proto, folder_of(name), upload)
    for key, tensor in _own(proto, patches):
        if key in tensors:
            write_tensor(tensor, tensors[key])
    packed = source.is_dir() or is_zip(source)
    beside = packed and record is not None and len(record.encode()) > BESIDE
    held = {place.file for place in patches.values()}
    data = _dump(proto, None if beside else record, name)
    if not packed:
        out.write_bytes(data)
    elif source.is_dir() and out.suffix != ".zip":
        _fill(out, upload, held, name, data, record if beside else None)
        _patch(out, patches, checkpoint, tensors)
    else:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            base = Path(folder, upload.root)
            _fill(base, upload, held, name, data, record if beside else None)
            _patch(base, patches, checkpoint, tensors)
            zip_folder(Path(folder), out)


def _patches(proto: ModelProto, folder: str, upload: Source) -> dict[str, External]:
    """Return where the initialisers beside the file lie, by name. A checksum of their old bytes is taken out."""
    found = {tensor.name: external_place(tensor, tensor.name, folder, upload) for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        stale = [entry for entry in tensor.external_data if entry.key == "checksum"]
        for entry in stale:
            tensor.external_data.remove(entry)
    return {name: place for name, place in found.items() if place is not None}


def _own(proto: ModelProto, beside: Mapping[str, External]) -> Iterator[tuple[str, TensorProto]]:
    """Yield every tensor that the file itself holds, with its name: initialisers, and the values of Constant nodes."""
    for tensor in proto.graph.initializer:
        if tensor.name not in beside:
            yield tensor.name, tensor
    for node in proto.graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            yield node.output[0], node.attribute[0].t


def _dump(proto: ModelProto, record: str | None, name: str) -> bytes:
    for entry in [entry for entry in proto.metadata_props if entry.key == NAME]:
        proto.metadata_props.remove(entry)
    if record is not None:
        proto.metadata_props.add(key=NAME, value=record)
    if proto.ByteSize() > MAX_BYTES:
        raise LimitExceeded(f"{name!r} would have more than {MAX_BYTES:,} bytes with its record.", where=name,
                            fix="Save its tensors as external data first.")
    return proto.SerializeToString()


def _fill(base: Path, upload: Source, held: set[str], name: str, data: bytes, record: str | None) -> None:
    copy_files(upload, base, written={name}, kept=held)
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_bytes(data)
    if record is not None:
        (base / NAME).write_text(record)


def _patch(base: Path, patches: Mapping[str, External], checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the tensors beside the file where the old ones lie."""
    for key, place in patches.items():
        stored = checkpoint.aliases.get(key, key)
        if stored in tensors:
            data = tensor_bytes(tensors[stored])
            assert len(data) == place.length, key
            with (base / place.file).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(data)
