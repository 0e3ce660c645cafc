"""Architecture from the tensors alone: linear layers whose widths chain, with the norms between them; and what is left open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cipm.errors import UnsupportedModel
from cipm.load.layers import LEAVES, NAME, Names, spell

_ROLE_OF = {leaf: role for role, leaves in LEAVES.items() for leaf in leaves}
_COUNTER = "num_batches_tracked"
DESCRIBE = (f"Put the file with an {NAME} into a zip: the layers one by one, or the name of a family (docs/weights.md lists "
            "both). Or save the model itself: torch.export.save(torch.export.export(model.eval(), (example_input,)), "
            "\"model.pt2\").")


@dataclass(frozen=True)
class Block:
    """The stored tensors of one layer: the name that they share, and the key of each by its role."""

    name: str
    keys: Mapping[str, str]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Return what the tensors can belong to: linear, conv, batch_norm, layer_norm, or other."""
        if "running_mean" in self.keys:
            return "batch_norm"
        if len(self.shape) == 1:
            return "layer_norm" if "bias" in self.keys else "other"
        return {2: "linear", 3: "conv", 4: "conv", 5: "conv"}.get(len(self.shape), "other")


def blocks(names: Names) -> tuple[list[Block], list[str]]:
    """Return (the layers by their tensors, in file order, names of tensors that belong to none)."""
    found: dict[str, dict[str, str]] = {}
    rest: list[str] = []
    for name, key in zip(names.short, names.metas, strict=True):
        match = re.match(r"(.*?)[._]?([A-Za-z]+(?:_mean|_var|_variance)?)\Z", name)
        role = _ROLE_OF.get(match.group(2)) if match else None
        if match and role:
            found.setdefault(match.group(1), {})[role] = key
        elif not name.endswith(_COUNTER):
            rest.append(name)
    whole = {name: keys for name, keys in found.items() if "weight" in keys or "running_mean" in keys}
    rest += [key for name, keys in found.items() if name not in whole for key in keys.values()]
    return [Block(name, keys, tuple(names.metas[keys.get("weight", keys.get("running_mean", ""))].shape))
            for name, keys in whole.items()], rest


def natural(name: str) -> list[Any]:
    """Return a key that sorts names as people count: fc2 before fc10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def mlp(names: Names, activation: str, output: str = "identity") -> list[dict[str, Any]]:
    """Return the layers of a perceptron: linear, its norm, activation; raises UnsupportedModel where widths do not chain."""
    order = chained(names)
    layers: list[dict[str, Any]] = []
    last = max(i for i, block in enumerate(order) if block.kind == "linear")
    for number, block in enumerate(order):
        layers.append({"type": block.kind, **block.keys})
        following = order[number + 1].kind if number < len(order) - 1 else None
        if number < last and following == "linear" and any(b.kind == "linear" for b in order[:number + 1]):
            layers.append({"type": activation})
    return [*layers, {"type": output}]


def chained(names: Names) -> list[Block]:
    """Return the layers in an order in which every width continues the last: as in the file, or counted by name."""
    found, rest = blocks(names)
    kinds = {block.kind for block in found}
    if rest or not kinds <= {"linear", "batch_norm", "layer_norm"} or "linear" not in kinds:
        raise _open(names, found, rest)
    for order in (found, sorted(found, key=lambda block: natural(block.name))):
        if _widths(order) is not None:
            return order
    raise UnsupportedModel(f"The widths of the layers do not follow from one another, so their order is not known: "
                           f"{spell(names.metas)}.", fix=DESCRIBE)


def _widths(order: Sequence[Block]) -> int | None:
    """Return the width of the input where all layers chain, one layout for all of them, else None."""
    keras = order and any(block.keys.get("weight", "").endswith("kernel") for block in order)
    for flipped in (keras, not keras):
        width = start = None
        for block in order:
            inner, outer = _in_out(block, bool(flipped))
            if width not in (None, inner) or outer is None:
                break
            start, width = inner if start is None else start, outer
        else:
            return start
    return None


def _in_out(block: Block, flipped: bool) -> tuple[int, int | None]:
    if block.kind != "linear":
        return block.shape[0], block.shape[0]
    inner, outer = block.shape if flipped else reversed(block.shape)
    return inner, outer


def _open(names: Names, found: Sequence[Block], rest: Sequence[str]) -> UnsupportedModel:
    convs = [block for block in found if block.kind == "conv"]
    if convs and not rest:
        return UnsupportedModel(f"The file holds the weights of a convolutional network ({spell(names.metas, 3)}), but not its "
                                "strides, padding, pooling and input size, which are not guessed.", fix=DESCRIBE)
    return UnsupportedModel(f"The file holds weights ({spell(names.metas, 3)}), but not how they are computed with, and they "
                            "are no plain chain of linear layers.", fix=DESCRIBE)
