"""`torch.export.save` archives (.pt2), read without torch.export.load: zip directory, JSON and raw tensor bytes alone.

Four ways to execute code through `torch.export.load` were verified in torch 2.13 (pickled sample inputs, pickled
weights, opaque constants, sympified sizes). None of those slots is read here: pickled slots are refused or ignored,
sizes are parsed by `symbols`, operators pass the list in `ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cipm.errors import CorruptFile, RefusedFormat, UnsupportedModel
from cipm.load.archive import Source, is_zip, open_source
from cipm.load.checkpoint import Checkpoint
from cipm.load.program import Program, check_key, read_program
from cipm.load.retrace import Sample, export_program, functional
from cipm.load.symbols import evaluate
from cipm.load.tensors import EXPORT_FIX as FIX
from cipm.load.tensors import export_dtype, raw_tensor
from cipm.trace import Graph, to_module

FORMAT = "pt2"
SCHEMA_MAJOR = 8
CONSTANT = "constant:"
"""How the keys start of tensors that the file stores outside the model's own parameters and buffers."""


def match(path: Path) -> bool:
    """Tell whether this is a torch.export archive, by its members."""
    if not is_zip(path):
        return False
    source = open_source(path)
    return "archive_format" in source and bool(_models(source))


def open(path: Path) -> Checkpoint:
    """Return the checkpoint of a .pt2 file: functional graph, every stored tensor, tied keys as aliases.

    Raises RefusedFormat, CorruptFile, UnsupportedModel or LimitExceeded.
    """
    source = open_source(path)
    name = _check_archive(source)
    payload = source.json(f"models/{name}.json")
    _check_version(payload)
    weights, info = _payloads(source, "weights", f"data/weights/{name}_weights_config.json")
    constants, _ = _payloads(source, "constants", f"data/constants/{name}_constants_config.json")
    aliases = _aliases(info)
    program = read_program(payload, aliases)
    _check_present(program, weights, constants)
    tensors = {key: tensor for key, tensor in weights.items() if key not in aliases}
    return _checkpoint(program, tensors, constants, aliases, info, payload)


def _checkpoint(program: Program, tensors: dict[str, torch.Tensor], constants: dict[str, torch.Tensor],
                aliases: dict[str, str], info: Mapping[str, Mapping[str, Any]], payload: Mapping[str, Any]) -> Checkpoint:
    buffers = {key for key, item in info.items() if not item["is_param"]}
    samples = _samples(program)
    try:
        module = to_module(program.graph, tensors, constants, buffers=buffers)
    except (KeyError, AttributeError) as error:
        raise CorruptFile(f"The names of the stored tensors contradict each other: {error}.", fix=FIX) from error
    graph, constants = functional(export_program(module, samples), samples)
    graph, tensors, constants = store_constants(graph, tensors, constants)
    origin = {"args": list(program.args), "kwargs": list(program.kwargs), "outputs": program.outputs,
              "buffers": sorted({*buffers, *(key for key in tensors if key.startswith(CONSTANT))}),
              "notes": list(program.notes),
              "trainable": sorted(k for k, item in info.items() if item["tensor_meta"].get("requires_grad") is True),
              "torch_version": str(payload.get("torch_version", ""))[:40],
              "samples": {name: {"shape": list(s.shape), "dynamic": {str(axis): list(b) for axis, b in s.dynamic.items()}}
                          for name, s in samples.items()}}
    return Checkpoint(FORMAT, graph, tensors, constants, aliases, origin=origin)


def store_constants(graph: Graph, tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor],
                    ) -> tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Count the tables among the constants (rotary frequencies) as stored tensors: the file holds them, so they may move.

    Their keys start with CONSTANT; `free_constants` is the way back.
    """
    tables = {key for key, t in constants.items() if t.is_floating_point() and t.numel() > 1 and (t != t.flatten()[0]).any()}
    moved = {name: CONSTANT + key for name, key in graph.constants.items() if key in tables}
    kept = {name: key for name, key in graph.constants.items() if key not in tables}
    return (replace(graph, tensors=dict(graph.tensors) | moved, constants=kept),
            dict(tensors) | {CONSTANT + key: constants[key] for key in sorted(tables)},
            {key: t for key, t in constants.items() if key not in tables})


def free_constants(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor],
                   ) -> tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (graph, tensors, constants) with the tables among the stored tensors as constants of the graph again."""
    graph = checkpoint.graph
    tables = {key: tensor for key, tensor in tensors.items() if key.startswith(CONSTANT)}
    named = {name: key.removeprefix(CONSTANT) for name, key in graph.tensors.items() if key in tables}
    return (replace(graph, tensors={name: key for name, key in graph.tensors.items() if key not in tables},
                    constants=dict(graph.constants) | named),
            {key: tensor for key, tensor in tensors.items() if key not in tables},
            dict(checkpoint.constants) | {key.removeprefix(CONSTANT): tensor for key, tensor in tables.items()})


# --- the archive ----------------------------------------------------------------------------------------------------

def _models(source: Source) -> list[str]:
    return [name[len("models/"):-len(".json")] for name in source.files
            if name.startswith("models/") and name.endswith(".json") and name.count("/") == 1]


