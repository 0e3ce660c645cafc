"""Collected statistics on disk: one file for each pass, read back tap by tap."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from cipm.statistics import ClassConditional, HalfSplit, Profile
from cipm.statistics.collect import Collected
from cipm.statistics.labels import Labelled
from cipm.statistics.sampling import sampling_effect
from cipm.symmetry import Tap

Statistics = Mapping[str, HalfSplit]


class StoredStatistics(Mapping[str, HalfSplit]):
    """The statistics of a finished stage, read one by one; the last few stay in memory, up to so many bytes."""

    def __init__(self, folder: Path, memory: int):
        self._folder, self._memory = folder, memory
        self._facts = {tap["key"]: tap for tap in json.loads((folder / "statistics.json").read_text())["taps"]}
        self._at = {key: tap["pass"] for key, tap in self._facts.items()}
        self._kept: dict[str, HalfSplit] = {}

    def __getitem__(self, key: str) -> HalfSplit:
        at = self._at[key]
        found = self._kept.pop(key, None) or HalfSplit.from_state(_arrays(self._folder, at, f"{key}/half/"))
        self._kept[key] = found  # now the newest
        while len(self._kept) > 1 and sum(12 * half.whole.units**2 for half in self._kept.values()) > self._memory:
            del self._kept[next(iter(self._kept))]
        return found

    def profile(self, key: str) -> Profile:
        """Return what each unit does by itself at this tap."""
        return Profile.from_state(_arrays(self._folder, self._at[key], f"{key}/profile/"))

    def by_class(self, key: str) -> ClassConditional | None:
        """Return the covariance of every class at this tap, or None where it was not collected."""
        return _by_class(self._folder, self._at[key], key)

    def facts(self, key: str) -> dict[str, Any]:
        """Return what statistics.json says of this tap."""
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


def write_pass(folder: Path, at: int, taps: Sequence[Tap], found: Mapping[str, Collected]) -> list[dict[str, Any]]:
    """Write what one pass gave; return its facts, tap by tap."""
    arrays: dict[str, np.ndarray] = {}
    for key, one in found.items():
        parts = {"half": one.half.state(), "profile": one.profile.state(),
                 "counts": {"": np.array([one.possible, one.padding], np.int64)},
                 "classes": {} if one.classes is None else vars(one.classes)}
        arrays |= {f"{key}/{part}/{name}": np.array(array, order="C") for part, state in parts.items()
                   for name, array in state.items()}
    save_file(arrays, folder / f"statistics-{at}.safetensors")
    return [_tap_facts(tap, found[tap.key], at) for tap in taps]


def _tap_facts(tap: Tap, found: Collected, at: int) -> dict[str, Any]:
    rows, samples = found.half.rows, found.half.samples
    effect = sampling_effect((found.possible - found.padding) / rows, samples / rows)
    return {"key": tap.key, "value": tap.value, "axis": tap.axis, "units": len(tap.index), "pass": at, "rows": rows,
            "samples": samples, "positions": {"there": found.possible // rows, "kept": samples / rows, **effect},
            "padding": {"samples": found.padding, "words": list(found.said)},
            "labels": {"of": found.labels.of, "words": list(found.labels.words)}}


def read_pass(folder: Path, at: int) -> dict[str, Collected]:
    """Return what one pass of a stored shard gave."""
    facts = [tap for tap in json.loads((folder / "statistics.json").read_text())["taps"] if tap["pass"] == at]
    found = {}
    for tap in facts:
        key, labels = tap["key"], tap["labels"]
        possible, padding = (int(n) for n in _arrays(folder, at, f"{key}/counts/")[""])
        found[key] = Collected(HalfSplit.from_state(_arrays(folder, at, f"{key}/half/")),
                               Profile.from_state(_arrays(folder, at, f"{key}/profile/")), possible, padding,
                               tuple(tap["padding"]["words"]), Labelled(labels["of"], tuple(labels["words"])),
                               _by_class(folder, at, key))
    return found


def _by_class(folder: Path, at: int, key: str) -> ClassConditional | None:
    arrays = _arrays(folder, at, f"{key}/classes/")
    return ClassConditional(**arrays) if arrays else None


def _arrays(folder: Path, at: int, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays under a prefix of a pass's file."""
    with safe_open(folder / f"statistics-{at}.safetensors", framework="numpy") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
