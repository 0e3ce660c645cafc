"""One family through one format and back: save, load, discover, prove, reorganize, run in the format's own runtime, undo."""

from __future__ import annotations

import functools
import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cipm.export import export
from cipm.export.record import read_plan
from cipm.load import load
from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import ROWS, quiet
from cipm.trace import run
from peers import zoo
from peers.timing import timed

BY_PRODUCTS = ("encoder_last_hidden_state",)
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
OWN_ROUNDING, MOST_ROUNDING = 4, 1e-3
"""What float32 is allowed in units of the file's own rounding, where that is more, and at most."""
warnings.simplefilter("ignore")


class Coarsest(TorchDispatchMode):
    """Watch for float32 inside a model whose weights are float64: many compute norms and angles so."""

    dtype = torch.float64

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64:
            self.dtype = torch.float32
        return result


class Skipped(Exception):
    """The format's own exporter does not take this model, or its own runtime does not take what that wrote."""


def round_trip(family: str, kind: str) -> dict[str, Any]:
    """Return the fields of the family's row."""
    subject = zoo.subject(family)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dtype = torch.float32 if kind == "onnx" else finest(subject)
        example = cast(subject.example, dtype)
        path, runtime = SAVERS[kind](subject, dtype, folder)
        with Coarsest() as watched:
            reference = outputs(subject.model.to(dtype), example, own=kind == "huggingface")
        if kind != "huggingface":  # what an exporter changed by itself (a norm's statistics) is not counted
            reference = _run_as_exported(runtime, path, example)
        checkpoint = subject.checkpoint if kind == "huggingface" else load(path)
        _, discovery, found = timed(lambda: discover_groups(checkpoint), 2)
        _, proof, symmetry = timed(lambda: prove(checkpoint, found))
        plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
        written = export(checkpoint, path, plan, None, folder / f"reordered{path.suffix}")
        change = difference(reference, runtime(written, example))
        back = read_plan(written)[0].coinverse.apply(load(written).tensors)
        same = all(torch.equal(checkpoint.tensors[key], back[key]) for key in checkpoint.tensors)
        name = str(watched.dtype).removeprefix("torch.")
        fits = change <= TOLERANCE[name] or name == "float32" and change <= own_rounding(checkpoint, example, reference)
        right = same and symmetry.certificate.passed and fits
        reasons = ([] if same else ["undoing changed a tensor"]) + [n for n in symmetry.notes if "failed" in n]
        return {"status": "ok" if right else "wrong", "detail": "; ".join(reasons), "groups": len(symmetry.groups),
                "log10": symmetry.log10_equivalents, "movable": symmetry.movable_share, "pins": len(symmetry.pins),
                "difference": change, "dtype": name, "export": export_seconds(family), "discovery": discovery,
                "proof": proof}


def own_rounding(checkpoint: Checkpoint, example: zoo.Example, reference: Sequence[Tensor]) -> float:
    """Return how far reordering may be off for rounding alone: some times what the file was off by before, beside the same
    graph in float64."""
    names = [spec.name for spec in checkpoint.graph.inputs]
    inputs = example if isinstance(example, dict) else dict(zip(names, example, strict=True))
    wide = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, dtype=torch.float64)
    return min(OWN_ROUNDING * difference([value for value in wide if value is not None], reference), MOST_ROUNDING)


def _run_as_exported(runtime: Callable[..., list[Tensor]], path: Path, example: zoo.Example) -> list[Tensor]:
    """Return the outputs of a file that nothing of ours has touched; raises Skipped where its runtime does not take it."""
    try:
        return runtime(path, example)
    except Exception as error:  # noqa: BLE001 - runtimes raise many kinds
        raise Skipped(f"The file's own runtime does not run it as exported: {type(error).__name__}: {error}") from error


def peer(removal: Any, family: str) -> tuple[str, str]:
    """Return Torch-Pruning's verdict on the family."""
    subject = zoo.subject(family)
    dtype = finest(subject)
    run = lambda model: outputs(model, cast(subject.example, next(model.parameters()).dtype), grad=True)  # noqa: E731
    return removal.judge(subject.model.float(), subject.example, run, dtype)


