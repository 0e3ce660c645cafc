"""What collecting the statistics of all groups costs beside the forward pass, for a ResNet-20 and a GPT of 6 layers.

The peers of the same run: the plain torch module under `no_grad`, and the interpreter's forward pass without taps. All
take turns; the fastest of some rounds counts. With OMP_NUM_THREADS=1 it is the processor's time, which other programs
disturb less.

Run: python bench/collection.py [rounds]
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
from collections.abc import Callable, Mapping

import torch
from peers.timing import fastest
from torch import Tensor, nn
from torch.nn import functional as F

from cipm.load import Checkpoint
from cipm.options import AnalysisOptions
from cipm.pipeline.activity import activation_ranges
from cipm.pipeline.collecting import carried_by
from cipm.statistics.collect import collect
from cipm.statistics.plan import MIB, plan_collection
from cipm.symmetry import Tap, discover_groups
from cipm.testing.models import seeded
from cipm.testing.networks import as_checkpoint, randomize
from cipm.testing.networks_residual import resnet20
from cipm.trace import run

DEFAULTS = AnalysisOptions()


class Block(nn.Module):
    """Causal attention and a GELU layer of four times the width, both after a layer norm, on a residual stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """A language model over 65 characters: [rows, positions] → [rows, positions, 65]."""

    def __init__(self, layers: int = 6, width: int = 256, heads: int = 8, positions: int = 256):
        super().__init__()
        self.tokens, self.places = nn.Embedding(65, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 65, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.places(places))))


def taps_of(checkpoint: Checkpoint) -> list[Tap]:
    """Return the taps that an analysis collects."""
    groups = discover_groups(checkpoint).groups
    return list({tap.key: tap for group in groups if not carried_by(groups, group) for tap in group.taps}.values())


def overhead(title: str, model: nn.Module, batches: list[Tensor], rounds: int, detail: bool) -> None:
    model.eval()
    checkpoint = as_checkpoint(model, (batches[0][:2],))
    name = checkpoint.graph.inputs[0].name
    taps = taps_of(checkpoint)
    labels = torch.arange(sum(map(len, batches))).numpy() % 10
    ranges = activation_ranges(checkpoint.graph, [tap.value for tap in taps])

    def forward(inputs: Mapping[str, Tensor], observe: Mapping[str, Callable[[Tensor], None]]) -> object:
        return run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, observe=observe)

    def collecting() -> object:
        return collect(forward, taps, ({name: batch} for batch in batches), positions=DEFAULTS.positions, labels=labels,
                       ranges=ranges)

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    collecting()  # loops are compiled
    times = fastest({"plain torch module": plain, "the interpreter, no taps": lambda: [forward({name: b}, {}) for b in batches],
                     "collection of all groups": collecting}, rounds)
    plan = plan_collection(taps, memory=DEFAULTS.statistics_memory * MIB)
    print(f"\n{title}: {sum(map(len, batches))} rows, {len(taps)} taps of {sorted({len(t.index) for t in taps})} units, "
          f"{DEFAULTS.positions} positions a row; {plan.words}")
    for peer, seconds in times.items():
        print(f"{peer:<28}{seconds:8.3f} s  {seconds / times['plain torch module']:5.2f} × the plain forward pass")
    if detail:
        with cProfile.Profile() as profile:
            collecting()
        pstats.Stats(profile).sort_stats("tottime").print_stats(16)


def main(rounds: int = 5, detail: bool = False) -> None:
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
          f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}; fastest of {rounds} rounds")
    generator = torch.Generator().manual_seed(0)
    resnet = seeded(lambda: resnet20((16, 32, 64), 16), 0)
    randomize(resnet, 0)
    overhead("ResNet-20, 32 × 32 images", resnet, [torch.randn(256, 3, 32, 32, generator=generator)], rounds, detail)
    tokens = torch.randint(0, 65, (32, 256), generator=generator)
    overhead("GPT, 6 layers, width 256, 256 positions", seeded(Gpt, 0), [tokens], rounds, detail)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--detail"]
    main(*map(int, given[:1]), detail="--detail" in sys.argv)
