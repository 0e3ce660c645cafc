"""Boxes into modules: which module each belongs to, and the tree of modules without needless levels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cipm.views.condense import Box, Path, between

MOST_CHILDREN = 150
"""A module with more boxes than this side by side is cut into parts, so that no level is too wide to draw."""
MOST_DEPTH = 24
"""Levels of modules that are told apart: tensor names come with the upload and may have any number of dots."""
MOST_RINGS = 100
"""Parts of one module that are looked at for being used again."""


@dataclass(frozen=True)
class Leaf:
    """A box in the tree by its number; `name` is its module's name where it is the only box there."""

    number: int
    name: str = ""


@dataclass(frozen=True)
class Module:
    """A module of the tree: its path, a name for people, and what is inside, in order."""

    path: str
    name: str
    children: list[Module | Leaf] = field(default_factory=list)


def module_paths(boxes: Sequence[Box], sizes: Mapping[str, int]) -> list[Path]:
    """Return each box's module: that of its largest tensor; without one, the module that the boxes around it share.

    A box between two modules (a residual sum) belongs to the repeated block before it, else to the outer module before it.
    """
    own = [_prefix(max(box.tensors, key=lambda key: sizes.get(key, 0))) if box.tensors else None for box in boxes]
    holds: dict[Path, int] = {}
    for path in {path for path in own if path}:
        for depth in range(len(path)):
            holds[path[:depth + 1]] = holds.get(path[:depth + 1], 0) + 1
    paths: list[Path] = []
    for box, path, (before, after) in zip(boxes, own, between(boxes, own), strict=True):
        outside = box.kind != "op"
        paths.append(path if path is not None else () if outside else _around(before, after, holds))
    return paths


def _prefix(key: str) -> Path:
    return tuple(part for part in re.split(r"[./]", key) if part)[:-1][:MOST_DEPTH]


def _around(before: Path | None, after: Path | None, holds: Mapping[Path, int]) -> Path:
    if before is None or after is None:
        return (before or after or ())[:-1]
    shared = os.path.commonprefix([before, after])
    blocks = [before[:depth] for depth in range(len(shared) + 1, len(before) + 1)
              if holds.get(before[:depth], 0) > 1 and before[depth - 1].isdigit()]
    return blocks[-1] if blocks else before[:len(shared)]


def build_tree(boxes: Sequence[Box], paths: Sequence[Path]) -> Module:
    """Return the tree of modules. A module that is used again later stands once per use, so that the drawing runs one way."""
    return Module("", "", _children(boxes, paths, list(range(len(boxes))), 0, ""))


def _children(boxes: Sequence[Box], paths: Sequence[Path], inside: list[int], depth: int, path: str) -> list[Module | Leaf]:
    names = {number: paths[number][depth] if len(paths[number]) > depth else f"#{number}" for number in inside}
    uses = _uses(boxes, inside, names)
    parts: dict[tuple[str, int], list[int]] = {}
    for number in inside:
        parts.setdefault((names[number], uses.get(number, 0)), []).append(number)
    found: list[Module | Leaf] = []
    for (name, use), numbers in parts.items():
        if len(paths[numbers[0]]) <= depth:
            found.append(Leaf(numbers[0]))
            continue
        again = f" (use {use + 1})" if use else ""
        here = f"{path}.{name}{again}".lstrip(".")
        shown = f"{path.rpartition('.')[2]}.{name}{again}".lstrip(".") if name.isdigit() else f"{name}{again}"
        found.append(_compressed(Module(here, shown, _children(boxes, paths, numbers, depth + 1, here))))
    return _in_parts(found, path)


def _compressed(module: Module) -> Module | Leaf:
    """Return a module with one child as that child, which takes the name over."""
    if len(module.children) != 1:
        return module
    only = module.children[0]
    name = f"{module.name}.{only.name}" if only.name else module.name
    return Leaf(only.number, name) if isinstance(only, Leaf) else Module(only.path, name, only.children)


def _in_parts(children: list[Module | Leaf], path: str) -> list[Module | Leaf]:
    if len(children) <= MOST_CHILDREN:
        return children
    count = min(MOST_CHILDREN // 2, round(len(children) ** 0.5))
    step = -(-len(children) // count)
    parts = [children[start:start + step] for start in range(0, len(children), step)]
    return [Module(f"{path}.part{at + 1}".lstrip("."), f"part {at + 1}", _in_parts(part, f"{path}.part{at + 1}"))
            for at, part in enumerate(parts)]


def _uses(boxes: Sequence[Box], inside: Sequence[int], names: Mapping[int, str]) -> dict[int, int]:
    """Return, for boxes whose part leads back to itself through others, how often it was left before."""
    uses: dict[int, int] = {}
    for name in _in_rings(boxes, inside, names):
        left: dict[int, int] = {}
        for number in inside:
            mine = names[number] == name
            left[number] = max((left[source] + (not mine and names[source] == name)
                                for source in boxes[number].sources if source in left), default=0)
            if mine:
                uses[number] = left[number]
    return uses


def _in_rings(boxes: Sequence[Box], inside: Sequence[int], names: Mapping[int, str]) -> list[str]:
    """Return the parts that lead back to themselves."""
    order = {name: at for at, name in enumerate(dict.fromkeys(names[number] for number in inside))}
    pairs = {(order[names[source]], order[names[number]]) for number in inside for source in boxes[number].sources
             if source in names and names[source] != names[number]}
    if not pairs:
        return []
    tails, heads = np.array(sorted(pairs)).T
    _, ring = connected_components(coo_matrix((np.ones(len(pairs), np.int8), (tails, heads)), shape=(len(order), len(order))),
                                   directed=True, connection="strong")
    crowded = np.bincount(ring) > 1
    found = [name for name, at in order.items() if crowded[ring[at]]]
    return found if len(found) <= MOST_RINGS else []
