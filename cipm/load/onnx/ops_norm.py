"""Norms: per channel with stored statistics, over the last axes, over groups of channels, over neighbouring channels."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cipm.load.onnx.values import Call, Result, operator


@operator("BatchNormalization", buffers=(3, 4))
def batch_norm(call: Call) -> Result:
    """Scale and shift each channel by stored statistics."""
    call.one_output()
    if call.int("training_mode", 0) or not call.int("spatial", 1):
        raise call.unsupported("is in training mode, or has statistics of its own for every position")
    x, scale, bias, mean, variance = call.tensors()
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.float("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(call: Call) -> Result:
    """Normalise every channel of every sample over its positions."""
    return F.instance_norm(call[0], None, None, call[1], call[2], True, 0.0, call.float("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(call: Call) -> Result:
    """Normalise groups of channels; until opset 20 scale and bias belong to a group, after to a channel."""
    x, scale, bias = call.tensors()
    groups, epsilon = call.int("num_groups", 0), call.float("epsilon", 1e-5)
    if call.opset >= 21:
        return F.group_norm(x, groups, scale, bias, epsilon)
    each = x.shape[1] // max(groups, 1)
    scale, bias = (v.unsqueeze(1).expand(groups, each).reshape(groups * each) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_norm(call: Call) -> Result:
    """Normalise over the axes from `axis` on."""
    call.one_output()
    x = call[0]
    shape = list(x.shape[call.int("axis", -1):])
    scale, bias = call[1], call.get(2)
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, call.float("epsilon", 1e-5))
    y = F.layer_norm(x, shape, None, None, call.float("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


@operator("RMSNormalization")
def rms_norm(call: Call) -> Result:
    """Divide by the root of the mean square over the axes from `axis` on."""
    x = call[0]
    shape = list(x.shape[call.int("axis", -1):])
    if list(call[1].shape) == shape:
        return F.rms_norm(x, shape, call[1], call.float("epsilon", 1e-5))
    return F.rms_norm(x, shape, None, call.float("epsilon", 1e-5)) * call[1]


@operator("LRN")
def local_response_norm(call: Call) -> Result:
    """Divide by a power of the squares of neighbouring channels."""
    size = call.int("size", 1)
    if size % 2 == 0:
        raise call.unsupported("has an even number of neighbouring channels")
    return F.local_response_norm(call[0], size, call.float("alpha", 1e-4), call.float("beta", 0.75), call.float("bias", 1.0))


@operator("MeanVarianceNormalization")
def mean_variance_norm(call: Call) -> Result:
    """Subtract the mean and divide by the deviation over some axes."""
    x, axes = call[0], list(call.list("axes", (0, 2, 3)))
    mean = x.mean(axes, keepdim=True)
    deviation = ((x * x).mean(axes, keepdim=True) - mean * mean).sqrt()
    return (x - mean) / (deviation + 1e-9)


@operator("DequantizeLinear", stored=(0, 2), buffers=(2,))
def dequantize(call: Call) -> Result:
    """(x − zero point) · scale, per tensor or along an axis."""
    scale = call[1]
    x = call[0].to(scale.dtype)
    if call.has(2):
        x = x - _along(call, call[2].to(scale.dtype), x.ndim)
    return x * _along(call, scale, x.ndim)


@operator("QuantizeLinear", buffers=(2,))
def quantize(call: Call) -> Result:
    """round(x / scale) + zero point, cut to the range of the integer type."""
    kind = torch.uint8 if not call.has(2) else call[2].dtype
    if kind not in (torch.uint8, torch.int8, torch.uint16, torch.int16) or call.int("output_dtype", 0) and not call.has(2):
        raise call.unsupported("rounds to another type than 8 or 16 bits")
    x = torch.round(call[0] / _along(call, call[1], call[0].ndim))
    if call.has(2):
        x = x + _along(call, call[2].to(x.dtype), x.ndim)
    return torch.clamp(x, torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def _along(call: Call, vector: torch.Tensor, ndim: int) -> torch.Tensor:
    call.refuse("block_size")
    if vector.numel() == 1:
        return vector.reshape([])
    axis = call.int("axis", 1) % ndim
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])
