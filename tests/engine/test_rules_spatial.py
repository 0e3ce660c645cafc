"""Channels, positions and norms: exactly the groups that mathematics allows, each proved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from discovered import proved
from rule_models import Convolved
from torch import nn
from torch.nn import functional as F


def found(symmetry) -> list[tuple[int, int]]:
    """Return (size, blocks) of every group but the five channels after the tested function."""
    return sorted((g.size, g.blocks) for g in symmetry.groups if ("two.bias", 0) not in {(p.tensor, p.axis) for p in g.places})


class Response(nn.Module):
    """Global response normalisation of ConvNeXt v2."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(1, 1, 1, 8)), nn.Parameter(torch.randn(1, 1, 1, 8))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return (self.scale * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.shift + x).permute(0, 3, 1, 2)


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x):
        return x * torch.sigmoid(self.two(F.relu(self.one(x.mean((2, 3))))))[:, :, None, None]


class Weighed(nn.Module):
    """A convolution whose weight is a direction and a length, written out."""

    def __init__(self):
        super().__init__()
        self.direction, self.length = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.rand(8, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.length * self.direction / self.direction.flatten(1).norm(dim=1)[:, None, None, None], padding=1)


class Quantised(nn.Module):
    """A convolution whose weight is rounded with a stored scale for every filter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.register_buffer("scale", 0.1 + torch.rand(8) * 0.1)
        self.register_buffer("zero", torch.zeros(8, dtype=torch.int32))

    def forward(self, x):
        return F.conv2d(x, torch.fake_quantize_per_channel_affine(self.weight, self.scale, self.zero, 0, -128, 127))


class Stored(nn.Module):
    """A convolution whose weight is stored as eight-bit integers and a scale for every filter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 127, (8, 8), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(8, 1) * 0.1)

    def forward(self, x):
        return F.conv2d(x, (self.weight.float() * self.scale)[:, :, None, None])


class Turned(nn.Module):
    """A spatial transformer: the image is sampled where a linear layer says."""

    def __init__(self):
        super().__init__()
        self.look = nn.Linear(8, 6)

    def forward(self, x):
        grid = F.affine_grid(self.look(x.mean((2, 3))).view(-1, 2, 3), [x.shape[0], 8, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


def unpooled(x):
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


def cut_in_patches(x):
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).reshape(x.shape[0], -1, 4, 4)


def shuffled_by_views(x):
    return x.view(-1, 2, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(-1, 2, 16, 16)


weight_norm, spectral_norm = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
FREE = [(8, 1)]
BLOCKS = {
    "pixel_shuffle": (nn.PixelShuffle(2), 8, 2, [(2, 1)]),
    "pixel shuffle by views": (shuffled_by_views, 8, 2, [(2, 1)]),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), 2, 8, [(2, 1)]),
    "channel_shuffle": (nn.ChannelShuffle(2), 8, 8, FREE),
    "channel shuffle by views": (lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8), 8, 8, FREE),
    "im2col": (lambda x: F.unfold(x, 2, stride=2).view(-1, 32, 4, 4), 8, 32, FREE),
    "col2im": (lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1), 8, 8, FREE),
    "patches by unfold": (cut_in_patches, 8, 32, FREE),
    "roll of positions": (lambda x: torch.roll(x, (1, 2), (2, 3)), 8, 8, FREE),
    "roll of channels": (lambda x: torch.roll(x, 1, 1), 8, 8, FREE),
    "local response norm": (nn.LocalResponseNorm(3), 8, 8, []),
    "instance norm with statistics": (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8, 8, FREE),
    "group norm": (nn.GroupNorm(2, 8), 8, 8, [(2, 1), (8, 2)]),
    "weight norm": (weight_norm(nn.Conv2d(8, 8, 3, padding=1)), 8, 8, FREE * 2),
    "weight norm written out": (Weighed(), 8, 8, FREE * 2),
    "spectral norm": (spectral_norm(nn.Conv2d(8, 8, 3, padding=1)), 8, 8, FREE * 2),
    "response norm": (Response(), 8, 8, FREE),
    "depthwise with multiplier": (nn.Conv2d(8, 16, 3, groups=8), 8, 16, [(8, 1), (16, 8)]),
    "transposed, grouped": (nn.ConvTranspose2d(8, 12, 2, 2, groups=4), 8, 12, [(4, 1), (8, 4), (12, 4)]),
    "same padding, dilated": (nn.Conv2d(8, 6, 3, padding="same", dilation=2), 8, 6, [(6, 1), (8, 1)]),
    "circular": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), 8, 6, [(6, 1), (8, 1)]),
    "bicubic": (nn.Upsample(size=(5, 5), mode="bicubic"), 8, 8, FREE),
    "largest of parts": (nn.AdaptiveMaxPool2d(3), 8, 8, FREE),
    "unpooling": (unpooled, 8, 8, FREE),
    "sampled": (Turned(), 8, 8, FREE),
    "squeeze and excite": (Squeeze(), 8, 8, [(4, 1), (8, 1)]),
    "slope per channel": (nn.PReLU(8), 8, 8, FREE),
    "rounded": (Quantised(), 8, 8, FREE * 2),
    "stored as integers": (Stored(), 8, 8, FREE * 2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_of_images(name):
    inner, width, out, expected = BLOCKS[name]
    assert found(proved(Convolved(inner, width, out), torch.randn(2, 3, 8, 8))) == expected


def test_channels_of_sequences_and_volumes():
    assert found(proved(Convolved(nn.Conv1d(8, 8, 3, padding=1), rank=1), torch.randn(2, 3, 8))) == FREE * 2
    volume = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, groups=2), nn.BatchNorm3d(8), nn.MaxPool3d(2))
    assert found(proved(Convolved(volume, rank=3), torch.randn(2, 3, 4, 4, 4))) == [(2, 1), (8, 2), (8, 2)]


def test_a_channel_that_becomes_positions_takes_its_block_along():
    symmetry = proved(Convolved(nn.PixelShuffle(2), 8, 2), torch.randn(2, 3, 8, 8))
    index = next(p.index for g in symmetry.groups for p in g.places if (p.tensor, p.axis) == ("one.weight", 0))
    np.testing.assert_array_equal(index, np.arange(8).reshape(2, 4))
