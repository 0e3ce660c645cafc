"""Readers of units behind an index (experts that a router chooses): how one linear map gives the whole layer's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import View
from cipm.pruning.kept import Kept
from cipm.pruning.readers import base_name
from cipm.rules import gathers
from cipm.symmetry import Chosen, Place, Tap, example_inputs
from cipm.symmetry.shapes import observe
from cipm.trace import Node

SHAPES = frozenset(("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten", "select", "slice",
                    "_to_copy", "to", "clone", "contiguous", "alias", "detach"))
"""Ops that give the same numbers in the same order, where they give as many."""


@dataclass(frozen=True)
class Routed:
    """How a stacked weight [slices, …] reads units that an index chooses: y = Σ_e g_e W_e h_e (+ Σ_e g_e b_e).

    So the layer is one linear map of [g_e h_e] over all slices, 0 for slices not chosen. The units stand on `axis` of the
    activation, `gate` is the value of g (None: there is none), `output` the node of y, `gathered` are the nodes that take the
    weights of what is chosen, and `held` the values that are still read where the map is.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", eq. 1.
    """

    chosen: Chosen
    axis: int
    view: View
    gate: str | None
    output: str
    gathered: frozenset[str]
    held: frozenset[str]

    def seen(self, activation: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the inputs [rows…, slices × units] of the map."""
        index = values[self.chosen.index]
        x = activation.movedim(self.axis, -1).reshape(*index.shape, -1, activation.shape[self.axis])
        if self.gate is not None:
            x = x * values[self.gate].reshape(*index.shape, 1, 1).to(x.dtype)
        return self.chosen.spread(x, index, -1)

    def staying(self, kept: Kept, key: str, axis: int) -> np.ndarray | None:
        """Return which inputs of the map stay, or None where all do."""
        mask = kept.stored_mask(key, axis)
        if mask is None:
            return None
        whole = np.broadcast_to(mask, self.view.shape)[tuple(slice(None) if i in self.view.axes else 0
                                                             for i in range(len(self.view.shape)))]
        return np.flatnonzero(whole if self.view.axes[0] < self.view.axes[1] else whole.T)


class RoutedReaders:
    """Finds the nodes that read chosen slices in one graph; its shapes are observed when they are first asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.graph = checkpoint, checkpoint.graph
        self.order = {node.name: number for number, node in enumerate(self.graph.nodes)}
        self.nodes = {node.name: node for node in self.graph.nodes}

    @cached_property
    def metas(self) -> Mapping[str, Any]:
        """Return the shape of every value."""
        return observe(self.checkpoint, example_inputs(self.checkpoint, generator=torch.Generator().manual_seed(0))).metas

    @cached_property
    def weights(self) -> set[str]:
        """Return the values that hold stored numbers as they are, moved about or taken by an index."""
        return self._held(self.graph.tensors)

    def find(self, tap: Tap, place: Place) -> tuple[Node, Routed] | None:
        """Return the node that reads a tap through a stored stack, and how; None where that is not one linear map."""
        assert tap.chosen is not None
        names = {name for name, key in self.graph.tensors.items() if key == place.tensor}
        held = self._held(names) - names
        readers = [node for node in self.graph.nodes if node.name not in held and not (held | names).isdisjoint(node.refs())]
        view = place.view
        if len(readers) != 1 or tap.value not in readers[0].refs():
            return None
        if view is None or view.shape != tuple(self.checkpoint.meta(place.tensor).shape):
            return None
        if view.shape[view.axes[0]] != tap.chosen.slices or not np.array_equal(place.index, tap.index):
            return None
        behind = self._behind(readers[0], tap.chosen)
        if behind is None:
            return None
        gate, output = behind
        read = {name for node in held for name in self.nodes[node].refs()} - self.graph.tensors.keys() - held
        read |= {tap.chosen.index, *([gate] if gate else [])}
        return readers[0], Routed(tap.chosen, tap.axis, view, gate, output, frozenset(held), frozenset(read))

    def _held(self, names: Collection[str]) -> set[str]:
        found = set(names)
        for node in self.graph.nodes:
            if gathers(node, found):
                found.add(node.name)
        return found

    def _behind(self, reader: Node, chosen: Chosen) -> tuple[str | None, str] | None:
        """Return (gate, node of the output) behind a reader: reshaped, with a bias, times the gate, summed over the choices."""
        at, gate = reader, None
        while len(users := [node for node in self.graph.nodes if at.name in node.refs()]) == 1:
            node, (base, others) = users[0], (base_name(users[0]), [name for name in users[0].refs() if name != at.name])
            if base == "sum":
                return (gate, node.name) if chosen.among and self._sums(at, node, chosen) else None
            if base == "mul" and gate is None and len(others) == 1:
                gate = self._origin(others[0], chosen, reader)
                if gate is None:
                    break
            elif not self._reshapes(node) and not (base == "add" and len(others) == 1 and others[0] in self.weights):
                break
            at = node
        return None if chosen.among else (gate, at.name)

    def _sums(self, before: Node, node: Node, chosen: Chosen) -> bool:
        shape = self._shape(chosen.index)
        return self._size(before.name) == prod(shape[axis] for axis in chosen.among) * self._size(node.name)

    def _reshapes(self, node: Node) -> bool:
        return base_name(node) in SHAPES and self._size(node.name) == self._size(next(iter(node.refs())))

    def _origin(self, name: str, chosen: Chosen, reader: Node) -> str | None:
        """Return the value that a gate is a copy of, one number for each choice and known before the reader; else None."""
        while name in self.nodes and self._reshapes(self.nodes[name]):
            name = next(iter(self.nodes[name].refs()))
        known = self.order.get(name, len(self.order)) < self.order[reader.name]
        return name if known and self._size(name) == self._size(chosen.index) else None

    def _size(self, name: str) -> int:
        return prod(self._shape(name))

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(getattr(self.metas[name], "shape", ()))


__all__ = ["Routed", "RoutedReaders"]
