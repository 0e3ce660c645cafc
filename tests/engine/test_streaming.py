"""Large models: every tensor is read when it is needed and let go, so that a few are in memory at once, never all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from cipm.export import export, restore
from cipm.load import checkpoint as checkpoints
from cipm.load import load
from cipm.load.checkpoint import Checkpoint, LazyTensors
from cipm.permutation import Permutation, Plan
from cipm.pipeline.commands import reorganize_job, restore_job, verify_job
from cipm.pipeline.context import read_checkpoint, write_checkpoint
from cipm.testing.models import save_huggingface
from cipm.trace import Graph, Input, Node, Ref, interpret, run

LAYERS, WIDTH = 12, 64


class Watch:
    """What was read lazily and is still in memory: the most tensors at once, and how many reads there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.alive: list[StorageWeakRef] = []
        self.reads = self.most = 0
        original = LazyTensors.__getitem__

        def read(tensors: LazyTensors, key: str) -> torch.Tensor:
            found = original(tensors, key)
            self.reads += 1
            self.alive = [*(item for item in self.alive if not item.expired()), StorageWeakRef(found.untyped_storage())]
            self.most = max(self.most, len(self.alive))
            return found

        monkeypatch.setattr(LazyTensors, "__getitem__", read)
        monkeypatch.setattr(checkpoints, "HELD_BYTES", 0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def chain() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"fc{n}.weight": torch.randn(WIDTH, WIDTH, generator=generator) / 8 for n in range(LAYERS)}


def everything(checkpoint: Checkpoint) -> Plan:
    generator = np.random.default_rng(0)
    return Plan({(key, axis): Permutation.random(WIDTH, generator=generator)
                 for key in checkpoint.tensors for axis in (0, 1)}, {})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".th"])
def test_reading_writing_and_running_hold_a_few_tensors(tmp_path: Path, watch: Watch, suffix: str) -> None:
    path, tensors = tmp_path / f"w{suffix}", chain()
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == ".pt")
    checkpoint = load(path)
    assert watch.reads == 0 and isinstance(checkpoint.tensors, LazyTensors) and checkpoint.parameters == LAYERS * WIDTH**2
    (tmp_path / "open").mkdir()
    write_checkpoint(checkpoint, tmp_path / "open")
    again = read_checkpoint(tmp_path / "open")
    assert isinstance(again.tensors, LazyTensors) and list(again.tensors) == list(checkpoint.tensors)
    x = {"x": torch.randn(3, WIDTH)}
    first, second = (run(c.graph, c.tensors, c.constants, x, dtype=torch.float64)[0] for c in (checkpoint, again))
    assert torch.equal(first, second)
    out = export(again, path, everything(again), None, tmp_path / f"out{suffix}")
    restore(out, tmp_path / f"back{suffix}")
    answer = verify_job({"model": str(path), "other": str(tmp_path / f"back{suffix}"), "probe": None}, tmp_path, print)
    assert answer["same"] and answer["max_abs"] == 0
    assert watch.reads >= 6 * LAYERS and watch.most <= 3
    found = (load_file if suffix == ".safetensors" else torch.load)(tmp_path / f"back{suffix}")
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def shards(folder: Path, many: int) -> None:
    """Split the weights of a model in Hugging Face's layout into shards, as save_pretrained does for large ones."""
    tensors = load_file(folder / "model.safetensors")
    places = {key: f"model-{n % many + 1:05}-of-{many:05}.safetensors" for n, key in enumerate(tensors)}
    for name in sorted(set(places.values())):
        save_file({key: t for key, t in tensors.items() if places[key] == name}, folder / name, metadata={"format": "pt"})
    size = sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    (folder / "model.safetensors").unlink()


def test_a_sharded_model_is_reorganised_and_restored_in_a_stream(tmp_path: Path, watch: Watch) -> None:
    save_huggingface("llama", tmp_path / "model", num_hidden_layers=2)
    shards(tmp_path / "model", 3)
    request = {"model": str(tmp_path / "model"), "order": "random", "orders": {}, "seed": 0, "filename": "new", "forms": []}
    (tmp_path / "scratch").mkdir()
    result = reorganize_job(request, tmp_path / "scratch", lambda event: None)
    new = tmp_path / "scratch" / "new"
    assert result["certificate"]["plan"]["passed"] and watch.reads > 100
    assert sorted(p.name for p in new.iterdir()) == sorted([*(p.name for p in (tmp_path / "model").iterdir()), "cipm.json"])
    restore_job({"model": str(new), "filename": "back"}, tmp_path, lambda event: None)
    assert watch.most <= 4  # of 21 tensors
    for path in (tmp_path / "model").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_large_weights_are_cast_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    weight = torch.randn(50, 16).to(torch.bfloat16)
    refs = (Ref("ids"), Ref("table"), Ref("w"), Ref("b"))
    graph = Graph((Input("ids", (2, 5), torch.int64),), {"table": "table", "w": "w", "b": "b"}, {},
                  (Node("x", "aten.embedding.default", (refs[1], refs[0])),
                   Node("y", "aten.linear.default", (Ref("x"), refs[2], refs[3]))), (Ref("y"),))
    assert interpret.taken_in_parts(graph) == {"table", "w"}
    tied = replace(graph, nodes=(*graph.nodes, Node("z", "aten.relu.default", (refs[2],))))
    assert interpret.taken_in_parts(tied) == {"table"}
    monkeypatch.setattr(interpret, "PART", 16 * 7)
    tensors, ids = {"table": x.view(10, 16).to(torch.bfloat16), "w": weight, "b": bias}, torch.arange(10).view(2, 5)
    found, = run(graph, tensors, {}, {"ids": ids}, dtype=torch.float64)
    expected = torch.nn.functional.linear(tensors["table"].double().view(2, 5, 16), weight.double(), bias)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_a_small_model_is_held(tmp_path: Path) -> None:
    save_file(chain(), tmp_path / "w.safetensors")
    assert isinstance(load(tmp_path / "w.safetensors").tensors, dict)
