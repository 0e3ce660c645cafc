"""A transformers model → the functional graph, by the first inputs, sizes and attention that torch can trace."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import CellType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from cipm.errors import CipmError, UnsupportedModel
from cipm.load.huggingface_classes import EXPORT
from cipm.load.huggingface_inputs import Samples, candidates, fewer_sizes, longer, of_rows
from cipm.load.huggingface_model import use_attention
from cipm.load.retrace import export_program, functional, tidy
from cipm.trace import Graph, Input

STEPWISE = "Attention is traced step by step, as torch cannot trace it whole."
CHUNK_TOKENS = 64
"""Length of the example sequences of a model that works in chunks: it rounds every shorter length up anyway."""
_BY_PRODUCTS = ("encoder_last_hidden_state",)
"""Outputs of a model with a head that are no result of its own."""


class _Chunks(TorchFunctionMode):
    """Stop at the first result on whose size a remainder stands: the model rounds a free length up to whole chunks.

    Torch takes 10 to 60 ms for each operation that follows, and what it gives in the end holds for one chunk alone.
    """

    seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and any(isinstance(n, torch.SymInt) and "Mod(" in str(n) for n in result.shape):
            self.seen = True
            raise UnsupportedModel("The model works in chunks of its lengths, which torch cannot leave open.")
        return result


class _Tensors(torch.nn.Module):
    """The model with named tensors in and a tuple of its output's tensors out, in order."""

    def __init__(self, model: Any, samples: Samples):
        super().__init__()
        self.model, self.chunks = model, _Chunks()
        self.forward = lambda **inputs: self._tensors(inputs)
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.forward.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in samples])
        self.watched = any(axis for sample in samples.values() for axis in sample.dynamic)

    def _tensors(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with self.chunks if self.watched else nullcontext():
            return output_tensors(self.model(**inputs))


def output_tensors(output: Any) -> tuple[torch.Tensor, ...]:
    """Return the tensors of what a model gives, in order, as they are the outputs of its graph."""
    if isinstance(output, torch.Tensor):
        return (output,)
    if isinstance(output, dict):
        left_out = _BY_PRODUCTS if "logits" in output else ()
        output = [value for name, value in output.items() if name not in left_out]
    return tuple(value for value in output if isinstance(value, torch.Tensor))


def trace(model: Any, dtype: torch.dtype, rows: Mapping[str, Sequence[int]] | None = None,
          ) -> tuple[Graph, dict[str, torch.Tensor], dict[str, Any]]:
    """Return (graph, its constants, what an origin keeps) of a model with stand-ins.

    `rows` has the shape of a row of each input, for which lengths are then fixed. The last holds `samples`, the inputs it was
    traced with; `lengths`, the axes of inputs that are fixed and may have other sizes in another trace; `notes`, what had to
    be given up. Raises UnsupportedModel with torch's reason where no inputs that are known here can be traced.
    """
    failure: CipmError | None = None
    chunked = False
    for whole, samples, note in _attempts(model, dtype, rows):
        if chunked:
            samples = longer(samples, whole, CHUNK_TOKENS)
        tensors = _Tensors(model, samples).eval()
        try:
            with _unchecked_distributions(), _own_caches(model):
                graph, constants = functional(export_program(tensors, samples), samples)
        except CipmError as error:
            failure = failure or error
            chunked |= tensors.chunks.seen
            continue
        constants = {key.removeprefix("model."): tensor for key, tensor in constants.items()}
        bounds = {name: {"shape": list(s.shape), "dynamic": _json(s.dynamic)} for name, s in samples.items()}
        lengths = _fixed_lengths(graph, whole)
        notes = [*([note] if note else []), *_fixed(graph, lengths, "the probe's" if rows else "fixed", chunked)]
        return _named(graph), constants, {"samples": bounds, "lengths": lengths, "notes": notes}
    raise failure or UnsupportedModel(f"{type(model).__name__} takes none of the inputs that are known here.",
                                      where="architectures", fix=EXPORT)


def _attempts(model: Any, dtype: torch.dtype, rows: Mapping[str, Sequence[int]] | None,
              ) -> Iterator[tuple[Samples, Samples, str | None]]:
    """Yield (inputs with all sizes free that may vary, inputs to try, note).

    Those that the model runs on come first, and each with fewer and fewer free sizes.
    """
    found = list(candidates(model, dtype))
    with _own_caches(model):
        found.sort(key=lambda samples: not _runs(model, samples))
    if rows:
        found = [samples for samples in found if samples.keys() == rows.keys()]
    notes = [None]
    for note in notes:
        for samples in found:
            for fewer in fewer_sizes(of_rows(samples, rows) if rows else samples):
                yield samples, fewer, note
        if note is None and use_attention(model, "eager"):
            notes.append(STEPWISE)


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


def _json(dynamic: Mapping[int, Sequence[Any]]) -> dict[str, list[Any]]:
    return {str(axis): list(bounds) for axis, bounds in dynamic.items()}


def _fixed_lengths(graph: Graph, whole: Samples) -> dict[str, dict[str, list[Any]]]:
    """Return (name, least, most) by input and axis of every axis after the rows that may vary and does not in the graph."""
    found = {i.name: _json({axis: bounds for axis, bounds in whole[i.name].dynamic.items()
                            if axis and isinstance(i.shape[axis], int)}) for i in graph.inputs}
    return {name: axes for name, axes in found.items() if axes}


def _fixed(graph: Graph, lengths: Mapping[str, Any], which: str, chunked: bool) -> list[str]:
    """Say what had to be fixed."""
    notes = []
    fixed = [i for i in graph.inputs if i.shape and not isinstance(i.shape[0], str)]
    if fixed:
        notes.append(f"The model is traced for a fixed batch: torch cannot leave it open ({_shapes(fixed)}).")
    if lengths:
        why = "it works in chunks of them, which torch cannot leave open" if chunked else "torch cannot leave them open"
        notes.append(f"The model is traced for {which} lengths ({_shapes([i for i in graph.inputs if i.name in lengths])}): "
                     f"{why}. With a probe of other lengths it is traced and proved anew.")
    return notes


def _shapes(inputs: Sequence[Input]) -> str:
    return ", ".join(f"{i.name} [{', '.join(map(str, i.shape))}]" for i in inputs)
