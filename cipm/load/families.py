"""Families of architectures: a name and a few values, with the tensors' names and shapes, give the list of layers.

Layouts: He et al. 2015 (ResNet; option A pads with zeros) and torchvision's key names; Simonyan and Zisserman 2014 (VGG);
Radford et al. 2019 with Karpathy's key names (GPT); LeCun et al. 1998 (LeNet, as `cnn`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cipm.errors import CorruptFile
from cipm.load.chain import blocks, mlp, natural
from cipm.load.layers import ACTIVATIONS, FIX, NAME, Names, spell

Items = list[dict[str, Any]]
_VGG = {8: (1, 1, 2, 2, 2), 10: (2, 2, 2, 2, 2), 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}


@dataclass(frozen=True)
class Family:
    """How to write a family's layers: the values that may be stated with their defaults, and the input where none is."""

    build: Callable[[Names, Mapping[str, Any]], Items]
    values: Mapping[str, Any]
    input: tuple[int | None, ...] | None = None


def family_layers(name: Any, given: Mapping[str, Any], names: Names) -> tuple[Items, tuple[int | None, ...] | None]:
    """Return (the layers of a family, the input that it usually takes).

    Raises CorruptFile for a family or value that does not exist, and where the tensors are not of this family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise CorruptFile(f"{NAME} names the family {str(name)[:60]!r}; families are {', '.join(sorted(FAMILIES))}.",
                          where=NAME, fix=FIX)
    family = FAMILIES[name]
    unknown = sorted(set(given) - set(family.values))
    if unknown:
        raise CorruptFile(f"{NAME}: the family {name!r} has no value {unknown[0][:60]!r}; it has {', '.join(family.values)}.",
                          where=NAME, fix=FIX)
    return family.build(names, {**family.values, **given}), family.input


def _mlp(names: Names, values: Mapping[str, Any]) -> Items:
    return mlp(names, _activation(values, "activation"), _activation(values, "output_activation"))


def _cnn(names: Names, values: Mapping[str, Any]) -> Items:
    """Convolutions, each with norm, activation and pooling, then linear layers after a flatten."""
    found = sorted(blocks(names)[0], key=lambda block: natural(block.name))
    convs, norms, linear = ([b for b in found if b.kind == kind] for kind in ("conv", "batch_norm", "linear"))
    if not convs or len(norms) not in (0, len(convs)) or len(convs) + len(norms) + len(linear) < len(found):
        raise CorruptFile(f"{NAME}: the family 'cnn' is convolutions, with a batch norm after each or none, then linear "
                          f"layers; the file holds {spell(names.metas)}.", where=NAME, fix="List the layers one by one.")
    lists = {name: _each(values, name, len(convs)) for name in ("strides", "paddings", "pools")}
    act, pool = {"type": _activation(values, "activation")}, f"{_one_of(values, 'pool', ('max', 'avg'))}_pool"
    layers: Items = []
    for number, block in enumerate(convs):
        layers.append({"type": "conv", **block.keys, "stride": lists["strides"][number], "padding": lists["paddings"][number]})
        layers += [{"type": "batch_norm", **norms[number].keys}] if norms else []
        layers.append(act)
        layers += [{"type": pool, "size": lists["pools"][number]}] if lists["pools"][number] else []
    layers.append({"type": "flatten"})
    for number, block in enumerate(linear):
        layers += [{"type": "linear", **block.keys}, *([act] if number < len(linear) - 1 else [])]
    return layers


def _resnet_cifar(names: Names, values: Mapping[str, Any]) -> Items:
    shortcut = _one_of(values, "shortcut", ("A", "B"))
    stem = [_conv("conv1", 1, 1), _norm("bn1"), {"type": "relu"}]
    return [*stem, *_stages(names, shortcut, values), *_classifier(names, ("linear", "fc"))]


def _resnet(names: Names, values: Mapping[str, Any]) -> Items:
    stem = [_conv("conv1", 2, 3), _norm("bn1"), {"type": "relu"}, {"type": "max_pool", "size": 3, "stride": 2, "padding": 1}]
    return [*stem, *_stages(names, "B", {"pad": "both"}), *_classifier(names, ("fc", "linear"))]


def _stages(names: Names, shortcut: str, values: Mapping[str, Any]) -> Items:
    """Return the residual blocks layer1.0, layer1.1, …; the first of every stage but the first has stride 2."""
    found = sorted({(int(m[1]), int(m[2])) for name in names.short if (m := re.match(r"layer(\d{1,3})\.(\d{1,4})\.", name))})
    if not found:
        raise _not(names, "a ResNet", "layer1.0.conv1.weight")
    layers: Items = []
    for stage, number in found:
        prefix, stride = f"layer{stage}.{number}", 2 if number == 0 and stage > 1 else 1
        layers += [_block(names, prefix, stride, shortcut, values), {"type": "relu"}]
    return layers


def _block(names: Names, prefix: str, stride: int, shortcut: str, values: Mapping[str, Any]) -> dict[str, Any]:
    first, deep = names.find(f"{prefix}.conv1", "weight"), names.find(f"{prefix}.conv3", "weight")
    if first is None:
        raise _not(names, "a ResNet", f"{prefix}.conv1.weight")
    strides = (1, stride, 1) if deep else (stride, 1)  # a bottleneck strides in its 3 × 3 convolution, as torchvision's do
    inner: Items = []
    groups = names.shape(first)[0] // names.shape(names.find(f"{prefix}.conv2", "weight") or first)[1] if deep else 1
    for number, each in enumerate(strides, 1):
        inner += [_conv(f"{prefix}.conv{number}", each, 1 if not deep or number == 2 else 0, groups if number == 2 else 1),
                  _norm(f"{prefix}.bn{number}")]
        inner += [{"type": "relu"}] if number < len(strides) else []
    block: dict[str, Any] = {"type": "residual", "layers": inner}
    down = next((part for part in ("downsample", "shortcut") if names.find(f"{prefix}.{part}.0", "weight")), None)
    into = names.shape(first)[1]
    out = names.shape(names.find(f"{prefix}.conv{len(strides)}", "weight") or first)[0]
    if down:
        block["shortcut"] = [_conv(f"{prefix}.{down}.0", stride, 0), _norm(f"{prefix}.{down}.1")]
    elif stride > 1 or into != out:
        if shortcut != "A":
            raise CorruptFile(f"{NAME}: the file lacks the shortcut of block {prefix!r}.", where=prefix,
                              fix="Where shortcuts have no weights, state \"shortcut\": \"A\" (family resnet_cifar).")
        block["shortcut"] = [{"type": "subsample_pad", "stride": stride, "channels": out,
                              "where": _one_of(values, "pad", ("both", "end"))}]
    return block


def _classifier(names: Names, known: tuple[str, ...]) -> Items:
    layer = next((name for name in known if names.find(name, "weight")), None)
    if layer is None:
        raise _not(names, "a ResNet", f"{known[0]}.weight")
    return [{"type": "global_avg_pool"}, {"type": "linear", "weights": layer}]


def _vgg(names: Names, values: Mapping[str, Any]) -> Items:
    """Return the layers of torchvision's VGG 11, 13, 16 and 19, told apart by the number of convolutions."""
    found = sorted((block for block in blocks(names)[0] if block.name.startswith("features.")), key=lambda b: natural(b.name))
    convs, norms = ([block for block in found if block.kind == kind] for kind in ("conv", "batch_norm"))
    if len(convs) not in _VGG or len(norms) not in (0, len(convs)):
        raise _not(names, "a VGG of 8, 10, 13 or 16 convolutions", "features.0.weight")
    layers: Items = []
    ends = {sum(_VGG[len(convs)][:i + 1]) for i in range(5)}
    for number, block in enumerate(convs, 1):
        layers.append({"type": "conv", **block.keys, "padding": 1})
        layers += [{"type": "batch_norm", **norms[number - 1].keys}] if norms else []
        layers += [{"type": "relu"}, *([{"type": "max_pool", "size": 2}] if number in ends else [])]
    linear = sorted((b for b in blocks(names)[0] if b.kind == "linear"), key=lambda b: natural(b.name))
    if not linear:
        raise _not(names, "a VGG", "classifier.0.weight")
    side = round((linear[0].shape[1] / convs[-1].shape[0]) ** 0.5)
    layers += [{"type": "adaptive_avg_pool", "size": max(1, min(side, 256))}, {"type": "flatten"}]
    for number, block in enumerate(linear):
        layers += [{"type": "linear", **block.keys}, *([{"type": "relu"}] if number < len(linear) - 1 else [])]
    return layers


