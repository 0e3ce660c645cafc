"""Tensors that transformers merges or takes apart when it loads them: the way there and, proved on random bits, back."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cipm.errors import UnsupportedModel

Read = Callable[[str], torch.Tensor]
Metas = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Merge:
    """One conversion: `sources` (stored key, the pattern it matches) in order make `targets`, tensors of the model.

    `model` is the skeleton that the operations ask for sizes. `back` says for each source the how-manieth result of the
    reverse conversion it is.
    """

    converter: Any
    model: Any
    name: str
    sources: tuple[tuple[str, str], ...]
    stored: Metas
    targets: Metas = field(default_factory=dict)
    back: tuple[int, ...] = ()

    def convert(self, read: Read) -> dict[str, torch.Tensor]:
        """Return the model's tensors by their names."""
        return _run(self.converter, self.name, [(key, pattern, read(key)) for key, pattern in self.sources], self.model)

    def revert(self, read: Read) -> dict[str, torch.Tensor]:
        """Return the stored tensors by their keys in the file."""
        made = self._reverted({key: read(key) for key in self.targets})
        return {key: made[place].contiguous() for (key, _), place in zip(self.sources, self.back, strict=True)}

    def _reverted(self, tensors: Metas) -> list[torch.Tensor]:
        reverse = self.converter.reverse_transform()
        named = [(*reverse.rename_source_key(key), key) for key in sorted(tensors, key=natural_key)]
        made = _run(reverse, named[0][0], [(key, pattern, tensors[key]) for _, pattern, key in named], self.model)
        return list(made.values())


def make_merge(converter: Any, model: Any, name: str, sources: Sequence[tuple[str, str]], stored: Metas) -> Merge:
    """Return the merge with the shapes of what it makes; raises UnsupportedModel where its tensors do not fit together."""
    merge = Merge(converter, model, name, tuple(sources), {key: stored[key] for key, _ in sources})
    if len({t.dtype for t in merge.stored.values()}) > 1:
        raise _no_way_back(merge, "they have different dtypes")
    try:
        return replace(merge, targets=merge.convert(merge.stored.__getitem__))
    except Exception as error:  # the operations raise what they like where tensors do not fit them
        raise _no_way_back(merge, "they do not fit together") from error


def prove_way_back(merge: Merge) -> tuple[int, ...]:
    """Return `back` of a merge: which result of the reverse conversion is each stored tensor, in every bit.

    Found by converting random integers there and back. Raises UnsupportedModel where they do not return.
    """
    generator = torch.Generator().manual_seed(0)
    random = {key: torch.randint(-2**31, 2**31, meta.shape, generator=generator, dtype=torch.int32)
              for key, meta in merge.stored.items()}
    try:
        made = merge._reverted(merge.convert(random.__getitem__))
        return tuple(next(i for i, t in enumerate(made) if torch.equal(t, random[key])) for key, _ in merge.sources)
    except Exception as error:  # as above; StopIteration where a tensor did not come back
        raise _no_way_back(merge, "transformers cannot undo its conversion exactly") from error


def natural_key(name: str) -> Any:
    """Return the sort key in which transformers collects the parts of a tensor."""
    return importlib.import_module("transformers.core_model_loading").dot_natural_key(name)


def shape_signature(merge: Merge) -> tuple[Any, ...]:
    """Return what two merges have in common that are undone in the same way, such as the experts of two layers."""
    return (id(merge.converter), tuple((pattern, tuple(merge.stored[key].shape)) for key, pattern in merge.sources))


def _run(converter: Any, name: str, parts: Sequence[tuple[str, str, torch.Tensor]], model: Any) -> dict[str, torch.Tensor]:
    fresh = copy.copy(converter)
    fresh.collected_tensors, fresh.layer_targets = {}, {}
    for _, pattern, tensor in parts:
        fresh.collected_tensors.setdefault(pattern, []).append(tensor)
    made = fresh.convert(name, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def _no_way_back(merge: Merge, why: str) -> UnsupportedModel:
    first = merge.sources[0][0]
    return UnsupportedModel(f"{merge.name!r} of the model is stored as {len(merge.sources)} tensors ({first} …), and {why}.",
                            where=first, fix="Save the model again with save_pretrained.")
