"""The graph inside a torch.export archive: models/*.json → Program, without running anything that the file says.

Names become identifiers or are refused, operators pass the list in `ops`, sizes pass `symbols`. Sub-graphs under
`torch.no_grad()` are inlined; every other higher-order operator is refused. Devices become the CPU.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cipm.errors import CorruptFile, LimitExceeded, UnsupportedModel
from cipm.load.ops import TRAINING_FLAGS, op_name, refusal
from cipm.load.structure import call_names, output_structure
from cipm.load.symbols import Expression, parse
from cipm.load.tensors import EXPORT_FIX, EXPORT_LAYOUTS, EXPORT_MEMORY, MAX_RANK, export_dtype
from cipm.trace.graph import Graph, Input, Node, Ref, refs_in

MAX_NODES, MAX_INPUTS, MAX_NESTING = 50_000, 256, 20
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}\Z")
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,200}(\.[A-Za-z0-9_\-]{1,200}){0,60}\Z")
_NO_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"
_INF = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
EVAL_FIX = "Call model.eval() before torch.export.export and save again."
STATISTICS_FIX = "Train it with track_running_stats=True, or with a norm of each row by itself (group, layer or instance norm)."

Dim = int | Expression


@dataclass(frozen=True)
class Program:
    """What an archive says: the graph as saved, the shapes of its inputs, how it is called, what it returns.

    `args` and `kwargs` name the inputs passed by position and by keyword. `outputs` is the structure of the result:
    "*" for a value, {"tuple": […]}, {"list": […]} or {"dict": [[key, …], …]}. `ranges` bounds the symbols, `hints` are
    the sizes at export.
    """

    graph: Graph
    shapes: Mapping[str, tuple[Dim, ...]]
    args: tuple[str, ...]
    kwargs: tuple[str, ...]
    outputs: Any
    ranges: Mapping[str, tuple[int, int | None]]
    hints: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class _Scope:
    """The names known while one (sub-)graph is read, and the nodes written so far for the whole program.

    `driven` are the values that depend on the model's inputs.
    """

    values: dict[str, Any]
    nodes: list[Node]
    prefix: str = ""
    taken: set[str] = field(default_factory=set)
    driven: set[str] = field(default_factory=set)


def read_program(payload: Mapping[str, Any], canonical: Mapping[str, str]) -> Program:
    """Return the program of a parsed model JSON; `canonical` maps every stored key to the key it is tied to.

    Raises CorruptFile where the JSON is not such a program, UnsupportedModel where it needs what we do not run.
    """
    try:
        return _read(payload, canonical)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RecursionError) as error:
        raise CorruptFile(f"The archive's model JSON is damaged or of another version: {type(error).__name__} {error}.",
                          fix=EXPORT_FIX) from error


def check_key(key: str) -> str:
    """Return a tensor's key if it can be an attribute path, or raise CorruptFile."""
    parts = key.split(".") if isinstance(key, str) else []
    if not parts or not _KEY.match(key) or any(hasattr(torch.nn.Module, part) or part.startswith("__") for part in parts):
        raise CorruptFile(f"The archive names a tensor {str(key)[:80]!r}, which no PyTorch module can have.",
                          where=str(key)[:80], fix=EXPORT_FIX)
    return key


def _read(payload: Mapping[str, Any], canonical: Mapping[str, str]) -> Program:
    module = payload["graph_module"]
    graph, signature = module["graph"], module["signature"]
    if graph.get("custom_obj_values"):
        raise _script_object()
    hints = _check_symbols(graph)
    scope = _Scope({}, [])
    inputs, tensors, constants, shapes = _inputs(graph, signature, canonical, scope)
    _body(graph, scope)
    results = _outputs(graph, signature, scope)
    call = module["module_call_graph"][0]["signature"]
    names = tuple(i.name for i in inputs)
    args, kwargs, notes = call_names(call["in_spec"], names)
    structure, more = output_structure(call["out_spec"], len(results))
    if any(next(iter(output)) not in ("as_tensor", "as_none") for output in graph["outputs"]):
        more = (*more, "Outputs of the model that are not tensors are None in the exported file.")
    ranges = {str(name): (int(r["min_val"] or 0), None if r["max_val"] is None else int(r["max_val"]))
              for name, r in payload["range_constraints"].items()}
    return Program(Graph(inputs, tensors, constants, tuple(scope.nodes), results), shapes, args, kwargs, structure,
                   ranges, hints, (*notes, *more))


