"""Small random models of the families of transformers, for tests and benches: one entry per type and class.

    entry = by_name("llama:LlamaForCausalLM")
    model = build(entry)             in evaluation mode, every weight random and none of them trivial
    save(entry, folder)              config.json and model.safetensors as save_pretrained writes them

The table is transformers_zoo.json: family, model type, class, values of the configuration.
"""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cipm.load.huggingface_classes import config_class, model_class


@dataclass(frozen=True)
class Entry:
    """One small model: its family, model type, class, and the values of its configuration beside the defaults."""

    family: str
    type: str
    name: str
    values: Mapping[str, Any]
    number: int = 1

    @property
    def label(self) -> str:
        """Return a name of the entry that no other has."""
        return f"{self.type}:{self.name}" + (f":{self.number}" if self.number > 1 else "")


def by_name(label: str) -> Entry:
    """Return the entry with this label."""
    return next(entry for entry in ZOO if entry.label == label)


def build(entry: Entry, seed: int = 0) -> nn.Module:
    """Return the model in evaluation mode with random weights, biases, norms and statistics."""
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = model_class(entry.type, entry.name)(config_class(entry.type)(**entry.values)).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # others are tables that the model computes, such as sinusoids
            parameter.data.copy_(_random(name, parameter, generator))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var", "correction_bias")):
            buffer.copy_(_random(name, buffer, generator))
    return model


def save(entry: Entry, folder: Path, seed: int = 0) -> nn.Module:
    """Write the model by its own save_pretrained into a folder, and return it."""
    model = build(entry, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return weights of a size that keeps activations moderate: matrices by fan-in, scales around one, shifts around nought."""
    if not like.is_floating_point():
        return like
    if name.endswith("running_var") or (like.ndim < 2 and not name.endswith(("bias", "running_mean"))):
        return torch.empty(like.shape).uniform_(0.5, 1.5, generator=generator)
    spread = 0.3 if like.ndim < 2 else 1 / math.sqrt(max(1, like[0].numel()))
    return torch.randn(like.shape, generator=generator) * spread


def _read() -> tuple[Entry, ...]:
    rows = json.loads(Path(__file__).with_suffix(".json").read_text())
    seen: dict[tuple[str, str], int] = {}
    entries = []
    for family, kind, name, values in rows:
        seen[kind, name] = seen.get((kind, name), 0) + 1
        entries.append(Entry(family, kind, name, values, seen[kind, name]))
    return tuple(entries)


ZOO: tuple[Entry, ...] = _read()
