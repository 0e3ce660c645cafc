"""The layers of a model that is described beside its weights: a bounded list of types, each with bounded values.

`parse_layers` checks a description from an upload, names the stored tensors of every layer, and refuses what does not fit.
`layer_modules` builds them; `families` and `chain` write such descriptions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cipm.errors import CorruptFile, LimitExceeded

NAME = "architecture.json"
FIX = f"Correct {NAME}; docs/weights.md lists what it may hold."
MAX_LAYERS, MAX_NESTING = 5_000, 8
LEAVES = {"weight": ("weight", "kernel", "gamma", "w", "W", "embeddings"), "bias": ("bias", "beta", "b"),
          "running_mean": ("running_mean", "moving_mean"), "running_var": ("running_var", "moving_variance")}
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
ACTIVATIONS = ("relu", "relu6", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu", "elu", "selu", "leaky_relu", "softplus",
               "mish", "hardswish", "softmax", "log_softmax", "identity")
Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Field:
    """A value of a layer: what it may be, in words and as a check, and what it is where it is not given."""

    what: str
    check: Check
    default: Any = None


def _whole(low: int, high: int, default: int | None) -> Field:
    return Field(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high, default)


def _sizes(low: int, high: int, default: int | None) -> Field:
    def check(value: Any) -> bool:
        values = value if isinstance(value, list) and 1 <= len(value) <= 3 else [value]
        return all(type(v) is int and low <= v <= high for v in values)
    return Field(f"a whole number from {low} to {high}, or one for each axis", check, default)


def _number(low: float, high: float, default: float) -> Field:
    return Field(f"a number from {low:g} to {high:g}", lambda v: type(v) in (int, float) and low <= v <= high, default)


def _word(*words: str, default: str) -> Field:
    return Field(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words, default)


def _flag(default: bool) -> Field:
    return Field("true or false", lambda v: type(v) is bool, default)


_ORDER = Field("the axes in their new order, the batch first", lambda v: isinstance(v, list) and len(v) <= 5 and v[:1] == [0]
               and all(type(i) is int for i in v) and sorted(v) == list(range(len(v))))


@dataclass(frozen=True)
class Kind:
    """A type of layer: its values, the tensors it must and may have, the linear layers and the lists of layers inside it."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    rank: tuple[int, ...] = ()


_CONV = {"stride": _sizes(1, 1024, 1), "padding": Field("a whole number from 0 to 1024, one for each axis, or \"same\"",
                                                        lambda v: v == "same" or _sizes(0, 1024, 0).check(v), 0),
         "dilation": _sizes(1, 1024, 1), "groups": _whole(1, 65536, 1)}
_POOL = {"size": _sizes(1, 1024, None), "stride": Field("as size, or null", lambda v: v is None or _sizes(1, 1024, 1).check(v)),
         "padding": _sizes(0, 512, 0), "ceil": _flag(False)}
_RECURRENT = {"output": _word("all", "last", default="all")}
_LINEAR = Kind({"layout": _word("auto", "out,in", "in,out", default="auto")}, ("weight",), ("bias",), rank=(2,))
KINDS: dict[str, Kind] = {
    "linear": _LINEAR,
    "conv": Kind(_CONV | {"layout": _word("auto", "torch", "keras", default="auto")}, ("weight",), ("bias",), rank=(3, 4, 5)),
    "conv_transpose": Kind(_CONV | {"padding": _sizes(0, 1024, 0), "output_padding": _sizes(0, 1024, 0)}, ("weight",),
                           ("bias",), rank=(3, 4, 5)),
    "batch_norm": Kind({"eps": _number(0, 1, 1e-5)}, ("running_mean", "running_var"), ("weight", "bias"), rank=(1,)),
    "layer_norm": Kind({"eps": _number(0, 1, 1e-5)}, ("weight",), ("bias",), rank=(1,)),
    "rms_norm": Kind({"eps": _number(0, 1, 1e-6)}, ("weight",), rank=(1,)),
    "group_norm": Kind({"eps": _number(0, 1, 1e-5), "groups": _whole(1, 65536, None)}, ("weight",), ("bias",), rank=(1,)),
    "prelu": Kind(needs=("weight",), rank=(1,)),
    "embedding": Kind(needs=("weight",), rank=(2,)),
    "positions": Kind(needs=("weight",), rank=(2,)),
    "attention": Kind({"heads": _whole(1, 4096, None), "causal": _flag(False)},
                      linears=("qkv", "query", "key", "value", "out")),
    "lstm": Kind(_RECURRENT), "gru": Kind(_RECURRENT), "rnn_tanh": Kind(_RECURRENT), "rnn_relu": Kind(_RECURRENT),
    "max_pool": Kind(_POOL), "avg_pool": Kind(_POOL), "adaptive_avg_pool": Kind({"size": _sizes(1, 256, None)}),
    "global_avg_pool": Kind(), "flatten": Kind(), "last": Kind(), "dropout": Kind({"p": _number(0, 1, 0.5)}),
    "permute": Kind({"order": _ORDER}),
    "subsample_pad": Kind({"stride": _whole(1, 64, 2), "channels": _whole(1, 65536, None),
                           "where": _word("both", "end", default="both")}),
    "residual": Kind(lists=("layers", "shortcut")),
    "heads": Kind(lists=("branches",)),
    **{name: Kind({"slope": _number(-10, 10, 0.01)} if name == "leaky_relu" else {}) for name in ACTIVATIONS},
}


