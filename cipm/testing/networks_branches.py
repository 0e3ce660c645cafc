"""Image networks whose parts run side by side: U-Net with group or instance norm, Inception, and the MLP-Mixer.

Structures: Ronneberger et al. 2015; Szegedy et al. 2015 (the third version); Tolstikhin et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cipm.testing.networks_residual import unit


class UNet(nn.Module):
    """Down by max pooling, up by transposed convolutions; every level joins what it had on the way down.

    [rows, 3, side, side] → [rows, classes, side, side], the side divisible by 2 for every level but the last.
    """

    def __init__(self, widths: Sequence[int], norm: Callable[[int], nn.Module], *, classes: int = 2):
        super().__init__()
        double = lambda channels, out: nn.Sequential(  # noqa: E731
            unit(channels, out, norm=norm, act=nn.SiLU), unit(out, out, norm=norm, act=nn.SiLU))
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths, widths[1:], strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, 2) for here, below in pairs)
        self.join = nn.ModuleList(double(2 * here, here) for here, _ in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


def unet_group(widths: Sequence[int] = (8, 12, 20), groups: int = 4) -> UNet:
    """Return a U-Net with group norm."""
    return UNet(widths, lambda channels: nn.GroupNorm(groups, channels))


def unet_instance(widths: Sequence[int] = (6, 10, 16)) -> UNet:
    """Return a U-Net with instance norm that has weights."""
    return UNet(widths, lambda channels: nn.InstanceNorm2d(channels, affine=True))


class Inception(nn.Module):
    """Four branches side by side: 1×1; 5×5 behind 1×1; a tall and a wide one behind 1×1; 1×1 behind pooling."""

    def __init__(self, channels: int, widths: Sequence[int]):
        super().__init__()
        one, inner5, five, inner7, seven, pooled = widths
        self.one = unit(channels, one, 1)
        self.five = nn.Sequential(unit(channels, inner5, 1), unit(inner5, five, 5))
        self.seven = nn.Sequential(unit(channels, inner7, 1), unit(inner7, inner7, (1, 7)), unit(inner7, seven, (7, 1)))
        self.pooled = unit(channels, pooled, 1)
        self.out = one + five + seven + pooled

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.five(x), self.seven(x), pooled], 1)


class Reduction(nn.Module):
    """Halve the size by a strided convolution and by max pooling, side by side."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv, self.out = nn.Sequential(nn.Conv2d(channels, width, 3, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()), \
            channels + width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), F.max_pool2d(x, 3, 2)], 1)


class InceptionNet(nn.Module):
    """A stem, a mixed block, a reduction, a mixed block, average pooling, a linear head."""

    def __init__(self, stem: int, first: Sequence[int], reduced: int, second: Sequence[int], *, classes: int = 3):
        super().__init__()
        self.stem = unit(3, stem, 3, 2)
        self.first = Inception(stem, first)
        self.reduce = Reduction(self.first.out, reduced)
        self.second = Inception(self.reduce.out, second)
        self.head = nn.Linear(self.second.out, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.reduce(self.first(self.stem(x)))).mean((2, 3)))


class MixerBlock(nn.Module):
    """Mix tokens by one two-layer network and channels by another, each around a shortcut."""

    def __init__(self, tokens: int, width: int, inner_tokens: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, inner_tokens), nn.GELU(), nn.Linear(inner_tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches as tokens, mixer blocks, a norm, the mean over tokens, a linear head."""

    def __init__(self, side: int, patch: int, width: int, inner_tokens: int, inner: int, *, depth: int = 2, classes: int = 3):
        super().__init__()
        tokens = (side // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width, inner_tokens, inner) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))
