"""Trained networks to prune: digits, MNIST, CIFAR-10 and a language model, with rows to fit on and held-out ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cipm.testing.digits import Recipe, load, train
from cipm.testing.networks_residual import CifarResnet20

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network with the rows that weights are fitted on (labels are for peers that want gradients) and held-out ones.

    `score` is "accuracy" (%) or "cross-entropy" (nats).
    """

    model: nn.Module
    fit: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    score: str = "accuracy"

    def judge(self, logits: Logits) -> float:
        """Return the score on the held-out rows."""
        x, y = self.held_out
        with torch.no_grad():
            found = torch.cat([logits(part) for part in x.split(250)])
        if self.score == "accuracy":
            return 100 * float(found.argmax(-1).eq(y).float().mean())
        return float(F.cross_entropy(found.flatten(0, -2), y.flatten()))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())


def print_tables(words: Sequence[str], tables: Mapping[str, Callable[[], object]], real: Collection[str]) -> None:
    """Print the tables asked for, or all; of those that need `real` data, where it is missing, that it is."""
    for name in list(words) or tables:
        if name in real and not DATA.is_dir():
            print(f"\n{name}: its real data and weights (../shared/data) are not here")
        else:
            tables[name]()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


EPOCHS = {"mlp": 40, "cnn": 60}
"""Chosen on a fifth of the training rows, by the accuracy of whole networks of three other seeds: of 15, 30 and 60 epochs of
the CNN, each with images moved or not (96.0, 98.8 and 98.9 %; moved 91.8, 96.0 and 98.6), and of 15 and 40 of the MLP, each
with decay 1e-4 or 1e-2 (98.1 and 98.5; 98.1 and 98.3). Nothing was pruned for that choice."""


def digits(make: Callable[[], nn.Module], seed: int) -> Subject:
    """Return a network trained on the digits; weights are refitted on training rows."""
    data = load()

    def build() -> nn.Module:
        torch.manual_seed(seed)
        model = make()
        train(model, data, Recipe(EPOCHS[make.__name__], 3e-3, seed=seed), lambda net, x: net(x))
        return model

    model = trained(f"digits-{make.__name__}-{EPOCHS[make.__name__]}-{seed}", make, build)
    return Subject(model, (data.train_x, data.train_y), (data.test_x, data.test_y))


def trained(name: str, make: Callable[[], nn.Module], build: Callable[[], nn.Module]) -> nn.Module:
    """Return what `build` trains, in evaluation mode; its weights stay in the folder for temporary files for the next run."""
    file = Path(tempfile.gettempdir()) / "cipm-bench-subjects" / f"{name}.safetensors"
    if file.is_file():
        model = make()
        model.load_state_dict(load_file(file))
    else:
        model = build()
        file.parent.mkdir(exist_ok=True)
        save_file(model.state_dict(), file)
    return model.eval()


def mnist(seed: int) -> Subject:
    """Return a trained 784-512-512-512-10 with 2,000 training images and the 10,000 test images."""
    state = load_file(DATA / "mnist_zoo" / f"mlp_784-512x3-10_seed{seed}.safetensors")
    widths = (784, 512, 512, 512, 10)
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    for number, layer in enumerate(layers, 1):
        layer.load_state_dict({name: state[f"fc{number}.{name}"].float() for name in ("weight", "bias")})
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))[:-1]
    with np.load(DATA / "datasets" / "mnist.npz") as file:
        images = {kind: (torch.from_numpy(file[f"x_{kind}"]).flatten(1).float() / 255 - 0.1307) / 0.3081
                  for kind in ("train", "test")}
        labels = {kind: torch.from_numpy(file[f"y_{kind}"]).long() for kind in ("train", "test")}
    return Subject(model.eval(), (images["train"][:2000], labels["train"][:2000]), (images["test"], labels["test"]))


def cifar() -> Subject:
    """Return the published ResNet-20 with 600 training and 1,000 test images."""
    model = CifarResnet20.read(DATA / "cifar10_resnet" / "resnet20-12fca82f.th")
    with np.load(DATA / "datasets" / "cifar10_lossless_4k_1k.npz") as images:
        x, y = (torch.from_numpy(np.concatenate([images[f"{kind}_train"][:600], images[f"{kind}_test"]])) for kind in "xy")
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    x, y = (x.permute(0, 3, 1, 2).float() / 255 - mean) / deviation, y.long()
    return Subject(model, (x[:600], y[:600]), (x[600:], y[600:]))


class SwiGlu(nn.Module):
    """A gated layer (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Causal attention and a gated layer, both after an RMS norm, on a residual stream."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.ffn = SwiGlu(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


class ByteModel(nn.Module):
    """A language model over bytes: [rows, positions] → [rows, positions, 256]."""

    def __init__(self, layers: int = 4, width: int = 96, heads: int = 4, hidden: int = 256, positions: int = 64):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(positions, width)
        self.layers = nn.Sequential(*(Layer(width, heads, hidden) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.layers(self.tokens(x) + places)))


def language(steps: int = 1500, positions: int = 64, hidden: int = 256) -> Subject:
    """Return a byte model trained for some minutes on the plays of tinyshakespeare, whose last tenth is held out.

    Fitted on 500 windows of the training text, judged on 500 of the rest.
    """
    text = torch.frombuffer(bytearray((DATA / "datasets" / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8).long()
    cut = len(text) * 9 // 10
    make = partial(ByteModel, positions=positions, hidden=hidden)
    model = trained(f"language-{steps}-{positions}-{hidden}", make, lambda: _read(make, text[:cut], steps, positions))
    starts = torch.randint(cut - positions - 1, (500,), generator=torch.Generator().manual_seed(1))
    held_out = torch.arange(500) * ((len(text) - cut - positions - 1) // 500)
    return Subject(model, _windows(text[:cut], starts, positions), _windows(text[cut:], held_out, positions), "cross-entropy")


def _read(make: Callable[[], nn.Module], text: Tensor, steps: int, positions: int) -> nn.Module:
    """Return a model trained on windows of a text."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        x, y = _windows(text, torch.randint(len(text) - positions - 1, (32,), generator=generator), positions)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def _windows(text: Tensor, starts: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    both = text[starts[:, None] + torch.arange(positions + 1)]
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()