@dataclass(frozen=True)
class Layer:
    """One layer: its type, its values, the keys of its tensors by role, and the layers inside it by list."""

    kind: str
    place: str
    values: Mapping[str, Any]
    keys: Mapping[str, str]
    inner: Mapping[str, tuple[tuple[Layer, ...], ...]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return what messages call it."""
        return f"layer {self.place} ({self.kind})"

    def walk(self) -> Iterator[Layer]:
        """Yield this layer and all inside it."""
        yield self
        for lists in self.inner.values():
            for layers in lists:
                for layer in layers:
                    yield from layer.walk()


class Names:
    """The stored tensors by the names that a description may use for them: as stored, or without a wrapper's prefix."""

    def __init__(self, metas: Mapping[str, torch.Tensor]):
        self.metas = metas
        self.prefix = ""
        while wrapper := next((w for w in WRAPPERS if metas and all(key.startswith(self.prefix + w) for key in metas)), None):
            self.prefix += wrapper

    @property
    def short(self) -> list[str]:
        """Return the names without the prefix that all share, in file order."""
        return [key.removeprefix(self.prefix) for key in self.metas]

    def key(self, name: str) -> str | None:
        """Return the key of a tensor by its name, or None."""
        return next((key for key in (name, self.prefix + name) if key in self.metas), None)

    def find(self, layer: str, role: str) -> str | None:
        """Return the key of a layer's tensor by its role, or None."""
        names = [f"{layer}{joint}{leaf}" for leaf in LEAVES.get(role, (role,)) for joint in "._"]
        return next((key for name in names if (key := self.key(name)) is not None), None)

    def shape(self, key: str) -> list[int]:
        """Return the shape of a tensor."""
        return list(self.metas[key].shape)


def parse_layers(items: Any, names: Names) -> tuple[Layer, ...]:
    """Return the checked layers of a description, each with the keys of its tensors.

    Raises CorruptFile naming the layer and the key, value or tensor that is wrong, LimitExceeded for too many.
    """
    parser = _Parser(names)
    return parser.layers(items, "", 0)


class _Parser:
    def __init__(self, names: Names):
        self.names, self.count = names, 0

    def layers(self, items: Any, place: str, depth: int) -> tuple[Layer, ...]:
        if not isinstance(items, list):
            raise CorruptFile(f"{NAME}: 'layers' at {place or 'the top'} is not a list.", where=NAME, fix=FIX)
        if depth > MAX_NESTING:
            raise LimitExceeded(f"{NAME} nests layers more than {MAX_NESTING} deep.", where=NAME)
        return tuple(self.layer(item, f"{place}.{number}" if place else str(number), depth)
                     for number, item in enumerate(items, 1))

    def layer(self, item: Any, place: str, depth: int) -> Layer:
        self.count += 1
        if self.count > MAX_LAYERS:
            raise LimitExceeded(f"{NAME} lists more than {MAX_LAYERS:,} layers.", where=NAME)
        item = {"type": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("type"), str) or item["type"] not in KINDS:
            known = item.get("type") if isinstance(item, dict) else item
            raise CorruptFile(f"{NAME}: layer {place} has the type {str(known)[:60]!r}; types are {', '.join(sorted(KINDS))}.",
                              where=NAME, fix=FIX)
        kind, label = KINDS[item["type"]], f"layer {place} ({item['type']})"
        tensor_fields = {"weights", *kind.needs, *kind.may} if kind.needs or item["type"] in RECURRENT else set()
        unknown = set(item) - {"type", *kind.fields, *kind.linears, *kind.lists, *tensor_fields}
        if unknown:
            raise CorruptFile(f"{NAME}: {label} has {sorted(map(str, unknown))[0][:60]!r}, which is not one of its values.",
                              where=NAME, fix=FIX)
        values = {name: self.value(item, name, known, label) for name, known in kind.fields.items()}
        if kind.lists and kind.lists[0] not in item:
            raise CorruptFile(f"{NAME}: {label} lacks {kind.lists[0]!r}.", where=NAME, fix=FIX)
        inner = {name: self.lists(item[name], name, place, depth) for name in kind.lists if name in item}
        return Layer(item["type"], place, values, self.keys(item, kind, label), inner)

    def lists(self, items: Any, name: str, place: str, depth: int) -> tuple[tuple[Layer, ...], ...]:
        if name != "branches":
            return (self.layers(items, f"{place}.{name}", depth + 1),)
        if not isinstance(items, list) or not 1 <= len(items) <= 64:
            raise CorruptFile(f"{NAME}: 'branches' of layer {place} is not a list of lists of layers.", where=NAME, fix=FIX)
        return tuple(self.layers(branch, f"{place}.{letter}", depth + 1) for letter, branch in enumerate(items, 1))

    def value(self, item: Mapping[str, Any], name: str, known: Field, label: str) -> Any:
        value = item.get(name, known.default)
        if (name in item or known.default is None) and not known.check(value):
            problem = f"is {str(value)[:60]}" if name in item else "is missing"
            raise CorruptFile(f"{NAME}: {name!r} of {label} {problem}; it is {known.what}.", where=NAME, fix=FIX)
        return value

    def keys(self, item: Mapping[str, Any], kind: Kind, label: str) -> dict[str, str]:
        if item["type"] in RECURRENT:
            return self.recurrent(item, label)
        found = {role: key for role in (*kind.needs, *kind.may) if (key := self.key(item, role, label)) is not None}
        self.check(found, kind, kind.needs, label, item.get("weights"))
        for linear in kind.linears:
            if linear in item:
                part = {"weights": item[linear]}
                roles = {role: key for role in ("weight", "bias") if (key := self.key(part, role, label)) is not None}
                self.check(roles, _LINEAR, ("weight",), f"{linear} of {label}", item[linear])
                found |= {f"{linear}_{role}": key for role, key in roles.items()}
        return found

    def key(self, item: Mapping[str, Any], role: str, label: str) -> str | None:
        given = item.get(role)
        if given is not None:
            key = self.names.key(given) if isinstance(given, str) else None
            if key is None:
                raise CorruptFile(f"{NAME}: {label} names the tensor {str(given)[:120]!r}, which the file does not hold.",
                                  where=NAME, fix=f"The file holds {spell(self.names.metas)}.")
            return key
        prefix = item.get("weights")
        if prefix is None and item.keys() & LEAVES.keys():
            return None
        if not isinstance(prefix, str):
            raise CorruptFile(f"{NAME}: {label} does not say which tensors are its own ('weights': the name before .weight).",
                              where=NAME, fix=FIX)
        return self.names.find(prefix, role)

    def check(self, found: Mapping[str, str], kind: Kind, needs: Sequence[str], label: str, prefix: Any) -> None:
        missing = [role for role in needs if role not in found]
        if missing:
            raise CorruptFile(f"{NAME}: the file lacks the {missing[0]} of {label}{f', {prefix!r}' if prefix else ''}.",
                              where=NAME, fix=f"The file holds {spell(self.names.metas)}.")
        for role, key in found.items():
            rank = (1,) if role == "bias" else kind.rank
            if rank and self.names.metas[key].ndim not in rank:
                raise CorruptFile(f"{NAME}: {key!r} of shape {self.names.shape(key)} cannot be the {role} of {label}.",
                                  where=key, fix=FIX)

    def recurrent(self, item: Mapping[str, Any], label: str) -> dict[str, str]:
        prefix = item.get("weights")
        if not isinstance(prefix, str):
            raise CorruptFile(f"{NAME}: {label} does not say which tensors are its own ('weights': the name before "
                              ".weight_ih_l0).", where=NAME, fix=FIX)
        found: dict[str, str] = {}
        for number in range(MAX_NESTING * 4):
            for end in ("", "_reverse"):
                roles = [f"{part}_l{number}{end}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                named = {role: self.names.key(f"{prefix}.{role}" if prefix else role) for role in roles}
                keys = {role: key for role, key in named.items() if key is not None}
                if keys and len(keys) not in (2, 4):
                    raise CorruptFile(f"{NAME}: the file lacks part of the tensors of {label} ({', '.join(keys)}).", where=NAME,
                                      fix=FIX)
                found |= keys
        if "weight_ih_l0" not in found:
            raise CorruptFile(f"{NAME}: the file lacks the weight_ih_l0 of {label}.", where=NAME,
                              fix=f"The file holds {spell(self.names.metas)}.")
        return found


RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Recurrent layers and their number of gates."""


def spell(metas: Mapping[str, torch.Tensor], most: int = 6) -> str:
    """Return the first tensors in words: key and shape."""
    items = [f"{key[:60]} {list(meta.shape)}" for key, meta in list(metas.items())[:most]]
    return ", ".join(items) + (f" and {len(metas) - most} more" if len(metas) > most else "")
