"""The families of the bench by name: the plain torch networks, and small configurations of transformers' own classes."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cipm.testing.networks import NETWORKS

Example = dict[str, Tensor] | tuple[Tensor, ...]
MODULE = "cipm.testing.transformers_zoo"


@dataclass(frozen=True)
class Subject:
    """A model with an example of its inputs; `save` writes the format of its library, `open` reads that back with it."""

    model: nn.Module
    example: Example
    save: Callable[[Path], Path] | None = None
    open: Callable[[Path], nn.Module] | None = None


def names(families: str) -> list[str]:
    """Return the families that `plain`, `transformers`, `all` or a list with commas means."""
    groups = {"plain": list(NETWORKS), "transformers": list(_entries())}
    groups["all"] = [*groups["plain"], *groups["transformers"]]
    return [name for part in families.split(",") for name in groups.get(part, [part])]


def formats(family: str) -> tuple[str, ...]:
    """Return the formats that a family has."""
    return ("pt2", "onnx") if family in NETWORKS else ("huggingface", "pt2", "onnx")


def subject(family: str) -> Subject:
    """Return the family's model in evaluation mode with an example."""
    if family in NETWORKS:
        return Subject(NETWORKS[family].make(), NETWORKS[family].example())
    return _transformers(family)


def _entries() -> dict:
    return importlib.import_module(MODULE).ZOO if importlib.util.find_spec(MODULE) else {}


def _transformers(family: str) -> Subject:
    raise KeyError(family)