# --- inputs and outputs ---------------------------------------------------------------------------------------------

def _inputs(graph: Mapping[str, Any], signature: Mapping[str, Any], canonical: Mapping[str, str], scope: _Scope,
            ) -> tuple[tuple[Input, ...], dict[str, str], dict[str, str], dict[str, tuple[Dim, ...]]]:
    inputs: list[Input] = []
    tensors: dict[str, str] = {}
    constants: dict[str, str] = {}
    shapes: dict[str, tuple[Dim, ...]] = {}
    for spec in signature["input_specs"]:
        (kind, body), = spec.items()
        if kind == "user_input":
            inputs.append(_user_input(body["arg"], graph, shapes))
            name = inputs[-1].name
            scope.driven.add(name)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = _identifier(body["arg"]["name"])
            stored = kind == "parameter" or body.get("persistent", False)
            key = check_key(body.get(f"{kind}_name") or body["tensor_constant_name"])
            (tensors if stored else constants)[name] = canonical.get(key, key) if stored else key
        elif kind == "constant_input":
            scope.values[_identifier(body["name"])] = None
            continue
        else:
            raise _script_object() if kind == "custom_obj" else UnsupportedModel(
                f"The model carries a {kind} input, which CIPM does not run.", where=kind)
        _define(scope, name)
    if len(inputs) > MAX_INPUTS:
        raise LimitExceeded(f"The model has {len(inputs)} inputs; at most {MAX_INPUTS} are read.")
    return tuple(inputs), tensors, constants, shapes


def _user_input(argument: Mapping[str, Any], graph: Mapping[str, Any], shapes: dict[str, tuple[Dim, ...]]) -> Input:
    (kind, body), = argument.items()
    if kind != "as_tensor":
        word = kind.removeprefix("as_").replace("_", " ")
        raise UnsupportedModel(f"An input of the model is a {word}, not a tensor.",
                               fix="Export the model with tensor inputs only.")
    name = _identifier(body["name"])
    meta = graph["tensor_values"][name]
    shape = tuple(_dim(size) for size in meta["sizes"])
    if len(shape) > MAX_RANK:
        raise UnsupportedModel(f"Input {name!r} has {len(shape)} axes; at most {MAX_RANK} are read.", where=name)
    shapes[name] = shape
    return Input(name, tuple(d if isinstance(d, int) else "dynamic" for d in shape), export_dtype(meta["dtype"], name))


def _dim(size: Mapping[str, Any]) -> Dim:
    (kind, body), = size.items()
    return _integer(body) if kind == "as_int" else parse(body["expr_str"])


def _outputs(graph: Mapping[str, Any], signature: Mapping[str, Any], scope: _Scope) -> tuple[Ref | None, ...]:
    for spec in signature["output_specs"]:
        (kind, body), = spec.items()
        if kind != "user_output":
            target = body.get("buffer_name") or body.get("parameter_name") or body.get("user_input_name") or kind
            raise UnsupportedModel(f"The model changes {target!r} while it runs: it was exported in training mode.",
                                   where=str(target)[:120], fix=EVAL_FIX)
    results: list[Ref | None] = []
    for argument in graph["outputs"]:
        (kind, body), = argument.items()
        results.append(_lookup(scope, body["name"]) if kind == "as_tensor" else None)
    if not any(results):
        raise UnsupportedModel("The model returns no tensor.", fix="Export a model whose output is a tensor.")
    return tuple(results)


def _check_symbols(graph: Mapping[str, Any]) -> dict[str, int]:
    hints: dict[str, int] = {}
    values = [size for meta in graph["tensor_values"].values() for size in (*meta["sizes"], *meta["strides"])]
    values += [*graph["sym_int_values"].values(), *graph["sym_float_values"].values(), *graph["sym_bool_values"].values()]
    for value in values:
        expression = value.get("as_expr")
        if expression is None:
            continue
        parsed = parse(expression["expr_str"])
        hint = (expression.get("hint") or {}).get("as_int")
        if parsed.head == "Symbol" and hint is not None:
            hints[str(parsed.args[0])] = _integer(hint)
    return hints


