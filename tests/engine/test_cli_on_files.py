"""The command line on real files: what it prints, writes, refuses and undoes. Models are opened in the real jail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cipm.cli import main
from cipm.errors import Conflict
from cipm.export import restore
from cipm.testing.models import cnn_residual, mlp, save_huggingface, save_pt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLP, a CNN and a GPT-2 as people have them, and probe rows for the MLP."""
    made = tmp_path_factory.mktemp("models")
    save_pt2(mlp((64, 24, 16, 10)), torch.zeros(2, 64), made / "mlp.pt2")
    save_pt2(cnn_residual(width=8), torch.zeros(2, 1, 8, 8), made / "cnn.pt2")
    save_huggingface("gpt2", made / "gpt2")
    generator = np.random.default_rng(0)
    nan = np.zeros((4, 64), np.float32)
    nan[2, 1] = np.nan
    np.savez(made / "nan.npz", x=nan)
    np.savez(made / "rows.npz", x=generator.normal(size=(400, 64)).astype(np.float32), y=generator.integers(0, 10, 400))
    return made


@pytest.fixture(scope="module")
def analysis(folder: Path) -> Path:
    out = folder / "analysis"
    files = [str(folder / "mlp.pt2"), str(folder / "rows.npz")]
    assert main(["analyze", *files, "--out", str(out), "--measured-points", "2"]) == 0
    return out


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.export.load(path).state_dict


