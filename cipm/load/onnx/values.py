"""What the interpreter hands from node to node, how an operator reads it, and the list of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes as unrecorded

from cipm.errors import CorruptFile, LimitExceeded, UnsupportedModel
from cipm.load.onnx.proto import FIX, OnnxNode
from cipm.load.onnx.wire import DAMAGED

MAX_CONSTANT, MAX_VALUE = 2**27, 2**28


@dataclass(frozen=True)
class Const:
    """A value that no input and no stored tensor reaches: shapes, indices, masks, numbers."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Sizes:
    """Numbers that depend on the sizes of the inputs alone: an object array of ints and symbolic ints or floats."""

    items: np.ndarray
    dtype: torch.dtype = torch.int64

    def tensor(self) -> torch.Tensor:
        """Return the numbers as a tensor of the graph."""
        flat = [torch.full((), item, dtype=self.dtype) for item in self.items.ravel().tolist()]
        stacked = torch.stack(flat) if flat else torch.zeros(0, dtype=self.dtype)
        return stacked.reshape(self.items.shape)


@dataclass(frozen=True)
class Strided:
    """An index offset + Σ stride · position over axes of these sizes, any of which may depend on the sizes of the inputs."""

    sizes: tuple[Any, ...]
    strides: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype = torch.int64

    def tensor(self) -> torch.Tensor:
        """Return the index as a tensor of the graph, the same for every reader."""
        return self._made

    @cached_property
    def _made(self) -> torch.Tensor:
        rank, total = len(self.sizes), None
        for axis, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True)):
            if isinstance(stride, int) and not stride:
                continue
            positions = torch.arange(size, dtype=self.dtype)
            positions = positions if isinstance(stride, int) and stride == 1 else positions * stride
            positions = positions.reshape([-1 if other == axis else 1 for other in range(rank)]) if rank > 1 else positions
            total = positions if total is None else total + positions
        if total is None:
            return torch.full(self.sizes, self.offset, dtype=self.dtype)
        total = total if isinstance(self.offset, int) and not self.offset else total + self.offset
        return total.expand(self.sizes) if rank > 1 else total


Value = torch.Tensor | Const | Sizes | Strided
Result = Value | Sequence[Value]


