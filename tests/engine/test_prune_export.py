"""Pruned files: the formats' own tools load them, and they compute what the masked model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cipm.errors import Conflict
from cipm.export import export_pruned, read_plan, restore
from cipm.load import Checkpoint, load
from cipm.pruning import masked, shrink
from cipm.symmetry import Symmetry, discover_groups
from cipm.testing.models import cnn_residual, mlp, save_pt2
from cipm.trace import run


def halved(symmetry: Symmetry, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a random half of the units of every group."""
    generator = np.random.default_rng(seed)
    return {group.name: np.sort(generator.choice(group.size, group.size // 2, replace=False)) for group in symmetry.groups}


def reference(checkpoint: Checkpoint, symmetry: Symmetry, keep: dict[str, np.ndarray], **inputs: torch.Tensor) -> torch.Tensor:
    """Return what the masked model computes."""
    model, intervene = masked(checkpoint, symmetry, keep)
    return run(model.graph, model.tensors, model.constants, inputs, intervene=intervene)[0]


@pytest.mark.parametrize(("model", "shape"), [(mlp((64, 40, 30, 10)), (64,)), (cnn_residual(1, 8), (1, 8, 8))],
                         ids=["mlp", "cnn"])
def test_a_pruned_pt2_file_is_the_masked_model(model: torch.nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    source = save_pt2(model, torch.zeros(2, *shape), tmp_path / "m.pt2")
    checkpoint = load(source)
    symmetry = discover_groups(checkpoint)
    keep = halved(symmetry)
    small = shrink(checkpoint, symmetry, keep)
    out = export_pruned(small, source, tmp_path / "out.pt2", details={"loss": {"after": 0.25, "rows": 100}})
    x = torch.randn(7, *shape)
    program = torch.export.load(out)
    torch.testing.assert_close(program.module()(x), reference(checkpoint, symmetry, keep, x=x), rtol=1e-5, atol=1e-6)
    assert sum(t.numel() for t in program.state_dict.values()) < 0.45 * sum(t.numel() for t in model.state_dict().values())
    record = read_plan(out)[1]
    assert record["pruned"]["keep"] == {name: units.tolist() for name, units in keep.items()}
    assert record["pruned"]["loss"] == {"after": 0.25, "rows": 100} and record["certificate"]["max_rel"] <= 1e-10
    with pytest.raises(Conflict, match="The model was pruned: what was removed is not in the file"):
        restore(out, tmp_path / "back.pt2")


def test_keeping_everything_gives_every_bit(tmp_path: Path) -> None:
    source = save_pt2(mlp((8, 6, 3)), torch.zeros(2, 8), tmp_path / "m.pt2")
    checkpoint = load(source)
    out = export_pruned(shrink(checkpoint, discover_groups(checkpoint), {"layers.0": range(6)}), source, tmp_path / "out.pt2")
    again = torch.export.load(out).state_dict
    assert all(torch.equal(again[key], tensor) for key, tensor in checkpoint.tensors.items())
