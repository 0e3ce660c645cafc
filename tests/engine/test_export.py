"""Writing back: the formats' own tools load the export, the function is the same, and restore gives every bit back."""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import (
    Mlp,
    Named,
    NoGrad,
    ResNetLike,
    Tied,
    as_zip,
    hub_class,
    hub_input,
    save_export,
    save_hub,
    torch_load,
)
from torch import nn
from torch.export import Dim

from cipm.errors import Conflict, CorruptFile, UnknownFormat
from cipm.export import export, read_plan, restore
from cipm.load import Checkpoint, content_hash, load
from cipm.permutation import Permutation, Plan
from cipm.symmetry import discover_groups, prove, random_member
from cipm.testing.models import save_pt2, seeded

CERTIFICATE = {"passed": True, "max_rel": 1e-12}
SLOW = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


def random_plan(checkpoint: Checkpoint, seed: int, share: float = 0.7) -> Plan:
    """Return a plan that moves most axes of most tensors at random: no symmetry, but it must be undone bit for bit."""
    generator = np.random.default_rng(seed)
    axes = {(key, axis): Permutation.random(length, generator=generator) for key, tensor in checkpoint.tensors.items()
            for axis, length in enumerate(tensor.shape) if generator.random() < share}
    return Plan(axes, {"all": Permutation.random(5, generator=generator)})


def hidden_plan(seed: int, widths: tuple[int, ...] = (6, 10, 8, 3)) -> Plan:
    """Return random hidden-unit permutations of Mlp: rows and bias of one layer, columns of the next."""
    generator = np.random.default_rng(seed)
    axes: dict[tuple[str, int], Permutation] = {}
    orders: dict[str, Permutation] = {}
    for layer, width in enumerate(widths[1:-1]):
        order = orders[f"hidden{layer}"] = Permutation.random(width, generator=generator)
        axes |= {(f"layers.{layer}.weight", 0): order, (f"layers.{layer}.bias", 0): order,
                 (f"layers.{layer + 1}.weight", 1): order}
    return Plan(axes, orders)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_export(Mlp(), tmp_path_factory.mktemp("mlp") / "mlp.pt2", (torch.randn(3, 6),))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_export(Tied(), tmp_path_factory.mktemp("tied") / "tied.pt2", (torch.randint(0, 10, (2, 5)),))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub("BertForMaskedLM", tmp_path_factory.mktemp("bert") / "model")


def same_bits(a: Checkpoint, b: Checkpoint) -> bool:
    return a.tensors.keys() == b.tensors.keys() and a.aliases == b.aliases and all(
        value.dtype == b.tensors[key].dtype and torch.equal(value, b.tensors[key]) for key, value in a.tensors.items())


@SLOW
@given(seed=st.integers(0, 2**32 - 1))
def test_hidden_units_move_and_the_function_stays(mlp: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan, checkpoint = hidden_plan(seed), load(mlp)
        out = export(checkpoint, mlp, plan, CERTIFICATE, Path(folder, "out.pt2"))
        before, after = torch_load(mlp), torch_load(out)
        moved = Permutation(plan.orders["hidden0"].order).apply(checkpoint.tensors["layers.0.weight"].numpy())
        assert np.array_equal(after.state_dict()["layers.0.weight"].numpy(), moved)
        for batch in (1, 2, 9):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-6)


@SLOW
@given(seed=st.integers(0, 2**32 - 1))
def test_restore_gives_every_bit_of_an_export_back(tied: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load(tied)
        plan = random_plan(checkpoint, seed)
        out = export(checkpoint, tied, plan, None, Path(folder, "out.pt2"), order="random")
        assert read_plan(out)[0] == plan
        assert same_bits(load(restore(out, Path(folder, "back.pt2"))), checkpoint)


@SLOW
@given(seed=st.integers(0, 2**32 - 1))
def test_restore_gives_the_very_file_of_a_hub_model_back(bert: Path, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load(bert)
        out = export(checkpoint, bert, random_plan(checkpoint, seed), CERTIFICATE, Path(folder, "out"))
        assert (out / "model.safetensors").read_bytes() != (bert / "model.safetensors").read_bytes()
        back = restore(out, Path(folder, "back"))
        assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in bert.iterdir()}


@pytest.mark.parametrize("zipped", [False, True])
def test_hub_export_loads_with_from_pretrained(bert: Path, tmp_path: Path, zipped: bool) -> None:
    source = as_zip(bert) if zipped else bert
    order = Permutation.random(48, generator=np.random.default_rng(0))
    prefix = "bert.encoder.layer.0"
    plan = Plan({(f"{prefix}.intermediate.dense.weight", 0): order, (f"{prefix}.intermediate.dense.bias", 0): order,
                 (f"{prefix}.output.dense.weight", 1): order}, {"hidden": order})
    out = export(load(source), source, plan, CERTIFICATE, tmp_path / ("out.zip" if zipped else "out"))
    record = read_plan(out)[1]
    assert record["certificate"] == CERTIFICATE and record["source_sha256"] == content_hash(source)
    if zipped:
        zipfile.ZipFile(out).extractall(tmp_path / "unpacked")
        out = tmp_path / "unpacked" / "model"
    models = [_pretrained("BertForMaskedLM", folder) for folder in (bert, out)]
    inputs = hub_input("BertForMaskedLM", 4)
    before, after = (model(**inputs).logits.detach() for model in models)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification",
                                  "ResNetForImageClassification"])
