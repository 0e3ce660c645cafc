"""Colour refinement over a whole network: units get the same colour unless something about the weights tells them apart.

No arithmetic on the weights: only their bits are hashed, so the colours of a permuted copy are the permuted colours,
exactly. A unit's colour is a hash of the multiset of (bits, colours of the other axes' positions) over all entries of
its slices in all tensors; positions that no group moves have fixed colours of their own. Multisets are hashed as sums
modulo 2⁶⁴ of well-mixed values, so no order enters; two different multisets collide with probability about 2⁻⁶⁴.

Source: colour refinement (1-dimensional Weisfeiler–Leman), as surveyed by Berkholz, Bonsma, Grohe, "Tight lower and
upper bounds for the complexity of canonical colour refinement" (2017).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cipm.symmetry.groups import Place, Symmetry, SymmetryGroup

CHUNK = 1 << 16  # entries mixed at a time: stays in cache
Colours = dict[str, np.ndarray]  # group name → uint64 per unit


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of one tensor: `fixed` [length] is the part of each position's colour that no permutation changes, and
    `cover` lists (group name, unit per position, positions) for every group that moves positions of it.
    """

    fixed: np.ndarray
    cover: tuple[tuple[str, np.ndarray, np.ndarray], ...]

    def labels(self, colours: Colours) -> np.ndarray:
        """Return the colour of every position under the present colours of the units."""
        result = self.fixed.copy()
        for group, unit, positions in self.cover:
            result[positions] = mix(result[positions] ^ colours[group][unit])
        return result


@dataclass(frozen=True, eq=False)
class Network:
    """The tensors that groups touch, as bits (unsigned integers), with their axes."""

    groups: tuple[SymmetryGroup, ...]
    bits: Mapping[str, np.ndarray]
    axes: Mapping[str, tuple[Axis, ...]]

    def touching(self, names: set[str]) -> list[str]:
        """Return the tensors in which any of these groups has a place."""
        return [key for key in self.bits
                if any(place.tensor == key for g in self.groups if g.name in names for place in g.places)]


def network(symmetry: Symmetry, tensors: Mapping[str, torch.Tensor]) -> Network:
    """Return the bits and axes of all tensors that the groups touch."""
    keys = sorted({place.tensor for group in symmetry.groups for place in group.places})
    axes = {key: tuple(_axis(symmetry, key, axis, length) for axis, length in enumerate(tensors[key].shape))
            for key in keys}
    return Network(symmetry.groups, {key: _bits(tensors[key]) for key in keys}, axes)


def _axis(symmetry: Symmetry, tensor: str, axis: int, length: int) -> Axis:
    """Return one axis. What no permutation changes of a position is which positions it can be moved to: its orbit."""
    moves = [(group, place.index) for group in symmetry.groups for place in group.places
             if (place.tensor, place.axis) == (tensor, axis)]
    cover = tuple((group.name, np.repeat(np.arange(group.size), index.shape[1]), index.ravel()) for group, index in moves)
    return Axis(mix(_orbits(length, moves) ^ _salt("fixed")), cover)


def _orbits(length: int, moves: list[tuple[SymmetryGroup, np.ndarray]]) -> np.ndarray:
    """Return [length] uint64 the least position of each one's orbit under the groups that move positions of an axis."""
    orbits = np.arange(length, dtype=np.uint64)
    while True:
        before = orbits.copy()
        for group, index in moves:
            same = index.reshape(group.blocks, -1, index.shape[1])
            orbits[same] = orbits[same].min(axis=1, keepdims=True)
        if np.array_equal(orbits, before):
            return orbits


def first_colours(groups: tuple[SymmetryGroup, ...]) -> Colours:
    """Return the colours that only tell groups apart, and blocks that nothing moves."""
    parents = {group.name for group in groups}
    return {g.name: mix(np.full(g.size, _salt(g.name))
                        ^ (np.arange(g.size, dtype=np.uint64) // np.uint64(max(1, g.size // g.blocks))
                           if g.blocks > 1 and g.parent not in parents else np.uint64(0)))
            for g in groups}


