"""A hash of a model that is the same for every permuted copy of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.ordering.canonical import canonical_orders
from cipm.ordering.likeness import nameless, read_constants, read_tensors
from cipm.symmetry.groups import Place, Symmetry, SymmetryGroup

SCHEME = "cipm fingerprint 1"
"""Part of every hash: raised when what is hashed changes, so that hashes of two schemes never agree."""


@dataclass(frozen=True)
class Fingerprint:
    """A hash in hexadecimal digits, and per group the number of units whose order is not certain to be the same in every
    copy: where there are any, a copy may have another hash.
    """

    digest: str
    unresolved: Mapping[str, int]

    @property
    def certain(self) -> bool:
        """Tell whether every permuted copy has this hash."""
        return not self.unresolved


def fingerprint(checkpoint: Checkpoint, symmetry: Symmetry) -> Fingerprint:
    """Return the SHA-256 of a model's graph and of its tensors in canonical order; equal for all permuted copies.

    Hashed are the steps of the graph with their settings, inputs with their dtypes and sizes, and in the order of their first
    use the dtype, shape and bits of every tensor that the graph reads: tied tensors once, constants too. Names are not, nor
    tensors that nothing reads, nor how the file is laid out. Only the proved groups of `symmetry` are put in order. Other
    symmetries (scale, sign, rotations) make other bits and so another hash.

    Cost: that of `canonical_orders`, and one pass over the tensors. Memory: the tensors that groups touch.
    """
    keys = read_tensors(checkpoint.graph)
    numbered, names = _numbered(symmetry, {key: f"{number:06d}" for number, key in enumerate(keys)})
    found = canonical_orders(numbered, {f"{number:06d}": checkpoint.tensors[key] for number, key in enumerate(keys)
                                        if f"{number:06d}" in _touched(numbered)})
    plan = numbered.plan(found.orders)
    digest = hashlib.sha256(SCHEME.encode())
    digest.update(json.dumps(nameless(checkpoint.graph), sort_keys=True, separators=(",", ":")).encode())
    for number, key in enumerate(keys):
        _add(digest, plan.move(f"{number:06d}", checkpoint.tensors[key]))
    for key in read_constants(checkpoint.graph):
        _add(digest, checkpoint.constants[key])
    return Fingerprint(digest.hexdigest(), {names[name]: count for name, count in found.unresolved.items()})


def _touched(symmetry: Symmetry) -> set[str]:
    return {place.tensor for group in symmetry.groups for place in group.places}


def _numbered(symmetry: Symmetry, numbers: Mapping[str, str]) -> tuple[Symmetry, dict[str, str]]:
    """Return the proved groups with numbers for names, inner levels first, and the name behind each number.

    The canonical order reads names; numbered by first use, they are the same in models that differ in names alone.
    """
    groups = {g.name: replace(g, places=_places(g, numbers)) for g in symmetry.groups if g.proved}
    order = sorted(groups.values(), key=lambda g: (-_depth(g, groups), [(p.tensor, p.axis, p.index.min()) for p in g.places]))
    number = {group.name: f"{i:06d}" for i, group in enumerate(order)}
    renamed = tuple(replace(g, name=number[g.name], parent=number.get(g.parent or "")) for g in order)
    return replace(symmetry, groups=renamed), {i: name for name, i in number.items()}


def _places(group: SymmetryGroup, numbers: Mapping[str, str]) -> tuple[Place, ...]:
    places = [replace(place, tensor=numbers[place.tensor]) for place in group.places]
    return tuple(sorted(places, key=lambda place: (place.tensor, place.axis, int(place.index.min()))))


def _depth(group: SymmetryGroup, groups: Mapping[str, SymmetryGroup]) -> int:
    return 0 if group.parent not in groups else 1 + _depth(groups[group.parent], groups)


def _add(digest: hashlib._Hash, tensor: torch.Tensor) -> None:
    """Add dtype, shape and bits of a tensor."""
    digest.update(f"{str(tensor.dtype)}{list(tensor.shape)}".encode())
    digest.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
