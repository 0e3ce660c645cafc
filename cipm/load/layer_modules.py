"""Build described layers as one module: what every type computes, and whether it fits its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cipm.errors import CorruptFile, LimitExceeded
from cipm.load.layers import FIX, NAME, RECURRENT, Layer

MAX_VALUES = 2**28
"""The most elements that any value may have while a description is tried out."""
_HALF = (torch.float16, torch.bfloat16)


class Layers(nn.Module):
    """A list of described layers, one after the other. The tensors are stand-ins: the graph is made from shapes."""

    def __init__(self, layers: tuple[Layer, ...], metas: Mapping[str, Tensor], dtype: torch.dtype):
        super().__init__()
        self.steps = nn.ModuleList(Step(layer, metas, dtype) for layer in layers)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x

    def keys(self) -> dict[str, str]:
        """Return {the name of a tensor in this module: its key in the file}."""
        return {f"{name}.{role}" if name else role: key for name, module in self.named_modules()
                if isinstance(module, Step) for role, key in module.layer.keys.items()}


class Step(nn.Module):
    """One layer. Tensors stored in half precision take part as `dtype`."""

    def __init__(self, layer: Layer, metas: Mapping[str, Tensor], dtype: torch.dtype):
        super().__init__()
        self.layer, self.dtype = layer, dtype
        for role, key in layer.keys.items():
            self.register_buffer(role, torch.zeros((), dtype=metas[key].dtype).expand(metas[key].shape))
        for name, lists in layer.inner.items():
            self.add_module(name, nn.ModuleList(Layers(layers, metas, dtype) for layers in lists))

    def forward(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            raise CorruptFile(f"{NAME}: {self.layer.label} follows 'heads', which must be the last.", where=NAME, fix=FIX)
        try:
            result = _CALLS[self.layer.kind](self, x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise self._unfit(x, str(error).splitlines()[0][:200].rstrip(".")) from error
        if isinstance(result, Tensor) and x.device.type == "meta" and result.numel() > MAX_VALUES:
            raise LimitExceeded(f"{NAME}: {self.layer.label} would make {result.numel():,} values.", where=NAME)
        return result

    def value(self, name: str) -> Any:
        """Return one of the layer's values."""
        return self.layer.values[name]

    def tensor(self, role: str) -> Tensor | None:
        """Return one of its tensors, or None where the file has none."""
        if role not in self.layer.keys:
            return None
        found = getattr(self, role)
        return found.to(self.dtype) if found.is_floating_point() and found.dtype != self.dtype else found

    def lists(self, name: str) -> nn.ModuleList:
        """Return the lists of layers inside it."""
        return self._modules[name]  # type: ignore[return-value]

    def _unfit(self, x: Tensor, reason: str) -> CorruptFile:
        tensors = ", ".join(f"{key} {list(getattr(self, role).shape)}" for role, key in self.layer.keys.items())
        return CorruptFile(f"{NAME}: {self.layer.label}{f' with {tensors}' if tensors else ''} does not fit its input of shape "
                           f"{list(x.shape)}: {reason}.", where=NAME, fix=FIX)


def _linear(step: Step, x: Tensor, name: str = "") -> Tensor:
    weight, bias = step.tensor(f"{name}weight"), step.tensor(f"{name}bias")
    assert weight is not None
    if not transposed(weight, bias, step.layer.keys[f"{name}weight"], step.layer.values.get("layout", "auto"), x.shape[-1]):
        return F.linear(x, weight, bias)
    product = x @ weight
    return product if bias is None else product + bias


def transposed(weight: Tensor, bias: Tensor | None, key: str, layout: str, width: int) -> bool:
    """Tell whether a weight lies as [in, out] (Keras) and not as [out, in]: as stated, as it fits, by its name."""
    if layout != "auto":
        return layout == "in,out"
    fits = [weight.shape[1 - side] == width and (bias is None or bias.shape[0] == weight.shape[side]) for side in (0, 1)]
    return fits[1] if fits[0] != fits[1] else key.endswith("kernel")


def _conv(step: Step, x: Tensor) -> Tensor:
    weight = step.tensor("weight")
    assert weight is not None
    layout, axes = step.value("layout"), weight.ndim - 2
    if layout == "keras" or (layout == "auto" and step.layer.keys["weight"].endswith("kernel")):
        weight = weight.permute(axes + 1, axes, *range(axes))
    call = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return call(x, weight, step.tensor("bias"), _each(step, "stride"), _each(step, "padding"), _each(step, "dilation"),
                step.value("groups"))


def _conv_transpose(step: Step, x: Tensor) -> Tensor:
    weight = step.tensor("weight")
    assert weight is not None
    call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
    return call(x, weight, step.tensor("bias"), _each(step, "stride"), _each(step, "padding"), _each(step, "output_padding"),
                step.value("groups"), _each(step, "dilation"))


def _batch_norm(step: Step, x: Tensor) -> Tensor:
    return F.batch_norm(x, step.tensor("running_mean"), step.tensor("running_var"), step.tensor("weight"), step.tensor("bias"),
                        False, 0.0, step.value("eps"))


def _layer_norm(step: Step, x: Tensor) -> Tensor:
    return F.layer_norm(x, step.weight.shape, step.tensor("weight"), step.tensor("bias"), step.value("eps"))


