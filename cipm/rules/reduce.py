"""Softmax and reductions: functions of the set of values along an axis."""

from __future__ import annotations

import numpy as np

from cipm.rules.labels import FREE, Axis, Value
from cipm.rules.pointwise import LETTERS
from cipm.rules.registry import Call, rule


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "softmin", "_safe_softmax", "special_softmax",
      "special_log_softmax", "_masked_softmax")
def softmax(call: Call) -> list[Axis]:
    """…n → …n along one axis; the normaliser does not depend on the order."""
    value = call.values()[0]
    if call["mask"] is not None:
        value = Value(value.name, value.shape, tuple(call.join([(v, LETTERS[:len(v.shape)]) for v in call.values()],
                                                               LETTERS[:len(value.shape)])))
    call.book.touch(value, (call["dim"] if call["dim"] is not None else -1) % len(value.shape))
    return list(value.axes)


@rule("mean", "sum", "prod", "amax", "amin", "max", "min", "any", "all", "logsumexp", "special_logsumexp",
      "linalg_vector_norm", "norm", "native_norm", "frobenius_norm", "var", "std", "var_mean", "std_mean", "nansum", "nanmean",
      "count_nonzero", "aminmax")
def reduction(call: Call) -> list[list[Axis]] | list[Axis]:
    """…n → … : a sum, mean, extreme or norm over axes; what remains keeps its order."""
    value = call.values()[0]
    dims = dimensions(call, len(value.shape))
    for dim in dims:
        call.book.touch(value, dim)
    results = [drop(call, value, dims, len(shape) == len(value.shape)) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy",
      "binary_cross_entropy_with_logits", "soft_margin_loss", "poisson_nll_loss", "cosine_similarity", "linalg_vecdot",
      "pairwise_distance", "dist")
def comparison(call: Call) -> list[Axis]:
    """…n, …n → … : equal positions are tied, then summed over the axes that the result lacks."""
    values = [value for value in call.values() if value.shape]
    ndim = max(len(value.shape) for value in values)
    letters = LETTERS[:ndim]
    keep = len(call.shape) == ndim and call["keepdim"] is not True
    gone = [] if keep else [call["dim"] % ndim] if isinstance(call["dim"], int) else \
        list(range(ndim)) if not call.shape else [ndim - 1]
    terms = [(value, letters[ndim - len(value.shape):]) for value in values]
    if keep:
        return call.join(terms, letters)
    axes = call.equation(terms, "".join(letters[i] for i in range(ndim) if i not in gone))
    return axes if call["keepdim"] is not True else [*axes[:gone[0]], FREE, *axes[gone[0]:]]


def dimensions(call: Call, ndim: int) -> list[int]:
    """Return the axes that an op names, all of them where it names none."""
    dims = call["dim"] if call["dim"] is not None else call["dims"]
    if dims is None or dims == ():
        return list(range(ndim))
    return [d % max(ndim, 1) for d in (dims if isinstance(dims, tuple) else (dims,))]


def drop(call: Call, value: Value, dims: list[int], keep: bool) -> list[Axis]:
    """Return the axes of a value without some of them, or with something uniform in their place."""
    kept: list[Axis] = []
    for i, axis in enumerate(value.axes):
        if i in dims:
            kept.extend([FREE] if keep else [])
            continue
        if isinstance(axis, np.ndarray):
            if any(axis.shape[d] > 1 for d in dims):
                call.pin(axis, "its meaning depends on an axis that this op sums over")
                axis = call.fixed("it depends on an axis that was summed over")
            elif not keep:
                axis = axis.squeeze(tuple(dims))
        kept.append(axis)
    return kept
