"""Damage at random places: a model file is read, or refused with one of our errors; nothing else comes out."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import bad_models as make
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cipm.errors import InputError
from cipm.load import load
from cipm.load.checkpoint import Checkpoint

VALUES: tuple[Any, ...] = (None, True, -1, 0, 1, 2**70, 1.5, 1e30, "", "x", "as_int", [], {}, {"as_int": 3}, [1, 2], "NaN",
                           "__import__('os')", [[]], {"as_none": True}, float("inf"))
PARTS = ("models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in items for path in _paths(item, (*at, key)))]


def damage(payload: Any, seed: int) -> None:
    """Delete, replace or copy one to four places of a JSON value."""
    generator = random.Random(seed)
    for _ in range(generator.choice((1, 1, 2, 4))):
        paths = [path for path in _paths(payload) if path]
        if not paths:
            return
        *before, last = generator.choice(paths)
        place = payload
        for key in before:
            place = place[key]
        match generator.randrange(3):
            case 0:
                del place[last]
            case 1:
                place[last] = copy.deepcopy(generator.choice(VALUES))
            case 2:
                other = payload
                for key in generator.choice(paths):
                    other = other[key]
                place[last] = copy.deepcopy(other)


def _read_or_refused(path: Path) -> None:
    try:
        assert isinstance(load(path), Checkpoint)
    except InputError as error:
        assert error.message and "\n" not in error.line()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.tiny_export(tmp_path_factory.mktemp("good") / "good.pt2")


@MANY
@given(seed=st.integers(0, 2**32 - 1), part=st.sampled_from(PARTS))
def test_damaged_export_archives(good: Path, seed: int, part: str) -> None:
    _read_or_refused(make.rewrite(good, good.parent / "bad.pt2", {part: lambda payload: damage(payload, seed)}))


@MANY
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_bytes(good: Path, seed: int) -> None:
    data = bytearray(good.read_bytes())
    generator = random.Random(seed)
    for _ in range(generator.choice((1, 5, 50))):
        data[generator.randrange(len(data))] = generator.randrange(256)
    (good.parent / "bytes.pt2").write_bytes(data)
    _read_or_refused(good.parent / "bytes.pt2")


@MANY
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_hub_configs(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("hub") / "model"
    config = {**copy.deepcopy(make.CONFIG), "id2label": {"0": "a"}, "hidden_act": "relu"}
    damage(config, seed)
    make.hub_folder(folder, config, {"a": torch.zeros(2)})
    _read_or_refused(folder)


@MANY
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_safetensors(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = make.hub_folder(tmp_path_factory.mktemp("hub") / "model", make.CONFIG)
    save_file({"a": torch.zeros(2), "b": torch.ones(3, 2)}, folder / "model.safetensors")
    data = bytearray((folder / "model.safetensors").read_bytes())
    generator = random.Random(seed)
    for _ in range(generator.choice((1, 3))):
        data[generator.randrange(generator.choice((8, 60, len(data))))] = generator.randrange(256)
    (folder / "model.safetensors").write_bytes(data)
    _read_or_refused(folder)


def test_damage_changes_the_file() -> None:
    payload = {"a": [1, {"b": 2}], "c": 3}
    changed = copy.deepcopy(payload)
    damage(changed, 1)
    assert json.dumps(changed) != json.dumps(payload)
