"""Times of one run, and of several that take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(run: Callable[[], T], rounds: int = 1) -> tuple[float, float, T]:
    """Return the fewest seconds on the clock and of the processor (all threads of this process) that a run took, and the
    result of the last."""
    wall = processor = float("inf")
    for _ in range(rounds):
        start, spent = time.perf_counter(), time.process_time()
        result = run()
        wall, processor = min(wall, time.perf_counter() - start), min(processor, time.process_time() - spent)
    return wall, processor, result


def fastest(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the fastest time of each run in seconds, taking turns.

    On one thread it is the processor's time, which other programs disturb less; else the clock's.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, call in runs.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best
