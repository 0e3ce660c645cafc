"""Networks whose weights are stacks of slices: experts, tasks, grouped filters, layers, heads; discovered and proved once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from cipm.load import Checkpoint
from cipm.symmetry import Symmetry, discover_groups, prove
from cipm.testing.networks import NETWORKS, as_checkpoint


class Chosen(nn.Module):
    """Every token is given to the expert with its highest score, whose weights are gathered for it."""

    def __init__(self, *, shared: bool = False):
        super().__init__()
        self.embed, self.router = nn.Embedding(11, 6), nn.Linear(6, 3)
        self.up, self.bias = nn.Parameter(torch.randn(3, 6, 10)), nn.Parameter(torch.randn(3, 10))
        self.down = nn.Parameter(torch.randn(3, 5, 6))
        self.gain = nn.Parameter(torch.rand(5) + 0.5) if shared else None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        weight, best = self.router(x).softmax(-1).max(-1)
        inner = torch.einsum("btd,btdh->bth", x, self.up[best]) + self.bias[best]
        gate, value = inner.chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * value
        if self.gain is not None:
            inner = inner * self.gain
        return torch.einsum("bth,bthd->btd", inner, self.down[best]) * weight[..., None]


class Ranked(Chosen):
    """Every token is given to its two best experts of three, all choices on one axis as transformers has them."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        weight, best = self.router(x).softmax(-1).topk(2)
        flat, own = best.reshape(-1), x.flatten(0, 1).repeat_interleave(2, dim=0)
        gate, value = (torch.bmm(own[:, None], self.up[flat])[:, 0] + self.bias[flat]).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * value
        made = torch.bmm(inner[:, None], self.down[flat])[:, 0] * weight.reshape(-1, 1)
        return made.unflatten(0, (*tokens.shape, 2)).sum(-2)


class Tasks(nn.Module):
    """An input says which of four layers answers: the layers keep their places, each one's units are free."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 5, 7)), nn.Parameter(torch.randn(4, 7, 3))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        inner = torch.bmm(x[:, None], self.first[task]).tanh()
        return torch.bmm(inner, self.second[task])[:, 0]


class Grouped(nn.Module):
    """Convolutions in three groups, one of them transposed, between plain ones."""

    def __init__(self):
        super().__init__()
        self.first, self.grouped = nn.Conv1d(2, 12, 3), nn.Conv1d(12, 6, 3, groups=3)
        self.back, self.last = nn.ConvTranspose1d(6, 15, 3, groups=3), nn.Conv1d(15, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.back(self.grouped(self.first(x).tanh()).tanh()).tanh()).mean(-1)


class Started(nn.Module):
    """Two recurrent layers with a learned first state, held in one tensor."""

    def __init__(self):
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(11, 4), nn.GRU(4, 5, 2, batch_first=True), nn.Linear(5, 3)
        self.start = nn.Parameter(torch.randn(2, 1, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens), self.start.expand(-1, tokens.shape[0], -1).contiguous())[0])


class Added(nn.Module):
    """Both slices of a stack add to the same units."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 5, 7)), nn.Parameter(torch.randn(2, 7, 3))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.einsum("bi,sih->bh", x, self.first).relu()
        return torch.einsum("bh,sho->bo", inner, self.second)


class HeadsApart(nn.Module):
    """Attention of four heads with weights [in, heads, units]."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Parameter(torch.randn(5, 4, 3)), nn.Parameter(torch.randn(5, 4, 3))
        self.value, self.out = nn.Parameter(torch.randn(5, 4, 6)), nn.Parameter(torch.randn(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (torch.einsum("bti,ihu->bthu", x, w) for w in (self.query, self.key, self.value))
        scores = torch.einsum("bthu,bshu->bhts", query, key).softmax(-1)
        return torch.einsum("bhts,bshu,huo->bto", scores, value, self.out)


def checkpoint_of(model: nn.Module, *example: Tensor) -> Checkpoint:
    for number, parameter in enumerate(model.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return as_checkpoint(model.eval(), example)


def tokens(high: int) -> Tensor:
    return torch.randint(high, (4, 6), generator=torch.Generator().manual_seed(0))


@cache
def proved(name: str) -> tuple[Checkpoint, Symmetry]:
    checkpoint = {
        "chosen": lambda: checkpoint_of(Chosen(), tokens(11)),
        "ranked": lambda: checkpoint_of(Ranked(), tokens(11)),
        "shared": lambda: checkpoint_of(Chosen(shared=True), tokens(11)),
        "tasks": lambda: checkpoint_of(Tasks(), torch.randn(4, 5), torch.tensor([0, 3, 1, 2])),
        "grouped": lambda: checkpoint_of(Grouped(), torch.randn(4, 2, 20)),
        "started": lambda: checkpoint_of(Started(), tokens(11)),
        "added": lambda: checkpoint_of(Added(), torch.randn(4, 5)),
        "heads": lambda: checkpoint_of(HeadsApart(), torch.randn(4, 7, 5)),
        "dense": lambda: as_checkpoint(NETWORKS["mixture_of_experts"].make(), NETWORKS["mixture_of_experts"].example()),
    }[name]()
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=2)
