"""Fourier transforms along axes, and complex numbers as pairs."""

from __future__ import annotations

import numpy as np

from cipm.rules.labels import Axis
from cipm.rules.registry import Call, rule


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
      "fft_irfft2", "fft_hfft2", "fft_ihfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn", "fft_ihfftn",
      "_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(call: Call) -> list[Axis]:
    """…n… → …f…: the axes that are transformed stay as they are, the others pass."""
    value = call["self"]
    ndim = len(value.shape)
    dims = _dims(call, ndim)
    axes: list[Axis] = []
    for i, axis in enumerate(value.axes):
        if i in dims:
            axes.append(call.hold(value, i, "a Fourier transform runs along it"))
        elif isinstance(axis, np.ndarray) and any(axis.shape[d] > 1 for d in dims):
            raise ValueError("an axis that depends on one that is transformed")
        else:
            axes.append(axis)
    return axes


def _dims(call: Call, ndim: int) -> list[int]:
    dims, sizes = call["dim"], call["s"]
    if dims is None:
        dims = range(ndim - len(sizes), ndim) if sizes else range(ndim)
    return [d % ndim for d in ((dims,) if isinstance(dims, int) else dims)]


@rule("view_as_real", "view_as_real_copy")
def as_real(call: Call) -> list[Axis]:
    """… → …2: real and imaginary parts stay where they are."""
    axes = [axis[..., None] if isinstance(axis, np.ndarray) else axis for axis in call["self"].axes]
    return [*axes, call.fixed("it holds real and imaginary parts")]


@rule("view_as_complex", "view_as_complex_copy")
def as_complex(call: Call) -> list[Axis]:
    """…2 → …: real and imaginary parts stay where they are; other axes are told apart by neither."""
    value = call["self"]
    last = len(value.shape) - 1
    call.hold(value, last, "it holds real and imaginary parts")
    axes: list[Axis] = []
    for axis in value.axes[:-1]:
        if isinstance(axis, np.ndarray) and axis.shape[last] > 1:
            one, two = axis.take([0], axis=last), axis.take([1], axis=last)
            axis = call.book.tie(one, two)
        axes.append(axis.squeeze(last) if isinstance(axis, np.ndarray) else axis)
    return axes
