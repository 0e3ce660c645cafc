"""Read a pruned file back and compare it with the model that was written."""

from __future__ import annotations

from pathlib import Path

import torch

from cipm.errors import CipmError, UnsupportedModel
from cipm.load import load
from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import TOLERANCE, compare, example_inputs
from cipm.trace import run

OTHERS = "Write it as pt2 or onnx, or choose one width for all layers."


def difference(checkpoint: Checkpoint, path: Path) -> float:
    """Return how far the outputs of a written file are from the model's, in float64 on random rows, relative to the largest
    of each; infinite where it takes other inputs."""
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(1))
    again = load(path)
    if [i.name for i in again.graph.inputs] != [i.name for i in checkpoint.graph.inputs]:
        return float("inf")
    return compare(*(run(c.graph, c.tensors, c.constants, inputs, dtype=torch.float64) for c in (checkpoint, again)))[1]


def check_reloaded(checkpoint: Checkpoint, path: Path, why: str) -> None:
    """Raise UnsupportedModel where a written file is not read back as the model that was written."""
    try:
        apart = difference(checkpoint, path)
    except CipmError as error:
        raise UnsupportedModel(f"The pruned model cannot be written in the uploaded format: {why} ({error.message}).",
                               where=error.where, fix=OTHERS) from error
    if apart > TOLERANCE:
        raise UnsupportedModel(f"The pruned model cannot be written in the uploaded format: {why} (read back, its outputs "
                               f"differ by {apart:.1e}).", fix=OTHERS)
