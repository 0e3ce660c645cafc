"""A checkpoint: the traced graph of a model with its tensors, whatever format it came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cipm.permutation import Plan
from cipm.trace.graph import Graph

HELD_BYTES = 2**29
"""A model of at most this many bytes is held in memory; the tensors of a larger one are read when they are asked for."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors that are read when they are asked for, one at a time, and never kept: models larger than memory.

    `metas` holds a tensor on the meta device for every key (shape and dtype, no bytes), `read(key)` reads one.
    """

    def __init__(self, metas: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor]):
        self.metas, self._read = metas, read

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.metas:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.metas)

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors together."""
        return sum(meta.numel() * meta.dtype.itemsize for meta in self.metas.values())


def held(tensors: LazyTensors) -> Mapping[str, torch.Tensor]:
    """Return the tensors read and in memory where they are at most HELD_BYTES, else as they are."""
    return dict(tensors) if tensors.nbytes <= HELD_BYTES else tensors


def metas_of(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return a tensor on the meta device for every key, reading nothing that is not read yet."""
    return tensors.metas if isinstance(tensors, LazyTensors) else {key: t.to("meta") for key, t in tensors.items()}


def reordered(tensors: Mapping[str, torch.Tensor], plan: Plan) -> LazyTensors:
    """Return the tensors with a plan applied to each when it is asked for: at no time is there a second model in memory."""
    return LazyTensors(metas_of(tensors), lambda key: plan.move(key, tensors[key]))


@dataclass(frozen=True)
class Checkpoint:
    """A model as the engine sees it.

    `format` is the upload's format ("pt2", "huggingface"). `tensors` holds every stored tensor by its key in the
    upload, bit for bit, including those that the graph does not use; it may be LazyTensors, so take shapes from `meta`
    and tensors one by one. `constants` holds the graph's own tensors that
    are not part of the checkpoint. `aliases` maps a key that the format stores twice to the key it is tied to.
    `sha256` is the content hash of the upload. `origin` is what the exporter needs to write the format back
    (JSON-ready).
    """

    format: str
    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
        """Return the same model with other values for its tensors (same keys)."""
        assert tensors.keys() == self.tensors.keys()
        return Checkpoint(self.format, self.graph, tensors, self.constants, self.aliases, self.sha256, self.origin)

    def meta(self, key: str) -> torch.Tensor:
        """Return the shape and dtype of a stored tensor, as a tensor without bytes, reading nothing."""
        return self.tensors.metas[key] if isinstance(self.tensors, LazyTensors) else self.tensors[key].to("meta")

    @property
    def parameters(self) -> int:
        """Count the elements of the distinct parameters."""
        return sum(self.meta(key).numel() for key in self.parameter_keys)

    @property
    def parameter_keys(self) -> tuple[str, ...]:
        """Return the keys of the parameters: what is stored but for buffers (running statistics, counters)."""
        buffers = set(self.origin.get("buffers", ()))
        return tuple(key for key in self.tensors if key not in buffers)
