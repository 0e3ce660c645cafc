"""The plain torch families that discovery is held to: published structures at tiny widths, seeded, no weight trivial.

    network = NETWORKS["resnet50"]
    model, example = network.make(seed=0), network.example()
    checkpoint = as_checkpoint(model, example)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cipm.load.checkpoint import Checkpoint
from cipm.testing import networks_branches as branches
from cipm.testing import networks_mobile as mobile
from cipm.testing import networks_residual as residual
from cipm.testing import networks_sequence as sequence
from cipm.testing.models import ROWS, Mlp, quiet, seeded
from cipm.trace import from_exported


@dataclass(frozen=True)
class Network:
    """A family with its builder and what it reads: images of `side`, rows of `features`, or `tokens` (vocabulary, steps)."""

    build: Callable[[], nn.Module]
    side: int = 0
    features: int = 0
    tokens: tuple[tuple[int, int], ...] = ()

    def make(self, seed: int = 0) -> nn.Module:
        """Return the model in evaluation mode; norms have weights, biases and statistics other than 0 and 1."""
        model = seeded(self.build, seed)
        randomize(model, seed)
        return model.eval()

    def example(self, rows: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return tuple(torch.randint(0, words, (rows, steps), generator=generator) for words, steps in self.tokens)
        shape = (3, self.side, self.side) if self.side else (self.features,)
        return (torch.randn(rows, *shape, generator=generator),)


def randomize(model: nn.Module, seed: int) -> None:
    """Draw the weights of convolutions and linear layers so that signals keep their size through any depth, give every norm
    weights, biases and running statistics that differ from channel to channel, and leave no parameter uniform."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            stored = tensor.is_floating_point() and tensor.numel() > 1 and name not in module._non_persistent_buffers_set
            if "Norm" in type(module).__name__ and name in ("weight", "running_var"):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            elif stored and bool((tensor == tensor.flatten()[0]).all()):
                tensor.data.normal_(0, 0.1, generator=generator)


def as_checkpoint(model: nn.Module, example: tuple[Tensor, ...]) -> Checkpoint:
    """Return a module as a checkpoint with a free number of rows, without writing a file."""
    rows = torch.export.Dim(ROWS)
    with quiet():
        program = torch.export.export(model, example, dynamic_shapes=tuple({0: rows} for _ in example), strict=False)
        return Checkpoint("pt2", *from_exported(program.run_decompositions({})))


NETWORKS: Mapping[str, Network] = {
    "mlp": Network(partial(Mlp, (6, 10, 8, 3)), features=6),
    "vgg16": Network(partial(residual.Vgg, residual.vgg16_plan(4, 5, 6, 7, 8), (12, 9), last=2), side=64),
    "vgg16_bn": Network(partial(residual.Vgg, residual.vgg16_plan(4, 5, 6, 7, 8), (12, 9), norm=nn.BatchNorm2d), side=32),
    "resnet20": Network(partial(residual.resnet20, (6, 8, 10), 6), side=12),
    "resnet50": Network(partial(residual.resnet50, (4, 5, 6, 7), 8, classes=3), side=48),
    "resnext": Network(partial(residual.resnext, (12, 16), 10, 4), side=10),
    "densenet": Network(partial(residual.DenseNet, 8, (2, 3), 12, 6), side=12),
    "mobilenet_v2": Network(mobile.mobilenet_v2, side=20),
    "mobilenet_v3": Network(mobile.mobilenet_v3, side=20),
    "efficientnet": Network(mobile.efficientnet, side=20),
    "shufflenet_v2": Network(partial(mobile.ShuffleNet, 6, ((16, 2), (16, 1), (24, 2)), 10), side=36),
    "squeezenet": Network(partial(mobile.SqueezeNet, 8, ((4, 6, 7), (5, 9, 10))), side=31),
    "unet_group_norm": Network(branches.unet_group, side=8),
    "unet_instance_norm": Network(branches.unet_instance, side=8),
    "inception_v3": Network(partial(branches.InceptionNet, 8, (4, 5, 6, 7, 9, 10), 12, (11, 13, 14, 15, 16, 17)), side=21),
    "mlp_mixer": Network(partial(branches.Mixer, 12, 3, 14, 9, 20), side=12),
    "lstm": Network(partial(sequence.Recurrent, nn.LSTM, 15, 7, 9), tokens=((15, 6),)),
    "lstm_both_ways": Network(partial(sequence.Recurrent, nn.LSTM, 15, 7, 9, both_ways=True), tokens=((15, 6),)),
    "gru": Network(partial(sequence.Recurrent, nn.GRU, 15, 7, 9), tokens=((15, 6),)),
    "rnn": Network(partial(sequence.Recurrent, nn.RNN, 15, 7, 9), tokens=((15, 6),)),
    "transformer": Network(partial(sequence.Translator, 15, 13, 16, 4, 18), tokens=((15, 6), (13, 6))),
    "multi_head": Network(sequence.multi_head, tokens=((17, 6),)),
    "llama_rotary": Network(sequence.llama_like, tokens=((17, 6),)),
    "llama_constant_rotary": Network(partial(sequence.llama_like, stored=False), tokens=((17, 6),)),
    "llama_tied": Network(partial(sequence.llama_like, tied=True, rotary=False), tokens=((17, 6),)),
    "mixture_of_experts": Network(sequence.mixture, tokens=((17, 6),)),
    "mixture_in_one_layer": Network(partial(sequence.mixture, joined=True), tokens=((17, 6),)),
}
