"""Plain chains, residual and densely connected image networks: VGG, ResNet, DenseNet, written for any width.

Structures: Simonyan and Zisserman 2014 (VGG); He et al. 2015 (ResNet); Huang et al. 2017 (DenseNet).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [rows, channels, height, width] at every position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def unit(channels: int, out: int, kernel: int | tuple[int, int] = 3, stride: int = 1, *, groups: int = 1,
         norm: Norm = nn.BatchNorm2d, act: Callable[[], nn.Module] | None = nn.ReLU, bias: bool = False) -> nn.Sequential:
    """Return convolution (padded to keep the size at stride 1), norm, activation."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sizes[0] // 2, sizes[1] // 2)
    conv = nn.Conv2d(channels, out, sizes, stride, padding, groups=groups, bias=bias)
    return nn.Sequential(conv, norm(out), *([act()] if act else []))


class Vgg(nn.Module):
    """Convolutions with max pooling ("M") between, two hidden linear layers: [rows, 3, side, side] → [rows, classes].

    `norm` None leaves the norms out, as the first version did. `side` of the last feature map is `last`.
    """

    def __init__(self, plan: Sequence[int | str], hidden: tuple[int, int], *, norm: Norm | None = None, last: int = 1,
                 classes: int = 3):
        super().__init__()
        layers, channels = [], 3
        for step in plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, step, 3, padding=1), *([norm(step)] if norm else []), nn.ReLU()]
            channels = step
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels * last * last, hidden[0]), nn.ReLU(), nn.Dropout(0.5),
                                        nn.Linear(hidden[0], hidden[1]), nn.ReLU(), nn.Linear(hidden[1], classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg16_plan(a: int, b: int, c: int, d: int, e: int) -> tuple[int | str, ...]:
    """Return the thirteen convolutions of VGG16 at these five widths."""
    return (a, a, "M", b, b, "M", c, c, c, "M", d, d, d, "M", e, e, e, "M")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut; where the shape changes the shortcut is a convolution with a norm."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, *, norm: Norm = nn.BatchNorm2d, shortcut: int = 1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        changes = stride > 1 or channels != width
        self.shortcut = unit(channels, width, shortcut, stride, norm=norm, act=None) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 down, 3×3 (in `groups`), 1×1 up to four times the width, around a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, *, norm: Norm = nn.BatchNorm2d, groups: int = 1):
        super().__init__()
        out = width * self.expansion
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False), norm(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), norm(out)
        self.shortcut = unit(channels, out, 1, stride, norm=norm, act=None) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.norm2(self.conv2(inner)))
        return F.relu(self.norm3(self.conv3(inner)) + self.shortcut(x))


class PaddedBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut that subsamples and pads with zeros (option A of He et al. 2015)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.pad = (width - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x))


class CifarResnet20(nn.Module):
    """The ResNet-20 for CIFAR-10 as its weights are published: [rows, 3, 32, 32] → [rows, 10]; `read` takes them in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = PaddedBlock(before, width, 2 if number > 1 else 1)
            setattr(self, f"layer{number}", nn.Sequential(first, *(PaddedBlock(width, width, 1) for _ in range(2))))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))

    @classmethod
    def read(cls, path: Path) -> CifarResnet20:
        """Return the model with published weights (of torch.nn.DataParallel), in evaluation mode."""
        state, model = torch.load(path, map_location="cpu", weights_only=True)["state_dict"], cls()
        model.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
        return model.eval()


class ResNet(nn.Module):
    """A stem, stages of blocks (the first of each later stage halves the size), average pooling, a linear head.

    `large` gives the stem of the image-sized networks: 7×7 with stride 2, then max pooling.
    """

    def __init__(self, block: Callable[..., nn.Module], blocks: Sequence[int], widths: Sequence[int], stem: int, *,
                 norm: Norm = nn.BatchNorm2d, large: bool = False, classes: int = 3, expansion: int = 1):
        super().__init__()
        self.stem = unit(3, stem, 7 if large else 3, 2 if large else 1, norm=norm)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        stages, channels = [], stem
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for index in range(count):
                stage.append(block(channels, width, 2 if number and not index else 1, norm=norm))
                channels = width * expansion
            stages.append(nn.Sequential(*stage))
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.pool(self.stem(x))).mean((2, 3)))


def resnet20(widths: Sequence[int] = (6, 8, 10), stem: int = 6, *, norm: Norm = nn.BatchNorm2d, shortcut: int = 1) -> ResNet:
    """Return the twenty-layer network for small images: three stages of three basic blocks."""
    return ResNet(partial(BasicBlock, shortcut=shortcut), (3, 3, 3), widths, stem, norm=norm)


def resnet50(widths: Sequence[int] = (64, 128, 256, 512), stem: int = 64, *, classes: int = 1000) -> ResNet:
    """Return the fifty-layer network; at its own widths unless told others."""
    return ResNet(Bottleneck, (3, 4, 6, 3), widths, stem, large=True, classes=classes, expansion=Bottleneck.expansion)


def resnext(widths: Sequence[int], stem: int, groups: int) -> ResNet:
    """Return two stages of bottlenecks whose 3×3 convolutions work in groups (Xie et al. 2017)."""
    return ResNet(partial(Bottleneck, groups=groups), (1, 2), widths, stem, expansion=Bottleneck.expansion)


class DenseLayer(nn.Module):
    """Norm, 1×1 to `inner` channels, norm, 3×3 to `growth` channels; joined to what it read."""

    def __init__(self, channels: int, inner: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """A stem, dense blocks with halving transitions between, a norm, average pooling, a linear head."""

    def __init__(self, stem: int, blocks: Sequence[int], inner: int, growth: int, *, classes: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
        channels = stem
        for number, count in enumerate(blocks):
            for _ in range(count):
                layers.append(DenseLayer(channels, inner, growth))
                channels += growth
            if number + 1 < len(blocks):
                halve = nn.Conv2d(channels, channels // 2, 1, bias=False)
                layers.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), halve, nn.AvgPool2d(2)))
                channels //= 2
        self.features, self.norm, self.head = nn.Sequential(*layers), nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.features(x))).mean((2, 3)))
