"""How long a model takes on this machine before and after it was made smaller: in onnxruntime, or in torch."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.trace import to_module

ROWS = 64
"""Most rows of one run."""
MOST_RUNS, FEWEST_RUNS = 25, 5
RUN_FLOPS = 2e11
"""Work after which no further run is begun, beside the fewest: some seconds."""
Inputs = Mapping[str, torch.Tensor]


def in_onnx(before: Checkpoint, form: str | None) -> bool:
    """Tell whether a model and its smaller one in this form (default: the uploaded one) can both be run by onnxruntime."""
    return before.format == "onnx" and not before.origin.get("packed") and form in (None, "onnx") and runtime_is_there()


def runtime_is_there() -> bool:
    """Tell whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def latency(before: Checkpoint, after: Checkpoint, files: tuple[Path, Path] | None, inputs: Inputs,
            flops: float) -> dict[str, Any]:
    """Return {before_ms, after_ms, times, rows, runs, threads, runtime}: medians of runs that take turns, after one each, and
    how many times as fast the fastest runs are, which other programs disturb least.

    `files` are both as ONNX (`in_onnx`), run by onnxruntime; without them torch runs the graphs, as `torch.export` does.
    `inputs` are some rows, `flops` what one costs the whole model.
    """
    rows = len(next(iter(inputs.values())))
    runs = int(min(MOST_RUNS, max(FEWEST_RUNS, RUN_FLOPS / max(2 * rows * flops, 1))))
    calls = [onnx_call(file, inputs) for file in files] if files else [_torch(one, inputs) for one in (before, after)]
    first, second = _taken(calls, runs)
    return {"before_ms": 1e3 * statistics.median(first), "after_ms": 1e3 * statistics.median(second),
            "times": min(first) / min(second), "rows": rows, "runs": runs,
            "threads": torch.get_num_threads(), "runtime": "onnxruntime" if files else "torch"}


def _taken(calls: list[Callable[[], object]], runs: int) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    for number in range(runs + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken += [time.perf_counter() - start] if number else []
    return times


def _torch(checkpoint: Checkpoint, inputs: Inputs) -> Callable[[], object]:
    module = to_module(checkpoint.graph, checkpoint.tensors, checkpoint.constants)
    return torch.no_grad()(lambda: module(**inputs))


def onnx_call(file: Path, inputs: Inputs) -> Callable[[], list[np.ndarray]]:
    """Return what runs an ONNX file on these rows in onnxruntime and gives its outputs."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    values = {there.name: value.numpy() for there, value in zip(session.get_inputs(), inputs.values(), strict=True)}
    return lambda: session.run(None, values)
