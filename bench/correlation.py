"""Correlation against numpy and torch in one run: seconds, ratio, error, share of the matrix-product rate.

Run: python bench/correlation.py [units samples]
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from cipm.statistics import correlation

REPEATS = 3


def best_of(run: Callable[[], object], repeats: int = REPEATS) -> tuple[float, object]:
    """Return the fastest of some runs in seconds, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def main(units: int = 2048, samples: int = 20_000, batch: int = 256) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, units), dtype=np.float32)
    x[:, ::7] += x[:, 1:2]
    half = x[:samples // 2]
    rate = samples * units**2 / 1e9
    product, _ = best_of(lambda: half.T @ x[samples // 2:])
    ours, found = best_of(lambda: correlation(x[i:i + batch] for i in range(0, samples, batch)))
    numpy64, expected = best_of(lambda: np.corrcoef(x.T, dtype=np.float64))
    numpy32, _ = best_of(lambda: np.corrcoef(x.T, dtype=np.float32))
    torch32, _ = best_of(lambda: torch.corrcoef(torch.from_numpy(x).T))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}; {units} units, {samples} float32 samples "
          f"in batches of {batch}; fastest of {REPEATS}")
    print(f"matrix product of the same size (sgemm)  {2 * product:7.3f} s  {rate / (2 * product):7.1f} G multiply-adds/s")
    for name, seconds in [("cipm.correlation, streaming", ours), ("numpy.corrcoef float64", numpy64),
                          ("numpy.corrcoef float32", numpy32), ("torch.corrcoef float32", torch32)]:
        print(f"{name:<40} {seconds:7.3f} s  {seconds / ours:5.2f} × ours  {2 * product / seconds:5.2f} × the sgemm rate")
    print(f"largest difference to numpy float64: {np.abs(found - expected).max():.1e}")
    far = x[:, :256] + np.float32(1e4)
    exact = np.corrcoef(far.T, dtype=np.float64)
    print(f"at mean/sd = 10⁴ (256 units): {np.abs(correlation([far]) - exact).max():.1e}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
