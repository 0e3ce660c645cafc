"""Mean and centred scatter of one block of samples, at the cost of one symmetric rank-k product.

Every block is centred by its own mean, rounded to the block's precision, so that subtracting is exact where it
matters (Sterbenz: x − s is exact for x within a factor 2 of s). The products run in the block's precision (float32
for float32), the sums over blocks in float64. One-pass formulas (E[xy] − E[x]E[y]) lose everything at mean/sd = 10⁴.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import blas

from cipm.errors import InputError

SUSPICIOUS = 1e-5  # sd below this share of |mean|: look at the samples themselves whether the unit varies at all
SMALLEST_SQUARE = 1e-30  # scatter of a varying unit below this may have underflowed in float32


@dataclass(frozen=True, eq=False)
class Block:
    """Moments of one block: `mean` [units] float64, lower triangle of `scatter` [units, units] about that mean.

    `scatter` still lacks the correction −rows · rest restᵀ for the rounding of the mean (`rest` [units]); `first` is
    the first sample, `varies` [units] whether any sample differs from it.
    """

    rows: int
    mean: np.ndarray
    rest: np.ndarray
    scatter: np.ndarray
    first: np.ndarray
    varies: np.ndarray


def as_samples(batch: Any, units: int) -> Any:
    """Return the batch as a [samples, units] float32 or float64 array, or as a tensor where it is on a CUDA device.

    Raises InputError where the shape does not fit. Half precision becomes float32, integers float64.
    """
    if hasattr(batch, "detach"):  # a torch tensor; this module does not import torch
        batch = batch.detach()
        batch = batch.float() if batch.dtype.itemsize < 4 and batch.is_floating_point() else batch
        if not batch.is_cuda:
            batch = batch.numpy()
    if not hasattr(batch, "is_cuda"):
        batch = np.asarray(batch)
        if batch.dtype not in (np.float32, np.float64):
            batch = batch.astype(np.float32 if batch.dtype == np.float16 else np.float64)
    if batch.ndim != 2 or batch.shape[1] != units:
        raise InputError(f"A batch must have shape [samples, {units}]; it has {list(batch.shape)}.")
    return batch


def block_moments(x: Any, first_sample: int = 0) -> Block:
    """Return the moments of x [rows, units]; raises InputError naming the sample and unit that is not finite.

    `first_sample` is the number of the block's first sample in the stream, for the message.
    """
    if hasattr(x, "is_cuda"):
        mean, rest, scatter = _products_cuda(x)
    else:
        mean, rest, scatter = _products(x)
    spread = scatter.diagonal()
    if not (np.isfinite(spread).all() and np.isfinite(mean).all()):
        _refuse_nonfinite(x, first_sample)
        return _in_float64(x, first_sample)
    varies = _varies(x, mean, np.asarray(spread, dtype=np.float64))
    if scatter.dtype == np.float32 and (varies & (spread < SMALLEST_SQUARE)).any():
        return _in_float64(x, first_sample)
    return Block(x.shape[0], mean, rest, scatter, _host(x[0]).astype(np.float64), varies)


def _products(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = x.shape[0]
    weights = np.full(rows, 1 / rows, dtype=x.dtype)
    syrk = blas.ssyrk if x.dtype == np.float32 else blas.dsyrk
    with np.errstate(over="ignore", invalid="ignore"):
        shift = weights @ x
        centred = np.ascontiguousarray(x - shift)
        rest = (weights @ centred).astype(np.float64)
        scatter = syrk(1.0, centred.T, lower=1)
    return shift + rest, rest, scatter


def _products_cuda(x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shift = x.mean(dim=0)
    centred = x - shift
    rest = _host(centred.mean(dim=0)).astype(np.float64)
    return _host(shift) + rest, rest, _host(centred.T @ centred)


def _in_float64(x: Any, first_sample: int) -> Block:
    wide = _host(x).astype(np.float64)
    if x.dtype == wide.dtype:
        largest = float(np.abs(wide).max())
        raise InputError(f"The activations reach {largest:.3g}, too large to square in float64.",
                         fix="Scale the model's inputs or look for a diverging layer.")
    return block_moments(wide, first_sample)


def _varies(x: Any, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Tell exactly which units take more than one value; only the suspicious columns are read again."""
    varies = spread > x.shape[0] * (SUSPICIOUS * mean) ** 2
    doubtful = np.flatnonzero(~varies)
    if doubtful.size:
        columns = _host(x[:, doubtful])
        varies[doubtful] = (columns != columns[0]).any(axis=0)
    return varies


def _refuse_nonfinite(x: Any, first_sample: int) -> None:
    bad = ~np.isfinite(_host(x))
    if bad.any():
        sample, unit = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"Sample {first_sample + sample} has {_host(x)[sample, unit]} at unit {unit}; statistics need "
                         f"finite numbers ({int(bad.sum())} of {bad.size} values in this batch are not).",
                         where=f"sample {first_sample + sample}, unit {unit}",
                         fix="Leave such samples out, or look for an overflow in the model.")


def _host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()
