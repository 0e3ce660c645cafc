"""Any module → the functional ATen graph: torch.export again, decomposed by nothing, and tidied.

In the result linear, convolution, layer norm, attention and embedding stay whole. Batch norm in evaluation mode is
`aten._native_batch_norm_legit_no_training.default`, read by `getitem(…, 0)`. In-place operators are gone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cipm.errors import CipmError, UnsupportedModel
from cipm.load.rewrite import rewrite
from cipm.trace import Graph, Input, Node, from_exported

_config = torch._dynamo.config
_CHECKS = re.compile(r"aten\.(_assert_|_functional_assert_|sym_constrain_range|_functional_sym_constrain)")
_SYMBOL = re.compile(r"[a-z]+\d+")
MAX_SAMPLE = 2**27


@dataclass(frozen=True)
class Sample:
    """One input for tracing: its size along every axis, its dtype, and (name, min, max) for each axis that may vary.

    Axes of one name have one size; an axis without a name is left to torch.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: Mapping[int, tuple[str | None, int, int | None]]


def export_program(module: torch.nn.Module, samples: Mapping[str, Sample], *, args: tuple[str, ...] = (),
                   ) -> torch.export.ExportedProgram:
    """Export a module whose forward takes these inputs (`args` by position, the others by name).

    Raises UnsupportedModel with torch's first line where it cannot be traced.
    """
    named, free = _dimensions(samples, named=True), _dimensions(samples, named=False)
    try:
        return _export(module, samples, args, named)
    except CipmError:
        raise
    except Exception as error:  # torch.export raises dozens of unrelated types
        if named == free:
            raise _untraceable(error) from error
    try:
        return _export(module, samples, args, free)
    except Exception as error:  # as above
        raise _untraceable(error) from error


def functional(program: torch.export.ExportedProgram, samples: Mapping[str, Sample],
               ) -> tuple[Graph, dict[str, torch.Tensor]]:
    """Return the functional graph of a program, tidied and with named sizes, and its constants."""
    if not rewrite(program):
        program = _decomposed(program)
    graph, _, constants = from_exported(program)
    return _short_constants(name_sizes(tidy(graph), samples), constants)


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return program.run_decompositions({})
        except Exception as error:  # as above
            raise _untraceable(error) from error


def tidy(graph: Graph) -> Graph:
    """Return the graph without assertions and without values that nothing reads."""
    live = {ref.name for ref in graph.outputs if ref is not None}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in live and not _CHECKS.match(node.op):
            kept.append(node)
            live.update(node.refs())
    return replace(graph, nodes=tuple(reversed(kept)))


def name_sizes(graph: Graph, samples: Mapping[str, Sample]) -> Graph:
    """Return the graph with names for its symbolic sizes: the samples' own, else batch for the first axis, size1, …"""
    names: dict[str, str] = {}
    for position, item in enumerate(graph.inputs):
        for axis, dim in enumerate(item.shape):
            for symbol in _SYMBOL.findall(dim) if isinstance(dim, str) else ():
                given = samples[item.name].dynamic.get(axis, (None,))[0] if item.name in samples else None
                fallback = "batch" if axis == 0 and position == 0 else f"size{len(names) + 1}"
                names.setdefault(symbol, given if given and not _SYMBOL.fullmatch(given) else fallback)
    inputs = tuple(Input(i.name, tuple(_rename(d, names) for d in i.shape), i.dtype) for i in graph.inputs)
    return replace(graph, inputs=inputs)


def _rename(dim: int | str, names: Mapping[str, str]) -> int | str:
    return _SYMBOL.sub(lambda match: names[match.group()], dim) if isinstance(dim, str) else dim


def _short_constants(graph: Graph, constants: Mapping[str, torch.Tensor]) -> tuple[Graph, dict[str, torch.Tensor]]:
    read = {name for node in graph.nodes for name in node.refs()} | {ref.name for ref in graph.outputs if ref}
    used = {name: key for name, key in graph.constants.items() if name in read}
    short = {key: key.removeprefix("_constants.") for key in used.values()}
    renamed = {name: short[key] for name, key in used.items()}
    return replace(graph, constants=renamed), {short[key]: constants[key].detach() for key in short}


def _export(module: torch.nn.Module, samples: Mapping[str, Sample], args: tuple[str, ...],
            shapes: Mapping[str, Any]) -> torch.export.ExportedProgram:
    tensors = {name: _zeros(name, sample) for name, sample in samples.items()}
    kwargs = {name: tensor for name, tensor in tensors.items() if name not in args}
    # Torch keeps the shapes that operators give; where lengths are rounded up to whole chunks, that takes as long as the rest.
    free = any(axis for sample in samples.values() for axis in sample.dynamic)
    with warnings.catch_warnings(), _config.patch(fake_tensor_cache_enabled=not free):
        warnings.simplefilter("ignore")  # torch warns about its own internals while it exports
        return torch.export.export(module, tuple(tensors[name] for name in args), kwargs, dynamic_shapes=shapes,
                                   strict=False)


def _dimensions(samples: Mapping[str, Sample], *, named: bool) -> dict[str, dict[int, Any]]:
    """Return torch's dynamic shapes: one Dim for all axes of a name, or everything left to torch to infer."""
    dims: dict[str, Any] = {}

    def dimension(name: str | None, low: int, high: int | None) -> Any:
        if not named or name is None:
            return torch.export.Dim.AUTO(min=low, max=high)
        return dims.setdefault(name, torch.export.Dim(name, min=low, max=high))

    return {item: {axis: dimension(*bounds) for axis, bounds in sample.dynamic.items()} for item, sample in samples.items()}


def _zeros(name: str, sample: Sample) -> torch.Tensor:
    if torch.Size(sample.shape).numel() > MAX_SAMPLE:
        raise UnsupportedModel(f"Input {name!r} of shape {list(sample.shape)} is too large to trace.", where=name)
    return torch.zeros(sample.shape, dtype=sample.dtype)


def _untraceable(error: Exception) -> UnsupportedModel:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return UnsupportedModel(f"torch cannot trace this model: {lines[0][:300]}",
                            fix="Check that the exported model runs, and that its control flow does not depend on data.")
