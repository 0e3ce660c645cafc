"""Put a refit into stored weights: what reads a group takes over what its removed units gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipm.errors import InputError, UnsupportedModel
from cipm.load.checkpoint import Checkpoint, LazyTensors
from cipm.rules import bind
from cipm.symmetry import Symmetry, SymmetryGroup
from cipm.trace import Graph, Node, Ref

Fits = Mapping[str, tuple[np.ndarray, np.ndarray]]
TURNS = ("t", "transpose", "permute", "numpy_T", "mT")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class Constant:
    """A stored vector that takes what is constant of a consumer's change: a bias, or the mean of the batch norm behind it."""

    key: str
    sign: int


def with_refit(checkpoint: Checkpoint, symmetry: Symmetry, group: str, kept: Sequence[int],
               fits: Fits) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint with refitted consumers of a group, and notes on what a consumer could not take.

    `fits[tap.key]` = (A, b) with removed ≈ A · kept + b at that tap, both sides in index order: A [removed, kept] and
    b [removed] for all elements of a unit alike, or A [removed × e, kept × e] and b [removed × e] with e elements of each
    unit (of a channel behind a flatten: its positions) or e positions of a convolution's kernel (fitted on patches), units
    first. A consumer W with bias c becomes W_K + W_R A and c + W_R b. The bias is the consumer's own, a vector added behind
    it, or the mean of a batch norm behind it; one that has none stays without, which the notes say. At the padded border of
    a convolution b counts as if the padding were units too.

    The columns of the removed units stay as they are: `shrink` takes them out. Taps without a fit stay.
    Raises InputError where a fit's shape fits no tap, UnsupportedModel where one weight reads two taps with different fits.
    """
    owner = symmetry.group(group)
    units = np.sort(np.asarray(kept, dtype=np.int64))
    removed = np.setdiff1d(np.arange(owner.size), units)
    changed: dict[str, torch.Tensor] = {}
    seen: dict[tuple[str, int], str] = {}
    notes: dict[str, None] = {}
    for tap in owner.taps:
        if tap.key not in fits or not removed.size:
            continue
        for key, axis in tap.consumers:
            other = seen.setdefault((key, axis), tap.key)
            if other != tap.key:
                _check_same(fits[other], fits[tap.key], key)
                continue
            _fold(checkpoint, (key, axis), _place(owner, key, axis), (units, removed), fits[tap.key], changed, notes)
    return _replaced(checkpoint, changed), tuple(notes)


def _replaced(checkpoint: Checkpoint, changed: Mapping[str, torch.Tensor]) -> Checkpoint:
    tensors = checkpoint.tensors
    if not changed:
        return checkpoint
    if isinstance(tensors, LazyTensors):
        lazy = LazyTensors(tensors.metas, lambda key: changed[key] if key in changed else tensors[key])
        return checkpoint.with_tensors(lazy)
    return checkpoint.with_tensors({key: changed.get(key, tensor) for key, tensor in tensors.items()})


def _check_same(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray], key: str) -> None:
    if not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)):
        raise UnsupportedModel(f"{key} reads the units in two places of the graph, and cannot take two refits.", where=key,
                               fix="Fit both places together, and give the same fit for both.")


def _place(group: SymmetryGroup, key: str, axis: int) -> np.ndarray:
    return next(place.index for place in group.places if (place.tensor, place.axis) == (key, axis))


def _fold(checkpoint: Checkpoint, consumer: tuple[str, int], index: np.ndarray, units: tuple[np.ndarray, np.ndarray],
          fit: tuple[np.ndarray, np.ndarray], changed: dict[str, torch.Tensor], notes: dict[str, None]) -> None:
    """Change one consumer's weight and what takes its constant part; `units` are those kept and those removed."""
    (key, axis), (kept, removed) = consumer, units
    stored = changed.get(key, checkpoint.tensors[key])
    weight = stored.detach().double().numpy()
    nodes = readers_of(checkpoint.graph, key)
    kernel = any(base_name(node) in CONVOLUTIONS + TRANSPOSED for node in nodes) and weight.ndim > 2
    rows = np.moveaxis(weight, axis, 0)  # [positions, rest]; of a convolution [positions, out, kernel]
    gone, stay = rows[index[removed]], rows[index[kept]]  # [units, elements, rest…]
    if kernel:
        gone, stay = (np.moveaxis(part.reshape(len(part), part.shape[2], -1), 2, 1) for part in (gone, stay))
    mix, shift = _matrices(fit, gone.shape[:2], stay.shape[:2], key)
    flat = gone.reshape(gone.shape[0] * gone.shape[1], -1)
    made = stay + (mix.T @ flat).reshape(stay.shape)
    if kernel:
        made = np.moveaxis(made, 1, 2).reshape(rows[index[kept]].shape)
    new = rows.copy()
    new[index[kept]] = made
    changed[key] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(new, 0, axis))).to(stored.dtype)
    constant = shift @ flat
    if not constant.any():
        return
    target = constant_of(checkpoint, nodes)
    if target is None or checkpoint.meta(target.key).numel() != constant.size or any(base_name(n) in TRANSPOSED for n in nodes):
        notes[f"{key} has no bias of its own: it cannot take the constant part of the refit."] = None
        return
    before = changed.get(target.key, checkpoint.tensors[target.key])
    moved = before.detach().double() + target.sign * torch.from_numpy(constant.reshape(tuple(before.shape)))
    changed[target.key] = moved.to(before.dtype)


