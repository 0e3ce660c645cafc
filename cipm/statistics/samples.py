"""What every accumulator takes: batches [samples, units], checked once and refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from cipm.errors import InputError


def as_samples(batch: Any, units: int | None = None) -> Any:
    """Return the batch as a [samples, units] float32 or float64 array, or as a tensor where it is on another device.

    Takes what numpy takes, and torch tensors. Half precision becomes float32, integers and booleans float64. Raises
    InputError where the shape does not fit.
    """
    if hasattr(batch, "detach"):  # a torch tensor; this module does not import torch
        batch = batch.detach()
        batch = batch.float() if batch.dtype.itemsize < 4 and batch.is_floating_point() else batch
        batch = batch if on_device(batch) else batch.numpy()
    if not on_device(batch):
        batch = np.asarray(batch)
        if batch.dtype not in (np.float32, np.float64):
            batch = batch.astype(np.float32 if batch.dtype == np.float16 else np.float64)
    if batch.ndim != 2 or batch.shape[1] != (batch.shape[1] if units is None else units):
        wanted = "units" if units is None else units
        raise InputError(f"A batch must have shape [samples, {wanted}]; it has {list(batch.shape)}.")
    return batch


def finite_samples(batch: Any, units: int, seen: int) -> np.ndarray:
    """Return the batch as a host array of finite numbers [samples, units]; `seen` samples came before it.

    Raises InputError naming the first sample (counted over the stream) and unit that is not finite.
    """
    x = on_host(as_samples(batch, units))
    if not np.isfinite(x).all():
        refuse_nonfinite(x, seen)
    return x


def refuse_nonfinite(x: np.ndarray, seen: int) -> None:
    """Raise InputError naming the first value of x [samples, units] that is not finite; return where all are."""
    bad = ~np.isfinite(x)
    if bad.any():
        sample, unit = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"Sample {seen + sample} has {x[sample, unit]} at unit {unit}; statistics need finite numbers "
                         f"({int(bad.sum())} of {bad.size} values in this batch are not).",
                         where=f"sample {seen + sample}, unit {unit}",
                         fix="Leave such samples out, or look for an overflow in the model.")


def too_large(x: np.ndarray) -> InputError:
    """Return the error for finite values whose squares are not."""
    return InputError(f"The activations reach {float(np.abs(x).max()):.3g}, too large to square in float64.",
                      fix="Scale the model's inputs or look for a diverging layer.")


def need_samples(samples: int, least: int, what: str) -> None:
    """Raise InputError where there are fewer samples than `what` needs."""
    if samples < least:
        there = {0: "there are none", 1: "there is one"}.get(samples, f"there are {samples}")
        words = {1: "one sample", 2: "two samples"}.get(least, f"{least} samples")
        raise InputError(f"{what} needs at least {words}; {there}.", fix="Give more probe rows.")


def on_device(x: Any) -> bool:
    """Tell whether x is a tensor on another device than the host."""
    return hasattr(x, "detach") and x.device.type != "cpu"


def on_host(x: Any) -> np.ndarray:
    return x.cpu().numpy() if on_device(x) else x
