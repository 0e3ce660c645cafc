"""Canonical form, fingerprint and reference on files: every format in process, the commands in the jail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cipm.cli import main
from cipm.export import export
from cipm.load import load
from cipm.ordering import canonical_orders, fingerprint
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import mlp, save_huggingface, save_pt2
from cipm.views.text import canonical_lines, fingerprint_lines

WIDTHS = (6, 12, 8, 3)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def make(kind: str, folder: Path) -> Path:
    """Write a small model in a format and return its path."""
    if kind == "pt2":
        return save_pt2(mlp(WIDTHS), torch.zeros(2, 6), folder / "model.pt2")
    if kind == "onnx":
        written = pytest.importorskip("onnx_files")
        return written.save_onnx(mlp(WIDTHS), torch.zeros(2, 6), folder / "model.onnx", dynamo=False)
    if kind == "huggingface":
        pytest.importorskip("transformers")
        save_huggingface("llama", folder / "model", num_hidden_layers=1)
        return folder / "model"
    tensors = {key: tensor.detach().contiguous() for key, tensor in mlp(WIDTHS).state_dict().items()}
    if kind == "torch":
        torch.save(tensors, folder / "model.pt")
        return folder / "model.pt"
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("kind", ["pt2", "onnx", "huggingface", "torch", "safetensors"])
def test_a_shuffled_file_has_the_same_form_and_fingerprint(kind, tmp_path):
    model, out = make(kind, tmp_path), tmp_path / "out"
    out.mkdir()
    checkpoint = load(model)
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
    shuffled = load(export(checkpoint, model, plan, None, out / model.name))
    forms = [symmetry.plan(canonical_orders(symmetry, c.tensors).orders).apply(c.tensors) for c in (checkpoint, shuffled)]
    assert all(torch.equal(forms[0][key].reshape(-1).view(torch.uint8), forms[1][key].reshape(-1).view(torch.uint8))
               for key in forms[0])
    assert any(not torch.equal(shuffled.tensors[key], checkpoint.tensors[key]) for key in forms[0])
    assert fingerprint(checkpoint, symmetry) == fingerprint(shuffled, symmetry)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    save_pt2(mlp(WIDTHS), torch.zeros(2, 6), made / "one.pt2")
    save_pt2(mlp(WIDTHS, seed=1), torch.zeros(2, 6), made / "other.pt2")
    noisy = mlp(WIDTHS)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = noisy.layers[0], noisy.layers[1]
        first.weight.copy_(first.weight[order] * 1.01)
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    save_pt2(noisy, torch.zeros(2, 6), made / "noisy.pt2")
    return made


def test_fingerprints_of_several_files(folder, tmp_path, capsys):
    form = tmp_path / "form.pt2"
    assert run("canonicalize", folder / "one.pt2", "--out", form, "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["unresolved"] == {} and written["order"] == "canonical" and written["certificate"]["plan"]["passed"]
    assert run("fingerprint", form, folder / "other.pt2", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False and found["schema_version"] == 1
    assert {"model", "fingerprint", "certain", "unresolved", "groups", "notes"} == found["models"][0].keys()
    checkpoint = load(folder / "one.pt2")
    one = fingerprint(checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)).digest
    two, other = (entry["fingerprint"] for entry in found["models"])
    assert one == two != other


def test_a_noisy_copy_is_put_in_the_order_of_a_reference(folder, tmp_path, capsys):
    out = tmp_path / "aligned.pt2"
    assert run("canonicalize", folder / "noisy.pt2", "--reference", folder / "one.pt2", "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["order"] == "reference" and found["matching"]["certain_share"] == 1
    assert found["matching"]["distance"] < 0.01 < 0.5 < found["matching"]["distance_before"]
    one, aligned = load(folder / "one.pt2").tensors, load(out).tensors
    torch.testing.assert_close(aligned["layers.0.weight"], one["layers.0.weight"] * 1.01)


PLAN = {"max_abs": 1e-16, "max_rel": 2e-16, "rows": 3}


def test_what_is_printed_of_a_canonical_form():
    made = {"filename": "a.pt2", "order": "canonical", "certificate": {"plan": PLAN}, "unresolved": {"fc": 4}}
    assert canonical_lines(made) == [
        "wrote a.pt2 in canonical order: max |Δoutput| 1e-16, relative 2e-16 (float64, 3 random rows)",
        "4 units of fc could not be told apart within the budget: a permuted copy may come out otherwise"]


def test_what_is_printed_of_a_match():
    groups = [{"name": "a", "units": 4, "certain": 4, "margin": 0.5}, {"name": "b", "units": 4, "certain": 1, "margin": 0.01}]
    made = {"filename": "a.pt2", "order": "reference", "certificate": {"plan": PLAN},
            "matching": {"distance_before": 1.4, "distance": 0.1, "certain_share": 0.625, "groups": groups}}
    assert canonical_lines(made)[1:] == [
        "distance from the reference 1.4 before, 0.1 now; 62.5% of the units certain, least margin 0.01",
        "  b: 3 of 4 units are not certain"]


@pytest.mark.parametrize(("equal", "words"), [(True, "equal: permuted copies of one model"), (False, "NOT equal"), (
    None, "cannot be told: the fingerprints differ, and not all are certain")])
def test_what_is_printed_of_fingerprints(equal, words):
    models = [{"fingerprint": mark, "model": f"{mark}.pt2", "unresolved": {}} for mark in "ab"]
    assert fingerprint_lines({"models": models, "equal": equal}) == ["a  a.pt2", "b  b.pt2", words]
    assert fingerprint_lines({"models": models[:1], "equal": True}) == ["a  a.pt2"]


@pytest.mark.parametrize("words", [["canonicalize", "one.pt2", "--reference", "nowhere.pt2", "--out", "x.pt2"],
                                   ["fingerprint", "one.pt2", "nowhere.pt2"]])
def test_a_missing_file_is_one_line_and_exit_2_and_nothing_written(folder, capsys, words):
    before = sorted(path.name for path in folder.iterdir())
    assert run(*[folder / word if word.endswith(".pt2") else word for word in words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"cipm: There is no file or folder '{folder}/nowhere.pt2'.\n")
    assert sorted(path.name for path in folder.iterdir()) == before