def _check_archive(source: Source) -> str:
    models = _models(source)
    if len(models) != 1:
        raise UnsupportedModel(f"The archive holds {len(models)} models ({', '.join(sorted(models)[:5])}).",
                               fix="Save one exported program per file.")
    if any(name.startswith("data/aotinductor/") for name in source.files):
        raise RefusedFormat("The archive holds machine code compiled by AOTInductor, which is never run here.", fix=FIX)
    if bytes(source.read("archive_format", 64)) != b"pt2":
        raise CorruptFile("The archive does not say that it is a torch.export archive.", where="archive_format", fix=FIX)
    if "byteorder" in source and bytes(source.read("byteorder", 64)) != b"little":
        raise UnsupportedModel("The archive was written on a big-endian machine.", where="byteorder", fix=FIX)
    return models[0]


def _check_version(payload: Any) -> None:
    version = payload.get("schema_version") if isinstance(payload, dict) else None
    major = version.get("major") if isinstance(version, dict) else None
    if major != SCHEMA_MAJOR:
        raise UnsupportedModel(f"The archive has schema version {major}; version {SCHEMA_MAJOR} is read (torch 2.6 and "
                               "later write it).", where="schema_version", fix=FIX)


def _payloads(source: Source, folder: str, config: str) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return the tensors of a config file by key, and what the file says of each."""
    if config not in source:
        return {}, {}
    payload = source.json(config)
    info = payload.get("config") if isinstance(payload, dict) else None
    if not isinstance(info, dict):
        raise CorruptFile(f"{config!r} lists no tensors.", where=config, fix=FIX)
    cache: dict[str, bytearray] = {}
    return {key: _tensor(source, folder, key, item, cache) for key, item in info.items()}, info


def _tensor(source: Source, folder: str, key: str, item: Any, cache: dict[str, bytearray]) -> torch.Tensor:
    check_key(key)
    try:
        if item["use_pickle"] is not False or item["tensor_meta"] is None:
            raise RefusedFormat(f"The archive stores {key!r} as a Python pickle, which can run code: it was not opened.",
                                where=key, fix="Export a model with plain tensors (no tensor subclasses, script or opaque "
                                "objects), with torch 2.13.")
        path, meta = str(item["path_name"]), item["tensor_meta"]
        shape, strides = ([int(size["as_int"]) for size in meta[field]] for field in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
        code, _ = meta["dtype"], item["is_param"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"The archive describes tensor {key!r} incompletely: {error}.", where=key, fix=FIX) from error
    if path not in cache:
        cache[path] = source.read(f"data/{folder}/{path}")
    return raw_tensor(cache[path], export_dtype(code, key), shape, strides, offset, key)


def _aliases(info: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the keys that store the very bytes of an earlier key in the same shape (tied weights)."""
    first: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for key, item in info.items():
        meta = item["tensor_meta"]
        view = repr((item["path_name"], meta["dtype"], meta["sizes"], meta["strides"], meta["storage_offset"]))
        if 0 in [size["as_int"] for size in meta["sizes"]]:
            continue
        if view in first:
            aliases[key] = first[view]
        first.setdefault(view, key)
    return aliases


def _check_present(program: Program, weights: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    wanted = [(key, weights) for key in program.graph.tensors.values()]
    wanted += [(key, constants) for key in program.graph.constants.values()]
    missing = sorted({key for key, stored in wanted if key not in stored})
    if missing:
        raise CorruptFile(f"The archive lacks tensors of its model ({len(missing)}): {', '.join(missing[:5])}.",
                          where=missing[0], fix=FIX)


# --- sizes ----------------------------------------------------------------------------------------------------------

def _samples(program: Program) -> dict[str, Sample]:
    sizes = _symbol_sizes(program)
    samples: dict[str, Sample] = {}
    for item in program.graph.inputs:
        shape, dynamic = [], {}
        for axis, dim in enumerate(program.shapes[item.name]):
            size = evaluate(dim, sizes)
            if size is None or size < 0:
                raise UnsupportedModel(f"Axis {axis} of input {item.name!r} has a size that depends on others in a way "
                                       "that is not read here.", where=item.name,
                                       fix="Export with plain dynamic dimensions.")
            shape.append(size)
            if not isinstance(dim, int):
                symbol = str(dim.args[0]) if dim.head == "Symbol" else None
                dynamic[axis] = (symbol, *program.ranges.get(symbol or "", (0, None)))
        samples[item.name] = Sample(tuple(shape), item.dtype, dynamic)
    return samples


def _symbol_sizes(program: Program) -> dict[str, int]:
    """Return a size to trace each symbol at: the one it was exported with, but never 0 or 1 (these would be fixed)."""
    names = sorted({name for shape in program.shapes.values() for dim in shape if not isinstance(dim, int)
                    for name in dim.symbols()})
    sizes: dict[str, int] = {}
    for name in names:
        low, high = program.ranges.get(name, (0, None))
        hint = max(program.hints.get(name, 0), low, 2)
        sizes[name] = hint if high is None else min(hint, high)
    return sizes
