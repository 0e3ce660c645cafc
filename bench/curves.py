"""Time and memory of one whole pruning curve, order and cost of every size, beside a matrix product of the same size.

Run: python bench/curves.py [UNITS …]      default: 256, 512, 1024, … 16384; the last takes most of ten minutes
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
from peers.memory import resident
from peers.timing import timed

from cipm.pruning import elimination_curve, quick_curve

SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
OUTPUTS = 64
"""Outputs of what reads the units."""


def matrices(units: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of units of which a quarter of the directions matter, and the Gram of what reads them."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((units, units // 4))
    readers = rng.standard_normal((OUTPUTS, units))
    covariance = mixing @ mixing.T
    covariance[np.diag_indices(units)] += 0.09 * units
    return covariance / units, readers.T @ readers


def row(units: int) -> None:
    """Print the times of one size, and the peak memory of the process so far."""
    covariance, gram = matrices(units)
    arguments = {"samples": 2 * units}
    full = timed(lambda: elimination_curve([covariance], [gram], **arguments))
    peak = resident()
    quick = timed(lambda: quick_curve([covariance], [gram], **arguments))
    product = timed(lambda: covariance @ gram)
    print(f"{units:>8} {full[0]:>9.2f} {full[1]:>11.2f} {quick[0]:>9.2f} {product[0]:>10.3f} {full[1] / product[1]:>10.1f} "
          f"{peak / 2**30:>9.2f} {peak / (8 * units**2):>10.1f}", flush=True)


def main(words: Sequence[str]) -> None:
    """Print a row for each size."""
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; seconds; peak memory "
          "with the curve, covariance and Gram among it\n")
    print(f"{'units':>8} {'curve':>9} {'(processor)':>11} {'quick':>9} {'n × n × n':>10} {'products':>10} {'peak GiB':>9} "
          f"{'n² float64':>10}")
    for units in [int(word) for word in words] or SIZES:
        row(units)


if __name__ == "__main__":
    main(sys.argv[1:])