def test_inspect_has_the_fields_that_others_rely_on(folder, capsys):
    assert main(["inspect", str(folder / "cnn.pt2"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"schema_version", "model", "groups", "pins", "log10_equivalents", "movable_share", "certificate"} <= found.keys()
    assert {"format", "sha256", "parameters"} <= found["model"].keys()
    assert found["model"]["parameters"] == sum(p.numel() for p in cnn_residual(width=8).parameters())
    assert {"name", "kind", "size", "parent", "places", "proved"} <= found["groups"][0].keys()
    assert {"tensor", "axis", "op", "reason"} <= found["pins"][0].keys()
    assert {"dtype", "inputs", "max_abs", "max_rel", "tolerance", "passed", "negative_control"} <= found["certificate"].keys()
    held = sum(reason["parameters"] for reason in found["reasons"])
    assert found["movable"] + held == found["model"]["parameters"] and "S₈" in found["structure"]
    assert found["certificate"]["passed"] and found["certificate"]["negative_control"] > found["certificate"]["tolerance"]


def test_inspect_in_words(folder, capsys):
    assert main(["inspect", str(folder / "mlp.pt2")]) == 0
    said = capsys.readouterr().out
    assert "proved in float64" in said and "parameters can move. What may not, and why:" in said
    assert "  it is an axis of the model's input 'x' (input): 1 axis\n    layers.0.weight axis 1 (" in said
    assert "layers.0 " in said and "3 axes move together" in said


def test_analyze_writes_the_report_and_the_arrays(analysis):
    report = json.loads((analysis / "report.json").read_text())
    group = report["groups"][0]
    assert report["schema_version"] == 1 and {"name", "size", "modules", "orders", "effective_dimension", "redundancy",
                                              "whatif"} <= group.keys()
    c = np.load(analysis / group["name"] / "correlation.npy")
    assert c.shape == (24, 24) and np.allclose(c, c.T) and np.allclose(c.diagonal(), 1)
    for name in ("canonical", "modules", "nodesort", "random", "spectral"):
        assert sorted(np.load(analysis / group["name"] / "orders" / f"{name}.npy")) == list(range(24))
        assert {"banded_anti_robinson", "path", "block_contrast"} <= group["orders"][name]["held_out"].keys()
    classes = analysis / group["name"] / "classes"
    assert np.load(classes / "means.npy").shape == (10, 24) and np.load(classes / "within.npy").shape == (24, 24)
    by_class = {m["class"]: m for m in report["matrices"] if m.get("class") and group["name"] in m["groups"]["rows"]}
    assert set(by_class) == {path.stem for path in classes.iterdir()} - {"means"} == set(group["classes"]["samples"])
    assert sum(m["samples"] for name, m in by_class.items() if name != "within") == by_class["within"]["samples"] == 400
    means = [m for m in report["matrices"] if m["kind"] == "classes"]
    assert [m["shape"] for m in means] == [[24, 10], [16, 10]] and means[0]["id"] in group["matrices"]
    what = group["whatif"]
    assert len(what["keep"]) == len(what["predicted"]) == len(what["parameters"]) == 25
    assert [m["keep"] for m in what["measured"]] == [2, 14] and what["measured"][0]["accuracy"] is not None
    assert what["parameters"][24] == report["model"]["parameters"] and what["predicted"][24] == report["baseline"]["loss"]
    assert report["baseline"]["rows"] == 200 == what["measured"][0]["rows"]  # the odd rows; fitted on the even ones


@pytest.mark.parametrize("model", ["mlp.pt2", "cnn.pt2"])
def test_reorganize_verify_restore(folder, tmp_path, capsys, model):
    moved, back = tmp_path / "moved.pt2", tmp_path / "back.pt2"
    assert main(["reorganize", str(folder / model), "--order", "random", "--seed", "7", "--out", str(moved)]) == 0
    capsys.readouterr()
    assert main(["verify", str(folder / model), str(moved), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["same"] and proof["max_rel"] <= 1e-10 and proof["max_abs"] > 0 and proof["rows"] == 9
    assert main(["restore", str(moved), "--out", str(back)]) == 0
    before, after, restored = tensors(folder / model), tensors(moved), tensors(back)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(before[key].contiguous().view(torch.uint8), restored[key].contiguous().view(torch.uint8))
               for key in before if before[key].ndim)
    assert before.keys() == restored.keys()


def test_reorganize_by_an_analysis(folder, analysis, tmp_path):
    moved = tmp_path / "moved.pt2"
    assert main(["reorganize", str(folder / "mlp.pt2"), "--analysis", str(analysis), "--out", str(moved)]) == 0
    order = np.load(analysis / "layers.0" / "orders" / "modules.npy")
    torch.testing.assert_close(tensors(moved)["layers.0.weight"], tensors(folder / "mlp.pt2")["layers.0.weight"][order],
                               rtol=0, atol=0)


def test_reorganize_a_hugging_face_folder(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    moved = tmp_path / "moved"
    assert main(["reorganize", str(folder / "gpt2"), "--order", "random", "--out", str(moved)]) == 0
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        one, two = (transformers.AutoModelForCausalLM.from_pretrained(p).eval()(tokens).logits
                    for p in (folder / "gpt2", moved))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_verify_tells_different_models_apart(folder, tmp_path, capsys):
    other = save_pt2(mlp((64, 24, 16, 10), seed=1), torch.zeros(2, 64), tmp_path / "other.pt2")
    assert main(["verify", str(folder / "mlp.pt2"), str(other), "--probe", str(folder / "rows.npz"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["same"] and said["rows"] == 400 and said["dtype"] == "float64" and said["max_abs"] > 0.01


def test_canonical_order_makes_shuffled_copies_equal_bit_for_bit(folder, tmp_path):
    shuffled = tmp_path / "shuffled.pt2"
    assert main(["reorganize", str(folder / "mlp.pt2"), "--order", "random", "--seed", "3", "--out", str(shuffled)]) == 0
    for source, name in ((folder / "mlp.pt2", "a.pt2"), (shuffled, "b.pt2")):
        assert main(["reorganize", str(source), "--order", "canonical", "--out", str(tmp_path / name)]) == 0
    one, two = tensors(tmp_path / "a.pt2"), tensors(tmp_path / "b.pt2")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("arguments", "line"), [
    (["inspect", "rows.npz"], "cipm: The file holds NumPy arrays: this is data, not a model. Give it as the probe, and as the "
     "model a .pt2 file of torch.export.save, an .onnx file (with its data files as one zip), a zip or folder with config.json "
     "and model.safetensors (Hugging Face), or weights (.safetensors, torch.save) with an architecture.json as one zip."),
    (["inspect", "nowhere.pt2"], "cipm: There is no file or folder '{folder}/nowhere.pt2'."),
    (["restore", "mlp.pt2", "--out", "x.pt2"], "cipm: 'mlp.pt2' carries no plan: it was not reorganised by CIPM. [mlp.pt2] "
     "Give a file that cipm reorganize or Export has written."),
    (["reorganize", "mlp.pt2", "--order", "modules", "--out", "x.pt2"], "cipm: The order 'modules' needs activations: give "
     "--analysis DIR, or one of canonical, lexicographic, nodesort, random. [--order]"),
    (["analyze", "mlp.pt2", "nan.npz", "--out", "x"], "cipm: The probe's 'x' is nan in row 2, column 1 (counted from 0); 1 of "
     "its values are not finite. [x, row 2, column 1] Remove these rows or fill in the values."),
    (["analyze", "mlp.pt2", "rows.npz", "--max-rows", "1", "--out", "x"], "cipm: Option max_rows cannot be 1: input should be "
     "greater than or equal to 2. [max_rows]"),
    (["verify", "mlp.pt2", "cnn.pt2"], "cipm: The two models take different inputs and cannot be compared: x ['batch', 64] "
     "float32 and x ['batch', 1, 8, 8] float32."),
])
def test_bad_input_is_one_line_and_exit_2_and_nothing_written(folder, capsys, arguments, line):
    before = sorted(p.name for p in folder.iterdir())
    paths = [str(folder / a) if "." in a and not a.startswith("-") or a == "x" else a for a in arguments]
    assert main(paths) == 2
    said = capsys.readouterr().err
    assert said == line.replace("{folder}", str(folder)) + "\n"
    assert sorted(p.name for p in folder.iterdir()) == before


def test_sparsify_writes_zeros_that_its_masks_name(folder, tmp_path, capsys):
    out, masks = tmp_path / "sparse.pt2", tmp_path / "masks.safetensors"
    given = ["sparsify", str(folder / "mlp.pt2"), "--out", str(out), "--masks", str(masks), "--json"]
    assert main(given) == 0
    result, kept, written = json.loads(capsys.readouterr().out), load_file(masks), tensors(out)
    assert result["pattern"] == "2:4" and result["masked"] == sum(int((~mask).sum()) for mask in kept.values()) > 0
    assert result["certificate"]["plan"]["passed"] and all((written[key][~mask] == 0).all() for key, mask in kept.items())
    assert all(mask.unflatten(1, (-1, 4)).sum(2).max() == 2 for mask in kept.values())
    assert sum(w["retained"] for w in result["weights"]) > sum(w["retained_before"] for w in result["weights"])
    with pytest.raises(Conflict, match="was pruned"):
        restore(out, tmp_path / "back.pt2")
    assert main([*given[:-1], "--pattern", "4:4"]) == 2 and "cannot stay" in capsys.readouterr().err


def test_sparsify_in_blocks(folder, tmp_path, capsys):
    out, masks = tmp_path / "sparse.pt2", tmp_path / "masks.safetensors"
    given = ["sparsify", str(folder / "mlp.pt2"), "--out", str(out), "--masks", str(masks), "--blocks", "4"]
    assert main([*given, "--json"]) == 0
    result, kept, written = json.loads(capsys.readouterr().out), load_file(masks), tensors(out)
    assert result["pattern"] == "4 × 4 block" and list(kept) == ["layers.1.weight"] and result["certificate"]["plan"]["passed"]
    blocks = kept["layers.1.weight"].reshape(4, 4, 6, 4).transpose(1, 2)
    assert (blocks.flatten(2).all(2) == blocks.flatten(2).any(2)).all() and blocks.flatten(2).all(2).sum() == 12
    assert (written["layers.1.weight"][~kept["layers.1.weight"]] == 0).all()
    weight, = result["weights"]
    assert weight["retained_before"] < weight["retained"] <= result["best_possible"] < weight["total"]
    assert "only one of its axes" in result["left_out"]["layers.0.weight"]
