"""Write a .pt2 file: the functional graph with its new tensors, exported again so that every stored shape is fresh."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cipm.errors import UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.load.pt2 import free_constants
from cipm.load.retrace import Sample, export_program
from cipm.trace import Graph, Input, to_module

_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z", re.IGNORECASE)
_VIEW, _RESHAPE = "aten.view.default", "aten.reshape.default"
_TRACES = ("stack_trace", "from_node", "nn_module_stack", "source_fn_stack", "torch_fn", "custom")


def write(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], source: Path, record: str | None, out: Path) -> None:
    """Write the checkpoint with these tensors; dynamic sizes, names, ties and the structure of the outputs are kept.

    Stack traces are left out: they hold file paths.
    """
    program = exported(checkpoint, tensors)
    extra = {"cipm.json": record} if record is not None else {}
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals while it saves
        torch.export.save(program, out, extra_files=extra)


def exported(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
    """Return the graph with these tensors, exported again; without stack traces.

    An attention kernel may lay its result out otherwise than the one that the model was first exported with, so that a view of
    it is refused: then views become reshapes.
    """
    graph, tensors, constants = free_constants(checkpoint, tensors)
    try:
        return _exported(checkpoint, graph, tensors, constants)
    except UnsupportedModel:
        nodes = tuple(replace(node, op=_RESHAPE if node.op == _VIEW else node.op) for node in graph.nodes)
        return _exported(checkpoint, replace(graph, nodes=nodes), tensors, constants)


def _exported(checkpoint: Checkpoint, graph: Graph, tensors: Mapping[str, torch.Tensor],
              constants: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
    origin = checkpoint.origin
    module = to_module(graph, tensors, constants, buffers=set(origin["buffers"]))
    _attach(module, checkpoint, tensors)
    samples = {i.name: _sample(i, origin["samples"][i.name]) for i in checkpoint.graph.inputs}
    program = export_program(_Structured(module, origin["outputs"]), samples, args=tuple(origin["args"]))
    _forget_traces(program)
    return program


def _sample(item: Input, saved: Mapping[str, Any]) -> Sample:
    dynamic = {}
    for axis, dim in enumerate(item.shape):
        if isinstance(dim, str):
            _, low, high = saved["dynamic"].get(str(axis), (None, 0, None))
            dynamic[axis] = (dim if _NAME.match(dim) else None, low, high)
    return Sample(tuple(saved["shape"]), item.dtype, dynamic)


class _Structured(torch.nn.Module):
    """The graph module with its flat outputs in their structure (fx itself would return immutable collections).

    It shares the module's own tables of parameters, buffers and children, so that every name stays as it is.
    """

    def __init__(self, module: torch.fx.GraphModule, structure: Any):
        super().__init__()
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = module.__dict__[table]

        @functools.wraps(module.forward)
        def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
            results = module.forward(*args, **kwargs)
            return _nest(structure, iter(results if isinstance(results, (tuple, list)) else (results,)))

        self.__dict__["forward"] = forward


def _nest(structure: Any, values: Iterator[Any]) -> Any:
    if structure == "*":
        return next(values)
    (kind, items), = structure.items()
    if kind == "dict":
        return {key: _nest(item, values) for key, item in items}
    nested = [_nest(item, values) for item in items]
    return tuple(nested) if kind == "tuple" else nested


def _attach(module: torch.nn.Module, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Register what the graph does not read: tied keys (as the very tensor they are tied to) and unused tensors."""
    placed = set(checkpoint.graph.tensors.values())
    for key, tensor in tensors.items():
        if key not in placed:
            _register(module, key, tensor, key in checkpoint.origin["buffers"])
    trainable = set(checkpoint.origin["trainable"])
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key in trainable)
    for alias, key in checkpoint.aliases.items():
        _register(module, alias, _get(module, key), key in checkpoint.origin["buffers"])


def _register(module: torch.nn.Module, key: str, tensor: torch.Tensor, buffer: bool) -> None:
    *path, leaf = key.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module._modules[part]
    if buffer or not tensor.is_floating_point():
        module.register_buffer(leaf, tensor)
    else:
        parameter = tensor if isinstance(tensor, torch.nn.Parameter) else torch.nn.Parameter(tensor, requires_grad=False)
        module.register_parameter(leaf, parameter)


def _get(module: torch.nn.Module, key: str) -> torch.Tensor:
    path, _, leaf = key.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _forget_traces(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        for name in _TRACES:
            node.meta.pop(name, None)
