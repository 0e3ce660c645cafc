"""Small models for tests, benches and the demo: built here, seeded, never downloaded.

    save_pt2(mlp(seed=0), torch.zeros(2, 64), path)     a .pt2 file that takes any number of rows
    save_huggingface("gpt2", folder, seed=0)            config.json and model.safetensors as save_pretrained writes them
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = "batch"
Model = TypeVar("Model", bound=nn.Module)


class Mlp(nn.Module):
    """Linear layers with ReLU between them: [rows, widths[0]] → [rows, widths[-1]]."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut; the shortcut is a projection where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        projects = stride > 1 or channels != out
        self.shortcut = (nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                         if projects else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResidualCnn(nn.Module):
    """A stem, one residual block as wide as it, a strided one twice as wide, average pooling, a linear head.

    [rows, channels, height, width] → [rows, classes].
    """

    def __init__(self, channels: int = 1, width: int = 16, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.head(x.mean(dim=(2, 3)))


def mlp(widths: Sequence[int] = (64, 128, 96, 10), *, seed: int = 0) -> Mlp:
    """Return a seeded Mlp in evaluation mode."""
    return seeded(lambda: Mlp(widths), seed).eval()


def cnn_residual(channels: int = 1, width: int = 16, classes: int = 10, *, seed: int = 0) -> ResidualCnn:
    """Return a seeded ResidualCnn in evaluation mode, its batch norms with statistics other than 0 and 1."""
    model = seeded(lambda: ResidualCnn(channels, width, classes), seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def seeded(make: Callable[[], Model], seed: int) -> Model:
    """Return `make()` with its random numbers drawn from `seed`; the process's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def save_pt2(model: nn.Module, example: Tensor | Sequence[Tensor], path: Path) -> Path:
    """Write a model as a .pt2 file whose inputs all share a free number of rows (axis 0); return the path.

    `example` holds at least two rows of each input. The model is written in evaluation mode.
    """
    arguments = (example,) if isinstance(example, Tensor) else tuple(example)
    rows = torch.export.Dim(ROWS)
    with quiet():
        program = torch.export.export(model.eval(), arguments, dynamic_shapes=tuple({0: rows} for _ in arguments),
                                      strict=False)
        torch.export.save(program, path)
    return path


HUGGING_FACE: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", dict(
        vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=40, num_labels=3)),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", dict(
        vocab_size=97, n_embd=48, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0)),
    "llama": ("LlamaConfig", "LlamaForCausalLM", dict(
        vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, max_position_embeddings=40, bos_token_id=0, eos_token_id=0)),
    "vit": ("ViTConfig", "ViTForImageClassification", dict(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=8, patch_size=4,
        num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", dict(
        num_channels=3, embedding_size=16, hidden_sizes=[16, 24], depths=[2, 2], layer_type="basic", num_labels=10)),
}


def huggingface(kind: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """Return a tiny transformers model of one of the kinds in HUGGING_FACE, with `changes` to its configuration."""
    transformers = _transformers()
    config, model, values = HUGGING_FACE[kind]
    made = getattr(transformers, config)(**(dict(values) | changes))
    return seeded(lambda: getattr(transformers, model)(made), seed).eval()


def save_huggingface(kind: str, folder: Path, *, seed: int = 0, **changes: Any) -> nn.Module:
    """Write such a model into a folder as `save_pretrained` does; return it."""
    model = huggingface(kind, seed=seed, **changes)
    with quiet():
        model.save_pretrained(folder)
    return model


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers  # noqa: PLC0415 - heavy, and needed for these kinds alone

    transformers.utils.logging.disable_progress_bar()
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch says about its own insides while it exports."""
    log = logging.getLogger("torch.export")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