def _attention(step: Step, x: Tensor) -> Tensor:
    if "qkv_weight" in step.layer.keys:
        query, key, value = _linear(step, x, "qkv_").chunk(3, dim=-1)
    elif all(f"{part}_weight" in step.layer.keys for part in ("query", "key", "value")):
        query, key, value = (_linear(step, x, f"{part}_") for part in ("query", "key", "value"))
    else:
        raise ValueError("it needs 'qkv', or 'query', 'key' and 'value'")
    heads = [part.unflatten(-1, (step.value("heads"), -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*heads, is_causal=step.value("causal")).transpose(1, 2).flatten(2)
    return _linear(step, mixed, "out_") if "out_weight" in step.layer.keys else mixed


def _recurrent(step: Step, x: Tensor) -> Tensor:
    keys, kind = step.layer.keys, step.layer.kind
    count = sum(role.startswith("weight_ih") for role in keys)
    both, hidden = "weight_ih_l0_reverse" in keys, step.weight_hh_l0.shape[1]
    if step.weight_ih_l0.shape[0] != RECURRENT[kind] * hidden:
        raise ValueError(f"{keys['weight_ih_l0']} of shape {list(step.weight_ih_l0.shape)} does not have "
                         f"{RECURRENT[kind]} × {hidden} rows")
    state = torch.zeros((count, x.shape[0], hidden), dtype=x.dtype, device=x.device)
    weights = [step.tensor(role) for role in keys]
    options = ("bias_ih_l0" in keys, count // (2 if both else 1), 0.0, False, both, True)
    state = [state, state] if kind == "lstm" else state
    found = getattr(torch, kind)(x, state, weights, *options)
    return found[0][:, -1] if step.value("output") == "last" else found[0]


def _pool(kind: str) -> Callable[[Step, Tensor], Tensor]:
    calls = [getattr(F, f"{kind}_pool{axes}d") for axes in (1, 2, 3)]

    def call(step: Step, x: Tensor) -> Tensor:
        return calls[x.ndim - 3](x, _each(step, "size"), _each(step, "stride"), _each(step, "padding"),
                                 ceil_mode=step.value("ceil"))
    return call


def _adaptive(step: Step, x: Tensor) -> Tensor:
    return (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[x.ndim - 3](x, _each(step, "size"))


def _subsample_pad(step: Step, x: Tensor) -> Tensor:
    """The shortcut without weights (He et al., 2016, option A): every `stride`-th place, new channels zero."""
    stride, more = step.value("stride"), step.value("channels") - x.shape[1]
    x = x[(slice(None), slice(None), *(slice(None, None, stride) for _ in range(x.ndim - 2)))]
    before = more // 2 if step.value("where") == "both" else 0
    return F.pad(x, (*(0,) * (2 * (x.ndim - 2)), before, more - before))


def _residual(step: Step, x: Tensor) -> Tensor:
    straight = step.lists("shortcut")[0](x) if "shortcut" in step.layer.inner else x
    return step.lists("layers")[0](x) + straight


def _each(step: Step, name: str) -> Any:
    value = step.value(name)
    return tuple(value) if isinstance(value, list) and len(value) > 1 else value[0] if isinstance(value, list) else value


_CALLS: dict[str, Callable[[Step, Tensor], Any]] = {
    "linear": _linear, "conv": _conv, "conv_transpose": _conv_transpose, "batch_norm": _batch_norm, "layer_norm": _layer_norm,
    "rms_norm": lambda s, x: F.rms_norm(x, s.weight.shape, s.tensor("weight"), s.value("eps")),
    "group_norm": lambda s, x: F.group_norm(x, s.value("groups"), s.tensor("weight"), s.tensor("bias"), s.value("eps")),
    "prelu": lambda s, x: F.prelu(x, s.tensor("weight")), "embedding": lambda s, x: F.embedding(x, s.tensor("weight")),
    "positions": lambda s, x: x + s.tensor("weight")[:x.shape[1]],
    "attention": _attention, **dict.fromkeys(RECURRENT, _recurrent),
    "max_pool": _pool("max"), "avg_pool": _pool("avg"), "adaptive_avg_pool": _adaptive,
    "global_avg_pool": lambda s, x: x.flatten(2).mean(2), "flatten": lambda s, x: x.flatten(1), "last": lambda s, x: x[:, -1],
    "dropout": lambda s, x: x, "identity": lambda s, x: x, "permute": lambda s, x: x.permute(s.value("order")),
    "subsample_pad": _subsample_pad, "residual": _residual,
    "heads": lambda s, x: tuple(branch(x) for branch in s.lists("branches")),
    "relu": lambda s, x: F.relu(x), "relu6": lambda s, x: F.relu6(x), "gelu": lambda s, x: F.gelu(x),
    "gelu_tanh": lambda s, x: F.gelu(x, approximate="tanh"), "tanh": lambda s, x: torch.tanh(x),
    "sigmoid": lambda s, x: torch.sigmoid(x), "silu": lambda s, x: F.silu(x), "elu": lambda s, x: F.elu(x),
    "selu": lambda s, x: F.selu(x), "leaky_relu": lambda s, x: F.leaky_relu(x, s.value("slope")),
    "softplus": lambda s, x: F.softplus(x), "mish": lambda s, x: F.mish(x), "hardswish": lambda s, x: F.hardswish(x),
    "softmax": lambda s, x: F.softmax(x, -1), "log_softmax": lambda s, x: F.log_softmax(x, -1),
}
