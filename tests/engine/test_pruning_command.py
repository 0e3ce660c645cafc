"""`cipm prune` on real files: every budget, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cipm.cli import main
from cipm.errors import OptionError
from cipm.load import load
from cipm.load.probe import open_probe
from cipm.options import parse_options
from cipm.pipeline.budgets import choose, prune_job
from cipm.pipeline.context import Context
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.pruning import Pruner
from cipm.symmetry import discover_groups
from cipm.testing.models import save_pt2
from cipm.testing.networks import NETWORKS
from cipm.trace import run
from cipm.views.text import prune_lines

Files = tuple[Path, Path]


def job(files: Files, out: Path, budget: str, value: float, **more: object) -> dict:
    """Return what the command's job gives, run in this process."""
    request = {"model": str(files[0]), "probe": str(files[1]), "filename": out.name, "options": {}, "budget": budget,
               "value": value, "locked": [], "sizes": {}, "form": None, "turn_streams": False, **more}
    return prune_job(request, out.parent, lambda event: None)


@pytest.fixture(scope="module")
def files(samples) -> Files:
    return samples.file("digits_mlp.pt2"), samples.probe("digits_mlp.pt2")


def test_half_of_the_units(files, tmp_path, capsys):
    out = tmp_path / "small.pt2"
    assert main(["prune", *map(str, files), "--keep", "0.5", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"parameters", "flops", "predicted", "measured", "rows"}
    small, probe = load(out), np.load(files[1])
    assert small.parameters == result["parameters"]["after"] < 0.45 * result["parameters"]["before"]
    assert result["flops"]["after"] < 0.45 * result["flops"]["before"]
    rows = torch.from_numpy(probe["x"][1::2])
    made, = run(small.graph, small.tensors, small.constants, {small.graph.inputs[0].name: rows})
    accuracy = float((made.argmax(-1) == torch.from_numpy(probe["y"][1::2])).float().mean())
    assert accuracy == pytest.approx(result["measured"]["accuracy"], abs=2e-3) and result["rows"] == len(rows)
    assert result["measured"]["agreement"] > 0.97 and result["measured"]["kl"] < 0.05
    exported = torch.export.load(out).module()(rows[:8])
    torch.testing.assert_close(exported, made[:8], rtol=1e-4, atol=1e-4)


def test_all_units_give_the_same_tensors(files, tmp_path):
    out = tmp_path / "whole.pt2"
    result = job(files, out, "keep", 1)
    before, after = load(files[0]), load(out)
    assert all(torch.equal(after.tensors[key], tensor) for key, tensor in before.tensors.items())
    assert result["parameters"]["after"] == result["parameters"]["before"] and result["measured"]["kl"] == 0
    assert result["predicted"]["loss"] == result["baseline"]["loss"] == result["measured"]["loss"]


def test_a_budget_of_parameters_with_a_lock_and_a_size(files, tmp_path):
    names = [group.name for group in discover_groups(load(files[0])).groups]
    result = job(files, tmp_path / "small.pt2", "params", 6000, locked=names[1:2])
    assert 5000 < result["parameters"]["after"] <= 6000 * 1.001
    assert result["keep"][names[1]] == 96
    assert result["measured"]["loss"] == pytest.approx(result["predicted"]["loss"], rel=1, abs=0.05)
    fixed = job(files, tmp_path / "fixed.pt2", "flops", 12000, sizes={names[1]: 30})
    assert fixed["flops"]["after"] <= 12000 and fixed["keep"][names[1]] == 30


def test_an_allowed_loss_holds_as_measured(files, tmp_path):
    result = job(files, tmp_path / "small.pt2", "max_loss", 0.02)
    assert result["measured"]["loss"] - result["baseline"]["loss"] <= 0.02
    assert result["parameters"]["after"] < 0.6 * result["parameters"]["before"]


def test_what_cannot_be_is_said(files, tmp_path):
    out = tmp_path / "small.pt2"
    context = Context({}, parse_options({}), {}, lambda event: None, {"checkpoint": load(files[0])})
    context.kept |= {"symmetry": proved_groups(context),
                     "probe": open_probe(files[1], context.checkpoint.graph.inputs, max_rows=400)}
    pruner = Pruner(context)
    cases = {"must be more than 0 and at most 1": ("keep", 0, {}), "a budget of 10 cannot be met": ("params", 10, {}),
             "The budget max-loss must be more than 0": ("max_loss", -1, {}),
             "There is no group 'nothing'": ("params", 9000, {"locked": ["nothing"]})}
    for words, (budget, value, more) in cases.items():
        with pytest.raises(OptionError, match=words):
            choose(pruner, budget, value, **more)
    for arguments in ([], ["--keep", "0.5", "--params", "100"]):
        with pytest.raises(SystemExit):
            main(["prune", *map(str, files), *arguments, "--out", str(out)])
    assert main(["prune", *map(str, files), "--keep", "0.5", "--group", "fc1", "--out", str(out)]) == 2
    assert not out.exists()


def test_how_fast_it_is_before_and_after_is_told(files, tmp_path):
    out = tmp_path / "small.onnx"
    made = job(files, out, "keep", 0.25, form="onnx")
    assert any("64 rows take " in line and " ms in torch with " in line for line in prune_lines(made))  # a .pt2 was uploaded
    fast = job((out, files[1]), tmp_path / "least.onnx", "keep", 0.5)["latency"]
    assert fast["runtime"] == "onnxruntime" and fast["rows"] == 64 and fast["runs"] == 25
    assert min(fast["before_ms"], fast["after_ms"], fast["times"]) > 0


def test_streams_on_principal_directions(tmp_path):
    network = NETWORKS["llama_rotary"]
    tokens = network.example(rows=60)[0]
    files = save_pt2(network.make(), tokens[:2], tmp_path / "whole.pt2"), tmp_path / "tokens.npz"
    np.savez(files[1], x=tokens.numpy())
    groups = discover_groups(load(files[0])).groups
    stream = next(group for group in groups if group.kind == "residual stream")
    inner = [group.name for group in groups if group is not stream and not any(group.name == other.parent for other in groups)]
    lost = {}
    for turned in (False, True):
        result = job(files, tmp_path / f"{turned}.pt2", "keep", 0.75, locked=inner, turn_streams=turned)
        assert result["keep"][stream.name] == round(stream.size * 0.75)
        assert any("principal directions" in note for note in result["notes"]) == turned
        lost[turned] = result["measured"]["kl"]
    assert lost[True] < lost[False]


def test_a_model_without_such_a_stream_says_so(files, tmp_path):
    with pytest.raises(OptionError, match="No residual stream of this model may be turned"):
        job(files, tmp_path / "out.pt2", "keep", 0.5, turn_streams=True)