def _gpt(names: Names, values: Mapping[str, Any]) -> Items:
    """Return the layers of a GPT with the key names of nanoGPT and makemore: embeddings, blocks of attention and MLP, head."""
    heads, act = values["heads"], _activation(values, "activation")
    if type(heads) is not int:
        raise CorruptFile(f"{NAME}: the family 'gpt' needs 'heads', the number of attention heads, which no shape shows.",
                          where=NAME, fix=FIX)
    count = 1 + max((int(m[1]) for name in names.short if (m := re.match(r"transformer\.h\.(\d{1,4})\.", name))), default=-1)
    layers: Items = [{"type": "embedding", "weights": "transformer.wte"}, {"type": "positions", "weights": "transformer.wpe"}]
    for number in range(count):
        prefix = f"transformer.h.{number}"
        attention = {"type": "attention", "heads": heads, "causal": True, "qkv": f"{prefix}.attn.c_attn",
                     "out": f"{prefix}.attn.c_proj"}
        layers += [{"type": "residual", "layers": [{"type": "layer_norm", "weights": f"{prefix}.ln_1"}, attention]},
                   {"type": "residual", "layers": [
                       {"type": "layer_norm", "weights": f"{prefix}.ln_2"},
                       {"type": "linear", "weights": f"{prefix}.mlp.c_fc"}, {"type": act},
                       {"type": "linear", "weights": f"{prefix}.mlp.c_proj"}]}]
    return [*layers, {"type": "layer_norm", "weights": "transformer.ln_f"}, {"type": "linear", "weights": "lm_head"}]