def finest(subject: zoo.Subject) -> torch.dtype:
    """Return float64, or float32 for a model whose own code fails in float64 or makes no numbers of it."""
    try:
        found = outputs(subject.model.double(), cast(subject.example, torch.float64))
    except RuntimeError:
        return torch.float32
    return torch.float64 if all(bool(t.isfinite().all()) for t in found) else torch.float32


def outputs(model: Callable[..., Any], example: zoo.Example, *, grad: bool = False, own: bool = False) -> list[Tensor]:
    """Return every tensor that a model gives, in order; `own`: without what the loader takes for no result of its own."""
    with torch.set_grad_enabled(grad):
        value = model(**example) if isinstance(example, dict) else model(*example)
    if own and isinstance(value, dict):
        left_out = BY_PRODUCTS if "logits" in value else ()
        value = {name: item for name, item in value.items() if isinstance(item, Tensor) and name not in left_out}
    return tensors_of(value)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors_of(item)] if isinstance(value, list | tuple) else []


def cast(example: zoo.Example, dtype: torch.dtype) -> zoo.Example:
    change = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    if isinstance(example, dict):
        return {name: change(t) for name, t in example.items()}
    return tuple(change(t) for t in example)


def difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the largest difference of any output relative to the largest entry of that output."""
    assert [t.shape for t in one] == [t.shape for t in two], ([t.shape for t in one], [t.shape for t in two])
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        if a.numel():
            change = float((a.double() - b.double()).abs().max()) / (float(a.double().abs().max()) or 1.0)
            worst = max(worst, change if change == change else float("inf"))  # not a number: no agreement
    return worst


def free_rows(example: zoo.Example) -> Any:
    """Return dynamic shapes that leave the number of rows of every input free."""
    rows = {0: torch.export.Dim(ROWS)}
    return {name: rows for name in example} if isinstance(example, dict) else tuple(rows for _ in example)


def with_free_rows(write: Callable[[Any], Any], example: zoo.Example, tool: str) -> Any:
    """Return write(dynamic shapes), with fixed rows where free ones fail; raises Skipped where both do."""
    with quiet():
        try:
            return write(free_rows(example))
        except Exception:  # noqa: BLE001 - exporters raise many kinds; what fails with fixed rows as well is told
            try:
                return write(None)
            except Exception as error:  # noqa: BLE001
                raise Skipped(f"{tool}: {type(error).__name__}: {error}") from error


def arguments(example: zoo.Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return ((), example) if isinstance(example, dict) else (example, {})


@functools.lru_cache(maxsize=1)
def export_seconds(family: str) -> float:
    """Return the processor seconds of torch.export.export on the model in float32; 0 where it fails."""
    subject = zoo.subject(family)
    args, kwargs = arguments(subject.example)
    with quiet():
        try:
            return timed(lambda: torch.export.export(subject.model, args, kwargs, strict=False), 2)[1]
        except Exception:  # noqa: BLE001 - no yardstick then
            return 0.0


def save_pt2(subject: zoo.Subject, dtype: torch.dtype, folder: Path):
    example = cast(subject.example, dtype)
    args, kwargs = arguments(example)
    model = subject.model.to(dtype)
    with torch.no_grad():  # torch does not read every program back that turns gradients off by itself
        program = with_free_rows(lambda shapes: torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False),
                                 example, "torch.export")
    with quiet():
        torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2", _run_pt2


def _run_pt2(path: Path, example: zoo.Example) -> list[Tensor]:
    with quiet():
        return outputs(torch.export.load(path).module(), example)


def save_onnx(subject: zoo.Subject, dtype: torch.dtype, folder: Path):
    args, kwargs = arguments(subject.example)
    with_free_rows(lambda shapes: torch.onnx.export(
        subject.model.to(dtype), args, folder / "model.onnx", kwargs=kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False,
        external_data=False), subject.example, "torch.onnx.export")
    return folder / "model.onnx", _run_onnx


def _run_onnx(path: Path, example: zoo.Example) -> list[Tensor]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    given = dict(zip(names, example, strict=True)) if isinstance(example, tuple) else {n: example[n] for n in names}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, {n: t.numpy() for n, t in given.items()})]


def save_huggingface(subject: zoo.Subject, dtype: torch.dtype, folder: Path):
    return subject.path, lambda written, example: outputs(subject.open(written).to(dtype), example, own=True)


SAVERS = {"pt2": save_pt2, "onnx": save_onnx, "huggingface": save_huggingface}
