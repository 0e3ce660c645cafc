"""Where a model's tensors lie in its files: renamed, tied, or merged from several by transformers' own conversion.

A tensor that a file holds as the model has it keeps the file's key. What the model has as a merge of stored tensors (the
experts of a layer in one) or as a part of one (a fused projection taken apart) has the model's name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cipm.errors import CorruptFile
from cipm.load.huggingface_merge import Merge, Metas, Read, make_merge, natural_key, prove_way_back, shape_signature

BELONGS = "Upload the config.json that belongs to these weights."


@dataclass(frozen=True)
class Layout:
    """How the tensors of a model lie in its files.

    `names` maps the model's own names to keys of the checkpoint, for what is stored; `metas` holds a meta tensor for every
    such key. `aliases` maps a stored key to the key whose tensor it repeats; `spare` are stored keys without a place.
    """

    names: Mapping[str, str]
    metas: Metas
    merges: tuple[Merge, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()

    @property
    def made(self) -> dict[str, Merge]:
        """Return the merge that makes a key of the checkpoint."""
        return {key: merge for merge in self.merges for key in merge.targets}

    @property
    def parts(self) -> dict[str, Merge]:
        """Return the merge that a stored key is a part of."""
        return {key: merge for merge in self.merges for key, _ in merge.sources}

    def reader(self, stored: Read) -> Read:
        """Return how to read a tensor by its key in the checkpoint; parts of one stored tensor are made once in a row."""
        made, latest = self.made, {}

        def read(key: str) -> torch.Tensor:
            if key not in made:
                return stored(key)
            if key not in latest:
                latest.clear()
                latest.update(made[key].convert(stored))
            return latest.pop(key).contiguous()

        return read

    def writer(self, tensors: Mapping[str, torch.Tensor]) -> Read:
        """Return how to get a stored tensor by its key in the file, from the tensors of a checkpoint by its keys.

        The parts of the two merges met last are kept until they are asked for.
        """
        parts, latest = self.parts, {}

        def get(key: str) -> torch.Tensor:
            if key not in parts:
                return tensors[self.aliases.get(key, key)]
            merge = parts[key]
            if key not in latest.get(merge.name, {}):
                while len(latest) > 2:
                    latest.pop(next(iter(latest)))
                latest[merge.name] = merge.revert(tensors.__getitem__)
            return latest[merge.name].pop(key)

        return get


def lay_out(model: Any, stored: Metas, architecture: str) -> Layout:
    """Return the layout of the stored tensors (meta tensors by key) for a model on the meta device.

    Raises CorruptFile naming missing and misshapen tensors, UnsupportedModel where a merge cannot be undone.
    """
    state = model.state_dict(keep_vars=True)
    names, groups, spare = _sort(model, stored, state)
    merges = [make_merge(converter, model, name, sources, stored) for name, (converter, sources) in groups.items()]
    merges = [merge for merge in merges if set(merge.targets) <= set(state)]
    used = {key for merge in merges for key in merge.stored}
    spare += [key for _, sources in groups.values() for key, _ in sources if key not in used]
    made = {key: tensor for merge in merges for key, tensor in merge.targets.items()}
    twice = next((key for key in made if key in names), None)
    if twice is not None:
        raise CorruptFile(f"Tensor {twice!r} is stored as a whole and in parts.", where=names[twice],
                          fix="Save the model again with save_pretrained.")
    metas = {key: t for key, t in stored.items() if key not in used} | made
    layout = Layout(names | {key: key for key in made}, metas, tuple(_proved(merges)), {}, tuple(spare))
    _check_shapes(layout, state, architecture)
    _check_missing(layout, model, state, architecture)
    return layout


def with_aliases(layout: Layout, model: Any, read: Read) -> Layout:
    """Return the layout with the stored repeats of tied tensors as aliases; what is tied but differs is untied in the model."""
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        if name not in layout.names:
            continue
        key = layout.names[name]
        original = first.setdefault(id(value), key)
        if key == original:
            continue
        if same(read(original), read(key)):
            aliases[key] = original
        else:
            _untie(model, name)
    metas = {key: t for key, t in layout.metas.items() if key not in aliases}
    names = {name: aliases.get(key, key) for name, key in layout.names.items()}
    return replace(layout, names=names, metas=metas, aliases=aliases)


def keys_of_state(layout: Layout, model: Any) -> dict[str, str]:
    """Return the checkpoint's key for every stored tensor of the model, tied names included."""
    state = model.state_dict(keep_vars=True)
    key_of = {id(value): layout.names[name] for name, value in reversed(list(state.items())) if name in layout.names}
    return {name: key_of[id(value)] for name, value in state.items() if id(value) in key_of}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors hold the same bits, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def _sort(model: Any, stored: Metas, state: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Return ({model's name: stored key}, {name: (converter, its sources)}, keys without a place), as from_pretrained does."""
    loading = importlib.import_module("transformers.core_model_loading")
    mapping = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    names: dict[str, str] = {}
    groups: dict[str, Any] = {}
    spare: list[str] = []
    prefix, shapes = model.base_model_prefix, dict(state)
    for key in sorted(stored, key=natural_key):
        name, pattern = loading.rename_source_key(key, renamings, converters, prefix, shapes)
        if name not in state and key in state:
            name, pattern = loading.rename_source_key(key, [], [], prefix, shapes)
        if name not in state or (pattern is None and name in names):
            spare.append(key)
        elif pattern is None:
            names[name] = key
        else:
            groups.setdefault(name, (by_pattern[pattern], []))[1].append((key, pattern))
    return names, groups, spare


def _proved(merges: list[Merge]) -> list[Merge]:
    """Return the merges with their ways back; of those alike in shapes (the layers of a model) one is tried."""
    tried: dict[Any, tuple[int, ...]] = {}
    result = []
    for merge in merges:
        signature = shape_signature(merge)
        tried[signature] = tried[signature] if signature in tried else prove_way_back(merge)
        result.append(replace(merge, back=tried[signature]))
    return result


def _untie(model: Any, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    module.register_parameter(leaf, torch.nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))


def _check_shapes(layout: Layout, state: Mapping[str, Any], architecture: str) -> None:
    wrong = [f"{key} is {list(layout.metas[key].shape)} and should be {list(state[name].shape)}"
             for name, key in layout.names.items() if layout.metas[key].shape != state[name].shape]
    if wrong:
        raise CorruptFile(f"Stored tensors do not fit {architecture} of config.json ({len(wrong)}): {'; '.join(wrong[:3])}.",
                          where="model.safetensors", fix=BELONGS)


def _check_missing(layout: Layout, model: Any, state: Mapping[str, Any], architecture: str) -> None:
    given = {id(value) for name, value in state.items() if name in layout.names}
    optional = re.compile("|".join(["num_batches_tracked$", *(model._keys_to_ignore_on_load_missing or ())]))
    missing = [name for name, value in state.items() if name not in layout.names and id(value) not in given
               and not optional.search(name)]
    if missing:
        raise CorruptFile(f"The upload lacks tensors of {architecture} ({len(missing)}): {', '.join(missing[:3])}.",
                          where="model.safetensors", fix=BELONGS)