def refine(net: Network, colours: Colours) -> tuple[Colours, int]:
    """Return the coarsest colours that refinement cannot split further, at least as fine as those given, and its cost.

    The cost is the number of entries hashed.
    """
    colours, cost = dict(colours), 0
    while True:
        pending = {g.name for g in net.groups if distinct(colours[g.name]) < g.size}
        if not pending:
            return colours, cost
        fresh = _step(net, colours, pending)
        cost += sum(net.bits[key].size for key in net.touching(pending))
        if all(distinct(fresh[name]) == distinct(colours[name]) for name in pending):
            return colours, cost
        colours |= fresh


def _step(net: Network, colours: Colours, pending: set[str]) -> Colours:
    """Return new colours for the pending groups, from all their slices."""
    sums = {name: np.zeros_like(colours[name]) for name in pending}
    for key in net.touching(pending):
        labels = [axis.labels(colours) for axis in net.axes[key]]
        moved = {axis for g in net.groups if g.name in pending for p in g.places if p.tensor == key for axis in (p.axis,)}
        along = slice_hashes(net.bits[key], labels, moved)
        for group in net.groups:
            if group.name in pending:
                for number, place in enumerate(p for p in group.places if p.tensor == key):
                    sums[group.name] += _gathered(place, along[place.axis], f"{key}/{place.axis}/{number}")
    return {name: mix(colours[name] ^ mix(sums[name])) for name in pending}


def _gathered(place: Place, along: np.ndarray, salt: str) -> np.ndarray:
    return mix(mix(along[place.index] ^ _salt(salt)).sum(axis=1, dtype=np.uint64))


def slice_hashes(bits: np.ndarray, labels: list[np.ndarray], wanted: set[int]) -> dict[int, np.ndarray]:
    """Return, for each wanted axis, a hash [length] of the multiset of entries in the slice at each position.

    An entry is its bits and the labels of its position on every axis.
    """
    shape = bits.shape
    result = {axis: np.zeros(shape[axis], dtype=np.uint64) for axis in wanted}
    if bits.ndim == 0 or 0 in shape:
        return result
    salted = [mix(label ^ _salt(f"axis {axis}")) for axis, label in enumerate(labels)]
    inner = np.zeros(shape[1:], dtype=np.uint64)
    for axis in range(1, bits.ndim):
        inner += salted[axis].reshape([-1 if a == axis else 1 for a in range(1, bits.ndim)])
    rows = max(1, CHUNK // max(1, inner.size))
    for start in range(0, shape[0], rows):
        part = bits[start:start + rows] ^ (inner + salted[0][start:start + rows].reshape(-1, *[1] * (bits.ndim - 1)))
        mix(part, out=part)
        for axis in wanted:
            others = tuple(a for a in range(bits.ndim) if a != axis)
            total = part.sum(axis=others, dtype=np.uint64)
            if axis == 0:
                result[0][start:start + rows] = total
            else:
                result[axis] += total
    return result


def distinct(colours: np.ndarray) -> int:
    """Count the different colours."""
    return int(np.unique(colours).size)


def classes(colours: np.ndarray) -> list[np.ndarray]:
    """Return the units of each colour that several share, by colour."""
    _, inverse, counts = np.unique(colours, return_inverse=True, return_counts=True)
    order, ends = np.argsort(inverse, kind="stable"), np.cumsum(counts)
    return [order[ends[c] - counts[c]:ends[c]] for c in np.flatnonzero(counts > 1)]


def mix(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return a bijective scramble of uint64 values (the finaliser of SplitMix64, Steele, Lea, Flood 2014)."""
    y = np.add(x, np.uint64(0x9E3779B97F4A7C15), out=out)
    y ^= y >> np.uint64(30)
    y *= np.uint64(0xBF58476D1CE4E5B9)
    y ^= y >> np.uint64(27)
    y *= np.uint64(0x94D049BB133111EB)
    y ^= y >> np.uint64(31)
    return y


def _salt(name: str) -> np.uint64:
    raw = name.encode()
    return mix(np.array([(zlib.crc32(raw) << 32) | zlib.adler32(raw)], dtype=np.uint64))[0]


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """Return the entries' bits as unsigned integers, in the tensor's shape: a view where the tensor lies in order."""
    whole = tensor.detach().cpu().contiguous()
    size = whole.element_size()
    words = whole.reshape(-1).view(torch.uint8).numpy()
    if size <= 8:
        return words.view(f"u{size}").reshape(whole.shape)
    pairs = words.view("u8").reshape(*whole.shape, -1)
    return mix(pairs[..., 0]) ^ pairs[..., 1]
