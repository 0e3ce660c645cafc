"""The sample models: really trained, readable by our own readers, with the symmetry that their architectures have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from cipm.load import load
from cipm.load.probe import open_probe
from cipm.symmetry import Symmetry, discover_groups, prove
from cipm.testing.models import HUGGING_FACE, ResidualCnn, cnn_residual, mlp, save_huggingface, save_pt2, seeded
from cipm.testing.samples import SAMPLES
from cipm.trace import run

MODELS = tuple(sample.model_file for sample in SAMPLES)


def logits(checkpoint, x: torch.Tensor) -> torch.Tensor:
    """Return what the graph in the file computes, not what our own class would."""
    name = checkpoint.graph.inputs[0].name
    outputs = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {name: x})
    return next(value for value in outputs if value is not None)


def proved(path: Path) -> Symmetry:
    """Return the symmetry of a model file, proved."""
    checkpoint = load(path)
    return prove(checkpoint, discover_groups(checkpoint), draws=1)


def test_every_file_is_listed_and_there(samples):
    assert set(samples.index) == {name for sample in SAMPLES for name in (sample.model_file, sample.probe_file)}
    assert sorted(path.name for path in samples.folder.iterdir()) == sorted([*samples.index, "samples.json"])
    assert all(about["kind"] in ("model", "probe") and about["title"] for about in samples.index.values())


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_on_held_out_digits_is_as_the_index_says(samples, name):
    checkpoint = load(samples.file(name))
    with np.load(samples.probe(name)) as probe:
        rows, right, held_out = (probe[key] for key in (checkpoint.graph.inputs[0].name, "y", "held_out"))
    told = logits(checkpoint, torch.from_numpy(rows[held_out])).argmax(1).numpy()
    accuracy = float((told == right[held_out]).mean())
    assert accuracy >= 0.95
    assert held_out.sum() == samples.index[name]["held_out_rows"] and 0 < held_out.sum() < len(rows)
    assert accuracy == pytest.approx(samples.index[name]["accuracy"], abs=1e-6)
    assert f"{accuracy:.1%}" in samples.index[name]["title"]


@pytest.mark.parametrize("name", MODELS)
def test_the_probe_fits_its_model_by_name(samples, name):
    checkpoint = load(samples.file(name))
    probe = open_probe(samples.probe(name), checkpoint.graph.inputs, max_rows=10_000)
    assert probe.used_rows == 1000 and set(probe.labels.tolist()) == set(range(10))
    assert list(probe.notes) == ["Left out: 'held_out' [1000] bool."]


def test_the_mlp_has_its_two_hidden_layers(samples):
    symmetry = proved(samples.file("digits_mlp.pt2"))
    assert [(group.kind, group.size, group.proved) for group in symmetry.groups] == [("units", 128, True), ("units", 96, True)]


def test_the_cnn_has_its_streams_and_what_is_inside_the_blocks(samples):
    symmetry = proved(samples.file("digits_cnn.pt2"))
    reached = {group.size: [] for group in symmetry.groups}
    for group in symmetry.groups:
        reached[group.size].append({(place.tensor, place.axis) for place in group.places})
    assert sorted((group.size, group.proved) for group in symmetry.groups) == [(16, True)] * 2 + [(32, True)] * 2
    narrow = {("stem.weight", 0), ("block1.conv2.weight", 0), ("block2.conv1.weight", 1), ("block2.shortcut.0.weight", 1)}
    wide = {("block2.conv2.weight", 0), ("block2.shortcut.0.weight", 0), ("block2.shortcut.1.running_var", 0),
            ("head.weight", 1)}
    assert any(narrow <= places for places in reached[16]) and any(wide <= places for places in reached[32])


def test_what_is_there_is_not_trained_again(samples, tmp_path):
    samples.copy(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-m", "cipm.testing.samples", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line_and_status_1(tmp_path):
    (taken := tmp_path / "file").write_text("")
    done = subprocess.run([sys.executable, "-m", "cipm.testing.samples", str(taken)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("The samples cannot be written:") and done.stderr.count("\n") == 1


def test_factories_are_seeded_and_leave_the_generator_alone(tmp_path: Path):
    state = torch.get_rng_state()
    first, again, other = cnn_residual(seed=1), cnn_residual(seed=1), cnn_residual(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.stem.weight, other.stem.weight)
    assert torch.equal(seeded(lambda: ResidualCnn(), 1).stem.weight, first.stem.weight)


def test_save_pt2_takes_any_number_of_rows(tmp_path: Path):
    model, rows = mlp((7, 5, 3), seed=3), torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    checkpoint = load(save_pt2(model, rows[:2], tmp_path / "mlp.pt2"))
    assert torch.equal(logits(checkpoint, rows), model(rows)) and torch.equal(logits(checkpoint, rows[:1]), model(rows[:1]))


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face_folders_are_read(kind: str, tmp_path: Path):
    save_huggingface(kind, tmp_path, seed=5)
    assert AutoConfig.from_pretrained(tmp_path).model_type == kind
    checkpoint = load(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert checkpoint.format == "huggingface" and stored.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in checkpoint.tensors.items())
