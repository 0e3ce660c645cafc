"""Contractions: matrix products, convolutions, einsum, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from cipm.load.onnx.values import Call, Result, operator

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("MatMul")
def matmul(call: Call) -> Result:
    """Matrix product with leading axes broadcast."""
    return torch.matmul(call[0], call[1])


@operator("Gemm")
def gemm(call: Call) -> Result:
    """α A B + β C, either matrix transposed: a linear layer where B is stored as one."""
    a, b = call[0], call[1]
    alpha, beta = call.float("alpha", 1.0), call.float("beta", 1.0)
    a = a.T if call.int("transA", 0) else a
    c = call[2] if call.has(2) else None
    if c is not None and beta != 1:
        c = c * beta
    if call.int("transB", 0) and alpha == 1 and (c is None or c.ndim == 1 and c.shape[0] == b.shape[0]):
        return F.linear(a, b, c)
    product = a @ (b.T if call.int("transB", 0) else b)
    product = product * alpha if alpha != 1 else product
    return product if c is None else product + c


@operator("Einsum")
def einsum(call: Call) -> Result:
    """The sum that the equation says."""
    return torch.einsum(call.text("equation", ""), *call.tensors())


# --- convolutions ---------------------------------------------------------------------------------------------------

@operator("Conv")
def conv(call: Call) -> Result:
    """Convolution in one to three dimensions, grouped and dilated; different padding at the two ends becomes a pad."""
    x, weight = call[0], call[1]
    rank = spatial_rank(call, x)
    strides, dilations = (list(call.list(name, (1,) * rank)) for name in ("strides", "dilations"))
    before, after = paddings(call, x, weight.shape[2:], strides, dilations)
    if before != after:
        x, before = F.pad(x, interleaved(before, after)), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, call.get(2), strides, before, dilations, call.int("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Result:
    """Transposed convolution; what the padding takes away is cut off where its two ends differ."""
    x, weight = call[0], call[1]
    rank = spatial_rank(call, x)
    strides, dilations = (list(call.list(name, (1,) * rank)) for name in ("strides", "dilations"))
    extra = list(call.list("output_padding", (0,) * rank))
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    before, after = _cut(call, x, kernel, strides, extra)
    function, groups = _TRANSPOSED[rank], call.int("group", 1)
    if before == after:
        return function(x, weight, call.get(2), strides, before, extra, groups, dilations)
    y = function(x, weight, call.get(2), strides, 0, 0, groups, dilations)
    return F.pad(y, interleaved([-n for n in before], [e - n for e, n in zip(extra, after, strict=True)]))


def _cut(call: Call, x: torch.Tensor, kernel: list[int], strides: list[int], extra: list[int]) -> tuple[list[Any], list[Any]]:
    """Return what a transposed convolution cuts off at both ends of every axis."""
    rank = len(kernel)
    shape, auto = call.list("output_shape"), call.text("auto_pad", "NOTSET")
    if shape is None and auto in ("NOTSET", "VALID"):
        pads = list(call.list("pads", (0,) * (2 * rank))) if auto == "NOTSET" else [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    sizes = x.shape[2:]
    wanted = list(shape[-rank:]) if shape is not None else [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [s * (n - 1) + e + k - w for n, s, e, k, w in zip(sizes, strides, extra, kernel, wanted, strict=True)]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def spatial_rank(call: Call, x: torch.Tensor) -> int:
    """Return the number of axes of positions; raises UnsupportedModel beyond three."""
    if not 1 <= x.ndim - 2 <= 3:
        raise call.unsupported(f"reads a value of {x.ndim} axes")
    return x.ndim - 2


def paddings(call: Call, x: torch.Tensor, kernel: Any, strides: list[int], dilations: list[int]) -> tuple[list[Any], list[Any]]:
    """Return the positions added before and after every axis, given or worked out from auto_pad."""
    rank, auto = len(strides), call.one_of("auto_pad", "NOTSET", ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
    if auto == "NOTSET":
        pads = list(call.list("pads", (0,) * (2 * rank)))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    totals = [_same(n, k, s, d) for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _same(size: Any, kernel: int, stride: int, dilation: int) -> Any:
    """Return the padding that makes ⌈size / stride⌉ results."""
    total = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size
    return max(total, 0) if isinstance(total, int) else torch.sym_max(total, 0)


def interleaved(before: list[Any], after: list[Any]) -> list[Any]:
    """Return paddings in torch's order: last axis first, both ends together."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


# --- attention ------------------------------------------------------------------------------------------------------

@operator("Attention")
def attention(call: Call) -> Result:
    """softmax(scale · Q Kᵀ + mask) V per head; key-value heads may be fewer; without a cache and without softcap."""
    call.refuse("softcap", "qk_matmul_output_mode")
    call.refuse_inputs(4, 5, 6)
    call.one_output()
    query, key, value = (_heads(call, call[i], name) for i, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")))
    mixed = F.scaled_dot_product_attention(query, key, value, call.get(3), 0.0, bool(call.int("is_causal", 0)),
                                           scale=call.float("scale"), enable_gqa=query.shape[1] != key.shape[1])
    if call[0].ndim == 4:
        return mixed
    b, _, length, _ = mixed.shape
    return mixed.transpose(1, 2).reshape(b, length, mixed.shape[1] * mixed.shape[3])


def _heads(call: Call, x: torch.Tensor, name: str) -> torch.Tensor:
    if x.ndim == 4:
        return x
    heads = call.int(name, 0)
    if x.ndim != 3 or heads < 1:
        raise call.damaged(f"has operands of three axes without {name}")
    return x.unflatten(-1, [heads, x.shape[-1] // heads]).transpose(1, 2)


@operator("RotaryEmbedding")
def rotary(call: Call) -> Result:
    """Turn pairs of units by angles that grow with the position; the cosines and sines come from tables."""
    flat = call[0].ndim == 3
    x = _heads(call, call[0], "num_heads")
    part = call.int("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :part], x[..., part:]
    cos, sin = (call[i][call[3]] if call.has(3) else call[i] for i in (1, 2))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if call.int("interleaved", 0):
        one, two = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)
    else:
        one, two = turned.chunk(2, -1)
        turned = torch.cat([one * cos - two * sin, one * sin + two * cos], -1)
    y = torch.cat([turned, rest], -1) if part != x.shape[-1] else turned
    return y.transpose(1, 2).flatten(2) if flat else y
