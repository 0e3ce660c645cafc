"""Small real models in the formats that are read, for the tests of reading and writing."""

from __future__ import annotations

import importlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

HUB = {
    "BertModel": ("bert", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                               vocab_size=100, max_position_embeddings=64)),
    "BertForSequenceClassification": ("bert", dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                                                   intermediate_size=48, vocab_size=100, max_position_embeddings=64,
                                                   num_labels=5)),
    "BertForMaskedLM": ("bert", dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
                                     vocab_size=100, max_position_embeddings=64)),
    "GPT2Model": ("gpt2", dict(n_embd=32, n_layer=1, n_head=4, vocab_size=100, n_positions=64)),
    "GPT2LMHeadModel": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64)),
    "LlamaForCausalLM": ("llama", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                       intermediate_size=48, vocab_size=100, max_position_embeddings=64)),
    "ViTForImageClassification": ("vit", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                              intermediate_size=48, image_size=16, patch_size=4, num_labels=7)),
    "ViTModel": ("vit", dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=16,
                             patch_size=4)),
    "ResNetForImageClassification": ("resnet", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2],
                                                    layer_type="bottleneck", num_labels=4)),
}
_CONFIGS = {"bert": "BertConfig", "gpt2": "GPT2Config", "llama": "LlamaConfig", "vit": "ViTConfig", "resnet": "ResNetConfig"}


def save_hub(name: str, folder: Path) -> Path:
    """Write a model with random weights by its own save_pretrained; batch norms get real-looking statistics."""
    kind, values = HUB[name]
    config = getattr(importlib.import_module(f"transformers.models.{kind}.configuration_{kind}"), _CONFIGS[kind])(**values)
    torch.manual_seed(0)
    model = hub_class(name)(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    model.save_pretrained(folder)
    return folder


def hub_class(name: str) -> Any:
    kind = HUB[name][0]
    return getattr(importlib.import_module(f"transformers.models.{kind}.modeling_{kind}"), name)


def as_zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def hub_input(name: str, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if HUB[name][0] in ("vit", "resnet"):
        size = 16 if HUB[name][0] == "vit" else 40 + batch
        return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}
    return {"input_ids": torch.randint(0, 100, (batch, 5 + batch), generator=generator)}


def save_export(module: nn.Module, path: Path, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *,
                dynamic: Any = "batch", decompose: str = "no") -> Path:
    """Write a .pt2 file with the batch dynamic; `decompose` is "no", "functional" or "core"."""
    if dynamic == "batch":
        dynamic = tuple({0: Dim("batch")} for _ in args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
        if decompose != "no":
            program = program.run_decompositions({} if decompose == "functional" else None)
        torch.export.save(program, path)
    return path


def torch_load(path: Path) -> nn.Module:
    """Load an exported program with torch alone, as a person without CIPM does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


class Mlp(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (6, 10, 8, 3)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.c, self.d = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(x + self.d(self.c(torch.relu_(self.b(self.a(x))))))


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 12, 3, padding=1), nn.Sequential(Block(12), Block(12))
        self.norm, self.drop, self.head = nn.GroupNorm(3, 12), nn.Dropout(0.3), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(nn.functional.max_pool2d(self.stem(x), 2)))
        return self.head(self.drop(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True, bidirectional=True)
        self.encoder = nn.TransformerEncoderLayer(12, 4, 24, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.gru(x)[0])


class Tied(nn.Module):
    """Tied weights, an unused parameter, a stored integer buffer, one that is not stored, a lifted constant; dict output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Parameter(torch.arange(3.0))
        self.register_buffer("table", torch.arange(10))
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)

    def forward(self, ids: torch.Tensor) -> dict[str, Any]:
        hidden = self.embed(self.table[ids]) * self.scale + torch.tensor([0.0, 1.0, 2.0, 3.0])
        return {"logits": self.out(hidden), "more": (hidden.mean(1), [hidden.sum()])}


class Named(nn.Module):
    """Inputs by position and by keyword, with names that mean something else in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, input: torch.Tensor, *, scale: torch.Tensor, list: torch.Tensor) -> torch.Tensor:
        return self.layer(input) * scale + list


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pair: Any, power: int = 2) -> list[Any]:
        return [self.layer(pair[0] + pair[1]["a"]) ** power, (pair[0],)]


class NoGrad(nn.Module):
    """A sub-graph under no_grad, an in-place update of a slice, einsum, padding, interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.slope = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.PReLU()
        self.table = nn.ParameterDict({"a-b": torch.randn(8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            factor, shift = torch.cos(x), torch.sin(x)
        y = self.slope(self.layer(x * factor + shift)).clone()
        y[:, :4] += 1
        y.clamp_(max=3)
        wide = nn.functional.interpolate(y[:, None], scale_factor=2.0)[:, 0]
        return wide + nn.functional.pad(torch.einsum("bi,ij->bj", y, torch.eye(8)), (0, 8)) + self.table["a-b"].repeat(2)
