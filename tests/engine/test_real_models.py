"""Published weights: the groups are those of mathematics, the proof holds, and accuracy on real images is what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cipm.load import load
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import save_pt2
from cipm.testing.networks_residual import CifarResnet20
from cipm.trace import run

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data and weights (../shared/data) are not here")


def test_resnet20_on_cifar10(tmp_path):
    model = CifarResnet20.read(DATA / "cifar10_resnet" / "resnet20-12fca82f.th")
    checkpoint = load(save_pt2(model, torch.zeros(2, 3, 32, 32), tmp_path / "resnet20.pt2"))
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert symmetry.certificate.passed and not [note for note in symmetry.notes if "failed" in note]
    inner = [g.size for g in symmetry.groups if g.kind == "channels" and len(g.taps) == 1]
    streams = sorted(g.size for g in symmetry.groups if g.kind == "residual stream")
    # Nine block insides; the stem's 16 channels run through all stages, and each stage adds what the shortcut pads.
    assert sorted(inner) == [16] * 3 + [32] * 3 + [64] * 3 and streams == [16, 16, 32]
    with np.load(DATA / "datasets" / "cifar10_lossless_4k_1k.npz") as file:
        images, labels = file["x_test"], file["y_test"]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(images[:200]).float() / 255 - mean) / deviation
    inputs = {checkpoint.graph.inputs[0].name: x.permute(0, 3, 1, 2)}
    moved = random_member(symmetry, symmetry.groups, np.random.default_rng(0)).apply(checkpoint.tensors)
    before, after = (run(checkpoint.graph, t, checkpoint.constants, inputs)[0] for t in (checkpoint.tensors, moved))
    assert (before.argmax(1) == after.argmax(1)).all()
    assert (before.argmax(1).numpy() == labels[:200]).mean() > 0.88  # published: 0.9173
