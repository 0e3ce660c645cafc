"""Every smaller file is run by the format's own tools as it is written, beside the what-if that was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cipm.errors import UnsupportedModel
from cipm.export import export_pruned
from cipm.load import Checkpoint, load
from cipm.pipeline import runtimes
from cipm.pipeline.budgets import prune_job
from cipm.pipeline.runtimes import MOST_OWN, ROUNDING, in_runtime, rounding
from cipm.pipeline.smaller import NOT_RUN
from cipm.pruning import masked, shrink
from cipm.pruning.shrink import Shrunk
from cipm.symmetry import Symmetry, discover_groups
from cipm.testing.models import mlp, save_huggingface, save_pt2
from cipm.testing.networks import as_checkpoint
from cipm.views.text import prune_lines


def check(source: Path, probe: Path, out: Path) -> dict:
    """Prune in this process; return what is said of the file in its own runtime."""
    return pruned(source, probe, out)["certificate"]["runtime"]


def pruned(source: Path, probe: Path, out: Path, form: str | None = None) -> dict:
    request = {"model": str(source), "probe": str(probe), "filename": out.name, "options": {}, "budget": "keep", "value": 0.5,
               "locked": [], "sizes": {}, "form": form, "turn_streams": False}
    return prune_job(request, out.parent, lambda event: None)


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


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Shrunk, dict[str, torch.Tensor]]:
    source = save_pt2(mlp((12, 20, 4)), torch.zeros(2, 12), tmp_path / "m.pt2")
    checkpoint = load(source)
    symmetry = discover_groups(checkpoint)
    inputs = {checkpoint.graph.inputs[0].name: torch.randn(5, 12, generator=torch.Generator().manual_seed(0))}
    return source, shrink(checkpoint, symmetry, {symmetry.groups[0].name: range(9)}), inputs


def test_a_file_that_differs_is_refused(small: tuple[Path, Shrunk, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    source, right, inputs = small
    wrong = right.checkpoint.with_tensors({key: tensor + 0.01 for key, tensor in right.checkpoint.tensors.items()})
    out = export_pruned(replace(right, checkpoint=wrong), source, tmp_path / "out.pt2")
    with pytest.raises(UnsupportedModel, match=r"gives other outputs .* explains 1.0e-04. The file is discarded") as raised:
        in_runtime(out, "pt2", right.checkpoint, right.checkpoint, {}, inputs)
    assert raised.value.fix == "Choose another format or other sizes." and raised.value.where == "out.pt2"
    with pytest.raises(UnsupportedModel, match="torch.export.load gives outputs"):
        in_runtime(save_pt2(mlp((12, 5)), torch.zeros(2, 12), tmp_path / "two.pt2"), "pt2", right.checkpoint,
                   right.checkpoint, {}, inputs)
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(UnsupportedModel, match="onnxruntime does not run it: .* The file is discarded"):
        in_runtime(tmp_path / "no.onnx", "onnx", right.checkpoint, right.checkpoint, {}, inputs)


def test_a_model_that_rounding_moves_far_is_held_to_its_own_rounding(small: tuple[Path, Shrunk, dict[str, torch.Tensor]],
                                                                     tmp_path: Path) -> None:
    source, _, inputs = small
    whole = load(source)
    weight = whole.tensors["layers.1.weight"].clone()
    weight[:, :9] -= weight[:, :9].mean(1, keepdim=True)
    bias = whole.tensors["layers.0.bias"] + 1e5
    whole = whole.with_tensors({**whole.tensors, "layers.0.bias": bias, "layers.1.weight": weight})
    symmetry = discover_groups(whole)
    keep = {symmetry.groups[0].name: range(9)}
    right, (zeros, intervene) = shrink(whole, symmetry, keep), masked(whole, symmetry, keep)
    said = in_runtime(export_pruned(right, source, tmp_path / "out.pt2"), "pt2", right.checkpoint, zeros, intervene, inputs)
    assert said is not None and said["passed"] and ROUNDING < said["max_rel"] <= said["tolerance"] <= MOST_OWN


def test_nothing_is_written_where_the_runtime_disagrees(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_pt2(mlp((12, 20, 16, 4)), torch.zeros(2, 12), tmp_path / "m.pt2")
    monkeypatch.setitem(runtimes.RUNTIMES, "pt2", ("torch.export.load", lambda file, small, inputs: [torch.ones(60, 4)]))
    with pytest.raises(UnsupportedModel, match="torch.export.load gives other outputs"):
        check(source, rows, tmp_path / "out.pt2")


def test_a_runtime_that_is_not_installed_is_said(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_pt2(mlp((12, 20, 16, 4)), torch.zeros(2, 12), tmp_path / "m.pt2")
    monkeypatch.setattr(runtimes, "runtime_is_there", lambda: False)
    made = pruned(source, rows, tmp_path / "out.onnx", form="onnx")
    assert made["certificate"]["runtime"] is None and NOT_RUN in made["notes"]
    assert not any("gives what was measured" in line for line in prune_lines(made))


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.125), (torch.float32, 1e-4), (torch.float64, 1e-4)])
def test_narrow_types_may_differ_by_their_own_rounding(dtype: torch.dtype, most: float) -> None:
    assert rounding(as_checkpoint(mlp((4, 3, 2)).to(dtype), (torch.zeros(2, 4, dtype=dtype),))) == most