# --- nodes ----------------------------------------------------------------------------------------------------------

def _body(graph: Mapping[str, Any], scope: _Scope) -> None:
    for node in graph["nodes"]:
        if len(scope.nodes) >= MAX_NODES:
            raise LimitExceeded(f"The model has more than {MAX_NODES:,} operations.")
        if node["target"] == _NO_GRAD:
            _inline(node, scope)
        else:
            _operation(node, scope)


def _operation(node: Mapping[str, Any], scope: _Scope) -> None:
    op = op_name(str(node["target"]))
    if op is None:  # an assertion: the proof and the probe check shapes and values themselves
        return
    _refuse_training(node, op, scope)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    known = _known_arguments(op)
    for item in node["inputs"]:
        value = _argument(item["arg"], scope)
        if known is None or (item.get("kind") in (1, None) and not kwargs):
            args.append(value)
        else:
            kwargs[_identifier(item["name"])] = value
    if known is not None and (unknown := set(kwargs) - known):
        raise CorruptFile(f"{op} has no argument {sorted(unknown)[0]!r}.", where=op, fix=EXPORT_FIX)
    _results(node, op, tuple(args), kwargs, scope)


def _known_arguments(op: str) -> set[str] | None:
    if not op.startswith("aten."):
        return None
    _, name, overload = op.split(".")
    return {a.name for a in getattr(getattr(torch.ops.aten, name), overload)._schema.arguments}


def _refuse_training(node: Mapping[str, Any], op: str, scope: _Scope) -> None:
    for item in node["inputs"]:
        active = item["name"] in TRAINING_FLAGS and item["arg"].get("as_bool") is True
        drops = item["name"] == "dropout_p" and (item["arg"].get("as_float") or 0) > 0
        if active and _without_statistics(node, op, scope):
            if scope.driven.isdisjoint(refs_in(tuple(_values(node, scope).values()))):
                continue  # nothing but weights: that is the same in both modes
            raise UnsupportedModel(f"{op} keeps no running statistics and normalises by those of the batch at hand, in either "
                                   "mode: each row's result depends on the other rows.", where=op, fix=STATISTICS_FIX)
        if drops or active:
            raise UnsupportedModel(f"The model was exported in training mode: {op} has {item['name']} on.", where=op,
                                   fix=EVAL_FIX)


def _without_statistics(node: Mapping[str, Any], op: str, scope: _Scope) -> bool:
    values = _values(node, scope)
    return (op in ("aten.batch_norm.default", "aten._native_batch_norm_legit.no_stats")
            and values.get("running_mean") is None and values.get("running_var") is None)


def _values(node: Mapping[str, Any], scope: _Scope) -> dict[str, Any]:
    return {item["name"]: _argument(item["arg"], scope) for item in node["inputs"]}


def _results(node: Mapping[str, Any], op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], scope: _Scope) -> None:
    outputs = node["outputs"]
    kinds = [next(iter(output)) for output in outputs]
    if len(outputs) == 1 and kinds[0] in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        _append(scope, Node(_define(scope, _result_name(outputs[0])), op, args, kwargs))
        return
    whole = _fresh(scope, f"{op.split('.')[-2]}_results")
    _append(scope, Node(whole, op, args, kwargs))
    parts = outputs[0]["as_tensors"] if kinds == ["as_tensors"] else outputs
    for index, part in enumerate(parts):
        if "as_none" in part:
            continue
        name = part["name"] if "name" in part else _result_name(part)
        _append(scope, Node(_define(scope, name), "getitem", (Ref(whole), index)))


def _append(scope: _Scope, node: Node) -> None:
    scope.nodes.append(node)
    if not scope.driven.isdisjoint(node.refs()):
        scope.driven.add(node.name)


def _result_name(output: Mapping[str, Any]) -> str:
    (_, body), = output.items()
    return body["name"] if "name" in body else body["as_name"]


