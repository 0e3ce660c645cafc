"""Hugging Face models: config.json with model.safetensors, as a zip or a folder.

The model class comes from an allowlist and is built from our own checked values: no hub access, no code of the
upload. The keys of the checkpoint are the keys of the safetensors file. Batch norm in the graph is as in `retrace`.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from cipm.errors import CipmError, CorruptFile
from cipm.load.archive import Source, is_zip, open_source
from cipm.load.checkpoint import Checkpoint
from cipm.load.huggingface_config import parse_config
from cipm.load.retrace import Sample, export_program, functional
from cipm.load.safetensors_file import Header, read_header, read_tensors
from cipm.trace import Graph

FORMAT = "huggingface"
INDEX = "model.safetensors.index.json"
_CLASS_MODULE = "transformers.models.{0}.modeling_{0}"
_CONFIG_MODULE = "transformers.models.{0}.configuration_{0}"
_CONFIGS = {"bert": "BertConfig", "gpt2": "GPT2Config", "llama": "LlamaConfig", "vit": "ViTConfig",
            "resnet": "ResNetConfig"}


def match(path: Path) -> bool:
    """Tell whether this is a zip or folder with config.json and safetensors weights."""
    if not (path.is_dir() or is_zip(path)):
        return False
    source = open_source(path)
    return "config.json" in source and ("model.safetensors" in source or INDEX in source)


def open(path: Path) -> Checkpoint:
    """Return the checkpoint of a Hugging Face zip or folder.

    Raises CorruptFile naming missing and misshapen tensors, UnsupportedModel for a type or class off the list.
    """
    source = open_source(path)
    kind, name, values, notes = parse_config(source.json("config.json", 2**20))
    headers = {file: read_header(source, file) for file in weight_files(source)}
    shapes = _shapes(headers)
    names = _check_tensors(_build(kind, name, values, torch.device("meta")), shapes, name, notes)
    tensors = {key: value for file, header in headers.items() for key, value in read_tensors(source, file, header).items()}
    model = _filled(_build(kind, name, values, torch.device("cpu")), tensors, names)
    keys = _key_of_each(model, names)
    aliases = _aliases(tensors, names, keys)
    graph, constants = _trace(model, kind, values)
    graph = replace(graph, tensors={value: keys[key.removeprefix("model.")] for value, key in graph.tensors.items()})
    constants = {key.removeprefix("model."): tensor for key, tensor in constants.items()}
    graph = replace(graph, constants={value: key.removeprefix("model.") for value, key in graph.constants.items()})
    origin = {"model_type": kind, "architecture": name, "notes": notes, "files": list(headers),
              "buffers": sorted({keys[buffer] for buffer, _ in model.named_buffers() if buffer in keys})}
    stored = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    return Checkpoint(FORMAT, graph, stored, constants, aliases, origin=origin)


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


# --- the model ------------------------------------------------------------------------------------------------------

def _build(kind: str, name: str, values: Mapping[str, Any], device: torch.device) -> Any:
    modeling = importlib.import_module(_CLASS_MODULE.format(kind))  # the kind is one of the allowlist
    config_class = getattr(importlib.import_module(_CONFIG_MODULE.format(kind)), _CONFIGS[kind])
    initialization = importlib.import_module("transformers.initialization")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = config_class(**values, use_cache=False) if kind != "resnet" else config_class(**values)
    config.return_dict = True
    if kind != "resnet":
        config._attn_implementation = "sdpa"
    try:
        with warnings.catch_warnings(), initialization.no_init_weights(), device:
            warnings.simplefilter("ignore")
            model = getattr(modeling, name)(config).eval()
            model.tie_weights()
            return model
    except (ValueError, RuntimeError, TypeError, AssertionError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CorruptFile(f"config.json does not describe a {name}: {reason}.", where="config.json",
                          fix="Correct the values, or save the model again with save_pretrained.") from error


def _shapes(headers: Mapping[str, Header]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file, header in headers.items():
        for key, entry in header.entries.items():
            if key in shapes:
                raise CorruptFile(f"Tensor {key!r} is stored in two files.", where=file,
                                  fix="Save the model again with save_pretrained.")
            shapes[key] = entry.shape
    return shapes


def _check_tensors(skeleton: Any, shapes: Mapping[str, tuple[int, ...]], name: str, notes: list[str]) -> dict[str, str]:
    """Return {the model's name of a tensor: its key in the file}; say aloud which tensors have no place."""
    state = skeleton.state_dict(keep_vars=True)
    names = _names(skeleton, shapes, state)
    misshapen = [f"{names[key]} is {list(shapes[names[key]])} and should be {list(value.shape)}"
                 for key, value in state.items() if key in names and shapes[names[key]] != tuple(value.shape)]
    if misshapen:
        raise CorruptFile(f"Stored tensors do not fit {name} of config.json ({len(misshapen)}): {'; '.join(misshapen[:3])}.",
                          where="model.safetensors", fix="Upload the config.json that belongs to these weights.")
    given = {id(value) for key, value in state.items() if key in names}
    missing = [key for key, value in state.items() if key not in names and id(value) not in given
               and not key.endswith("num_batches_tracked")]
    if missing:
        raise CorruptFile(f"The upload lacks tensors of {name} ({len(missing)}): {', '.join(missing[:3])}.",
                          where="model.safetensors", fix="Upload the config.json that belongs to these weights.")
    unexpected = sorted(set(shapes) - set(names.values()))
    if unexpected:
        notes.append(f"Stored tensors that are not part of {name} are kept as they are ({len(unexpected)}): "
                     f"{', '.join(unexpected[:5])}.")
    return names


def _names(skeleton: Any, shapes: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, str]:
    loading = importlib.import_module("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping(skeleton)
    renamings = [entry for entry in mapping if isinstance(entry, loading.WeightRenaming)]
    names: dict[str, str] = {}
    for key in shapes:
        renamed = key if key in state else loading.rename_source_key(
            key, renamings, [], skeleton.base_model_prefix, dict(state))[0]
        if renamed in state:
            names.setdefault(renamed, key)
    return names


def _filled(model: Any, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> Any:
    for key, value in model.state_dict().items():
        if key not in names and key.endswith("num_batches_tracked"):
            value.zero_()
    model.load_state_dict({key: tensors[stored] for key, stored in names.items()}, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


def _key_of_each(model: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Return the file's key for every tensor of the model; tied tensors share the key of the one that is used."""
    state = model.state_dict(keep_vars=True)
    key_of = {id(value): names[key] for key, value in reversed(list(state.items())) if key in names}
    return {key: key_of.get(id(value), key) for key, value in state.items()}


def _aliases(tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], keys: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that the file stores beside an equal tensor that the model ties them to."""
    return {stored: keys[key] for key, stored in names.items()
            if keys[key] != stored and torch.equal(tensors[keys[key]], tensors[stored])}


# --- the trace ------------------------------------------------------------------------------------------------------

class _Tensors(torch.nn.Module):
    """The model with one tensor in and a tuple of tensors out."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model


class _Text(_Tensors):
    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in self.model(input_ids=input_ids).to_tuple() if isinstance(value, torch.Tensor))


class _Image(_Tensors):
    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in self.model(pixel_values=pixel_values).to_tuple() if isinstance(value, torch.Tensor))


def _trace(model: Any, kind: str, values: Mapping[str, Any]) -> tuple[Graph, dict[str, torch.Tensor]]:
    """Trace with all sizes dynamic that may vary; where torch cannot, with the batch alone."""
    samples = _sample(kind, values)
    module = (_Image if "pixel_values" in samples else _Text)(model)
    try:
        return functional(export_program(module, samples), samples)
    except CipmError:
        batch_only = {name: replace(s, dynamic={0: s.dynamic[0]}) for name, s in samples.items()}
        if batch_only == samples:
            raise
        return functional(export_program(module, batch_only), batch_only)


def _sample(kind: str, values: Mapping[str, Any]) -> dict[str, Sample]:
    batch = ("batch", 1, None)
    if kind in ("vit", "resnet"):
        size = values.get("image_size", 64)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        free = {2: ("height", 1, None), 3: ("width", 1, None)} if kind == "resnet" else {}
        return {"pixel_values": Sample((2, values["num_channels"], height, width), torch.float32, {0: batch, **free})}
    longest = values.get("n_positions", values.get("max_position_embeddings"))
    length = min(8, longest)
    dynamic = {0: batch, 1: ("sequence", 1, longest)} if longest > 8 else {0: batch}
    return {"input_ids": Sample((2, length), torch.int64, dynamic)}


