"""Tracking against the full matrix in one run: recall of candidates, error of running and interpolated estimates, pairs.

Recall is the share of each unit's true ten strongest correlations that was found, on 256 units drawn at random, whose
true ones come from all their exact correlations. The exact blocked search is run to its end beside them. Widths of the
projection are compared at 8192 units on every kind of activations; the default one is measured at the full width on the
kinds that have something to find.

Run: python bench/tracking.py [units samples]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from peers.memory import resident
from peers.timing import timed

from cipm.statistics import (
    Interpolated,
    Running,
    accumulate,
    correlation,
    exact_neighbours,
    measured_recall,
    significant_of,
    significant_pairs,
    top_neighbours,
)

K, BATCH = 10, 512
COMPARED_UNITS = 8192


def clusters(samples: int, units: int) -> np.ndarray:
    """Planted: clusters of 16 units, of strengths from weak to strong, and 32 factors that all share."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((samples, units // 16), dtype=np.float32)
    shared = rng.standard_normal((samples, 32), dtype=np.float32) @ rng.standard_normal((32, units), dtype=np.float32)
    x = rng.standard_normal((samples, units), dtype=np.float32)
    x += 0.1 * shared
    x += np.repeat(own, 16, axis=1) * np.repeat(rng.uniform(0.7, 2, units // 16), 16).astype(np.float32)
    return x


def rectified(samples: int, units: int) -> np.ndarray:
    """A wide rectified layer on inputs of 64 dimensions: neighbours are close directions, and many are nearly as close."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((samples, 64), dtype=np.float32) * np.linspace(2, 0.3, 64, dtype=np.float32)
    return np.maximum(inputs @ rng.standard_normal((64, units), dtype=np.float32), 0)


def noise(samples: int, units: int) -> np.ndarray:
    """Nothing to find: the strongest correlations are chance, and no sketch can know them."""
    return np.random.default_rng(2).standard_normal((samples, units), dtype=np.float32)


KINDS = {"clusters": clusters, "rectified": rectified, "noise": noise}
WIDTHS = (128, 512, 1024)
"""Of the projection; the last is the default."""


def batches(x: np.ndarray) -> Callable[[], Iterable[np.ndarray]]:
    return lambda: (x[start:start + BATCH] for start in range(0, len(x), BATCH))


def strongest(units: int, samples: int, kinds: Sequence[str], widths: Sequence[int]) -> None:
    """Print seconds and recall of each width on these kinds of activations, then the exact search and the memory."""
    print(f"\nstrongest {K} of {units} units, {samples} samples")
    print(f"{'activations':<12}{'width':>6}{'seconds':>9}{'recall':>9}")
    for kind in kinds:
        x = KINDS[kind](samples, units)
        for width in widths:
            seconds, _, found = timed(lambda x=x, w=width: top_neighbours(batches(x), units, K, width=w,
                                                                          generator=np.random.default_rng(0)))
            recall = measured_recall(batches(x), found, generator=np.random.default_rng(1))
            print(f"{kind:<12}{width:>6}{seconds:>9.1f}{recall:>9.3f}", flush=True)
    print(f"memory of the process so far, samples ({x.nbytes / 2**30:.1f} GiB) among it: {resident() / 2**30:.1f} GiB")
    seconds, _, _ = timed(lambda: exact_neighbours(x, K))
    print(f"exact, in blocks: {seconds:.1f} s, memory {resident() / 2**30:.1f} GiB", flush=True)


def running(units: int = 256, steps: int = 200, rows: int = 64) -> None:
    """A correlation that turns slowly: the running estimate trades noise for age."""
    print(f"\nrunning estimates, {units} units, steps of {rows} samples; the truth turns over {steps} steps")
    print(f"{'decay':<8}{'effective samples':>18}{'rms error, still':>18}{'1/√effective':>14}{'rms error, turning':>20}")
    rng = np.random.default_rng(0)
    loads = rng.standard_normal((2, 16, units)) * 0.2
    upper = np.triu_indices(units, 1)

    def step(turn: float) -> np.ndarray:
        mixed = np.cos(turn) * loads[0] + np.sin(turn) * loads[1]
        return rng.standard_normal((rows, 16)) @ mixed + rng.standard_normal((rows, units))

    def truth(turn: float) -> np.ndarray:
        mixed = np.cos(turn) * loads[0] + np.sin(turn) * loads[1]
        c = mixed.T @ mixed + np.eye(units)
        scale = np.sqrt(c.diagonal())
        return c / scale / scale[:, None]
    for decay in (0.5, 0.8, 0.9, 0.95, 0.98):
        still = accumulate(Running.create(units, decay=decay), (step(0) for _ in range(steps)))
        turning = accumulate(Running.create(units, decay=decay), (step(np.pi / 2 * k / steps) for k in range(steps)))
        errors = [(run.finalise() - truth(turn))[upper].std() for run, turn in ((still, 0), (turning, np.pi / 2))]
        print(f"{decay:<8}{still.effective_samples:>18.0f}{errors[0]:>18.4f}{still.effective_samples**-0.5:>14.4f}"
              f"{errors[1]:>20.4f}")


def interpolated(units: int = 256, steps: int = 200) -> None:
    """Full correlations every so often of a layer whose weights move from one network to another."""
    print(f"\ninterpolation between full correlations, {units} units over {steps} steps of training-like change")
    print(f"{'period':<8}{'largest error between':>22}{'rms':>9}{'largest, last one kept':>24}{'rms':>9}")
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1500, 32))
    ends = rng.standard_normal((2, 32, units))

    def full(step: int) -> np.ndarray:
        share = step / steps
        return correlation([np.maximum(inputs @ ((1 - share) * ends[0] + share * ends[1]), 0)])
    truth = [full(step) for step in range(steps + 1)]
    for period in (5, 20, 50):
        line, between, kept = Interpolated(), [], []
        for last in range(0, steps + 1, period):
            line = line.add(last, truth[last])
            for step in range(max(last - period, 0), last):
                between.append(line.at(step) - truth[step])
                kept.append(line.matrices[0] - truth[step])
        print(f"{period:<8}{np.abs(between).max():>22.4f}{np.std(between):>9.4f}{np.abs(kept).max():>24.4f}"
              f"{np.std(kept):>9.4f}")


def significant(units: int = 2000, samples: int = 1000) -> None:
    """Pairs found among the strongest neighbours alone, against the whole matrix and the planted truth."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, units)).astype(np.float32)
    label = np.arange(units) // 4
    x[:, :400] += 0.5 * rng.standard_normal((samples, 100)).astype(np.float32)[:, label[:400]]
    whole = significant_of(correlation([x]), samples=samples)
    some = significant_pairs(*exact_neighbours(x, K).pairs(), samples=samples, tests=units * (units - 1) // 2)

    def false(found: np.ndarray) -> float:
        same = (label[found[:, 0]] == label[found[:, 1]]) & (found < 400).all(axis=1)
        return float((~same).mean()) if len(found) else 0.0
    print(f"\nsignificant pairs of {units} units, {samples} samples, 600 planted with r = 0.2: whole matrix "
          f"{len(whole.pairs)} ({false(whole.pairs):.1%} false), from the {K} strongest of each {len(some.pairs)} "
          f"({false(some.pairs):.1%} false)")


def main(units: int = 65_536, samples: int = 2048) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    running()
    interpolated()
    significant()
    strongest(min(units, COMPARED_UNITS), samples, list(KINDS), WIDTHS)
    if units > COMPARED_UNITS:
        strongest(units, samples, ["clusters", "rectified"], WIDTHS[-1:])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