def test_every_family_is_written_back(name: str, tmp_path: Path) -> None:
    folder = save_hub(name, tmp_path / "model")
    checkpoint = load(folder)
    out = export(checkpoint, folder, random_plan(checkpoint, 0), None, tmp_path / "out")
    assert _pretrained(name, out).state_dict().keys() == _pretrained(name, folder).state_dict().keys()
    back = restore(out, tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_structure_names_ties_and_dtypes_survive(tied: Path, tmp_path: Path) -> None:
    out = export(load(tied), tied, Plan({}, {}), None, tmp_path / "out.pt2")
    before, after = torch_load(tied), torch_load(out)
    ids = torch.randint(0, 10, (7, 5))
    a, b = before(ids), after(ids)
    assert type(b) is dict and type(b["more"]) is tuple and type(b["more"][1]) is list
    torch.testing.assert_close(b, a)
    assert after.embed.weight is after.out.weight or torch.equal(after.embed.weight, after.out.weight)
    assert before.state_dict().keys() == after.state_dict().keys()
    trained = [{key for key, value in module.named_parameters() if value.requires_grad} for module in (before, after)]
    assert trained[0] == trained[1] != set()
    assert load(out).aliases == {"out.weight": "embed.weight"}


def test_keyword_inputs_and_dynamic_sizes_survive(tmp_path: Path) -> None:
    x, kwargs = torch.randn(2, 4), {"scale": torch.randn(2, 3), "list": torch.randn(3)}
    b = Dim("b", max=1000)
    dynamic = {"input": {0: b}, "scale": {0: b}, "list": None}
    source = save_export(Named(), tmp_path / "m.pt2", (x,), kwargs, dynamic=dynamic)
    checkpoint = load(source)
    out = export(checkpoint, source, Plan({}, {}), None, tmp_path / "out.pt2")
    again = load(out)
    assert again.graph.inputs == checkpoint.graph.inputs
    assert again.origin["samples"]["input"]["dynamic"]["0"][1:] == [0, 1000]
    more = torch.randn(6, 4), {"scale": torch.randn(6, 3), "list": torch.randn(3)}
    torch.testing.assert_close(torch_load(out)(more[0], **more[1]), torch_load(source)(more[0], **more[1]))


@pytest.mark.parametrize("cls", [ResNetLike, NoGrad])
def test_exporting_twice_changes_nothing(cls: type[torch.nn.Module], tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8) if cls is ResNetLike else torch.randn(2, 8)
    source = save_export(cls().eval(), tmp_path / "m.pt2", (x,))
    first = export(load(source), source, Plan({}, {}), None, tmp_path / "a.pt2")
    second = export(load(first), first, Plan({}, {}), None, tmp_path / "b.pt2")
    one, two = load(first), load(second)
    assert same_bits(one, two) and [n.op for n in one.graph.nodes] == [n.op for n in two.graph.nodes]
    torch.testing.assert_close(torch_load(second)(x), torch_load(source)(x), rtol=1e-5, atol=1e-6)


def test_export_holds_no_file_paths(mlp: Path, tmp_path: Path) -> None:
    out = export(load(mlp), mlp, hidden_plan(0), None, tmp_path / "out.pt2")
    with zipfile.ZipFile(out) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".json"))
    assert b".py" not in text and b"site-packages" not in text and str(tmp_path).encode() not in text


def test_record_holds_what_was_done(mlp: Path, tmp_path: Path) -> None:
    out = export(load(mlp), mlp, hidden_plan(1), CERTIFICATE, tmp_path / "out.pt2", order="modules")
    plan, record = read_plan(out)
    assert plan == hidden_plan(1)
    assert record.keys() == {"schema_version", "plan", "certificate", "source_sha256", "order", "created_by"}
    assert (record["schema_version"], record["certificate"], record["order"]) == (1, CERTIFICATE, "modules")
    assert record["source_sha256"] == content_hash(mlp)