@dataclass(frozen=True)
class Call:
    """One node with its operands. `call[i]` is a tensor; `ints`, `number` and so on are known before the model runs."""

    node: OnnxNode
    opset: int
    operands: tuple[Value | None, ...]
    outputs: int = 1
    plain: bool = False  # all operands are constants, so scalars stay tensors

    def __len__(self) -> int:
        return len(self.operands)

    def __getitem__(self, index: int) -> torch.Tensor:
        value = self.get(index)
        if value is None:
            raise CorruptFile(f"Node {self.node.label!r} ({self.node.op}) lacks its input {index}.", where=self.node.label,
                              fix=DAMAGED)
        return value

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def get(self, index: int) -> torch.Tensor | None:
        """Return an input as a tensor, or None where it is not given."""
        value = self.operands[index] if self.has(index) else None
        return value.tensor if isinstance(value, Const) else value.tensor() if isinstance(value, Sizes | Strided) else value

    def tensors(self) -> list[torch.Tensor]:
        """Return all inputs as tensors."""
        return [self[i] for i in range(len(self))]

    def scalar(self, index: int) -> torch.Tensor | float | int:
        """Return an input as a number where it is one constant number that broadcasts to any shape, else as a tensor."""
        value = self.operands[index] if self.has(index) else None
        if not self.plain and isinstance(value, Const) and value.tensor.numel() == 1 and value.tensor.dtype is not torch.bool:
            return flat_contents(value.tensor)[0]
        return self[index]

    def numbers(self, index: int) -> list[Any]:
        """Return the numbers of an input that is known before the model runs, as ints, floats or symbolic ones."""
        value = self.operands[index] if self.has(index) else None
        if isinstance(value, Const):
            return flat_contents(value.tensor)
        if isinstance(value, Sizes):
            return value.items.ravel().tolist()
        what = "lacks" if value is None else "computes from data"
        raise UnsupportedModel(f"Node {self.node.label!r} ({self.node.op}) {what} its input {index}, which must be known "
                               "before the model runs.", where=self.node.label, fix=FIX)

    def number(self, index: int) -> Any:
        """Return the one number of an input that is known before the model runs."""
        found = self.numbers(index)
        if len(found) != 1:
            raise self.damaged(f"takes {len(found)} numbers as its input {index} instead of one")
        return found[0]

    def whole(self, index: int) -> tuple[int, ...]:
        """Return an input as plain ints; raises UnsupportedModel where one depends on a size that varies."""
        found = self.numbers(index)
        if not all(isinstance(item, int) for item in found):
            raise self.unsupported(f"has an input {index} that depends on a size that varies")
        return tuple(found)

    def attribute(self, name: str, kind: type, default: Any = None) -> Any:
        """Return an attribute of this type (for tuple: of numbers), or raise CorruptFile."""
        value = self.node.attributes.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.damaged(f"has the attribute {name!r} in another type than {kind.__name__}")
        return value

    def int(self, name: str, default: Any = None) -> Any:
        """Return an integer attribute."""
        return self.attribute(name, int, default)

    def float(self, name: str, default: Any = None) -> Any:
        """Return a float attribute."""
        return self.attribute(name, float, default)

    def text(self, name: str, default: str) -> str:
        """Return a text attribute."""
        return self.attribute(name, str, default)

    def list(self, name: str, default: Any = None) -> Any:
        """Return an attribute of several numbers."""
        return self.attribute(name, tuple, default)

    def axes(self, name: str, index: int) -> list[int] | None:
        """Return axes given as an attribute or, from some opset on, as an input; None where neither is given."""
        if self.has(index):
            return list(self.whole(index))
        value = self.list(name)
        return None if value is None else list(value)

    def one_of(self, name: str, default: str, known: Sequence[str]) -> str:
        """Return a text attribute that must be one of these."""
        value = self.text(name, default)
        if value not in known:
            raise self.unsupported(f"has {name} {value[:40]!r}")
        return value

    def refuse(self, *names: str) -> None:
        """Raise UnsupportedModel where one of these attributes is set to something else than zero."""
        for name in names:
            if self.node.attributes.get(name):
                raise self.unsupported(f"sets {name}")

    def refuse_inputs(self, *indices: int) -> None:
        """Raise UnsupportedModel where one of these optional inputs is given."""
        for index in indices:
            if self.has(index):
                raise self.unsupported(f"has an input {index}")

    def one_output(self) -> None:
        """Raise UnsupportedModel where more than the first output is read."""
        if self.outputs > 1:
            raise self.unsupported(f"makes {self.outputs} outputs that are read")

    def unsupported(self, what: str) -> UnsupportedModel:
        """Return the error for a form of the operator that is not run here."""
        return UnsupportedModel(f"Node {self.node.label!r} ({self.node.op}) {what}, which CIPM does not run.",
                                where=self.node.label, fix=FIX)

    def damaged(self, what: str) -> CorruptFile:
        """Return the error for a node that contradicts the standard."""
        return CorruptFile(f"Node {self.node.label!r} ({self.node.op}) {what}.", where=self.node.label, fix=DAMAGED)

    def bounded(self, elements: Any, limit: int = MAX_CONSTANT) -> None:
        """Raise LimitExceeded where a value would have more elements than are computed here."""
        if isinstance(elements, int) and elements > limit:
            raise LimitExceeded(f"Node {self.node.label!r} ({self.node.op}) makes {elements:,} elements; at most {limit:,} are "
                                "computed.", where=self.node.label)


@dataclass(frozen=True)
class Operator:
    """An operator that the interpreter runs: `host` are the inputs that must be known before the model runs, `stored` those
    whose integers count as stored tensors, `buffers` those that hold no parameters; `counts` where the size of the result
    depends on the values of its input, so that the input must be a constant."""

    run: Callable[[Call], Result]
    host: frozenset[int] = frozenset()
    stored: frozenset[int] = frozenset()
    buffers: frozenset[int] = frozenset()
    counts: bool = False


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, host: Sequence[int] = (), stored: Sequence[int] = (), buffers: Sequence[int] = (),
             counts: bool = False) -> Callable[[Callable[[Call], Result]], Callable[[Call], Result]]:
    """Put a function on the list of operators under these names."""
    def register(function: Callable[[Call], Result]) -> Callable[[Call], Result]:
        for name in names:
            assert name not in OPERATORS, name
            OPERATORS[name] = Operator(function, frozenset(host), frozenset(stored), frozenset(buffers), counts)
        return function
    return register


def contents(tensor: torch.Tensor) -> Any:
    """Return the numbers of a constant tensor, also while torch traces."""
    with unrecorded():
        return tensor.tolist()


def flat_contents(tensor: torch.Tensor) -> list[Any]:
    """Return the numbers of a constant tensor as one list, also while torch traces."""
    with unrecorded():
        return tensor.reshape(-1).tolist()


def constant(values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return a constant tensor that no graph records, from numbers or a NumPy array."""
    with unrecorded():
        return torch.as_tensor(np.asarray(values)).to(dtype)


def known_sizes(items: Any, dtype: torch.dtype = torch.int64) -> Const | Sizes:
    """Return numbers as a constant where none of them varies, else as sizes."""
    array = np.empty(np.shape(items), dtype=object)
    array[...] = items
    if all(isinstance(item, (bool, int, float)) for item in array.ravel().tolist()):
        with unrecorded():
            return Const(torch.tensor(array.tolist(), dtype=dtype))
    return Sizes(array, dtype)
