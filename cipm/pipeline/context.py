"""What the stages of one job share: folders in, folders out, and values kept in memory between stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint, LazyTensors, held, metas_of
from cipm.load.probe import Probe
from cipm.load.region import Ranges
from cipm.load.safetensors_file import header_of, lazy_tensors, make_header
from cipm.load.safetensors_file import write as write_tensors
from cipm.options import AnalysisOptions
from cipm.symmetry import Symmetry, symmetry_from_json
from cipm.trace import from_json, to_json

Emit = Callable[[dict[str, Any]], None]
CHECKPOINT, SYMMETRY = "checkpoint.json", "symmetry.json"


@dataclass
class Context:
    """One job: its request and options, the folder of every finished stage, and lazily opened artefacts."""

    request: Mapping[str, Any]
    options: AnalysisOptions
    folders: dict[str, Path]
    emit: Emit
    kept: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        if traced := self._traced_anew:
            return read_checkpoint(self.folders["open"], traced)
        return self.kept.get("checkpoint") or read_checkpoint(self.folders["open"])

    @cached_property
    def symmetry(self) -> Symmetry:
        if self._traced_anew:
            return symmetry_from_json(self.read("probe", SYMMETRY))
        return self.kept.get("symmetry") or symmetry_from_json(self.read("discover", SYMMETRY))

    @cached_property
    def probe(self) -> Probe:
        return self.kept.get("probe") or read_probe(self.folders["probe"])

    @cached_property
    def device(self) -> torch.device:
        """Return where forward passes run; raises OptionError where a GPU is asked for and there is none."""
        if self.options.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("The option device=cuda asks for a GPU, and this worker has none.", where="device",
                              fix="Choose auto or cpu.")
        return torch.device("cuda" if self.options.device != "cpu" and torch.cuda.is_available() else "cpu")

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the stored tensors on the device of the forward passes."""
        return {key: tensor.to(self.device) for key, tensor in self.checkpoint.tensors.items()}

    @property
    def _traced_anew(self) -> Path | None:
        """Return the folder of stage `probe` where the model was traced anew for the probe's lengths."""
        folder = self.folders.get("probe")
        return folder if folder and (folder / CHECKPOINT).exists() else None

    def read(self, stage: str, name: str) -> Any:
        """Return a JSON file of a finished stage."""
        return json.loads((self.folders[stage] / name).read_text())

    def progress(self, stage: str, total: int, unit: str) -> Callable[[int], None]:
        """Return a function to call with how much is done."""
        return lambda done: self.emit({"event": "progress", "stage": stage, "done": done, "total": total, "unit": unit})


def batches(probe: Probe, checkpoint: Checkpoint, batch_rows: int, *,
            rows: tuple[int, int] | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the model's inputs in batches of at most `batch_rows` rows; a model with a fixed batch takes full ones only.

    `rows` (first, end; first a whole number of batches) asks for those rows alone.
    """
    fixed = fixed_rows(checkpoint)
    size = fixed or batch_rows
    first, total = rows or (0, probe.used_rows)
    for start in range(first, total - (total - first) % size if fixed else total, size):
        yield {name: tensor[start:min(start + size, total)] for name, tensor in probe.inputs.items()}


def fixed_rows(checkpoint: Checkpoint) -> int | None:
    """Return how many rows a model takes at once, where it takes no other number."""
    return next((i.shape[0] for i in checkpoint.graph.inputs if i.shape and isinstance(i.shape[0], int)), None)


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as JSON and safetensors, tensor by tensor."""
    write_traced(checkpoint, folder)
    write_tensors(folder / "tensors.safetensors", make_header(metas_of(checkpoint.tensors)), checkpoint.tensors.__getitem__)


def write_traced(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint without its tensors."""
    facts = {"format": checkpoint.format, "sha256": checkpoint.sha256, "aliases": dict(checkpoint.aliases),
             "origin": dict(checkpoint.origin), "graph": to_json(checkpoint.graph), "order": list(checkpoint.tensors),
             "parameters": checkpoint.parameters}
    (folder / CHECKPOINT).write_text(json.dumps(facts))
    save_file({key: t.contiguous() for key, t in checkpoint.constants.items()}, folder / "constants.safetensors")


def read_checkpoint(folder: Path, traced: Path | None = None) -> Checkpoint:
    """Read what `write_checkpoint` wrote; the tensors of a large model stay in their file until they are asked for.

    `traced` is a folder where `write_traced` wrote all the rest, of another trace of the same model.
    """
    traced = traced or folder
    facts = json.loads((traced / CHECKPOINT).read_text())
    file = Ranges.of_file(folder / "tensors.safetensors")
    stored = lazy_tensors([(file, header_of(file))])
    tensors = held(LazyTensors({key: stored.metas[key] for key in facts["order"]}, stored.__getitem__))
    return Checkpoint(facts["format"], from_json(facts["graph"]), tensors,
                      load_file(traced / "constants.safetensors"), facts["aliases"], facts["sha256"], facts["origin"])


def write_probe(probe: Probe, folder: Path) -> None:
    """Write a probe set as safetensors, with its notes."""
    tensors = {f"input/{name}": t.contiguous() for name, t in probe.inputs.items()}
    if probe.labels is not None:
        tensors["labels"] = probe.labels.contiguous()
    save_file(tensors, folder / "probe.safetensors")
    facts = {"rows": probe.rows, "used_rows": probe.used_rows, "notes": list(probe.notes)}
    (folder / "probe.json").write_text(json.dumps(facts))


def read_probe(folder: Path) -> Probe:
    """Read what `write_probe` wrote."""
    tensors = load_file(folder / "probe.safetensors")
    facts = json.loads((folder / "probe.json").read_text())
    inputs = {key.removeprefix("input/"): t for key, t in tensors.items() if key.startswith("input/")}
    return Probe(inputs, tensors.get("labels"), facts["rows"], facts["used_rows"], tuple(facts["notes"]))
