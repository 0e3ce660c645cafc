"""The linear maps of a graph that read units: what they see of a value, and their weights as one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.kept import Kept
from cipm.pruning.readers import CONVOLUTIONS, TRANSPOSED, base_name, readers_of
from cipm.pruning.routed import Routed, RoutedReaders
from cipm.rules import bind
from cipm.statistics.sampling import Layout, Padding, real_samples, staggered
from cipm.symmetry import Place, Symmetry, SymmetryGroup, Tap
from cipm.trace import Node, Ref

MOST_FEATURES = 4608
"""Most inputs of one consumer, kernel positions counted (512 channels × 3 × 3); a wider convolution counts channels alone."""


@dataclass(frozen=True)
class Window:
    """How a one- or two-dimensional convolution moves over its input: all as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def size(self) -> int:
        """Return how many positions the kernel has."""
        return self.kernel[0] * self.kernel[1]

    def samples(self, x: torch.Tensor, positions: int) -> torch.Tensor:
        """Return patches [samples, channels × kernel positions] of x [rows, channels, (height,) width], at most `positions` of
        each row."""
        x = x.unsqueeze(-2) if x.ndim == 3 else x
        grid = tuple((size + 2 * pad - step * (kernel - 1) - 1) // stride + 1 for size, pad, step, kernel, stride in
                     zip(x.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True))
        chosen = np.unravel_index(staggered(grid[0] * grid[1], positions), grid)
        offsets = np.indices(self.kernel).reshape(2, 1, -1)
        places = [torch.from_numpy(at[:, None] * stride + offset * step) for at, stride, offset, step in
                  zip(chosen, self.stride, offsets, self.dilation, strict=True)]
        padded = F.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        width, area = padded.shape[3], padded.shape[2] * padded.shape[3]
        inside = (places[0] * width + places[1])[:, None] + torch.arange(x.shape[1])[:, None] * area
        return padded.flatten(1).index_select(1, inside.flatten()).reshape(-1, x.shape[1] * self.size)


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node that reads axis `axis` of `value` through the stored weight `key`, along its axis `weight_axis` of `length`.

    Its input features are the positions of the axis, times the positions of the kernel where `window` is given (position by
    position). `units[group]` [units, elements] are the positions of the groups that stand on it. With `routed` it reads slices
    that an index chooses: the features are the units of all slices, and `output` is where they come together.
    """

    node: str
    value: str
    axis: int
    key: str
    weight_axis: int
    length: int
    window: Window | None
    convolution: bool
    transposed: bool
    units: Mapping[str, np.ndarray]
    routed: Routed | None = None

    @property
    def output(self) -> str:
        """Return the value that holds what the map gives, without what is added to it later."""
        return self.routed.output if self.routed else self.node

    @property
    def inside(self) -> int:
        """Return the features of one position."""
        return self.window.size if self.window else 1

    @property
    def features(self) -> int:
        """Return the number of input features."""
        return self.length * self.inside

    def columns(self, positions: np.ndarray) -> np.ndarray:
        """Return the features of these positions, in their order."""
        return (np.asarray(positions)[..., None] * self.inside + np.arange(self.inside)).ravel()

    def seen(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what is read of the values there are at the node, with the inputs on `axis`."""
        value = values[self.value]
        return self.routed.seen(value, values) if self.routed else value

    def staying(self, kept: Kept) -> np.ndarray | None:
        """Return the positions of the inputs that stay; None where all do."""
        if self.routed:
            return self.routed.staying(kept, self.key, self.weight_axis)
        return kept.stored(self.key, self.weight_axis)

    def samples(self, value: torch.Tensor, padding: Padding, rows: int, positions: int,
                staying: np.ndarray | None = None) -> torch.Tensor:
        """Return samples [samples, features] of one batch: at most `positions` of the places of each of its `rows` rows; with
        `staying` those inputs alone."""
        x, axis = value, self.axis % value.ndim
        if staying is not None:
            x = x.index_select(axis, torch.from_numpy(staying))
        if self.window:
            return self.window.samples(x, positions)
        if axis == 0:
            x, axis = x.unsqueeze(0), 1
        layout = Layout(tuple(x.shape), axis, np.arange(x.shape[axis])[:, None], positions)
        mask = padding.about(tuple(x.shape), axis)[0] if x.shape[0] == rows else None
        if mask is None or mask.all():
            return layout.of(x).reshape(-1, x.shape[axis])
        return layout.at(x, *real_samples(mask, layout))

    def matrix(self, weight: torch.Tensor) -> np.ndarray:
        """Return the weights as [features, rest] in float64."""
        if self.routed:
            return self.routed.view.line_up(weight.detach().double()).reshape(self.features, -1).numpy()
        rows = weight.detach().double().movedim(self.weight_axis, 0)
        if self.window:
            rows = rows.flatten(2).transpose(1, 2)
        return rows.reshape(self.features, -1).numpy()

    def stored(self, matrix: np.ndarray, weight: torch.Tensor) -> torch.Tensor:
        """Return what `matrix` was made of, in the shape and type of `weight`."""
        if self.routed:
            view, made = self.routed.view, torch.from_numpy(matrix)
            places = (*view.axes, *view.rest)
            seen = made.reshape([view.shape[axis] for axis in places]).permute(np.argsort(places).tolist())
            return seen.to(weight.dtype).contiguous()
        made, shape = torch.from_numpy(matrix), weight.movedim(self.weight_axis, 0).shape
        if self.window:
            made = made.reshape(self.length, self.inside, -1).transpose(1, 2)
        return made.reshape(shape).movedim(0, self.weight_axis).to(weight.dtype).contiguous()

    def constant(self, rest: np.ndarray, weight: torch.Tensor) -> np.ndarray:
        """Return what a constant [rest] of the matrix's product adds to each output."""
        if self.convolution and not self.window:
            return rest.reshape(weight.shape[0], -1).sum(1)
        return rest


