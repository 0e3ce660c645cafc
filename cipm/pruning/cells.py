"""How much of a stored axis is left when several groups stand on it: beside each other, inside one another, or crossing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from cipm.symmetry import Place

Factor = Mapping[str, float]
Terms = tuple[tuple[float, tuple[Factor, ...]], ...]


def axis_terms(length: int, places: Sequence[tuple[str, Place]]) -> Terms:
    """Return what is left of an axis as Σ share · Π over its factors of (1 − Σ share of the group × share of it that goes).

    `places` are the groups that stand on the axis. Groups on positions of their own make one factor; one that covers the
    whole axis (heads over the units inside them) a factor more; where neither says it all, each set of positions on which
    the same groups stand is a term. Right where a group keeps equally many units of every block, so that what goes of one
    group is the same share of every unit of another.
    """
    there = {name: np.zeros(length, bool) for name, _ in places}
    for name, place in places:
        there[name][place.index.ravel()] = True
    over = [name for name, mask in there.items() if mask.all()]
    under = [name for name in there if name not in over]
    cells = Counter(tuple(name for name in under if there[name][at]) for at in range(length))
    whole = tuple({name: 1.0} for name in over)
    if all(len(cell) < 2 for cell in cells):
        shares = {cell[0]: count / length for cell, count in cells.items() if cell}
        return ((1.0, (*whole, shares) if shares else whole),)
    return tuple((count / length, (*whole, *({name: 1.0} for name in cell))) for cell, count in cells.items())


def tensor_terms(axes: Sequence[Terms]) -> Terms:
    """Return what is left of a tensor from what is left of its axes, in the same form."""
    return tuple((float(np.prod([share for share, _ in chosen])), tuple(f for _, factors in chosen for f in factors))
                 for chosen in product(*axes))
