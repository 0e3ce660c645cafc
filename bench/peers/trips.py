"""One family through one format and back: save, load, discover, prove, reorganize, run in the format's own runtime, restore."""

from __future__ import annotations

import importlib
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import zoo
from torch import Tensor, nn

from cipm.export import export, restore
from cipm.load import load
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import ROWS, quiet

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
warnings.simplefilter("ignore")


class Skipped(Exception):
    """The format's own exporter does not take this model."""


def round_trip(family: str, kind: str) -> dict[str, Any]:
    """Return the fields of the family's row."""
    subject = zoo.subject(family)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path, runtime, dtype = SAVERS[kind](subject, folder)
        model = subject.model.to(dtype)
        reference = outputs(model, cast(subject.example, dtype))
        checkpoint = load(path)
        start = time.perf_counter()
        found = discover_groups(checkpoint)
        discovered = time.perf_counter()
        symmetry = prove(checkpoint, found)
        proved = time.perf_counter()
        plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
        written = export(checkpoint, path, plan, None, folder / f"reordered{path.suffix}")
        change = difference(reference, runtime(written, cast(subject.example, dtype)))
        back = load(restore(written, folder / f"restored{path.suffix}"))
        same = all(torch.equal(checkpoint.tensors[key], back.tensors[key]) for key in checkpoint.tensors)
        name = str(dtype).removeprefix("torch.")
        right = same and symmetry.certificate.passed and change <= TOLERANCE[name]
        reasons = ([] if same else ["restore changed a tensor"]) + [n for n in symmetry.notes if "failed" in n]
        return {"status": "ok" if right else "wrong", "detail": "; ".join(reasons), "groups": len(symmetry.groups),
                "log10": symmetry.log10_equivalents, "movable": symmetry.movable_share, "pins": len(symmetry.pins),
                "difference": change, "dtype": name, "export": export_seconds(subject), "discovery": discovered - start,
                "proof": proved - discovered}


def peer(removal: Any, family: str) -> tuple[str, str]:
    """Return Torch-Pruning's verdict on the family."""
    subject = zoo.subject(family)
    run = lambda model: outputs(model, cast(subject.example, next(model.parameters()).dtype), grad=True)  # noqa: E731
    return removal.judge(subject.model, subject.example, run)


def outputs(model: Callable[..., Any], example: zoo.Example, *, grad: bool = False) -> list[Tensor]:
    """Return every tensor that a model gives, in order."""
    with torch.set_grad_enabled(grad):
        return tensors_of(model(**example) if isinstance(example, dict) else model(*example))


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
            worst = max(worst, change if change == change else float("inf"))
    return worst


def exported(model: nn.Module, example: zoo.Example) -> torch.export.ExportedProgram:
    """Return the exported program with free rows, or as many rows as the example has where the model is bound to them."""
    args, kwargs = ((), example) if isinstance(example, dict) else (example, None)
    rows = {0: torch.export.Dim(ROWS)}
    dynamic = {name: rows for name in example} if isinstance(example, dict) else tuple(rows for _ in example)
    with quiet():
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
        except Exception:  # noqa: BLE001 - torch raises many kinds; what fails with fixed rows as well is told
            return torch.export.export(model, args, kwargs, strict=False)


def export_seconds(subject: zoo.Subject) -> float:
    """Return how long torch.export.export takes on the model in float32, the second time (the first one imports)."""
    model = subject.model.float()
    args, kwargs = ((), subject.example) if isinstance(subject.example, dict) else (subject.example, None)
    with quiet():
        start = time.perf_counter()
        try:
            torch.export.export(model, args, kwargs, strict=False)
        except Exception:  # noqa: BLE001 - no yardstick then
            return 0.0
    return time.perf_counter() - start


def save_pt2(subject: zoo.Subject, folder: Path):
    try:
        program = exported(subject.model.double(), cast(subject.example, torch.float64))
    except Exception as error:  # noqa: BLE001
        raise Skipped(f"torch.export: {type(error).__name__}: {error}") from error
    with quiet():
        torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2", _run_pt2, torch.float64


def _run_pt2(path: Path, example: zoo.Example) -> list[Tensor]:
    with quiet():
        return outputs(torch.export.load(path).module(), example)


def save_onnx(subject: zoo.Subject, folder: Path):
    example = subject.example
    args, kwargs = ((), example) if isinstance(example, dict) else (example, None)
    try:
        with quiet():
            torch.onnx.export(subject.model.float(), args, folder / "model.onnx", kwargs=kwargs, dynamo=True, verbose=False,
                              external_data=False, optimize=True)
    except Exception as error:  # noqa: BLE001
        raise Skipped(f"torch.onnx.export: {type(error).__name__}: {error}") from error
    return folder / "model.onnx", _run_onnx, torch.float32


def _run_onnx(path: Path, example: zoo.Example) -> list[Tensor]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    given = dict(zip(names, example, strict=True)) if isinstance(example, tuple) else {n: example[n] for n in names}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, {n: t.numpy() for n, t in given.items()})]


def save_huggingface(subject: zoo.Subject, folder: Path):
    path = subject.save(folder / "model")
    return path, lambda written, example: outputs(subject.open(written).double(), example), torch.float64


SAVERS = {"pt2": save_pt2, "onnx": save_onnx, "huggingface": save_huggingface}
