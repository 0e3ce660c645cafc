"""Published weights, most of them without a model: what they compute is what their authors say, before and after reordering."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from cipm.errors import InputError
from cipm.export import export, restore
from cipm.load import Checkpoint, load
from cipm.load.state_dict import find_weights, read_weights
from cipm.symmetry import discover_groups, prove, random_member
from cipm.trace import run

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data and weights (../shared/data) are not here")


def described(tmp_path: Path, name: str, config: dict[str, Any]) -> Path:
    """Return a zip of a published file with its description."""
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(DATA / name, Path(name).name)
        archive.writestr("architecture.json", json.dumps(config))
    return tmp_path / "m.zip"


def digits() -> tuple[torch.Tensor, np.ndarray]:
    with np.load(DATA / "datasets" / "mnist.npz") as file:
        return torch.from_numpy(file["x_test"]).float() / 255, file["y_test"]


def pictures(mean: tuple[float, ...], deviation: tuple[float, ...]) -> tuple[torch.Tensor, np.ndarray]:
    with np.load(DATA / "datasets" / "cifar10_lossless_4k_1k.npz") as file:
        x = (torch.from_numpy(file["x_test"]).float() / 255 - torch.tensor(mean)) / torch.tensor(deviation)
        return x.permute(0, 3, 1, 2).contiguous(), file["y_test"]


def outputs(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    return run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {"x": x})[0]


def reorganized(path: Path, tmp_path: Path) -> tuple[Checkpoint, Checkpoint, Any]:
    """Return a checkpoint, the same with all its groups at random, written and read again, and its symmetry."""
    checkpoint = load(path)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert symmetry.certificate.passed and not [note for note in symmetry.notes if "failed" in note]
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(0))
    out = export(checkpoint, path, plan, None, tmp_path / f"out{path.suffix}")
    written, back = (dict(read_weights(find_weights(file).file).tensors)
                     for file in (out, restore(out, tmp_path / f"back{path.suffix}")))
    assert all(torch.equal(back[key], tensor) for key, tensor in checkpoint.tensors.items())
    return checkpoint, checkpoint.with_tensors(written), symmetry


@needs_data
@pytest.mark.parametrize(("name", "layers", "shift", "accuracy"), [
    ("mlp_784-512-10_seed00", 1, (0, 1), 0.9796), ("mlp_784-512x3-10_seed0", 3, (0.1307, 0.3081), 0.9855)])
def test_published_perceptrons_need_no_description(tmp_path, name, layers, shift, accuracy):
    path = DATA / "mnist_zoo" / f"{name}.safetensors"
    before, after, symmetry = reorganized(path, tmp_path)
    assert [group.size for group in symmetry.groups] == [512] * layers
    assert "The activation between the layers is relu, as the file's metadata says." in before.origin["notes"]
    x, labels = digits()
    x = ((x - shift[0]) / shift[1]).flatten(1)
    first, second = outputs(before, x).argmax(1), outputs(after, x).argmax(1)
    assert (first.numpy() == labels).mean() == pytest.approx(accuracy, abs=2e-4)  # as zoo.json says
    assert (first == second).float().mean() > 0.9998
    assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
    with safe_open(path, "pt") as old, safe_open(tmp_path / "out.safetensors", "pt") as new:
        assert set(new.metadata()) == {*old.metadata(), "cipm"} and list(new.keys()) == list(old.keys())


@needs_data
def test_published_lenet_with_its_family(tmp_path):
    path = described(tmp_path, "mnist_zoo/lenet_20-50-500-10_seed2.safetensors",
                     {"family": "cnn", "input": [1, 28, 28], "pools": 2})
    before, after, symmetry = reorganized(path, tmp_path)
    assert [group.size for group in symmetry.groups] == [20, 50, 500]
    x, labels = digits()
    x, labels = ((x - 0.1307) / 0.3081)[:2000, None], labels[:2000]
    first = outputs(before, x)
    assert (first.argmax(1).numpy() == labels).mean() > 0.975  # 98.40 on all
    torch.testing.assert_close(outputs(after, x), first, rtol=1e-4, atol=1e-4)


RESNET = {"family": "resnet_cifar", "shortcut": "A"}


def check_resnet(checkpoint: Checkpoint, symmetry: Any, blocks: int, accuracy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold the groups and the accuracy on the 1,000 images against the published ones; return images and outputs."""
    inner = sorted(g.size for g in symmetry.groups if g.kind == "channels" and len(g.taps) == 1)
    streams = sorted(g.size for g in symmetry.groups if g.kind == "residual stream")
    assert inner == [16] * blocks + [32] * blocks + [64] * blocks and streams == [16, 16, 32]
    x, labels = pictures((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    found = outputs(checkpoint, x)
    assert (found.argmax(1).numpy() == labels).mean() == pytest.approx(accuracy, abs=1e-3)
    return x, found


@needs_data
def test_published_resnet20_written_and_restored(tmp_path):
    before, after, symmetry = reorganized(described(tmp_path, "cifar10_resnet/resnet20-12fca82f.th", RESNET), tmp_path)
    x, first = check_resnet(before, symmetry, 3, 0.915)
    torch.testing.assert_close(outputs(after, x[:50]), first[:50], rtol=1e-3, atol=1e-3)


@needs_data
def test_published_resnet_of_another_depth(tmp_path):
    checkpoint = load(described(tmp_path, "cifar10_resnet/resnet32-d509ac18.th", RESNET))
    check_resnet(checkpoint, discover_groups(checkpoint), 5, 0.928)


@needs_data
def test_published_cnn_of_the_old_layout(tmp_path):
    before, after, symmetry = reorganized(described(tmp_path, "captum/cifar_torchvision.pt",
                                                    {"family": "cnn", "input": [3, 32, 32], "pools": 2}), tmp_path)
    assert [group.size for group in symmetry.groups] == [6, 16, 120, 84]
    x, labels = pictures((0.5,) * 3, (0.5,) * 3)
    assert (outputs(before, x).argmax(1).numpy() == labels).mean() == pytest.approx(0.590, abs=1e-3)
    torch.testing.assert_close(outputs(after, x), outputs(before, x), rtol=1e-3, atol=1e-4)


class Gpt(nn.Module):
    """The network of makemore's transformer, from its paper: for the test alone, with its key names."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        self.state = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, steps = self.state["wte.weight"][tokens] + self.state["wpe.weight"][:tokens.shape[1]], tokens.shape[1]
        for i in range(4):
            q, k, v = (part.view(*x.shape[:2], 4, 16).transpose(1, 2) for part in
                       self.linear(f"h.{i}.attn.c_attn", self.norm(f"h.{i}.ln_1", x)).split(64, 2))
            future = self.state[f"h.{i}.attn.bias"][:, :, :steps, :steps] == 0
            weights = (q @ k.transpose(2, 3) / 4).masked_fill(future, -torch.inf)
            x = x + self.linear(f"h.{i}.attn.c_proj", (weights.softmax(-1) @ v).transpose(1, 2).flatten(2))
            inner = F.gelu(self.linear(f"h.{i}.mlp.c_fc", self.norm(f"h.{i}.ln_2", x)), approximate="tanh")
            x = x + self.linear(f"h.{i}.mlp.c_proj", inner)
        return self.linear("lm_head", self.norm("ln_f", x))


@needs_data
def test_published_makemore_gpt(tmp_path):
    name = "makemore_gpt/michal-minich_names.pt"
    before, after, symmetry = reorganized(described(tmp_path, name, {"family": "gpt", "heads": 4}), tmp_path)
    sizes = [(group.kind, group.size) for group in symmetry.groups]
    assert sizes.count(("heads", 4)) == 4 and sizes.count(("units", 256)) == 4 and sizes.count(("units in heads", 64)) == 8
    assert sizes.count(("residual stream", 64)) == 1 and len(sizes) == 17
    model = Gpt(torch.load(DATA / name, weights_only=True))
    for steps in (16, 3):  # the longest text, which the example of discovery does not reach
        tokens = torch.randint(0, 27, (3, steps), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(outputs(before, tokens), model(tokens), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs(after, tokens), model(tokens), rtol=1e-4, atol=1e-4)


@needs_data
@pytest.mark.parametrize(("name", "first"), [("rl/jbloom_ppo_lstm_02.pt", "model.image_conv.0.embedding.weight"),
                                             ("speech/silero_vad_16k.safetensors", "stft_conv.weight"),
                                             ("makemore_gpt/smarginatura.pt", "start"), ("mtcnn/onet.pt", "conv1.weight")])
def test_published_weights_whose_computation_no_file_says(name, first):
    with pytest.raises(InputError, match=rf"^The file holds .*\({re.escape(first)} .* (guessed|chain of linear layers)\.$"):
        load(DATA / name)