def test_nothing_is_left_when_writing_fails(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    checkpoint = load(mlp)
    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space"):
        export(checkpoint, mlp, Plan({}, {}), None, tmp_path / "out.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_is_refused(mlp: Path, tmp_path: Path) -> None:
    for axes, text in (({("layers.0.weight", 0): Permutation.identity(4)}, r"moves 4 positions of axis 0 of 'layers.0.weight'"),
                       ({("layers.0.weight", 2): Permutation.identity(6)}, r"axis 2 .* does not fit the model \(\[10, 6\]\)"),
                       ({("other", 0): Permutation.identity(6)}, r"\(no such tensor\)")):
        with pytest.raises(CorruptFile, match=text):
            export(load(mlp), mlp, Plan(axes, {}), None, tmp_path / "out.pt2")
    assert list(tmp_path.iterdir()) == []


def test_restore_needs_a_plan(mlp: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="'mlp.pt2' carries no plan: it was not reorganised by CIPM"):
        restore(mlp, tmp_path / "back.pt2")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(UnknownFormat, match="'text.txt' carries no plan"):
        read_plan(tmp_path / "text.txt")


@pytest.mark.parametrize("change", [
    lambda r: r.pop("plan"), lambda r: r.update(schema_version=9), lambda r: r["plan"].update(axes=[["a", 0, [0, 0]]]),
    lambda r: r["plan"].update(axes=[["a", "0", [0]]]), lambda r: r["plan"].update(axes=[[["a"], 0, [0]]]),
    lambda r: r["plan"].update(orders={"g": [0.5]}), lambda r: r["plan"].update(orders=[]), lambda r: r.update(plan=3),
])
def test_a_damaged_record_is_refused(bert: Path, tmp_path: Path, change: Any) -> None:
    out = export(load(bert), bert, Plan({}, {}), None, tmp_path / "out")
    record = json.loads((out / "cipm.json").read_text())
    change(record)
    (out / "cipm.json").write_text(json.dumps(record))
    with pytest.raises(CorruptFile, match="The record cipm.json is damaged"):
        read_plan(out)


def test_a_folder_can_be_written_as_a_zip(bert: Path, tmp_path: Path) -> None:
    checkpoint = load(bert)
    out = export(checkpoint, bert, random_plan(checkpoint, 3), None, tmp_path / "out.zip")
    assert zipfile.is_zipfile(out)
    back = restore(out, tmp_path / "back.zip")
    with zipfile.ZipFile(back) as archive:
        assert archive.read("model.safetensors") == (bert / "model.safetensors").read_bytes()


def test_an_existing_folder_is_not_overwritten(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Conflict, match="The folder 'out' exists already"):
        export(load(bert), bert, Plan({}, {}), None, tmp_path / "out")


def test_other_weights_and_code_are_left_out(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for file in bert.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "modeling.py", "vocab.txt", "tokenizer.json"):
        (source / name).write_text("x")
    out = export(load(source), source, Plan({}, {}), None, tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "cipm.json"}


def _pretrained(name: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hub_class(name).from_pretrained(folder).eval()


class Sinusoid(torch.nn.Module):
    """A linear layer on inputs plus a table that is no parameter: the table moves with the hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        self.register_buffer("table", torch.arange(6.0).sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two((self.one(x) + self.table).relu())


def test_tables_that_are_no_parameters_move_and_come_back(tmp_path: Path) -> None:
    module = seeded(Sinusoid, 0).eval()
    model = save_export(module, tmp_path / "m.pt2", (torch.zeros(2, 4),))
    checkpoint = load(model)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    group, = symmetry.groups
    assert ("constant:table", 0) in {(place.tensor, place.axis) for place in group.places}
    plan = symmetry.plan({group.name: Permutation(np.array([3, 1, 5, 0, 2, 4]))})
    moved = export(checkpoint, model, plan, CERTIFICATE, tmp_path / "moved.pt2")
    x = torch.randn(2, 4)
    torch.testing.assert_close(torch.export.load(moved).module()(x), module(x))
    assert torch.equal(load(moved).tensors["constant:table"], module.table[[3, 1, 5, 0, 2, 4]])
    back = load(restore(moved, tmp_path / "back.pt2"))
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in checkpoint.tensors.items())


class Biased(nn.Module):
    """Attention whose learned bias decides which kernel torch takes, and so how the result lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias).transpose(1, 2).reshape(-1, 5, 8))


def test_attention_with_a_learned_bias_is_written(tmp_path):
    path = save_pt2(seeded(Biased, 0), torch.zeros(2, 5, 8), tmp_path / "biased.pt2")
    checkpoint = load(path)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
    out = export(checkpoint, path, plan, None, tmp_path / "out.pt2")
    x = torch.randn(3, 5, 8)
    before, after = (torch.export.load(file).module()(x) for file in (path, out))
    torch.testing.assert_close(before, after)