def _matrices(fit: tuple[np.ndarray, np.ndarray], gone: tuple[int, int], stay: tuple[int, int],
              key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return A [removed × e, kept × e] and b [removed × e]; one that is alike for all elements is laid out for each."""
    (removed, elements), (kept, _) = gone, stay
    mix, shift = (np.asarray(part, dtype=np.float64) for part in fit)
    if mix.shape == (removed * elements, kept * elements) and shift.shape == (removed * elements,):
        return mix, shift
    if mix.shape == (removed, kept) and shift.shape == (removed,):
        return np.kron(mix, np.eye(elements)), np.repeat(shift, elements)
    raise InputError(f"A refit of shapes {mix.shape} and {shift.shape} does not fit {key}: {removed} units go and {kept} stay, "
                     f"of {elements} elements each.", where=key)


def constant_of(checkpoint: Checkpoint, nodes: Sequence[Node]) -> Constant | None:
    """Return the stored vector that takes a constant, where all nodes that read the weight share it and nothing else does."""
    found = {_constant_of(checkpoint.graph, node) for node in nodes}
    target = found.pop() if len(found) == 1 else None
    if target is None:
        return None
    names = {name for name, key in checkpoint.graph.tensors.items() if key == target.key}
    uses = sum(any(name in names for name in node.refs()) for node in checkpoint.graph.nodes)
    return target if uses == len(nodes) else None


def _constant_of(graph: Graph, node: Node) -> Constant | None:
    bound = bind(node, {name: Ref(name) for name in node.refs()})
    own = bound["self"] if base_name(node) in ("addmm", "baddbmm") else bound.get("bias")
    if isinstance(own, Ref):
        return Constant(graph.tensors[own.name], 1) if own.name in graph.tensors else None
    users = [other for other in graph.nodes if node.name in other.refs()]
    if len(users) != 1:
        return None
    if base_name(users[0]) == "add":
        added = [name for name in users[0].refs() if name in graph.tensors]
        return Constant(graph.tensors[added[0]], 1) if added else None
    if "batch_norm" in users[0].op:
        mean = bind(users[0], {name: Ref(name) for name in users[0].refs()}).get("running_mean")
        return Constant(graph.tensors[mean.name], -1) if isinstance(mean, Ref) and mean.name in graph.tensors else None
    return None


def readers_of(graph: Graph, key: str) -> list[Node]:
    """Return the nodes that compute with a stored tensor, as it is or transposed."""
    names = {name for name, stored in graph.tensors.items() if stored == key}
    found = []
    for node in graph.nodes:
        if any(name in names for name in node.refs()):
            if base_name(node) in TURNS:
                names.add(node.name)
            else:
                found.append(node)
    return found


def base_name(node: Node) -> str:
    """Return the name of an op without family and overload."""
    return node.op.removeprefix("aten.").split(".")[0]
