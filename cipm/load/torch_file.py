"""Files of torch.save that hold weights alone: where every tensor lies, in the zip layout and in the one before it (.th).

The pickle is read by `pickles`; the bytes are read tensor by tensor, checked against their storages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from cipm.errors import CorruptFile, ModelError, RefusedFormat, UnsupportedModel
from cipm.load.archive import Source, open_source
from cipm.load.checkpoint import LazyTensors
from cipm.load.pickles import FIX, MAX_PICKLE, Storage, Stored, read_pickle
from cipm.load.ranges import Ranges, open_all
from cipm.load.tensors import MAX_RANK, flat_tensor

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
TRAILER = b"\ncipm.json\n"
"""What stands before the record at the end of a file of the old layout; torch's loader stops before it."""
MAX_DEPTH, MAX_DICTS = 4, 10_000
MAX_UNFOLDED = 2**26
"""The most bytes of a tensor with strides of zero, which may unfold to more than its storage holds."""
_ELSEWHERE = "Save it again with a present torch on a little-endian machine."
_AGAIN = "Save or upload the file again."
_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "ema")
_NO_STATE = "The file holds no state dict: it was written by torch.save of something else."


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.save: `places` says by key where each tensor lies, `aliases` which keys are the very tensor of another.

    `storages` are the bytes by storage name in file order, `source` the zip (None in the old layout, whose pickles end
    at `head`), `notes` what stands beside the state dict, `record` the text that an export of ours carries.
    """

    ranges: Ranges
    source: Source | None
    head: int
    storages: Mapping[str, Ranges]
    places: Mapping[str, Stored]
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    record: str | None = None

    @property
    def tensors(self) -> LazyTensors:
        """Return the tensors by key, in file order, aliases left out."""
        own = {key: place for key, place in self.places.items() if key not in self.aliases}
        metas = {key: torch.empty(place.shape, dtype=place.dtype, device="meta") for key, place in own.items()}
        return LazyTensors(metas, lambda key: self._read(own[key]))

    def _read(self, place: Stored) -> torch.Tensor:
        start, end = _extent(place)
        if start == end:
            return torch.empty(place.shape, dtype=place.dtype)
        data = self.storages[place.storage.name].read(start, end)
        return flat_tensor(data, place.dtype).as_strided(place.shape, place.strides).contiguous()


def is_torch_zip(source: Source) -> bool:
    """Tell whether the members are those of torch.save, and not of TorchScript."""
    return "data.pkl" in source and not ("constants.pkl" in source or any(name.startswith("code/") for name in source.files))


def is_legacy(head: bytes) -> bool:
    """Tell whether a file begins as torch.save wrote it before torch 1.6."""
    return head.startswith(LEGACY_MAGIC)


def read_torch_file(ranges: Ranges) -> TorchFile:
    """Return what a file of torch.save holds.

    Raises RefusedFormat where it holds more than weights, CorruptFile where it contradicts itself.
    """
    return _read_legacy(ranges) if is_legacy(bytes(ranges.read(0, min(64, ranges.size)))) else _read_zip(ranges)


# --- the two layouts --------------------------------------------------------------------------------------------------

def _read_zip(ranges: Ranges) -> TorchFile:
    source = open_source(ranges)
    if "byteorder" in source and bytes(source.read("byteorder", 64)) != b"little":
        raise UnsupportedModel("The file was written on a big-endian machine.", where="byteorder", fix=_ELSEWHERE)
    value, _, storages = read_pickle(source.read("data.pkl", MAX_PICKLE))
    missing = [name for name in storages if f"data/{name}" not in source]
    if missing:
        raise CorruptFile(f"The file lacks the bytes of {len(missing)} tensors ('data/{missing[0]}').", where=missing[0],
                          fix=_AGAIN)
    found = {name.removeprefix("data/"): item for name, item in open_all(source, (f"data/{n}" for n in storages)).items()}
    wrong = next((name for name, storage in storages.items() if found[name].size != storage.size), None)
    if wrong is not None:
        raise CorruptFile(f"Storage {wrong!r} should have {storages[wrong].size:,} bytes and has {found[wrong].size:,}.",
                          where=wrong, fix=_AGAIN)
    record = source.read("cipm.json").decode("utf-8", "replace") if "cipm.json" in source else None
    return _torch_file(ranges, source, 0, found, value, record)


def _read_legacy(ranges: Ranges) -> TorchFile:
    data = ranges.read(0, min(ranges.size, MAX_PICKLE))
    _, at, _ = read_pickle(data)
    version, at, _ = read_pickle(data, at)
    system, at, _ = read_pickle(data, at)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedModel("The file was written by a very old torch or on a big-endian machine.", fix=_ELSEWHERE)
    value, at, storages = read_pickle(data, at)
    names, at, _ = read_pickle(data, at)
    if not isinstance(names, list) or set(map(str, names)) != set(storages) or len(names) != len(storages):
        raise CorruptFile("The file does not list the storages of its tensors.", fix=_AGAIN)
    head, found = at, {}
    for name in names:
        storage = storages[name]
        count = int.from_bytes(ranges.read(at, at + 8), "little")
        if count != storage.count:
            raise CorruptFile(f"Storage {name!r} should have {storage.count:,} elements and has {count:,}.", where=name,
                              fix=_AGAIN)
        found[name] = ranges.part(name, at + 8, storage.size)
        at += 8 + storage.size
    return _torch_file(ranges, None, head, found, value, _trailer(ranges, at))


def _trailer(ranges: Ranges, end: int) -> str | None:
    rest = ranges.size - end
    if not rest:
        return None
    start = bytes(ranges.read(end, min(ranges.size, end + len(TRAILER))))
    if start != TRAILER or rest > MAX_PICKLE:
        raise CorruptFile(f"{rest:,} bytes follow the last tensor of the file.", where=ranges.name, fix=_AGAIN)
    return ranges.read(end + len(TRAILER), ranges.size).decode("utf-8", "replace")


def _torch_file(ranges: Ranges, source: Source | None, head: int, storages: Mapping[str, Ranges], value: Any,
                record: str | None) -> TorchFile:
    path, state = _state_dict(value)
    places = {key: item for key, item in state.items() if isinstance(item, Stored)}
    for key, place in places.items():
        _check(key, place)
    aliases = _aliases(places)
    _check_apart({key: place for key, place in places.items() if key not in aliases})
    return TorchFile(ranges, source, head, storages, places, aliases, tuple(_notes(value, path, state)), record)


# --- which of the dicts is the model ----------------------------------------------------------------------------------

def _state_dict(value: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return (the keys that lead to the state dict, the state dict) of what was saved."""
    if not isinstance(value, dict):
        raise RefusedFormat(_NO_STATE, where="data.pkl", fix=FIX)
    if _is_state_dict(value):
        return (), value
    found = dict(_state_dicts(value))
    if not found:
        raise RefusedFormat(_NO_STATE, where="data.pkl", fix=FIX)
    usual = [path for name in _USUAL for path in found if path[-1] == name]
    if not usual and len(found) > 1:
        names = ", ".join(repr(".".join(path)) for path in list(found)[:5])
        raise UnsupportedModel(f"The file holds {len(found)} state dicts ({names}), and it is not clear which is the model.",
                               fix="Save the one to read alone, or under the name 'state_dict'.")
    path = usual[0] if usual else next(iter(found))
    return path, found[path]