def consumers(checkpoint: Checkpoint, symmetry: Symmetry) -> tuple[Consumer, ...]:
    """Return the consumers of all proved groups in graph order.

    Left out is what a refit cannot be put into: a grouped convolution, a weight that two nodes read, an input wider than
    MOST_FEATURES. Groups that only such nodes read have no curve. Experts behind a router are no inputs of what reads their
    units: without one the router chooses others.
    """
    graph, routed = checkpoint.graph, RoutedReaders(checkpoint)
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    made: list[Consumer | None] = []
    about: dict[tuple[str, str], tuple[Node, int, int]] = {}
    for group in symmetry.groups:
        for tap in group.taps if group.proved else ():
            for key, axis in tap.consumers if tap.outer is None else ():
                place = next((p for p in group.places if (p.tensor, p.axis) == (key, axis)), None)
                if tap.chosen is not None:
                    made.append(_routed(routed, group, tap, place))
                    continue
                assert place is not None, (group.name, key, axis)
                nodes = readers_of(graph, key)
                if len(nodes) == 1 and tap.value in nodes[0].refs() and np.array_equal(place.index, tap.index):
                    found.setdefault((key, tap.value), {})[group.name] = tap.index
                    about[key, tap.value] = nodes[0], tap.axis, axis
    made += [_consumer(checkpoint, *about[pair], pair, units) for pair, units in found.items()]
    return tuple(sorted((one for one in made if one is not None), key=lambda one: order[one.node]))


def gram(consumer: Consumer, group: SymmetryGroup, checkpoint: Checkpoint) -> np.ndarray:
    """Return WᵀW [units × e, units × e] of what a consumer makes of the units of a group, e features each."""
    rows = consumer.matrix(checkpoint.tensors[consumer.key])[consumer.columns(consumer.units[group.name])]
    return rows @ rows.T


def _consumer(checkpoint: Checkpoint, node: Node, axis: int, weight_axis: int, pair: tuple[str, str],
              units: Mapping[str, np.ndarray]) -> Consumer | None:
    key, value = pair
    shape = tuple(checkpoint.meta(key).shape)
    bound = bind(node, {name: Ref(name) for name in node.refs()})
    base = base_name(node)
    convolution, transposed = base in CONVOLUTIONS, base in TRANSPOSED or bool(bound.get("transposed"))
    if bound.get("groups", 1) not in (1, None) or len(shape) < 2 or shape[weight_axis] > MOST_FEATURES:
        return None
    if not convolution and not transposed and len(shape) > 2:
        return None
    window = _window(shape, bound) if convolution and not transposed else None
    if window and shape[weight_axis] * window.size > MOST_FEATURES:
        window = None
    return Consumer(node.name, value, axis, key, weight_axis, shape[weight_axis], window, convolution and not transposed,
                    transposed, units)


def _routed(readers: RoutedReaders, group: SymmetryGroup, tap: Tap, place: Place | None) -> Consumer | None:
    found = readers.find(tap, place) if place is not None and place.length <= MOST_FEATURES else None
    if place is None or found is None:
        return None
    return Consumer(found[0].name, tap.value, -1, place.tensor, place.axis, place.length, None, False, False,
                    {group.name: tap.index}, found[1])


def _window(shape: Sequence[int], bound: Mapping[str, object]) -> Window | None:
    """Return how the kernel moves; None where it has three dimensions or its padding is a word."""
    dims = len(shape) - 2
    parts = [bound.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    if dims > 2 or any(isinstance(part, str) for part in parts):
        return None
    stride, padding, dilation = (_pair(part, dims, fill) for part, fill in zip(parts, (1, 0, 1), strict=True))
    return Window(_pair(shape[2:], dims, 1), stride, padding, dilation)


def _pair(part: object, dims: int, fill: int) -> tuple[int, int]:
    numbers = [int(n) for n in part] if isinstance(part, list | tuple) else [int(part)]  # type: ignore[call-overload]
    numbers = numbers * dims if len(numbers) == 1 else numbers
    return (fill, numbers[0]) if dims == 1 else (numbers[0], numbers[1])


def consumed(found: Sequence[Consumer], group: str) -> list[Consumer]:
    """Return the consumers that read a group."""
    return [one for one in found if group in one.units]


__all__ = ["MOST_FEATURES", "Consumer", "Window", "consumed", "consumers", "gram"]
