"""Hugging Face models: config.json with model.safetensors, as a zip or a folder.

The class is one of the installed transformers and is built from our own checked values: no hub access, no code of the
upload. It is traced without its weights, which are read tensor by tensor. The keys of the checkpoint are the keys of the
safetensors files, but for what `huggingface_layout` merges. Batch norm in the graph is as in `retrace`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from cipm.errors import CorruptFile
from cipm.load.archive import Source, is_zip, open_source
from cipm.load.checkpoint import Checkpoint, LazyTensors, held
from cipm.load.huggingface_config import Description, parse_config
from cipm.load.huggingface_layout import Layout, keys_of_state, lay_out, with_aliases
from cipm.load.huggingface_model import skeleton, stand_in
from cipm.load.huggingface_trace import trace
from cipm.load.ranges import open_all
from cipm.load.safetensors_file import Header, lazy_tensors, read_header

FORMAT = "huggingface"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Upload:
    """A model on the meta device with the layout of its files; `read` gets a tensor by its key in the checkpoint."""

    description: Description
    headers: Mapping[str, Header]
    model: Any
    layout: Layout
    tensors: LazyTensors


def match(path: Path) -> bool:
    """Tell whether this is a zip or folder with config.json and safetensors weights."""
    if not (path.is_dir() or is_zip(path)):
        return False
    source = open_source(path)
    return "config.json" in source and ("model.safetensors" in source or INDEX in source)


def open(path: Path, rows: Mapping[str, Sequence[int]] | None = None) -> Checkpoint:
    """Return the checkpoint of a Hugging Face zip or folder, traced for rows of these shapes if they are given.

    Raises CorruptFile naming missing and misshapen tensors, UnsupportedModel for a type or class that the installed
    transformers does not have, or that torch cannot trace.
    """
    upload = read_upload(open_source(path))
    layout, model = upload.layout, upload.model
    keys = keys_of_state(layout, model)
    stand_in(model, {name: layout.metas[key] for name, key in keys.items()})
    graph, constants, traced = trace(model, _float_dtype(layout), rows)
    stored = {value: key.removeprefix("model.") for value, key in graph.tensors.items()}
    graph = replace(graph, tensors={value: keys[key] for value, key in stored.items() if key in keys})
    kind, name = upload.description.kind, upload.description.architecture
    origin = {"model_type": kind, "architecture": name, "files": list(upload.headers),
              **traced, "notes": [*upload.description.notes, *_spare(layout, name), *traced["notes"]],
              "merged": bool(layout.merges),
              "buffers": sorted({keys[name] for name, _ in model.named_buffers() if name in keys})}
    return Checkpoint(FORMAT, graph, held(upload.tensors), constants, layout.aliases, origin=origin)


def read_upload(source: Source) -> Upload:
    """Return the model of an upload with the layout of its files, nothing of its weights in memory."""
    description = parse_config(source.json("config.json", 2**20))
    headers = {file: read_header(source, file) for file in weight_files(source)}
    metas = _metas(headers)
    model = skeleton(description)
    layout = lay_out(model, metas, description.architecture)
    ranges = open_all(source, headers)
    read = layout.reader(lazy_tensors((ranges[file], header) for file, header in headers.items()).__getitem__)
    layout = with_aliases(layout, model, read)
    order = _order(layout, metas)
    return Upload(description, headers, model, layout, LazyTensors({key: layout.metas[key] for key in order}, read))


def weight_files(source: Source) -> list[str]:
    """Return the names of the safetensors files of a model, from its index where it is sharded."""
    if INDEX not in source:
        return ["model.safetensors"]
    index = source.json(INDEX, 64 * 2**20)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CorruptFile(f"{INDEX!r} has no weight_map.", where=INDEX, fix="Save the model again with save_pretrained.")
    files = sorted({str(file) for file in places.values()})
    for file in files:
        if len(PurePosixPath(file).parts) != 1 or not file.endswith(".safetensors") or file not in source:
            raise CorruptFile(f"{INDEX!r} names the file {file[:80]!r}, which is not in the upload.", where=INDEX,
                              fix="Save the model again with save_pretrained.")
    return files


def _metas(headers: Mapping[str, Header]) -> dict[str, torch.Tensor]:
    metas: dict[str, torch.Tensor] = {}
    for file, header in headers.items():
        for key, entry in header.entries.items():
            if key in metas:
                raise CorruptFile(f"Tensor {key!r} is stored in two files.", where=file,
                                  fix="Save the model again with save_pretrained.")
            metas[key] = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
    return metas


def _order(layout: Layout, stored: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the checkpoint's keys in the order of the files; a merge stands where its first part does."""
    order: dict[str, None] = {}
    for key in stored:
        merge = layout.parts.get(key)
        order.update(dict.fromkeys(merge.targets if merge else [key]))
    return [key for key in order if key in layout.metas]


def _spare(layout: Layout, architecture: str) -> list[str]:
    if not layout.spare:
        return []
    return [f"Stored tensors that are not part of {architecture} are kept as they are ({len(layout.spare)}): "
            f"{', '.join(layout.spare[:5])}."]


def _float_dtype(layout: Layout) -> torch.dtype:
    """Return the dtype of most of the stored numbers, which float inputs have."""
    counts: dict[torch.dtype, int] = {}
    for meta in layout.metas.values():
        if meta.is_floating_point():
            counts[meta.dtype] = counts.get(meta.dtype, 0) + meta.numel()
    return max(counts, key=counts.__getitem__) if counts else torch.float32
