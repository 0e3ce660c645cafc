"""Canonical form, fingerprint and reference on files: every format in process, the commands in the jail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cipm.cli import main
from cipm.load import load
from cipm.pipeline.commands import canonicalize_job, fingerprint_job, reorganize_job
from cipm.testing.models import mlp, save_huggingface, save_pt2

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


def job(entry, model: Path, scratch: Path, **request: object) -> dict[str, object]:
    scratch.mkdir(exist_ok=True)
    return entry({"model": str(model), "other": None, **request}, scratch, lambda event: None)


@pytest.mark.parametrize("kind", ["pt2", "onnx", "huggingface", "torch", "safetensors"])
def test_a_shuffled_file_has_the_same_form_and_fingerprint(kind, tmp_path):
    model, out = make(kind, tmp_path), tmp_path / "out"
    shuffled = out / ("shuffled" + model.suffix)
    job(reorganize_job, model, out, filename=shuffled.name, order="random", seed=5, orders=None, forms=[])
    made = {name: job(canonicalize_job, file, out, filename=f"{name}{model.suffix}")
            for name, file in (("one", model), ("two", shuffled))}
    assert all(result["unresolved"] == {} and result["certificate"]["plan"]["passed"] for result in made.values())
    before, one, two = (load(file).tensors for file in (shuffled, *(out / result["filename"] for result in made.values())))
    assert all(torch.equal(one[key].contiguous().view(torch.uint8), two[key].contiguous().view(torch.uint8))
               for key in one if one[key].ndim)
    assert any(not torch.equal(one[key], before[key]) for key in one)
    marks = {job(fingerprint_job, file, out)["fingerprint"] for file in (model, shuffled)}
    assert len(marks) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    save_pt2(mlp(WIDTHS), torch.zeros(2, 6), made / "one.pt2")
    save_pt2(mlp(WIDTHS, seed=1), torch.zeros(2, 6), made / "other.pt2")
    save_pt2(mlp((6, 12, 9, 3)), torch.zeros(2, 6), made / "wider.pt2")
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
    assert run("canonicalize", folder / "one.pt2", "--out", tmp_path / "form.pt2") == 0
    assert "wrote" in (said := capsys.readouterr().out) and "in canonical order" in said
    assert run("fingerprint", folder / "one.pt2", tmp_path / "form.pt2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True and found["schema_version"] == 1
    assert {"model", "fingerprint", "certain", "unresolved", "groups", "notes"} == found["models"][0].keys()
    assert run("fingerprint", folder / "one.pt2", folder / "other.pt2") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{found['models'][0]['fingerprint']}  {folder / 'one.pt2'}" and lines[2] == "NOT equal"


def test_a_noisy_copy_is_put_in_the_order_of_a_reference(folder, tmp_path, capsys):
    out = tmp_path / "aligned.pt2"
    assert run("canonicalize", folder / "noisy.pt2", "--reference", folder / "one.pt2", "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["order"] == "reference" and found["matching"]["certain_share"] == 1
    assert found["matching"]["distance"] < 0.01 < 0.5 < found["matching"]["distance_before"]
    one, aligned = load(folder / "one.pt2").tensors, load(out).tensors
    torch.testing.assert_close(aligned["layers.0.weight"], one["layers.0.weight"] * 1.01)
    assert run("canonicalize", folder / "other.pt2", "--reference", folder / "one.pt2", "--out", tmp_path / "far.pt2") == 0
    said = capsys.readouterr().out
    assert "in reference order" in said and "of the units certain, least margin" in said
    assert "layers.0: " in said and "units are not certain" in said


@pytest.mark.parametrize(("words", "line"), [
    (["canonicalize", "one.pt2", "--reference", "wider.pt2", "--out", "x.pt2"], "cipm: The two models differ in structure: "
     "tensor 'layers.1.weight' is [8, 12], and its counterpart 'layers.1.weight' in the reference [9, 12]. [layers.1.weight]"),
    (["canonicalize", "one.pt2", "--reference", "nowhere.pt2", "--out", "x.pt2"], "cipm: There is no file or folder "
     "'{folder}/nowhere.pt2'."),
    (["fingerprint", "one.pt2", "nowhere.pt2"], "cipm: There is no file or folder '{folder}/nowhere.pt2'.")])
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(folder, capsys, words, line):
    before = sorted(path.name for path in folder.iterdir())
    assert run(*[folder / word if word.endswith(".pt2") else word for word in words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", line.replace("{folder}", str(folder)) + "\n")
    assert sorted(path.name for path in folder.iterdir()) == before
