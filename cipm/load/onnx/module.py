"""A planned model as a torch module: every node run by its operator, constants and sizes kept apart from tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cipm.errors import CipmError, LimitExceeded, UnsupportedModel
from cipm.load.onnx.plan import Plan
from cipm.load.onnx.proto import FIX, OnnxNode
from cipm.load.onnx.sizes import apply_sizes
from cipm.load.onnx.strided import apply_strides
from cipm.load.onnx.values import (
    MAX_CONSTANT,
    MAX_VALUE,
    OPERATORS,
    Call,
    Const,
    Operator,
    Result,
    Sizes,
    Strided,
    Value,
    flat_contents,
    unrecorded,
)

MAX_FOLDED = 2**28
# Operators whose result is no larger than their operands together, so that small ones need no trial run.
_TAME = frozenset({"Gather", "Slice", "Concat", "Cast", "Unsqueeze", "Squeeze", "Add", "Sub", "Mul", "Div", "Identity", "Equal",
                   "Where", "Reshape", "Floor", "Ceil", "Neg", "Mod", "Min", "Max", "Not", "And", "Or", "Less", "Greater",
                   "ReduceProd", "ReduceSum", "ReduceMin", "ReduceMax", "Transpose", "Sqrt", "Pow", "Reciprocal"})
_SMALL = 64
_FILL = 16  # a fill with one float of more elements stays an operation of the graph instead of a table
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError, ArithmeticError, NotImplementedError)


class OnnxModule(torch.nn.Module):
    """Stored tensor number i is the parameter (or buffer, where it holds integers) t<i>; inputs come by name."""

    def __init__(self, plan: Plan, names: Sequence[str]):
        super().__init__()
        self.plan, self.names = plan, tuple(names)
        for number, tensor in enumerate(plan.stored.values()):
            if tensor.is_floating_point():
                self.register_parameter(f"t{number}", torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(f"t{number}", tensor)
        self.__dict__["forward"] = _with_names(self.run, self.names)
        self.folded = 0
        self.checking = False
        self.known: dict[str, Value] = {name: Const(tensor) for name, tensor in plan.constants.items()}
        self.steps = self._prefold()
        self.last = _last_uses(self.steps, plan.model.outputs)

    def run(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the model."""
        model = self.plan.model
        values: dict[str, Value] = dict(self.known)
        values |= {name: getattr(self, f"t{number}") for number, name in enumerate(self.plan.stored)}
        values |= {alias: values[name] for alias, name in model.shared.items()}
        values |= {item.name: inputs[name] for item, name in zip(model.inputs, self.names, strict=True)}
        for step, node in enumerate(self.steps):
            values |= zip(node.outputs, self._results(node, values), strict=False)
            for name in self.last.get(step, ()):
                values.pop(name, None)
        return tuple(_output(values[name]) for name in model.outputs)

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Within it, failures name their node, and no value may grow beyond all bounds."""
        self.checking = True
        try:
            yield
        finally:
            self.checking = False

    def _prefold(self) -> tuple[OnnxNode, ...]:
        """Compute what depends on constants alone, once; return the nodes that are left."""
        left = []
        with self.checked():
            for node in self.plan.nodes:
                constant = all(not name or isinstance(self.known.get(name), Const) for name in node.inputs)
                if constant and not _large_fill(node, self.known):
                    self.known |= zip(node.outputs, self._results(node, self.known), strict=False)
                else:
                    left.append(node)
        return tuple(left)

    def _results(self, node: OnnxNode, values: Mapping[str, Value]) -> Sequence[Value]:
        used = max((i + 1 for i, name in enumerate(node.outputs) if name), default=1)
        operands = tuple(values[name] if name else None for name in node.inputs)
        call = Call(node, self.plan.model.opset, operands, used)
        try:
            result = self._result(call, values)
        except CipmError:
            raise
        except _FAILURES as error:
            if not self.checking:
                raise  # torch may ask for another trace
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UnsupportedModel(f"Node {node.label!r} ({node.op}) cannot run on its inputs: {reason}", where=node.label,
                                   fix=FIX) from error
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        if self.checking:
            for value in results:
                call.bounded(value.numel() if isinstance(value, torch.Tensor) else 0, MAX_VALUE)
        return results

    def _result(self, call: Call, values: Mapping[str, Value]) -> Result:
        operator, given = OPERATORS[call.node.op], [value for value in call.operands if value is not None]
        if call.node.op in ("Shape", "Size") or (_large_fill(call.node, values) and given):
            return operator.run(call)
        if all(isinstance(value, Const) for value in given):
            return self._fold(call, operator)
        if any(isinstance(value, Strided) for value in given):
            index = apply_strides(call)
            if index is not None:
                return index
        elif not any(isinstance(value, torch.Tensor) for value in given):
            sizes = apply_sizes(call)
            if sizes is not None:
                return sizes
        if operator.counts:
            raise call.unsupported("makes a result whose size depends on data")
        return operator.run(call)

    def _fold(self, call: Call, operator: Operator) -> list[Const]:
        """Compute constants from constants, after a trial without memory that tells how large they become."""
        plain = replace(call, plain=True)
        elements = sum(value.tensor.numel() for value in call.operands if isinstance(value, Const))
        with unrecorded():
            if not operator.counts and not (call.node.op in _TAME and elements <= _SMALL):
                sizes = _trial(plain, operator)
                call.bounded(max(sizes, default=0), MAX_CONSTANT)
                self.folded += sum(sizes)
            if self.folded > MAX_FOLDED:
                raise LimitExceeded(f"The constants that the model computes have more than {MAX_FOLDED:,} elements.",
                                    where=call.node.label)
            return [value if isinstance(value, Const) else Const(value) for value in _flat(operator.run(plain))]


def _trial(call: Call, operator: Operator) -> list[int]:
    """Return the number of elements of every result of a node, by a run on shapes alone."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        operands = tuple(mode.from_tensor(value.tensor) if isinstance(value, Const) and i not in operator.host else value
                         for i, value in enumerate(call.operands))
        results = _flat(operator.run(replace(call, operands=operands)))
    return [value.numel() for value in results if isinstance(value, torch.Tensor)]


def _flat(result: Result) -> list[Value]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _output(value: Value) -> torch.Tensor:
    return value.tensor if isinstance(value, Const) else value.tensor() if isinstance(value, Sizes | Strided) else value


def _large_fill(node: OnnxNode, values: Mapping[str, Value]) -> bool:
    """Tell whether a node fills so large a constant with one float that it is better not stored."""
    shape, value = (values.get(node.inputs[0]), node.attributes.get("value")) if node.op == "ConstantOfShape" else (None, None)
    floats = not isinstance(value, torch.Tensor) or value.is_floating_point()
    return isinstance(shape, Const) and floats and math.prod(flat_contents(shape.tensor)) > _FILL


def _with_names(run: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        return run(**dict(zip(names, args, strict=False)), **kwargs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _last_uses(nodes: Sequence[OnnxNode], outputs: Sequence[str]) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for step, node in enumerate(nodes):
        last |= dict.fromkeys((*node.inputs, *node.outputs), step)
    steps: dict[int, list[str]] = {}
    for name in set(last) - set(outputs):
        steps.setdefault(last[name], []).append(name)
    return steps
