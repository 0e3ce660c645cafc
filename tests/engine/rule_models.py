"""Small modules for the tests of the rules: something between two layers, attention with stored frequencies, experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolved(nn.Module):
    """Channels between two 1 × 1 convolutions, then a mean over positions and a linear head."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Tensor], width: int = 8, out: int | None = None, rank: int = 2):
        super().__init__()
        convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][rank - 1]
        self.one, self.two, self.head = convolution(3, width, 1), convolution(out or width, 5, 1), nn.Linear(5, 2)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.inner(self.one(x))).flatten(2).mean(-1))


class Between(nn.Module):
    """Units between two linear layers."""

    def __init__(self, inner: nn.Module | Callable[[Tensor], Tensor], width: int = 8, out: int | None = None):
        super().__init__()
        self.one, self.two, self.inner = nn.Linear(5, width), nn.Linear(out or width, 3), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.inner(self.one(x)))


class Recurrent(nn.Module):
    """A recurrent layer of six units and a head; its first state may be learned, its last state read."""

    def __init__(self, layer: type[nn.RNNBase], *, learned: bool = False, last: bool = False, **options: object):
        super().__init__()
        self.layer = layer(5, 6, batch_first=True, **options)
        directions = 1 + self.layer.bidirectional
        self.first = nn.Parameter(torch.randn(directions * self.layer.num_layers, 1, 6)) if learned else None
        self.last = last
        self.head = nn.Linear((self.layer.proj_size or 6) * (1 if last else directions), 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None if self.first is None else self.first.expand(-1, x.shape[0], -1).contiguous()
        out, end = self.layer(x, state)
        return self.head((end[0] if isinstance(end, tuple) else end)[-1] if self.last else out)


class Unrolled(nn.Module):
    """A recurrent cell over three steps."""

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Rotary(nn.Module):
    """Attention whose rotary frequencies are a stored buffer. `layout`: half, interleaved, repeated or complex."""

    def __init__(self, layout: str, heads: int = 4, kv: int = 4, width: int = 32, *, share: float = 1.0, fused: bool = False):
        super().__init__()
        self.layout, self.heads, self.kv, self.unit = layout, heads, kv, width // heads
        self.turned = int(self.unit * share)
        self.register_buffer("frequencies", 1 / 100 ** (torch.arange(0, self.turned, 2) / self.turned))
        self.embed, self.norm = nn.Embedding(20, width), nn.RMSNorm(width)
        sizes = [heads * self.unit, kv * self.unit, kv * self.unit]
        self.project = nn.ModuleList(nn.Linear(width, n) for n in ([sum(sizes)] if fused else sizes))
        self.sizes, self.out, self.head = sizes, nn.Linear(width, width), nn.Linear(width, 5)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * self.frequencies
        turned, rest = x[..., :self.turned], x[..., self.turned:]
        turned = getattr(self, f"turn_{self.layout}")(turned, angles)
        return torch.cat([turned, rest], -1) if self.turned < self.unit else turned

    @staticmethod
    def turn_half(x: Tensor, angles: Tensor) -> Tensor:
        both, half = torch.cat([angles, angles], -1), x.shape[-1] // 2
        return x * both.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * both.sin()

    @staticmethod
    def turn_interleaved(x: Tensor, angles: Tensor) -> Tensor:
        a, b, c, s = x[..., 0::2], x[..., 1::2], angles.cos(), angles.sin()
        return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)

    @staticmethod
    def turn_repeated(x: Tensor, angles: Tensor) -> Tensor:
        c, s = angles.cos().repeat_interleave(2, -1), angles.sin().repeat_interleave(2, -1)
        return x * c + torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2) * s

    @staticmethod
    def turn_complex(x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = self.norm(x)
        parts = self.project[0](h).split(self.sizes, -1) if len(self.project) == 1 else [p(h) for p in self.project]
        q, k, v = (part.view(*x.shape[:2], -1, self.unit).transpose(1, 2) for part in parts)
        q, k = self.turn(q), self.turn(k)
        k, v = (part.repeat_interleave(self.heads // self.kv, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


class Experts(nn.Module):
    """Six gated experts of ten units in tensors [experts, in, out], chosen by a router in one of the usual ways."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.embed, self.router, self.head = how, nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 3)
        self.bias = nn.Parameter(0.1 * torch.randn(6)) if how in ("bias", "grouped") else 0.0
        self.up, self.down = nn.Parameter(torch.randn(6, 8, 20)), nn.Parameter(torch.randn(6, 10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = self.router(x).softmax(-1)
        if self.how in ("dense", "scatter", "one_hot", "numbers"):
            return self.head(x + self.all_experts(x, self.shares(scores)))
        chosen = self.choice(scores + self.bias)
        weights = scores.gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        numbers, rows = chosen.reshape(-1), x.repeat_interleave(2, 0)
        gate, up = torch.bmm(rows[:, None], self.up[numbers])[:, 0].chunk(2, -1)
        made = torch.bmm((F.silu(gate) * up)[:, None], self.down[numbers])[:, 0] * weights.reshape(-1, 1)
        return self.head(x + made.view(-1, 2, 8).sum(1))

    def shares(self, scores: Tensor) -> Tensor:
        weights, chosen = torch.topk(scores, 2, -1)
        if self.how == "scatter":
            return torch.zeros_like(scores).scatter(1, chosen, weights)
        if self.how == "one_hot":
            return (F.one_hot(chosen, 6) * weights[..., None]).sum(1)
        return ((chosen[..., None] == torch.arange(6)) * weights[..., None]).sum(1) if self.how == "numbers" else scores

    def choice(self, scores: Tensor) -> Tensor:
        """Return the two best experts; `grouped` ones out of the two best of three groups."""
        if self.how == "grouped":
            best = scores.view(-1, 3, 2).topk(2, -1).values.sum(-1).topk(2, -1).indices
            mask = torch.zeros(scores.shape[0], 3).scatter(1, best, 1.0)
            scores = scores.masked_fill(mask[..., None].expand(-1, 3, 2).reshape(-1, 6) == 0, 0.0)
        return scores.topk(2, -1).indices

    def all_experts(self, x: Tensor, shares: Tensor) -> Tensor:
        gate, up = torch.einsum("bi,eio->beo", x, self.up).chunk(2, -1)
        return (torch.einsum("beo,eoi->bei", F.silu(gate) * up, self.down) * shares[..., None]).sum(1)
