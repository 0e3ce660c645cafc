"""A transformers model → the functional graph, by the first inputs, sizes and attention that torch can trace."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from cipm.errors import CipmError, UnsupportedModel
from cipm.load.huggingface_classes import EXPORT
from cipm.load.huggingface_inputs import Samples, candidates, fewer_sizes
from cipm.load.huggingface_model import use_attention
from cipm.load.retrace import export_program, functional, tidy
from cipm.trace import Graph

STEPWISE = "Attention is traced step by step, as torch cannot trace it whole."
CHUNKED = 1000
"""How many operations of a model may follow, with free lengths, once a length was rounded up to whole chunks. Torch takes 20
to 60 ms for each of them; beyond this the lengths are fixed. Counted, not timed, so that every machine gives the same graph."""
_BY_PRODUCTS = ("encoder_last_hidden_state",)
"""Outputs of a model with a head that are no result of its own."""


class _Bounded(TorchFunctionMode):
    """Count operations from the first result on whose size holds a remainder; raise beyond CHUNKED."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.count += bool(self.count) or any(isinstance(n, torch.SymInt) and "Mod(" in str(n) for n in result.shape)
            if self.count > CHUNKED:
                raise UnsupportedModel("The model works in chunks of its lengths, which torch cannot trace in good time.")
        return result


class _Tensors(torch.nn.Module):
    """The model with named tensors in and a tuple of its output's tensors out, in order."""

    def __init__(self, model: Any, names: Iterable[str]):
        super().__init__()
        self.model, self.bound = model, _Bounded()
        self.forward = lambda **inputs: self._tensors(inputs)
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.forward.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in names])

    def _tensors(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with self.bound:
            output = self.model(**inputs)
        if isinstance(output, torch.Tensor):
            return (output,)
        if isinstance(output, dict):
            left_out = _BY_PRODUCTS if "logits" in output else ()
            output = [value for name, value in output.items() if name not in left_out]
        return tuple(value for value in output if isinstance(value, torch.Tensor))


def trace(model: Any, dtype: torch.dtype) -> tuple[Graph, dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """Return (graph, its constants, the inputs it was traced with, what had to be given up) of a model with stand-ins.

    Raises UnsupportedModel with torch's reason where no inputs that are known here can be traced.
    """
    failure: CipmError | None = None
    chunked = False
    for samples, note in _attempts(model, dtype):
        tensors = _Tensors(model, samples).eval()
        try:
            with _unchecked_distributions(), _own_caches(model):
                graph, constants = functional(export_program(tensors, samples), samples)
        except CipmError as error:
            failure = failure or error
            chunked |= tensors.bound.count > CHUNKED
            continue
        constants = {key.removeprefix("model."): tensor for key, tensor in constants.items()}
        bounds = {name: {"shape": list(s.shape), "dynamic": {str(axis): list(b) for axis, b in s.dynamic.items()}}
                  for name, s in samples.items()}
        return _named(graph), constants, bounds, [*([note] if note else []), *_fixed(graph, chunked)]
    raise failure or UnsupportedModel(f"{type(model).__name__} takes none of the inputs that are known here.",
                                      where="architectures", fix=EXPORT)


def _attempts(model: Any, dtype: torch.dtype) -> Iterator[tuple[Samples, str | None]]:
    """Yield (inputs, note) to try: those that the model runs on first, and each with fewer and fewer free sizes."""
    found = list(candidates(model, dtype))
    with _own_caches(model):
        found.sort(key=lambda samples: not _runs(model, samples))
    for samples in found:
        for fewer in fewer_sizes(samples):
            yield fewer, None
    if use_attention(model, "eager"):
        for samples in found:
            for fewer in fewer_sizes(samples):
                yield fewer, STEPWISE


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Keep torch.distributions from looking at values, which a trace does not have: time series models make them."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def _own_caches(model: Any) -> Iterator[None]:
    """Forget what functions of the model's modules keep for equal arguments: the stand-ins of a trace are of no use later."""
    try:
        yield
    finally:
        for name in {type(part).__module__ for part in model.modules()}:
            for value in list(vars(sys.modules[name]).values()):
                _forget(value)


def _forget(value: Any) -> None:
    """Empty the cache of a function, or of one that it wraps."""
    cells = getattr(value, "__closure__", None) or ()
    inside = [cell.cell_contents for cell in cells if cell != CellType()]
    for function in (value, *inside):
        if callable(clear := getattr(function, "cache_clear", None)):
            clear()


def _runs(model: Any, samples: Samples) -> bool:
    """Tell whether the model runs on inputs like these, on stand-ins."""
    mode = next((p.fake_mode for p in model.parameters() if isinstance(p, FakeTensor)), FakeTensorMode())
    try:
        with warnings.catch_warnings(), torch.no_grad(), mode:
            warnings.simplefilter("ignore")
            model(**{name: torch.zeros(s.shape, dtype=s.dtype) for name, s in samples.items()})
    except Exception:  # a model says in any way it likes that it lacks an input
        return False
    return True


def _named(graph: Graph) -> Graph:
    """Return the graph with the model's own names; weights that the model rescales as it runs are no outputs of it."""
    constants = {value: key.removeprefix("model.") for value, key in graph.constants.items()}
    outputs = tuple(ref for ref in graph.outputs if ref is not None)
    return tidy(Graph(graph.inputs, graph.tensors, constants, graph.nodes, outputs))


def _fixed(graph: Graph, chunked: bool) -> list[str]:
    """Say what had to be fixed."""
    notes = []
    fixed = [f"{i.name} {list(i.shape)}" for i in graph.inputs if i.shape and not isinstance(i.shape[0], str)]
    if fixed:
        notes.append(f"The model is traced for a fixed batch: torch cannot leave it open ({', '.join(fixed)}).")
    if chunked:
        notes.append("The model is traced for fixed lengths: it works in chunks of them, and torch takes very long to trace it "
                     f"for any length ({', '.join(f'{i.name} {list(i.shape)}' for i in graph.inputs)}).")
    return notes
