"""2:4 sparsity: what orders of the columns retain, beside no order and random orders at equal processor time; dense blocks.

Run: python bench/sparsity.py. *Won back* is the share of what 2:4 loses beyond the best half of every row. The matrix of 128
rows and 64 columns is that of NVIDIA apex (`permutation_test.py --filters 128 --channels 64`, seed 1). Its README gives 32.1 %
in 56 s for channel_swap,0 and 35.5 % in 61 s for optimize_stripe_groups,8,0 on a processor; its best, 36.6 % in 0.9 s, is
optimize_stripe_groups,12,0 on a V100. Real layers come from ../shared/data where it is. Seconds are processor time.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from peers.timing import timed
from safetensors.numpy import load_file

from cipm.ordering import Link
from cipm.pruning import swaps
from cipm.pruning.dense_blocks import block_orders
from cipm.pruning.sparsity import ESCAPES, SparsityOrder, retained, sparsity_order

LAYER = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "mnist_zoo" / "mlp_784-512x3-10_seed0.safetensors"


def matrices() -> list[tuple[str, np.ndarray]]:
    """Return |w| of random matrices, and of layers of a trained network where it is there."""
    found = [("apex: uniform 128 × 64", np.random.RandomState(1).rand(128, 64)),
             ("uniform 64 × 128", np.random.RandomState(1).rand(64, 128)),
             ("normal 64 × 128", np.abs(np.random.RandomState(1).randn(64, 128))),
             ("normal 512 × 1024", np.abs(np.random.RandomState(1).randn(512, 1024)))]
    if not LAYER.exists():
        print(f"No {LAYER.name} in ../shared/data: random matrices only.")
        return found
    weights = load_file(LAYER)
    return found + [(f"MNIST MLP {name}, 512 × 512", np.abs(weights[f"{name}.weight"]).astype(np.float64))
                    for name in ("fc2", "fc3")]


def random_search(scores: np.ndarray, seconds: float) -> tuple[float, int]:
    """Return what the best of as many random orders retains as fit into this processor time, and how many those are."""
    generator, best, count = np.random.default_rng(0), retained(scores), 0
    end = time.process_time() + seconds
    while time.process_time() < end:
        best, count = max(best, retained(scores[:, generator.permutation(scores.shape[1])])), count + 1
    return best, count


def show(name: str, result: SparsityOrder, value: float, seconds: float) -> None:
    share = (value - result.retained_before) / (result.best_possible - result.retained_before)
    print(f"  {name:<24} won back {share:6.2%}   retained {value / result.total:.2%}   {seconds:6.2f} s", flush=True)


def two_four(title: str, scores: np.ndarray) -> None:
    print(f"\n{title}: no order retains {retained(scores) / scores.sum():.2%}, the best half of every row is "
          f"{sparsity_order([scores], escapes=0).best_possible / scores.sum():.2%}")
    for name, escapes in (("descent alone", 0), (f"{ESCAPES:,} escapes", ESCAPES), (f"{4 * ESCAPES:,} escapes", 4 * ESCAPES)):
        _, spent, found = timed(lambda escapes=escapes: sparsity_order([scores], escapes=escapes))
        show(name, found, found.retained_after, spent)
        if escapes == ESCAPES:
            value, count = random_search(scores, spent)
            show(f"{count:,} random orders", found, value, spent)


def in_blocks(title: str, scores: np.ndarray, size: int = 16, kept: float = 0.25) -> None:
    _, spent, found = timed(lambda: block_orders([Link("rows", "cols", scores)], size=size, share=kept))
    before, after, best = (value / found.total for value in (found.retained_before, found.retained_after, found.best_possible))
    print(f"  {title:<30} {before:7.2%} as given   {after:7.2%} ordered   {best:7.2%} bound   "
          f"{spent:6.2f} s", flush=True)


def main() -> None:
    swaps.prepare()
    found = matrices()
    for title, scores in found:
        two_four(title, scores)
        if title.startswith("apex"):
            print("  published: channel_swap,0 32.1% in 56 s; optimize_stripe_groups,8,0 35.5% in 61 s; the best (V100) 36.6%")
    print("\nRetained by a quarter of the blocks of 16 × 16 (bound: as many entries anywhere)")
    for title, scores in found:
        if scores.shape[1] <= 512:
            in_blocks(title, scores)


if __name__ == "__main__":
    main()
