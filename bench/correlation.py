"""Correlation against numpy and torch in one run: seconds, share of the matrix-product rate, error, memory.

The *sgemm-equivalent rate* is that of the fastest float32 product [units, samples] @ [samples, units] of two different
matrices in the same process, by numpy, scipy or torch, into memory given beforehand, with as many threads as they take.
A symmetric product needs half of that work, so 2.0 × is the ceiling. Every time is the fastest of some rounds, in which
all take turns, so that a busy machine slows all alike. Memory that one frees stays with the process: its first touch may
cost a virtual machine a tenth of the work (.2 s for 128 MB), and only the first round pays for it. With OMP_NUM_THREADS=1
it is the processor's time, which other programs disturb less.

Run: python bench/correlation.py [units samples [rounds]]
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from peers.timing import fastest
from scipy.linalg import blas

from cipm.statistics import Covariance, CrossCovariance, correlation

SIZES = ((2048, 50_000), (4096, 20_000))
BATCH = 256
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def activations(samples: int, units: int) -> np.ndarray:
    """Draw correlated units, a few of them dead, as after a rectifier."""
    x = np.random.default_rng(0).standard_normal((samples, units), dtype=np.float32)
    x[:, ::7] += x[:, 1:2]
    x[:, 5::50] = 0
    return x


def products(x: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return the matrix products of which the fastest is the sgemm-equivalent rate."""
    y, out = x[::-1].copy(), np.empty((x.shape[1], x.shape[1]), np.float32, order="F")
    tensors = [torch.from_numpy(array) for array in (x.T, y, out.T)]
    return {"numpy": lambda: np.matmul(x.T, y, out=out.T),
            "scipy": lambda: blas.sgemm(1.0, x.T, y.T, trans_b=1, c=out, overwrite_c=1),
            "torch": lambda: torch.mm(tensors[0], tensors[1], out=tensors[2])}


def speed(units: int, samples: int, rounds: int) -> None:
    x = activations(samples, units)
    gemm = fastest(products(x), rounds)
    peers = {"cipm.correlation, streaming": lambda: correlation(x[i:i + BATCH] for i in range(0, samples, BATCH)),
             "numpy.corrcoef float64": lambda: np.corrcoef(x.T, dtype=np.float64),
             "numpy.corrcoef float32": lambda: np.corrcoef(x.T, dtype=np.float32),
             "torch.corrcoef float32": lambda: torch.corrcoef(torch.from_numpy(x).T)}
    with np.errstate(invalid="ignore", divide="ignore"):
        times = fastest(peers, rounds)
    name, product = min(gemm.items(), key=lambda item: item[1])
    ours = times["cipm.correlation, streaming"]
    print(f"\n{units} units, {samples} float32 samples in batches of {BATCH}; fastest of {rounds} rounds; "
          f"load {os.getloadavg()[0]:.1f}")
    print(f"{'matrix product of the same size: ' + name:<44} {product:7.3f} s  "
          f"{samples * units**2 / product / 1e9:7.1f} G multiply-adds/s")
    for peer, seconds in times.items():
        print(f"{peer:<44} {seconds:7.3f} s  {seconds / ours:5.2f} × ours  {product / seconds:5.2f} × the sgemm rate")


def error(units: int = 512, samples: int = 20_000) -> None:
    print(f"\n{'mean/sd':<10}" + "".join(f"{name:>22}" for name in ("cipm", "numpy float32", "one pass float32")))
    for mean in (0, 1e2, 1e3, 1e4):
        x = activations(samples, units)[:, 6:48] + np.float32(mean)
        exact = np.corrcoef(x.T, dtype=np.float64)
        raw = (x.T @ x / np.float32(samples) - np.outer(x.mean(axis=0), x.mean(axis=0)))
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.sqrt(raw.diagonal())
            found = [correlation([x]), np.corrcoef(x.T, dtype=np.float32), raw / scale / scale[:, None]]
        print(f"{mean:<10.0e}" + "".join(f"{np.abs(c - exact).max():>22.1e}" for c in found))


def memory(units: int = 2048, samples: int = 4096) -> None:
    x = activations(samples, units)
    words = 8 * units**2
    correlation([x[:500, :3]])
    tracemalloc.start()
    correlation([x])
    whole = tracemalloc.get_traced_memory()[1] / words
    tracemalloc.reset_peak()
    Covariance.create(units).update(x).merge(Covariance.create(units))
    print(f"\nmemory beside the samples, in units² float64: cipm.correlation {whole:.2f} with its result; ", end="")
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    Covariance.create(units).update(x)
    print(f"an accumulator {(tracemalloc.get_traced_memory()[1] - before) / words:.2f} at most; ", end="")
    tracemalloc.reset_peak()
    with np.errstate(invalid="ignore"):
        np.corrcoef(x.T, dtype=np.float64)
    print(f"numpy.corrcoef {tracemalloc.get_traced_memory()[1] / words:.2f}")
    tracemalloc.stop()


def cross(units: int = 2048, samples: int = 10_000) -> None:
    x, y = activations(samples, units), activations(samples, units)[::-1].copy()
    times = fastest({"ours": lambda: CrossCovariance.create(units, units).update(x, y).finalise(),
                     "product": products(x)["numpy"]}, 3)
    print(f"\ncross-correlation of {units} with {units} units: {times['product'] / times['ours']:.2f} × the sgemm rate")


def device(units: int = 4096, samples: int = 200_000) -> None:
    if not torch.cuda.is_available():
        print("\nno CUDA device")
        return
    x = torch.randn(samples // 10, units, device="cuda")
    y = torch.randn(samples // 10, units, device="cuda")

    def product() -> None:
        for _ in range(10):
            x.T @ y
        torch.cuda.synchronize()
    times = fastest({"ours": lambda: correlation(x for _ in range(10)), "product": product}, 3)
    apart = np.abs(correlation([x[:5000]]) - correlation([x[:5000].cpu()])).max()
    print(f"\n{torch.cuda.get_device_name()}, {units} units, {samples} samples: {times['ours']:.3f} s, "
          f"{times['product'] / times['ours']:.2f} × the device's float32 product rate; {apart:.1e} from the CPU's")


def keep_memory() -> None:
    """Have freed memory stay with the process (glibc)."""
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(M_MMAP_MAX, 0)
    assert mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main(units: int | None = None, samples: int = 20_000, rounds: int = 8) -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}")
    keep_memory()
    for size in [(units, samples)] if units else SIZES:
        speed(*size, rounds)
    error()
    memory()
    cross()
    device()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
