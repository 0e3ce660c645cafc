"""Normal forms in files: written by the command line in the jail, the same function, and back to the bits where promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sample_models import save_export, save_hub
from test_continuous import bits, same_bits
from torch import nn

from cipm.cli import main
from cipm.errors import CorruptFile
from cipm.export import Form, export, read_plan, restore
from cipm.load import load
from cipm.permutation import Plan
from cipm.symmetry import discover_groups, normalise, with_continuous


def relu_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_reorganize_and_restore_a_file(tmp_path, capsys):
    model = save_export(relu_net(), tmp_path / "model.pt2", (torch.randn(3, 6),))
    out, back = tmp_path / "out.pt2", tmp_path / "back.pt2"
    forms = ("--scale", "canonical", "--sign", "canonical")
    assert run("reorganize", model, *forms, "--order", "random", "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["forms"] == ["scale", "sign"] and result["restorable"] and result["certificate"]["plan"]["passed"]
    before, after = load(model).tensors, load(out).tensors
    assert not same_bits(before, after)
    norms = torch.cat([after["0.weight"], after["0.bias"][:, None]], 1).norm(dim=1)
    assert ((norms >= 1) & (norms < 2)).all()
    incoming = after["2.weight"]
    assert (incoming.gather(1, incoming.abs().argmax(1, keepdim=True)) > 0).all()
    assert run("verify", model, out) == 0
    assert run("restore", out, "--out", back) == 0
    assert same_bits(before, load(back).tensors)


def test_without_an_order_the_units_keep_theirs(tmp_path, capsys):
    model = save_export(relu_net(), tmp_path / "model.pt2", (torch.randn(3, 6),))
    assert run("reorganize", model, "--scale", "canonical", "--out", tmp_path / "out.pt2") == 0
    assert "in original order, with canonical scale" in capsys.readouterr().out
    before, after = load(model).tensors["0.weight"], load(tmp_path / "out.pt2").tensors["0.weight"]
    ratio = (after / before)[:, 0]
    assert torch.equal(ratio, torch.exp2(torch.log2(ratio).round())) and torch.equal(after, before * ratio[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_number_format_comes_back_bit_for_bit(tmp_path, dtype):
    model = save_export(relu_net(dtype), tmp_path / "model.pt2", (torch.randn(3, 6, dtype=dtype),))
    checkpoint = load(model)
    symmetry = with_continuous(checkpoint, discover_groups(checkpoint))
    made = normalise(checkpoint, symmetry, ("scale", "sign"))
    assert not made.rescaling.is_identity
    form = Form(("scale", "sign"), made.rescaling, made.rounded)
    export(made.checkpoint, model, Plan({}, {}), None, tmp_path / "out.pt2", form=form)
    restore(tmp_path / "out.pt2", tmp_path / "back.pt2")
    assert same_bits(checkpoint.tensors, load(tmp_path / "back.pt2").tensors)


def test_hugging_face_with_everything_rounds_and_says_so(tmp_path, capsys):
    model = save_hub("LlamaForCausalLM", tmp_path / "llama")
    forms = [word for form in ("scale", "sign", "orthogonal", "invertible") for word in (f"--{form}", "canonical")]
    assert run("reorganize", model, *forms, "--out", tmp_path / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert not result["restorable"] and result["certificate"]["plan"]["max_rel"] < 1e-5
    written = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(written["model.norm.weight"], torch.ones(32))
    assert bits(written["model.embed_tokens.weight"]) != bits(load(model).tensors["model.embed_tokens.weight"])
    assert run("restore", tmp_path / "out", "--out", tmp_path / "back") == 2
    said = capsys.readouterr().err
    assert "brought into invertible and orthogonal canonical form, which rounds" in said and "Keep the file" in said
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("damage", "words"), [
    ({"rescaling": [["0.weight", 0, 1, [1, 2], []]]}, "do not fit axis 0"),
    ({"rescaling": [["nowhere", 0, 1, [], [0]]]}, "no tensor of numbers"),
    ({"rescaling": [["0.weight", 7, 1, [], [0]]]}, "does not have"),
    ({"rescaling": [["0.weight", 0, 1, [], [99]]]}, "do not fit axis 0"),
    ({"rescaling": [["0.weight", 0, 1, [1e9] * 16, []]]}, "no integers"),
    ({"rescaling": [["0.weight", 0, 1, [10**9] * 16, []]]}, "do not fit axis 0"),
    ({"rescaling": 3}, "damaged"), ({}, "damaged"), ([], "damaged")])
def test_a_damaged_form_is_refused(tmp_path, monkeypatch, damage, words):
    model = save_export(relu_net(), tmp_path / "model.pt2", (torch.randn(3, 6),))
    monkeypatch.setattr(Form, "to_json", lambda self: {"kinds": [], "rounded": [], **damage} if damage else damage)
    export(load(model), model, Plan({}, {}), None, tmp_path / "out.pt2", form=Form((), None, ()))
    assert read_plan(tmp_path / "out.pt2")[1]["form"] is not None
    with pytest.raises(CorruptFile, match=words):
        restore(tmp_path / "out.pt2", tmp_path / "back.pt2")
    assert not (tmp_path / "back.pt2").exists()


def test_inspect_lists_the_freedoms(tmp_path, capsys):
    model: Path = save_export(relu_net(), tmp_path / "model.pt2", (torch.randn(3, 6),))
    assert run("inspect", model, "--json") == 0
    scale, sign = json.loads(capsys.readouterr().out)["continuous"]
    assert (scale["kind"], scale["name"], scale["units"], scale["blocks"], scale["dimension"]) == ("scale", "0", 16, 1, 16)
    assert scale["places"][-1] == {"tensor": "2.weight", "axis": 1, "power": -1, "variance": "contravariant"}
    assert scale["certificate"]["passed"] and sign["kind"] == "sign" and scale["conditions"] == []
    assert run("inspect", model) == 0
    assert "scale: 0, 16 units, dimension 16 (proved" in capsys.readouterr().out