def _state_dicts(value: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the state dicts inside a dict, shallow ones first; each dict is looked at once, however often it is referred to."""
    seen, level = {id(value)}, [((), value)]
    for _ in range(MAX_DEPTH):
        inner: list[tuple[tuple[str, ...], dict[Any, Any]]] = []
        for path, item in level:
            for key, child in item.items():
                if isinstance(child, dict) and isinstance(key, str) and id(child) not in seen and len(seen) < MAX_DICTS:
                    seen.add(id(child))
                    inner.append(((*path, key), child))
        yield from ((path, item) for path, item in inner if _is_state_dict(item) and not path[0].startswith("optim"))
        level = [(path, item) for path, item in inner if not _is_state_dict(item)]


def _is_state_dict(value: dict[Any, Any]) -> bool:
    return any(isinstance(item, Stored) and isinstance(key, str) for key, item in value.items())


def _notes(value: dict[Any, Any], path: tuple[str, ...], state: Mapping[str, Any]) -> Iterator[str]:
    if path:
        yield f"The weights are read from {'.'.join(path)!r} of the file."
    beside, level = [], value
    for key in path:
        beside += [str(name)[:60] for name in level if name != key]
        level = level[key]
    beside += [str(name)[:60] for name, item in state.items() if not isinstance(item, Stored)]
    if beside:
        yield f"What the file holds beside the weights is kept as it is ({len(beside)}): {', '.join(beside[:5])}."
    if any(name.startswith("optim") for name in beside):
        yield "The optimiser's state keeps the order of the uploaded file: training does not go on from a reorganised one."


# --- checks -----------------------------------------------------------------------------------------------------------

def _check(key: str, place: Stored) -> None:
    if len(place.shape) > MAX_RANK or len(place.shape) != len(place.strides) or len(key) > 512:
        raise _impossible(key[:80], place)
    if 0 in place.shape:
        return
    _, end = _extent(place)
    size = math.prod(place.shape) * place.dtype.itemsize
    if end > place.storage.size or size > max(place.storage.size, MAX_UNFOLDED if 0 in place.strides else 0):
        raise CorruptFile(f"Tensor {key!r} of shape {list(place.shape)} needs more than the {place.storage.size:,} bytes of "
                          "its storage.", where=key, fix=_AGAIN)
    reach = 0
    for size, stride in sorted(zip(place.shape, place.strides, strict=True), key=lambda pair: pair[1]):
        if size > 1 and 0 < stride <= reach:
            raise _impossible(key, place)
        reach += (size - 1) * stride


def _impossible(key: str, place: Stored) -> ModelError:
    return CorruptFile(f"Tensor {key!r} has an impossible shape {list(place.shape)[:9]} with strides "
                       f"{list(place.strides)[:9]}.", where=key, fix=_AGAIN)


def _extent(place: Stored) -> tuple[int, int]:
    """Return the bytes [start, end) of its storage that a tensor spans."""
    width = place.dtype.itemsize
    if 0 in place.shape:
        return place.offset * width, place.offset * width
    last = sum((size - 1) * stride for size, stride in zip(place.shape, place.strides, strict=True))
    return place.offset * width, (place.offset + last + 1) * width


def _aliases(places: Mapping[str, Stored]) -> dict[str, str]:
    """Return the keys that are the very tensor of an earlier key (tied weights)."""
    first: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for key, place in places.items():
        view = (place.storage.name, place.dtype, place.offset, place.shape, place.strides)
        if 0 not in place.shape and first.setdefault(view, key) != key:
            aliases[key] = first[view]
    return aliases


def _check_apart(places: Mapping[str, Stored]) -> None:
    """Raise UnsupportedModel where two tensors share part of their bytes: one could not move without the other."""
    by_storage: dict[str, list[tuple[int, int, str]]] = {}
    for key, place in places.items():
        if 0 not in place.shape:
            by_storage.setdefault(place.storage.name, []).append((*_extent(place), key))
    for items in by_storage.values():
        for (_, end, key), (start, _, other) in pairwise(sorted(items)):
            if start < end:
                raise UnsupportedModel(f"Tensors {key!r} and {other!r} share part of their memory.", where=key,
                                       fix="Save copies: torch.save({k: v.clone() for k, v in model.state_dict().items()}, …).")


__all__ = ["TRAILER", "Storage", "TorchFile", "is_legacy", "is_torch_zip", "read_torch_file"]
