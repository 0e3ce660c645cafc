"""`cipm prune` on real files: every budget, what it writes, what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cipm.allocation import Choice
from cipm.cli import main
from cipm.errors import OptionError
from cipm.load import load
from cipm.load.probe import Probe, open_probe
from cipm.options import parse_options
from cipm.pipeline.budgets import choose, prune_job
from cipm.pipeline.context import Context
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.pruning import Pruner
from cipm.pipeline.refitting import Refitter
from cipm.pipeline.timing import search
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
    first = next(iter(pruner.groups))
    cases = {"With the sizes given the loss rises by .* 0.001 cannot be met": ("max_loss", 1e-3, {"sizes": {first: 2}}),
             "must be more than 0 and at most 1": ("keep", 0, {}), "a budget of 10 cannot be met": ("params", 10, {}),
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


def test_labels_say_what_matters_where_they_are_asked_for(files):
    checkpoint = load(files[0])
    probe = open_probe(files[1], checkpoint.graph.inputs, max_rows=41)

    def refitter(probe: Probe, **options: object) -> Refitter:
        return Refitter(Context({}, parse_options({"batch_rows": 16, **options}), {}, lambda event: None,
                                {"checkpoint": checkpoint, "probe": probe}))

    made = refitter(probe, fisher="labels")
    assert [len(part) for part in made.classes] == [len(next(iter(batch.values()))) for batch in made.rows] == [16, 5]
    assert torch.equal(torch.cat(made.classes), probe.labels[0::2])
    with pytest.raises(OptionError, match="fisher is 'labels', but the probe has no classes"):
        _ = refitter(replace(probe, labels=None), fisher="labels").classes
    assert refitter(probe).classes is None


def test_how_fast_it_is_before_and_after_is_told(files, tmp_path):
    out = tmp_path / "small.onnx"
    made = job(files, out, "keep", 0.25, form="onnx")
    assert any("64 rows take " in line and " ms in torch with " in line for line in prune_lines(made))  # a .pt2 was uploaded
    proof = made["certificate"]["runtime"]
    assert proof["passed"] and proof["runtime"] == "onnxruntime" and proof["rows"] == 64 and 0 <= proof["max_rel"] < 1e-5
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


@pytest.mark.parametrize(("allowed", "most_timed"), [(0.5, 6), (0.3, 6), (0.97, 6), (0.05, 1)])
def test_the_search_for_a_run_time_stops_at_the_largest_choice_within_it(allowed, most_timed):
    choices = [Choice({"a": 200 - number}, 0.0, float(200 - number)) for number in range(200)]
    times = search(choices, allowed, lambda choice: {"times": 1 / (0.1 + 0.9 * (choice.count / 200) ** 2)})  # not in proportion
    shares = {number: 1 / one["times"] for number, one in times.items()}
    assert 199 in times and len(times) <= most_timed
    if allowed > shares[199]:
        assert 0.93 * allowed <= max(share for share in shares.values() if share <= allowed) <= allowed


def test_a_budget_of_run_time_is_met_by_measuring(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 600), torch.nn.ReLU(), torch.nn.Linear(600, 600), torch.nn.ReLU(),
                                torch.nn.Linear(600, 4)).eval()
    x = torch.randn(160, 16)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    checkpoint = load(save_pt2(model, x[:2], tmp_path / "whole.pt2"))
    probe = open_probe(tmp_path / "x.npz", checkpoint.graph.inputs, max_rows=400)
    context = Context({"model": str(tmp_path / "whole.pt2"), "form": "onnx"}, parse_options({"measured_points": 1}), {},
                      lambda event: None, {"checkpoint": checkpoint, "probe": probe})
    context.kept["symmetry"] = proved_groups(context)
    pruner = Pruner(context)
    sizes, (said,) = choose(pruner, "latency", 0.5)
    assert said.startswith("Run time was measured on 64 rows in torch with ")  # a .pt2 was uploaded
    timed = [[float(share) for share in re.findall(r"(\d+)%", part)] for part in said.split(": ")[1].split(", ")]
    assert timed[-1][0] <= 50 and [flops for _, flops in timed] == sorted((flops for _, flops in timed), reverse=True)
    assert pruner.counts["flops"](sizes) < 0.8 * pruner.counts["flops"]({name: g.size for name, g in pruner.groups.items()})
    first, second = pruner.groups
    sizes, (said,) = choose(pruner, "latency", 0.9, sizes={first: 60})  # fast enough by itself: the other group stays whole
    assert sizes == {first: 60, second: 600} and " with 100% of the FLOPs" not in said
    for value, words in ((1.5, "between 0 and 1"), (1e-9, "its run time here: 1e-09 of it cannot be met")):
        with pytest.raises(OptionError, match=words):
            choose(pruner, "latency", value)
    with pytest.raises(OptionError, match="All groups are locked"):
        choose(pruner, "latency", 0.5, locked=list(pruner.groups))