def _sequence(kind: str) -> Callable[[Names, Mapping[str, Any]], Items]:
    """Return the builder of a recurrent model: an embedding where there is one, the recurrent layers, linear layers."""
    def build(names: Names, values: Mapping[str, Any]) -> Items:
        layer = next((name.removesuffix("weight_ih_l0").removesuffix(".") for name in names.short
                      if name.endswith("weight_ih_l0")), None)
        if layer is None:
            raise _not(names, f"a model with {kind} layers", "weight_ih_l0")
        flat = [block for block in blocks(names)[0] if block.kind == "linear"]
        width = names.shape(names.key(f"{layer}.weight_ih_l0" if layer else "weight_ih_l0") or "")[1]
        tables = [block for block in flat if block.shape[1] == width and "bias" not in block.keys and "emb" in block.name]
        layers: Items = [{"type": "embedding", **block.keys} for block in tables[:1]]
        layers.append({"type": kind, "weights": layer, "output": _one_of(values, "output", ("all", "last"))})
        act = _activation(values, "activation")
        linear = [block for block in flat if block not in tables[:1]]
        for number, block in enumerate(linear):
            layers += [{"type": "linear", **block.keys}, *([{"type": act}] if number < len(linear) - 1 else [])]
        return layers
    return build


# --- parts ------------------------------------------------------------------------------------------------------------

def _conv(name: str, stride: int, padding: int, groups: int = 1) -> dict[str, Any]:
    return {"type": "conv", "weights": name, "stride": stride, "padding": padding, "groups": groups}


def _norm(name: str) -> dict[str, Any]:
    return {"type": "batch_norm", "weights": name}


def _activation(values: Mapping[str, Any], name: str) -> str:
    return _one_of(values, name, ACTIVATIONS)


def _one_of(values: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    if values[name] not in known:
        raise CorruptFile(f"{NAME}: {name!r} is {str(values[name])[:60]!r}; it is one of {', '.join(known)}.", where=NAME,
                          fix=FIX)
    return values[name]


def _each(values: Mapping[str, Any], name: str, count: int) -> list[int]:
    given = values[name]
    found = given if isinstance(given, list) else [given] * count
    if len(found) != count or not all(type(v) is int and 0 <= v <= 1024 for v in found):
        raise CorruptFile(f"{NAME}: {name!r} is {str(given)[:60]}; it is one whole number for each of the {count} "
                          "convolutions.", where=NAME, fix=FIX)
    return found


def _not(names: Names, what: str, lacking: str) -> CorruptFile:
    return CorruptFile(f"{NAME} says that the file holds {what}, but it lacks {lacking!r}.", where=NAME,
                       fix=f"The file holds {spell(names.metas)}.")


FAMILIES: dict[str, Family] = {
    "mlp": Family(_mlp, {"activation": "relu", "output_activation": "identity"}),
    "cnn": Family(_cnn, {"activation": "relu", "strides": 1, "paddings": 0, "pools": 0, "pool": "max"}),
    "resnet_cifar": Family(_resnet_cifar, {"shortcut": "B", "pad": "both"}, (3, 32, 32)),
    "resnet": Family(_resnet, {}, (3, 224, 224)),
    "vgg": Family(_vgg, {}, (3, 224, 224)),
    "gpt": Family(_gpt, {"heads": None, "activation": "gelu_tanh"}),
    "lstm": Family(_sequence("lstm"), {"output": "all", "activation": "relu"}),
    "gru": Family(_sequence("gru"), {"output": "all", "activation": "relu"}),
    "rnn": Family(_sequence("rnn_tanh"), {"output": "all", "activation": "relu"}),
}
