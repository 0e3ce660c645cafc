"""Weights without a model: files of torch.save and safetensors, alone or in a zip or folder with an architecture.json.

The architecture comes from the tensors where linear layers chain by their widths, else from a bounded description beside
the file: a family by name, or the layers one by one. What neither says is not guessed; what is assumed stands in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cipm.errors import CorruptFile, InputError, UnsupportedModel
from cipm.load.archive import Source, is_zip, open_source
from cipm.load.chain import mlp
from cipm.load.checkpoint import Checkpoint, LazyTensors, held
from cipm.load.families import family_layers
from cipm.load.layer_modules import Layers
from cipm.load.layers import ACTIVATIONS, FIX, NAME, Layer, Names, parse_layers
from cipm.load.ranges import Ranges, open_ranges
from cipm.load.retrace import Sample, export_program, functional
from cipm.load.safetensors_file import Header, header_of, lazy_tensors
from cipm.load.torch_file import TorchFile, is_legacy, is_torch_zip, read_torch_file

FORMAT = "state_dict"
RECORD = "cipm"
"""The key of the metadata of a safetensors file under which an export carries its record."""
SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")
CONFIG = "config.json"
MAX_INPUT = 2**24


@dataclass(frozen=True)
class Upload:
    """Where the weights are: the file alone (`source` None), or a member of a zip or folder."""

    file: Ranges
    source: Source | None
    name: str | None


@dataclass(frozen=True)
class Weights:
    """What a weights file holds, whatever its layout: `file` is what the exporter needs to write it again."""

    file: TorchFile | Header
    tensors: LazyTensors
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    stated: Mapping[str, str]
    record: str | None


def match(path: Path) -> bool:
    """Tell whether this is a weights file, or a zip or folder with one and no other description than ours."""
    if path.is_dir() or is_zip(path):
        source = open_source(path)
        return is_torch_zip(source) if "data.pkl" in source else bool(weight_files(source))
    with path.open("rb") as stream:
        head = stream.read(64)
    return is_legacy(head) or looks_like_safetensors(head, path.stat().st_size)


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Tell whether the first bytes are those of a safetensors file: the length of a JSON header."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def weight_files(source: Source) -> list[str]:
    """Return the weights files of a zip or folder that is ours to read: none where another format describes the model."""
    found = [name for name in source.files if "/" not in name and name.endswith(SUFFIXES)]
    if NAME in source:
        return found
    foreign = [name for name in source.files if "/" in name or name.startswith("serialized_")
               or name.endswith((".index.json", ".onnx", ".h5", ".msgpack"))]
    if len(found) != 1 or foreign or "archive_format" in source or "data.pkl" in source:
        return []
    return found if CONFIG not in source or _is_ours(source) else []


def open(path: Path) -> Checkpoint:
    """Return the checkpoint of a weights file, alone or with its description.

    Raises UnsupportedModel where the architecture cannot be known, CorruptFile where description and tensors disagree,
    RefusedFormat where a file of torch.save holds more than weights.
    """
    upload = find_weights(path)
    weights = read_weights(upload.file)
    names = Names(weights.tensors.metas | {key: weights.tensors.metas[to] for key, to in weights.aliases.items()})
    layers, given, notes = _architecture(upload, names, weights)
    layers = _without_aliases(layers, weights.aliases)
    samples, dtype, sized = _samples(layers, given, names)
    halves = _halves(layers, names)
    try:
        graph, constants = functional(export_program(Layers(layers, names.metas, dtype), samples, args=("x",)), samples)
    except UnsupportedModel:
        fixed = {"x": replace(samples["x"], dynamic={0: samples["x"].dynamic[0]})}
        if fixed == samples:
            raise
        graph, constants = functional(export_program(Layers(layers, names.metas, dtype), fixed, args=("x",)), fixed)
    keys = Layers(layers, names.metas, dtype).keys()
    graph = replace(graph, tensors={value: keys[key] for value, key in graph.tensors.items()})
    used = set(graph.tensors.values())
    spare = [key for key in weights.tensors if key not in used and not key.endswith("num_batches_tracked")]
    origin = {"container": _container(weights.file), "packed": upload.source is not None,
              "suffix": ".safetensors" if isinstance(weights.file, Header) else ".pt",
              "buffers": sorted(_buffers(layers, weights.tensors.metas, spare)),
              "notes": [*weights.notes, *notes, *sized, *halves, *_spare_note(spare)]}
    return Checkpoint(FORMAT, graph, held(weights.tensors), constants, weights.aliases, origin=origin)


def find_weights(path: Path) -> Upload:
    """Return the weights file of an upload; raises UnsupportedModel where it holds several."""
    if not (path.is_dir() or is_zip(path)) or "data.pkl" in (source := open_source(path)):
        return Upload(replace(Ranges.of_file(path), name="the file"), None, None)
    found = weight_files(source)
    if len(found) != 1:
        raise UnsupportedModel(f"Beside {NAME} there are {len(found)} files of weights ({', '.join(found[:5])}).", where=NAME,
                               fix="Upload one file of weights with its description.")
    return Upload(open_ranges(source, found[0]), source, found[0])


def read_weights(file: Ranges) -> Weights:
    """Return what a weights file holds; its tensors are read one by one when they are asked for."""
    if looks_like_safetensors(bytes(file.read(0, min(64, file.size))), file.size):
        header = header_of(file)
        metadata = header.metadata
        return Weights(header, lazy_tensors([(file, header)]), {}, (), metadata, metadata.get(RECORD))
    torch_file = read_torch_file(file)
    return Weights(torch_file, torch_file.tensors, torch_file.aliases, torch_file.notes, {}, torch_file.record)


# --- the architecture -------------------------------------------------------------------------------------------------

def _json(source: Source, name: str) -> dict[str, Any]:
    found = source.json(name, 2**20)
    if not isinstance(found, dict):
        raise CorruptFile(f"{name} is not a JSON object.", where=name, fix=FIX)
    return found


def _is_ours(source: Source) -> bool:
    try:
        config = _json(source, CONFIG)
    except InputError:
        return False
    return "model_type" not in config and ("family" in config or "layers" in config)


def _architecture(upload: Upload, names: Names, weights: Weights) -> tuple[tuple[Layer, ...], Any, list[str]]:
    """Return (layers, the input as stated or usual, notes)."""
    name = next((n for n in (NAME, CONFIG) if upload.source is not None and n in upload.source), None)
    if name is None:
        activation, note = _activation(weights.stated)
        return parse_layers(mlp(names, activation), names), None, [note] if note else []
    assert upload.source is not None
    config = _json(upload.source, name)
    if ("family" in config) == ("layers" in config):
        raise CorruptFile(f"{name} must hold either 'family' or 'layers'.", where=name, fix=FIX)
    given = dict(config)
    stated = given.pop("input", None)
    given.pop("description", None)
    if "layers" in config:
        unknown = sorted(set(given) - {"layers"})
        if unknown:
            raise CorruptFile(f"{name} has {unknown[0][:60]!r}, which is not one of its values.", where=name, fix=FIX)
        return parse_layers(config["layers"], names), stated, []
    items, usual = family_layers(given.pop("family"), given, names)
    note = f"The architecture is the family {config['family']!r} as {name} says; its layers were matched to tensors by name."
    return parse_layers(items, names), stated if stated is not None else usual and list(usual), [note]


def _activation(stated: Mapping[str, str]) -> tuple[str, str | None]:
    """Return (activation between linear layers, a note where it is assumed)."""
    known = stated.get("activation", "").lower()
    if known in ACTIVATIONS:
        return known, f"The activation between the layers is {known}, as the file's metadata says."
    return "relu", ("ASSUMED: ReLU between the layers, and none after the last. The file does not say which function stands "
                    f"there. To state it, put the file into a zip with {NAME}, for example "
                    "{\"family\": \"mlp\", \"activation\": \"tanh\"}.")


def _without_aliases(layers: tuple[Layer, ...], aliases: Mapping[str, str]) -> tuple[Layer, ...]:
    return tuple(replace(layer, keys={role: aliases.get(key, key) for role, key in layer.keys.items()},
                         inner={name: tuple(_without_aliases(branch, aliases) for branch in branches)
                                for name, branches in layer.inner.items()}) for layer in layers)


# --- inputs -----------------------------------------------------------------------------------------------------------

def _samples(layers: tuple[Layer, ...], given: Any, names: Names) -> tuple[dict[str, Sample], torch.dtype, list[str]]:
    """Return (the input to trace with, the dtype to compute in, notes), tried on the meta device first."""
    dtypes = {names.metas[key].dtype for layer in layers for part in layer.walk() for key in part.keys.values()}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    shape, notes = _input_shape(layers, given, names)
    tokens = bool(layers) and layers[0].kind == "embedding"
    longest = min((names.metas[part.keys["weight"]].shape[0] for layer in layers for part in layer.walk()
                   if part.kind == "positions"), default=None)
    sizes, dynamic = [], {0: ("batch", 1, None)}
    for axis, size in enumerate(shape, 1):
        traced = size if size is not None else min(8, longest or 8)
        sizes.append(traced)
        if size is None and traced > 2:
            dynamic[axis] = (f"size{axis}" if axis > 1 else "sequence", 1 if tokens else 2, longest)
    sample = Sample((2, *sizes), torch.int64 if tokens else dtype, dynamic)
    Layers(layers, names.metas, dtype).to("meta")(torch.zeros(sample.shape, dtype=sample.dtype, device="meta"))
    return {"x": sample}, dtype, notes


def _input_shape(layers: tuple[Layer, ...], given: Any, names: Names) -> tuple[list[int | None], list[str]]:
    if given is not None:
        plain = isinstance(given, list) and len(given) <= 4 and all(
            v is None or type(v) is int and 1 <= v <= 2**20 for v in given)
        if not plain or torch.Size([v or 8 for v in given]).numel() > MAX_INPUT:
            raise CorruptFile(f"{NAME}: 'input' is {str(given)[:60]}; it lists up to four sizes without the batch, null for "
                              "one that may vary.", where=NAME, fix=FIX)
        return given, []
    first = layers[0] if layers else None
    if first is not None and first.kind == "embedding":
        return [None], []
    weights = first.keys.get("weight") if first is not None else None
    if first is not None and weights is not None and first.kind in ("linear", "batch_norm", "layer_norm"):
        return [_width(first, weights, names)], []
    raise CorruptFile(f"{NAME} does not say how large an input is, which the tensors do not show.", where=NAME,
                      fix="State it without the batch, for example \"input\": [3, 32, 32].")


def _width(first: Layer, key: str, names: Names) -> int:
    shape, bias = names.shape(key), names.shape(first.keys["bias"])[0] if "bias" in first.keys else None
    if len(shape) == 1:
        return shape[0]
    flipped = first.values["layout"] == "in,out" or first.values["layout"] == "auto" and (
        bias == shape[1] if bias is not None and shape[0] != shape[1] else key.endswith("kernel"))
    return shape[0] if flipped else shape[1]


# --- what is said of it -----------------------------------------------------------------------------------------------

def _buffers(layers: Sequence[Layer], metas: Mapping[str, torch.Tensor], spare: Sequence[str]) -> set[str]:
    """Return the keys that are no trained parameters: running statistics, whole numbers, what no layer reads."""
    running = {key for layer in layers for part in layer.walk() for role, key in part.keys.items()
               if role.startswith("running")}
    return running | set(spare) | {key for key, meta in metas.items() if not meta.is_floating_point()}


def _halves(layers: Sequence[Layer], names: Names) -> list[str]:
    dtypes = {names.metas[key].dtype for layer in layers for part in layer.walk() for key in part.keys.values()}
    half = sorted(str(d).removeprefix("torch.") for d in dtypes & {torch.float16, torch.bfloat16})
    return [f"The tensors are stored as {' and '.join(half)} and computed with as float32."] if half else []


def _spare_note(spare: Sequence[str]) -> list[str]:
    return [f"Stored tensors that no layer reads are kept as they are ({len(spare)}): {', '.join(spare[:5])}."] if spare else []


def _container(file: TorchFile | Header) -> str:
    if isinstance(file, Header):
        return "safetensors"
    return "torch" if file.source is not None else "torch, old layout"
