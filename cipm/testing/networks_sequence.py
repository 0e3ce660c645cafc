"""Sequence networks: LSTM, GRU, nn.Transformer, and decoders (rotary positions, grouped queries, SwiGLU, experts).

Structures: Vaswani et al. 2017; Su et al. 2021 (rotary); Ainsworth et al. 2023 (grouped-query); Shazeer 2020 (SwiGLU);
Fedus et al. 2021 (experts chosen by a router).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    """An embedding, recurrent layers, a linear head on the last step: tokens [rows, steps] → [rows, classes].

    `cell` is nn.LSTM, nn.GRU or nn.RNN.
    """

    def __init__(self, cell: type[nn.RNNBase], vocabulary: int, embedded: int, hidden: int, *, layers: int = 2,
                 both_ways: bool = False, classes: int = 3):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedded)
        self.cell = cell(embedded, hidden, layers, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(hidden * (1 + both_ways), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(tokens))[0][:, -1])


class Translator(nn.Module):
    """nn.Transformer between two embeddings with learned positions and a linear head: [rows, steps] twice → logits."""

    def __init__(self, source: int, target: int, width: int, heads: int, hidden: int, *, length: int = 6, first: bool = False):
        super().__init__()
        self.source, self.target = nn.Embedding(source, width), nn.Embedding(target, width)
        self.source_places, self.target_places = (nn.Parameter(torch.randn(length, width)) for _ in range(2))
        self.body = nn.Transformer(width, heads, 1, 1, hidden, batch_first=True, norm_first=first)
        self.head = nn.Linear(width, target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.body(self.source(source) + self.source_places, self.target(target) + self.target_places,
                                   tgt_mask=causal, tgt_is_causal=True))


class Rotary(nn.Module):
    """Angles of every position, from frequencies that are part of the checkpoint (`stored`) or are constants of the code."""

    def __init__(self, unit: int, *, stored: bool = True):
        super().__init__()
        self.register_buffer("frequencies", 100.0 ** (-torch.arange(0, unit, 2) / unit), persistent=stored)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, dtype=self.frequencies.dtype)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of [rows, heads, steps, units]."""
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-two, one], -1) * sin


class GroupedAttention(nn.Module):
    """Causal attention of `heads` query heads that share `shared` key-value heads, with rotary positions if given."""

    def __init__(self, width: int, heads: int, shared: int, unit: int, *, values: int | None = None):
        super().__init__()
        self.heads, self.shared, self.unit, self.values = heads, shared, unit, values or unit
        self.query, self.key = nn.Linear(width, heads * unit, bias=False), nn.Linear(width, shared * unit, bias=False)
        self.value = nn.Linear(width, shared * self.values, bias=False)
        self.out = nn.Linear(heads * self.values, width, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        rows, steps, _ = x.shape
        query = self.query(x).view(rows, steps, self.heads, self.unit).transpose(1, 2)
        key = self.key(x).view(rows, steps, self.shared, self.unit).transpose(1, 2)
        value = self.value(x).view(rows, steps, self.shared, self.values).transpose(1, 2)
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.heads != self.shared)
        return self.out(mixed.transpose(1, 2).reshape(rows, steps, self.heads * self.values))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """A router sends every token to its best `chosen` of `experts` two-layer networks and adds their weighted answers.

    Every expert computes; the weights of those not chosen are zero. The experts' weights are stacked in one tensor, or
    `joined` end to end in one wide layer.
    """

    def __init__(self, width: int, experts: int, hidden: int, *, chosen: int = 2, joined: bool = False):
        super().__init__()
        self.router, self.chosen, self.joined = nn.Linear(width, experts), chosen, joined
        self.experts, self.hidden = experts, hidden
        up, down = torch.randn(experts, width, hidden) / width**0.5, torch.randn(experts, hidden, width) / hidden**0.5
        self.up = nn.Parameter(up.transpose(1, 2).reshape(-1, width) if joined else up)
        self.down = nn.Parameter(down.reshape(-1, width).T.contiguous() if joined else down)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        best, index = scores.topk(self.chosen, -1)
        weights = torch.zeros_like(scores).scatter(-1, index, best / best.sum(-1, keepdim=True))
        if self.joined:
            inner = F.gelu(F.linear(x, self.up)).unflatten(-1, (self.experts, self.hidden))
            return F.linear((inner * weights[..., None]).flatten(-2), self.down)
        inner = F.gelu(torch.einsum("btd,edh->bteh", x, self.up))
        return torch.einsum("bteh,ehd->bted", inner, self.down).mul(weights[..., None]).sum(-2)


class DecoderBlock(nn.Module):
    """Attention and a second part, each behind an RMS norm and around a shortcut."""

    def __init__(self, width: int, attention: GroupedAttention, second: nn.Module):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width), attention
        self.norm2, self.second = nn.RMSNorm(width), second

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attention(self.norm1(x), angles)
        return x + self.second(self.norm2(x))


class Decoder(nn.Module):
    """An embedding, decoder blocks, a norm, an unembedding (`tied`: the embedding itself): tokens → logits."""

    def __init__(self, vocabulary: int, width: int, blocks: list[DecoderBlock], rotary: Rotary | None, *, tied: bool = False):
        super().__init__()
        self.embed, self.rotary = nn.Embedding(vocabulary, width), rotary
        self.blocks, self.norm = nn.ModuleList(blocks), nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        angles = self.rotary(tokens.shape[1]) if self.rotary is not None else None
        for block in self.blocks:
            x = block(x, angles)
        return self.head(self.norm(x))


def llama_like(*, stored: bool = True, tied: bool = False, rotary: bool = True) -> Decoder:
    """Return two blocks with six query heads over two key-value heads of eight units, and a SwiGLU."""
    blocks = [DecoderBlock(20, GroupedAttention(20, 6, 2, 8), SwiGlu(20, 28)) for _ in range(2)]
    return Decoder(17, 20, blocks, Rotary(8, stored=stored) if rotary else None, tied=tied)


def multi_head(width: int = 20) -> Decoder:
    """Return one block with four heads of six query-key units and five value units, without positions."""
    return Decoder(17, width, [DecoderBlock(width, GroupedAttention(width, 4, 4, 6, values=5), SwiGlu(width, 14))], None)


def mixture(width: int = 16, *, joined: bool = False) -> Decoder:
    """Return one block whose second part is a mixture of five experts with nine hidden units each."""
    experts = Experts(width, 5, 9, joined=joined)
    return Decoder(17, width, [DecoderBlock(width, GroupedAttention(width, 2, 2, 6), experts)], None)
