"""torch.export programs → Graph, and Graph → a torch module that can be exported again."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from cipm.errors import UnsupportedModel
from cipm.trace.graph import Graph, Input, Node, Ref, map_refs
from cipm.trace.interpret import _as_list, resolve

Tensors = dict[str, torch.Tensor]


def from_exported(program: ExportedProgram) -> tuple[Graph, Tensors, Tensors]:
    """Return (graph, stored tensors by key, the graph's own constants by key) of a functional exported program.

    The caller has made it functional (`load.retrace.functional`): ATen with linear, convolution, layer norm, attention
    and embedding whole. Raises UnsupportedModel where the program changes its buffers or calls
    higher-order operators.
    """
    signature = program.graph_signature
    _refuse_mutation(signature)
    tensors, constants, inlined = _tensor_names(program)
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = tuple(_input(placeholders[spec.arg.name]) for spec in signature.input_specs
                   if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument))
    nodes = tuple(_node(node, inlined) for node in program.graph.nodes if node.op not in ("placeholder", "output"))
    output = next(node for node in program.graph.nodes if node.op == "output")
    outputs = tuple(_output(item, spec) for item, spec in zip(output.args[0], signature.output_specs, strict=True))
    stored = {key: program.state_dict[key] for key in tensors.values()}
    owned = {key: program.constants[key] for key in constants.values()}
    return Graph(inputs, tensors, constants, nodes, outputs), stored, owned


def to_module(graph: Graph, tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor], *,
              buffers: Set[str] = frozenset()) -> torch.fx.GraphModule:
    """Return a module whose forward is the graph, with tensors under their own dotted names and inputs by name.

    Keys in `buffers`, and integer tensors, become buffers; the graph's constants become non-persistent buffers.
    The result can be exported again with `torch.export.export(module, (), kwargs)`.
    """
    root, traced = torch.nn.Module(), torch.fx.Graph()
    values: dict[str, Any] = {i.name: traced.placeholder(i.name) for i in graph.inputs}
    for name, key in graph.tensors.items():
        values[name] = traced.get_attr(_register(root, key, tensors[key], key not in buffers))
    for name, key in graph.constants.items():
        values[name] = traced.get_attr(_register(root, f"_constants.{constant_name(key)}", constants[key], None))
    for node in graph.nodes:
        fill = lambda argument: _as_list(map_refs(argument, lambda ref: values[ref.name]))  # noqa: E731
        values[node.name] = traced.call_function(resolve(node.op), tuple(fill(a) for a in node.args),
                                                 {k: fill(a) for k, a in node.kwargs.items()})
    results = [None if ref is None else values[ref.name] for ref in graph.outputs]
    traced.output(results[0] if len(results) == 1 else tuple(results))
    module = torch.fx.GraphModule(root, traced)
    if graph.constants:  # GraphModule copies buffers and forgets which of them are not stored
        owned = module.get_submodule("_constants")
        owned._non_persistent_buffers_set.update(owned._buffers)
    return module


def constant_name(key: str) -> str:
    """Return a key of a constant as one word, the same however often the graph is exported."""
    return key.removeprefix("_constants.").replace(".", "_")


def _refuse_mutation(signature: Any) -> None:
    changed = [spec.target for spec in signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]
    if changed:
        raise UnsupportedModel(f"The model changes its own buffers while it runs ({', '.join(changed[:3])}): it was "
                               "exported in training mode.", fix="Call model.eval() before torch.export.export.")


def _tensor_names(program: ExportedProgram) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    tensors: dict[str, str] = {}
    constants: dict[str, str] = {}
    inlined: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            inlined[spec.arg.name] = spec.arg.value
        elif spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent):
            tensors[spec.arg.name] = spec.target
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constants[spec.arg.name] = spec.target
        elif spec.kind is not InputKind.USER_INPUT:
            raise UnsupportedModel(f"The model carries {spec.kind.name.lower()} inputs, which CIPM does not run.",
                                   where=str(spec.target))
    return tensors, constants, inlined


def _input(node: torch.fx.Node) -> Input:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise UnsupportedModel(f"Input {node.name!r} of the model is a {type(value).__name__}, not a tensor.",
                               fix="Export the model with tensor inputs only.")
    return Input(node.name, tuple(_dimension(d) for d in value.shape), value.dtype)


def _dimension(size: int | torch.SymInt) -> int | str:
    """Return a size as an int, or as the text of its expression where it varies."""
    text = str(size)
    return int(text) if text.isdecimal() else text


def _node(node: torch.fx.Node, inlined: Mapping[str, Any]) -> Node:
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        raise UnsupportedModel(f"The model uses {node.target}, a higher-order operation that CIPM does not run.",
                               where=node.name)
    args = tuple(_argument(argument, inlined) for argument in node.args)
    return Node(node.name, _op_name(node.target), args, {k: _argument(v, inlined) for k, v in node.kwargs.items()})


def _op_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = target.__module__
    return "getitem" if target.__name__ == "getitem" else f"{module}.{target.__name__}"


def _argument(argument: Any, inlined: Mapping[str, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return inlined[argument.name] if argument.name in inlined else Ref(argument.name)
    if isinstance(argument, (list, tuple)):
        return tuple(_argument(item, inlined) for item in argument)
    return argument


def _output(item: Any, spec: Any) -> Ref | None:
    return Ref(item.name) if isinstance(item, torch.fx.Node) and spec.kind is OutputKind.USER_OUTPUT else None


def _register(root: torch.nn.Module, key: str, tensor: torch.Tensor, parameter: bool | None) -> str:
    *path, leaf = key.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        module = module._modules[part]
    if parameter and tensor.is_floating_point():
        module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(leaf, tensor, persistent=parameter is not None)
    return key
