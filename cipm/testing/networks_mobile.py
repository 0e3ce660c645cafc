"""Small image networks: MobileNet v2 and v3, EfficientNet, ShuffleNet v2, SqueezeNet, written for any width.

Structures: Sandler et al. 2018; Howard et al. 2019; Tan and Le 2019; Ma et al. 2018; Iandola et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cipm.testing.networks_residual import unit

Act = Callable[[], nn.Module]


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the means of all channels through `inner` units."""

    def __init__(self, channels: int, inner: int, act: Act, gate: Act):
        super().__init__()
        self.down, self.act = nn.Conv2d(channels, inner, 1), act()
        self.up, self.gate = nn.Conv2d(inner, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))


@dataclass(frozen=True)
class Inverted:
    """One inverted residual block: `inner` channels between, `out` after, `squeeze` units of its gate (0: none)."""

    inner: int
    out: int
    kernel: int = 3
    stride: int = 1
    squeeze: int = 0
    act: Act = nn.ReLU6
    gate: Act = nn.Sigmoid


class InvertedResidual(nn.Module):
    """1×1 up, depthwise, gate, 1×1 down; added to its input where the shape stays. Equal widths leave out the first."""

    def __init__(self, channels: int, spec: Inverted):
        super().__init__()
        layers: list[nn.Module] = []
        if spec.inner != channels:
            layers.append(unit(channels, spec.inner, 1, act=spec.act))
        layers.append(unit(spec.inner, spec.inner, spec.kernel, spec.stride, groups=spec.inner, act=spec.act))
        if spec.squeeze:
            inside = nn.ReLU if spec.gate is nn.Hardsigmoid else spec.act
            layers.append(SqueezeExcite(spec.inner, spec.squeeze, inside, spec.gate))
        self.layers = nn.Sequential(*layers, unit(spec.inner, spec.out, 1, act=None))
        self.adds = spec.stride == 1 and channels == spec.out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class InvertedNet(nn.Module):
    """A stem, inverted residual blocks, a 1×1 convolution to `last` channels, pooling, a head with `hidden` units (0: none)."""

    def __init__(self, stem: int, blocks: Sequence[Inverted], last: int, *, act: Act, hidden: int = 0, classes: int = 3):
        super().__init__()
        channels = [stem, *(spec.out for spec in blocks)]
        self.stem = unit(3, stem, 3, 2, act=act)
        self.blocks = nn.Sequential(*(InvertedResidual(c, spec) for c, spec in zip(channels, blocks, strict=False)))
        self.last = unit(channels[-1], last, 1, act=act)
        between = [nn.Linear(last, hidden), act()] if hidden else []
        self.head = nn.Sequential(*between, nn.Dropout(0.2), nn.Linear(hidden or last, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def mobilenet_v2() -> InvertedNet:
    """Return a stem, a block without expansion, a strided block, a residual block and another strided one."""
    return InvertedNet(6, [Inverted(6, 4), Inverted(18, 8, stride=2), Inverted(20, 8), Inverted(22, 10, stride=2)], 16,
                       act=nn.ReLU6)


def mobilenet_v3() -> InvertedNet:
    """Return blocks with ReLU and with hard swish, some with a hard-sigmoid gate, and a hidden layer in the head."""
    gated = {"squeeze": 5, "gate": nn.Hardsigmoid}
    return InvertedNet(8, [Inverted(8, 8, act=nn.ReLU, **gated), Inverted(18, 10, stride=2, act=nn.ReLU),
                           Inverted(20, 10, kernel=5, act=nn.Hardswish, **gated),
                           Inverted(24, 12, kernel=5, stride=2, act=nn.Hardswish, **gated)], 16,
                       act=nn.Hardswish, hidden=14)


def efficientnet() -> InvertedNet:
    """Return blocks with SiLU, each with a sigmoid gate as wide as a quarter of its input."""
    return InvertedNet(8, [Inverted(8, 6, squeeze=2, act=nn.SiLU), Inverted(16, 10, stride=2, squeeze=3, act=nn.SiLU),
                           Inverted(22, 10, kernel=5, squeeze=3, act=nn.SiLU),
                           Inverted(26, 12, kernel=5, stride=2, squeeze=4, act=nn.SiLU)], 18, act=nn.SiLU)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Return the channels (group, place) in the order (place, group)."""
    rows, channels, height, width = x.shape
    return x.view(rows, groups, channels // groups, height, width).transpose(1, 2).reshape(rows, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half goes through a bottleneck; at stride 2 both halves see all channels."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        half, seen = out // 2, channels if stride > 1 else channels // 2
        self.stride = stride
        self.short = nn.Sequential(*([unit(channels, channels, 3, stride, groups=channels, act=None), unit(channels, half, 1)]
                                     if stride > 1 else []))
        self.long = nn.Sequential(unit(seen, half, 1), unit(half, half, 3, stride, groups=half, act=None), unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([self.short(left), self.long(right)], 1), 2)


class ShuffleNet(nn.Module):
    """A stem with max pooling, shuffle units, a 1×1 convolution, pooling, a linear head."""

    def __init__(self, stem: int, units: Sequence[tuple[int, int]], last: int, *, classes: int = 3):
        super().__init__()
        channels = [stem, *(out for out, _ in units)]
        self.stem, self.pool = unit(3, stem, 3, 2), nn.MaxPool2d(3, 2, 1)
        self.units = nn.Sequential(*(ShuffleUnit(c, out, stride) for c, (out, stride) in zip(channels, units, strict=False)))
        self.last, self.head = unit(channels[-1], last, 1), nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.pool(self.stem(x)))).mean((2, 3)))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1×1 and 3×3 convolutions side by side."""

    def __init__(self, channels: int, squeeze: int, one: int, three: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, one, 1), nn.Conv2d(squeeze, three, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class SqueezeNet(nn.Module):
    """A stem, fire modules with max pooling between, a 1×1 convolution to the classes, average pooling."""

    def __init__(self, stem: int, fires: Sequence[tuple[int, int, int]], *, classes: int = 3):
        super().__init__()
        channels = [stem, *(one + three for _, one, three in fires)]
        self.stem, self.pool = nn.Conv2d(3, stem, 3, 2), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fires = nn.ModuleList(Fire(c, *spec) for c, spec in zip(channels, fires, strict=False))
        self.head = nn.Conv2d(channels[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for fire in self.fires:
            x = fire(self.pool(x))
        return F.relu(self.head(x)).mean((2, 3))
