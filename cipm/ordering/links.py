"""Which groups each tensor connects, how strongly, and the coordinated orders of a whole model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cipm.ordering.coordinate import Coordinated, Link, coordinate
from cipm.permutation import Permutation
from cipm.symmetry import lined_up
from cipm.symmetry.groups import Place, SymmetryGroup

MOST_ENTRIES = 1 << 28  # strengths kept in memory: 1 GB


def coordinate_groups(groups: Sequence[SymmetryGroup], between: Sequence[Link], orders: Mapping[str, Permutation], *,
                      labels: Mapping[str, np.ndarray] | None = None) -> Coordinated:
    """Return the orders of a model's groups, coordinated along the `links` between them (see `coordinate`).

    `orders` and `labels` (modules, −1: none) are given by name of group; groups without an order are left out. Units inside
    the units of another group (inside heads) are placed last, within their blocks, and pull no other group: where they
    stand is decided by the group that carries them.
    """
    known = [group for group in groups if group.name in orders]
    carried = {group.name for group in known if group.parent in orders}
    blocks = {group.name: group.blocks for group in known}
    inside = [(link, {link.rows, link.cols} & carried) for link in between if {link.rows, link.cols} <= blocks.keys()]
    outer = {name: orders[name] for name in blocks if name not in carried}
    first = coordinate(outer, [link for link, inner in inside if not inner], labels=labels, blocks=blocks)
    inner = [link for link, _ in inside if (link.rows in carried) != (link.cols in carried)]
    second = coordinate({**orders, **first.orders}, inner, labels=labels, blocks=blocks, fixed=set(first.orders))
    return Coordinated(second.orders, first.before + second.before, first.after + second.after)


def links(groups: Sequence[SymmetryGroup], tensors: Mapping[str, torch.Tensor], *, most: int = MOST_ENTRIES) -> list[Link]:
    """Return a link for every two axes of a tensor on which groups stand, in the order of the tensors.

    A strength is the root of the summed squares of all entries that belong to both units. Tensors that are no floating
    point numbers, and such that would bring the strengths above `most` entries, are left out, and so are units that stand on
    two axes at once.
    """
    groups, tensors = lined_up(groups, tensors)
    found, spent = [], 0
    for key, tensor in tensors.items():
        places = [(group, place) for group in groups for place in group.places if place.tensor == key and place.view is None]
        for (a, at), (b, by) in itertools.combinations(places, 2):
            if at.axis == by.axis or not tensor.is_floating_point() or spent + a.size * b.size > most:
                continue
            spent += a.size * b.size
            found.append(Link(a.name, b.name, _strengths(tensor, at, by), key))
    return found


def _strengths(tensor: torch.Tensor, rows: Place, cols: Place) -> np.ndarray:
    """Return the strengths [units, units], float32, of two groups at two axes of a tensor."""
    others = tuple(axis for axis in range(tensor.ndim) if axis not in (rows.axis, cols.axis))
    squares = tensor.detach().float().square()
    squares = squares.sum(dim=others) if others else squares
    folded = (squares if rows.axis < cols.axis else squares.T).numpy()
    by_unit = sum(folded[positions] for positions in rows.index.T)
    return np.sqrt(sum(by_unit[:, positions] for positions in cols.index.T))