def _inline(node: Mapping[str, Any], scope: _Scope) -> None:
    if scope.prefix.count("_") > MAX_NESTING:
        raise LimitExceeded("The model nests sub-graphs too deeply.")
    _, graph, *rest = [item["arg"] for item in node["inputs"]]
    body = graph["as_graph"]["graph"]
    inner = _Scope({}, scope.nodes, f"{scope.prefix}g{len(scope.nodes)}_", scope.taken, scope.driven)
    for formal, actual in zip(body["inputs"], rest, strict=True):
        inner.values[_result_name(formal)] = _argument(actual, scope)
    _check_symbols(body)
    _body(body, inner)
    results = [_argument(output, inner) for output in body["outputs"]]
    outputs = node["outputs"][0].get("as_tensors", node["outputs"]) if len(node["outputs"]) == 1 else node["outputs"]
    for output, value in zip(outputs, results, strict=True):
        scope.values[output["name"] if "name" in output else _result_name(output)] = value


_SIMPLE = {"as_int": lambda v: _integer(v), "as_bool": lambda v: _boolean(v), "as_float": lambda v: _float(v),
           "as_string": lambda v: _string(v), "as_ints": lambda v: tuple(_integer(i) for i in v),
           "as_bools": lambda v: tuple(_boolean(i) for i in v), "as_floats": lambda v: tuple(_float(i) for i in v),
           "as_scalar_type": lambda v: export_dtype(v, "an argument"), "as_layout": lambda v: EXPORT_LAYOUTS[v],
           "as_memory_format": lambda v: EXPORT_MEMORY[v], "as_device": lambda v: torch.device("cpu"),
           "as_none": lambda v: None}


def _argument(argument: Mapping[str, Any], scope: _Scope) -> Any:
    (kind, body), = argument.items()
    if kind in _SIMPLE:
        return _SIMPLE[kind](body)
    if kind == "as_tensor":
        return _lookup(scope, body["name"])
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _symbolic(body, scope)
    if kind == "as_tensors":
        return tuple(_lookup(scope, item["name"]) for item in body)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return tuple(_symbolic(item, scope) for item in body)
    if kind in ("as_optional_tensors", "as_optional_tensor"):
        items = tuple(_argument(item, scope) for item in (body if isinstance(body, list) else [body]))
        return items if isinstance(body, list) else items[0]
    if kind == "as_custom_obj":
        raise _script_object()
    raise refusal("torch.ops.higher_order" if kind == "as_graph" else f"an argument of kind {kind[:40]}")


def _symbolic(body: Mapping[str, Any], scope: _Scope) -> Any:
    (kind, value), = body.items()
    if kind == "as_name":
        return _lookup(scope, value)
    return _integer(value) if kind == "as_int" else _boolean(value) if kind == "as_bool" else _float(value)


# --- names and plain values -----------------------------------------------------------------------------------------

def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not _IDENTIFIER.match(name) or keyword.iskeyword(name) or name.startswith("__"):
        raise CorruptFile(f"The archive names a value {str(name)[:80]!r}, which is not an identifier.",
                          fix=EXPORT_FIX)
    return name


def _define(scope: _Scope, name: str) -> str:
    fresh = _fresh(scope, scope.prefix + _identifier(name))
    scope.values[name] = Ref(fresh)
    return fresh


def _fresh(scope: _Scope, name: str) -> str:
    candidate, count = name, 0
    while candidate in scope.taken:
        count += 1
        candidate = f"{name}_{count}"
    scope.taken.add(candidate)
    return candidate


def _lookup(scope: _Scope, name: str) -> Any:
    if name not in scope.values:
        raise CorruptFile(f"The graph reads {str(name)[:80]!r} before anything makes it.", where=str(name)[:80],
                          fix=EXPORT_FIX)
    return scope.values[name]


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**63:
        raise ValueError(f"{str(value)[:40]!r} is not an integer")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is not a boolean")
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return _INF[value] if isinstance(value, str) else float(value)


def _string(value: Any) -> str:
    if not isinstance(value, str) or not re.match(r"[A-Za-z0-9_,.> -]{0,200}\Z", value):
        raise ValueError(f"{str(value)[:40]!r} is not a plain word")
    return value


def _script_object() -> UnsupportedModel:
    return UnsupportedModel("The model carries a script object or another opaque constant, which could run code.",
                            fix="Keep only tensors as parameters, buffers and constants, and export again.")
