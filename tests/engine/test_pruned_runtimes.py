"""Every smaller file is run by the format's own tools as it is written, beside the what-if that was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cipm.errors import InputError
from cipm.export import export_pruned
from cipm.load import Checkpoint, load
from cipm.pipeline.budgets import prune_job
from cipm.pipeline.runtimes import in_runtime, rounding
from cipm.pruning import shrink
from cipm.symmetry import Symmetry, discover_groups
from cipm.testing.models import mlp, save_huggingface, save_pt2
from cipm.testing.networks import as_checkpoint


def check(source: Path, probe: Path, out: Path) -> dict:
    """Prune in this process; return what is said of the file in its own runtime."""
    request = {"model": str(source), "probe": str(probe), "filename": out.name, "options": {}, "budget": "keep", "value": 0.5,
               "locked": [], "sizes": {}, "form": None, "turn_streams": False}
    return prune_job(request, out.parent, lambda event: None)["certificate"]["runtime"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "x.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(120, 12)).astype(np.float32))
    return path


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".safetensors"])
def test_torch_gives_what_was_measured(suffix: str, rows: Path, tmp_path: Path) -> None:
    model, source = mlp((12, 20, 16, 4)), tmp_path / f"m{suffix}"
    if suffix == ".pt2":
        save_pt2(model, torch.zeros(2, 12), source)
    else:
        save_file(model.state_dict(), source) if suffix == ".safetensors" else torch.save(model.state_dict(), source)
    said = check(source, rows, tmp_path / f"out{suffix}")
    assert said["runtime"] == ("torch.export.load" if suffix == ".pt2" else "load_state_dict")
    assert said["passed"] and 0 <= said["max_rel"] <= said["tolerance"] == 1e-4 and said["rows"] == 60


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint, Symmetry]:
    folder = tmp_path_factory.mktemp("gpt2") / "m"
    save_huggingface("gpt2", folder)
    checkpoint = load(folder)
    return folder, checkpoint, discover_groups(checkpoint)


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_transformers_gives_what_was_written(gpt2: tuple[Path, Checkpoint, Symmetry], suffix: str, tmp_path: Path) -> None:
    folder, checkpoint, symmetry = gpt2
    keep = {group.name: range(0, group.size, 3) for group in symmetry.groups if group.name.endswith("mlp.c_fc")}
    small = shrink(checkpoint, symmetry, keep)
    out = export_pruned(small, folder, tmp_path / f"out{suffix}")
    ids = torch.randint(0, 97, (2, 9))
    inputs = {i.name: ids if i.name == "input_ids" else torch.ones_like(ids) for i in checkpoint.graph.inputs}
    said = in_runtime(out, "huggingface", small.checkpoint, small.checkpoint, {}, inputs)
    assert said is not None and said["runtime"] == "from_pretrained" and said["passed"] and said["max_rel"] < 1e-5


def test_a_file_that_differs_is_found_out(tmp_path: Path) -> None:
    source = save_pt2(mlp((12, 20, 4)), torch.zeros(2, 12), tmp_path / "m.pt2")
    checkpoint = load(source)
    symmetry = discover_groups(checkpoint)
    inputs = {checkpoint.graph.inputs[0].name: torch.randn(5, 12)}
    small = shrink(checkpoint, symmetry, {symmetry.groups[0].name: range(9)})
    other = {key: tensor + 0.01 for key, tensor in small.checkpoint.tensors.items()}
    wrong = export_pruned(replace(small, checkpoint=small.checkpoint.with_tensors(other)), source, tmp_path / "out.pt2")
    said = in_runtime(wrong, "pt2", small.checkpoint, small.checkpoint, {}, inputs)
    assert said is not None and not said["passed"] and said["max_rel"] > 1e-3
    with pytest.raises(InputError, match="torch.export.load gives outputs"):
        in_runtime(save_pt2(mlp((12, 5)), torch.zeros(2, 12), tmp_path / "two.pt2"), "pt2", small.checkpoint,
                   small.checkpoint, {}, inputs)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.125), (torch.float32, 1e-4), (torch.float64, 1e-4)])
def test_narrow_types_may_differ_by_their_own_rounding(dtype: torch.dtype, most: float) -> None:
    assert rounding(as_checkpoint(mlp((4, 3, 2)).to(dtype), (torch.zeros(2, 4, dtype=dtype),))) == most
