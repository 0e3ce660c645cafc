"""The families of the bench by name: the plain torch networks, and small configurations of transformers' own classes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cipm.load import Checkpoint, load
from cipm.load.huggingface_classes import model_class
from cipm.symmetry import example_inputs
from cipm.testing.networks import NETWORKS
from cipm.testing.transformers_zoo import ZOO, build, by_name, save

Example = dict[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A model with an example of its inputs; of transformers also its saved files, what we read of them, and its own reader."""

    model: nn.Module
    example: Example
    path: Path | None = None
    checkpoint: Checkpoint | None = None
    open: Callable[[Path], nn.Module] | None = None


def names(families: str) -> list[str]:
    """Return what a list with commas means: plain, transformers, all, a family or type of the table, or a name."""
    found: dict[str, None] = {}
    for part in families.split(","):
        entries = [e.label for e in ZOO if part in ("transformers", "all", e.family, e.type, e.label)]
        plain = [name for name in NETWORKS if part in ("plain", "all", name)]
        if not (entries or plain):
            raise SystemExit(f"There is no family {part!r}.")
        found |= dict.fromkeys([*plain, *entries])
    return list(found)


def formats(family: str) -> tuple[str, ...]:
    """Return the formats that a family has."""
    return ("pt2", "onnx") if family in NETWORKS else ("huggingface", "pt2", "onnx")


def subject(family: str) -> Subject:
    """Return the family's model in evaluation mode with an example."""
    if family in NETWORKS:
        return Subject(NETWORKS[family].make(), NETWORKS[family].example())
    entry = by_name(family)
    folder, checkpoint, example = _read(family)
    return Subject(exportable(build(entry)), dict(example), Path(folder.name) / "model", checkpoint,
                   lambda path: exportable(
        model_class(entry.type, entry.name).from_pretrained(path, dtype=torch.float64)))


@functools.lru_cache(maxsize=1)
def _read(family: str) -> tuple[tempfile.TemporaryDirectory, Checkpoint, dict[str, Tensor]]:
    """Return a folder with the family's files (it goes with the value), the checkpoint, and inputs that it takes."""
    folder = tempfile.TemporaryDirectory()
    save(by_name(family), Path(folder.name) / "model")
    checkpoint = load(Path(folder.name) / "model")
    return folder, checkpoint, example_inputs(checkpoint, generator=torch.Generator().manual_seed(0))


def exportable(model: nn.Module) -> nn.Module:
    """Return the model told to keep no keys and values, which are no output of its function, and to compute its experts by
    batched products, as transformers' own exports do: other ways are no plain operators, and ONNX cannot hold them."""
    if getattr(model, "_can_set_experts_implementation", bool)():
        model.set_experts_implementation("batched_mm")
    for module in model.modules():
        for config in filter(None, (getattr(module, "config", None), getattr(module, "text_config", None))):
            for name in ("use_cache", "use_mems_eval"):
                if hasattr(config, name):
                    setattr(config, name, False)
    return model.eval()
