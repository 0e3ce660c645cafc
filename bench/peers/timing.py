"""Times of several runs that take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


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
