"""Match the units of a model to those of a reference that is almost a permuted copy of it, with margins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from cipm.errors import InputError
from cipm.load.checkpoint import Checkpoint
from cipm.ordering.likeness import counterparts
from cipm.permutation import Permutation, Plan, compose
from cipm.symmetry import lined_up
from cipm.symmetry.groups import Place, Symmetry, SymmetryGroup

SWEEPS = 50
ROUNDING = 1e-5
"""Differences below this share of the squares compared are rounding of float32 sums."""
LEAST_GAIN = 1e-8
"""Of all squares: what a new match must gain at least."""

Names = frozenset[str]
Pairs = list[tuple[int, int]]  # (block of places, block of units) that belong together


@dataclass(frozen=True)
class GroupMatch:
    """How sure the match of one group is.

    `margin` is the least that exchanging two units would add to the squared distance, as a share of the squares of both with
    their places: 1 where two units have nothing in common, 0 where they can be exchanged at no cost; None where there are no
    two units to exchange. The match of a unit is `certain` where exchanging it with any other would at least double the
    squared distance of the two.
    """

    name: str
    units: int
    certain: int
    margin: float | None


@dataclass(frozen=True)
class Matching:
    """Orders of the model's groups that bring it closest to the reference, and how sure they are.

    Distances are relative to the reference, over all tensors that groups touch, each in units of its root mean square.
    `converged` tells that no group could be improved any more when the others stood as they do.
    """

    orders: Mapping[str, Permutation]
    groups: tuple[GroupMatch, ...]
    distance_before: float
    distance: float
    sweeps: int
    converged: bool

    @property
    def certain_share(self) -> float:
        """Return the share of all units whose match is certain (1 where there are none)."""
        units = sum(group.units for group in self.groups)
        return sum(group.certain for group in self.groups) / units if units else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return everything but the orders as JSON-ready values."""
        return {"distance_before": self.distance_before, "distance": self.distance, "certain_share": self.certain_share,
                "sweeps": self.sweeps, "converged": self.converged, "groups": [asdict(group) for group in self.groups]}


def match_units(symmetry: Symmetry, model: Checkpoint, reference: Checkpoint) -> Matching:
    """Find the order of every proved group that brings the model's weights closest to the reference's.

    One group after the other is matched by linear assignment of its units' weights while the others stand still, until
    nothing improves. Groups that units of others carry (heads) are matched together with what they carry, the best inner
    assignment for every pair of outer units. The first pass begins at the tensors whose other axes are in order already
    (inputs, outputs), so copies of any depth are followed from there.

    Raises UnsupportedModel where the two models differ in structure, InputError where a weight is not finite.
    Source: weight matching, Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), section 3.2 and algorithm 1; other than
    there every tensor counts in units of its root mean square, groups may nest, and the first pass is not in random order.
    Cost: each pass one matrix product for every place and one assignment (n³ at worst) for every group; for a group that
    carries others one assignment for every pair of its units. Memory: units² for each of the groups matched together.
    Limitations: a local optimum where the noise is large; within float32.
    """
    other = counterparts(model, reference)
    groups, own = lined_up(symmetry.groups, model.tensors)
    _, there = lined_up(symmetry.groups, {key: reference.tensors[name] for key, name in other.items()})
    return _Matcher(replace(symmetry, groups=groups), own, there).run()


@dataclass(frozen=True)
class _Table:
    """How alike units are: products [places, units] of the reference's weights at a place with a unit's, their squares.

    `carried` are the tables of the groups whose units these carry; what they add is part of this one.
    """

    group: SymmetryGroup
    products: np.ndarray
    of_place: np.ndarray
    of_unit: np.ndarray
    carried: tuple[_Table, ...]


class _Matcher:
    """One matching under way: the orders so far."""

    def __init__(self, symmetry: Symmetry, own: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]):
        self.groups = tuple(group for group in symmetry.groups if group.proved)
        self.own, self.reference = own, reference
        self.spots: dict[tuple[str, int], list[tuple[SymmetryGroup, Place]]] = {}
        for group in self.groups:
            for place in group.places:
                self.spots.setdefault((place.tensor, place.axis), []).append((group, place))
        self.on = {key: {g.name for (k, _), spots in self.spots.items() if k == key for g, _ in spots}
                   for key in dict.fromkeys(key for key, _ in self.spots)}
        self.weight = {key: _weight(key, reference[key], own[key]) for key in self.on}
        names = {group.name for group in self.groups}
        self.roots = [group for group in self.groups if group.parent not in names]
        self.inside = {group.name: self._carried_names(group) for group in self.groups}
        self.line = {name: tree | {other for other, inner in self.inside.items() if name in inner}
                     for name, tree in self.inside.items()}
        self.orders = {group.name: np.arange(group.size) for group in self.groups}

    def run(self) -> Matching:
        """Match all groups."""
        before = self._distance()
        self._first_pass()
        sweeps, changed = 0, bool(self.roots)
        while changed and sweeps < SWEEPS:
            sweeps += 1
            changed = any([self._improve(root) for root in self.roots])
        sure = [match for root in self.roots for match in _certainties(self._table(root), _still(root), self.orders)]
        return Matching({name: Permutation(order) for name, order in self.orders.items()}, tuple(sure), before,
                        self._distance(), sweeps, not changed)

    def _first_pass(self) -> None:
        """Match every group once, always where the largest share of the weights stands beside what is matched already."""
        settled: set[str] = set()
        while len(settled) < len(self.groups):
            open_roots = [root for root in self.roots if any(self._told(name, settled) for name in
                                                             self.inside[root.name] - settled)]
            if open_roots:
                root = max(open_roots, key=lambda root: self._share(root, settled))
                _assign(self._table(root, settled), _still(root), self.orders)
                settled |= {name for name in self.inside[root.name] if self._told(name, settled)}
            else:  # nothing left is told apart by what is matched: take the weights as they stand
                root = next(root for root in self.roots if not self.inside[root.name] <= settled)
                _assign(self._table(root), _still(root), self.orders)
                settled |= self.inside[root.name]

    def _told(self, name: str, settled: set[str]) -> list[str]:
        """Return the tensors whose axes are all settled but for one, on which this group stands, with what carries it or
        is carried.
        """
        line = self.line[name]
        return [key for key, on in self.on.items() if name in on and on <= settled | line and len(
            {axis for (k, axis), spots in self.spots.items() if k == key and any(g.name in line for g, _ in spots)}) == 1]

    def _share(self, root: SymmetryGroup, settled: set[str]) -> float:
        tree = self.inside[root.name]
        told = {key for name in tree for key in self._told(name, settled)}
        return sum(self.own[key].numel() for key in told) / max(1, sum(self.own[key].numel() for key in self._touched(tree)))

    def _touched(self, tree: Names) -> list[str]:
        return [key for key, on in self.on.items() if on & tree]

    def _improve(self, root: SymmetryGroup) -> bool:
        """Match a group and what it carries anew while the others stand still; tell whether that came closer."""
        tree = self.inside[root.name]
        before, kept = self._agreement(tree), {name: self.orders[name].copy() for name in tree}
        _assign(self._table(root), _still(root), self.orders)
        if self._agreement(tree) > before + LEAST_GAIN * sum(self.own[key].numel() for key in self._touched(tree)):
            return True
        self.orders |= kept
        return False

    def _table(self, group: SymmetryGroup, settled: set[str] | None = None) -> _Table:
        """Compare the group's units, and those they carry, where all else is `settled` (None: everywhere)."""
        carried = tuple(self._table(g, settled) for g in self.groups if g.parent == group.name)
        told = self.on if settled is None else self._told(group.name, settled)
        products, squares = np.zeros((group.size, group.size)), np.zeros((2, group.size))
        for place in group.places:
            index = self._uncarried(group, place)
            if index.size and place.tensor in told:
                weight = self.weight[place.tensor]
                there = _rows(self.reference[place.tensor], place.axis, index)
                here = _rows(self._moved(place.tensor, place.axis, self.line[group.name]), place.axis, index)
                products += weight * (there @ here.T).numpy()
                squares += weight * np.stack([rows.square().sum(1).double().numpy() for rows in (there, here)])
        for table in carried:
            products += _best_inside(table, group.size)
            squares += np.stack([s.reshape(group.size, -1).sum(1) for s in (table.of_place, table.of_unit)])
        return _Table(group, products, *squares, carried)

    def _uncarried(self, group: SymmetryGroup, place: Place) -> np.ndarray:
        """Return the positions [units, elements] of a place that no carried group stands on."""
        inner, taken = self.inside[group.name] - {group.name}, np.zeros(place.length, dtype=bool)
        for other, spot in self.spots[place.tensor, place.axis]:
            if other.name in inner:
                taken[spot.index] = True
        return place.index[~taken[place.index]].reshape(group.size, -1)

    def _moved(self, key: str, axis: int | None = None, free: Names = frozenset()) -> torch.Tensor:
        """Return a tensor in the present orders, except for what the `free` groups move on this axis."""
        moves = [((key, a), place.length, place.index, Permutation(self.orders[group.name]))
                 for (k, a), spots in self.spots.items() if k == key for group, place in spots
                 if a != axis or group.name not in free]
        return Plan(compose(moves), {}).move(key, self.own[key])

    def _agreement(self, tree: Names) -> float:
        """Return the product of the reference with the moved model over all tensors that the tree touches."""
        return sum(self.weight[key] * float((_real(self.reference[key]).double()
                                             * _real(self._moved(key)).double()).sum())
                   for key in self._touched(tree))

    def _distance(self) -> float:
        """Return how far the moved model is from the reference, relative to it."""
        far = near = 0.0
        for key in self.on:
            there, here = (_real(t).double() for t in (self.reference[key], self._moved(key)))
            far += self.weight[key] * float((there - here).square().sum())
            near += self.weight[key] * float(there.square().sum())
        return float(np.sqrt(far / near)) if near else 0.0

    def _carried_names(self, group: SymmetryGroup) -> Names:
        inner = [self._carried_names(g) for g in self.groups if g.parent == group.name]
        return frozenset({group.name}).union(*inner)


def _still(root: SymmetryGroup) -> Pairs:
    """Return the blocks of a group that nothing carries: each stays where it is."""
    return [(block, block) for block in range(root.blocks)]


def _runs(table: _Table, pairs: Pairs) -> Iterator[tuple[slice, slice]]:
    """Yield the places and the units that go together."""
    width = table.group.size // table.group.blocks
    for place, unit in pairs:
        yield slice(place * width, (place + 1) * width), slice(unit * width, (unit + 1) * width)


def _assign(table: _Table, pairs: Pairs, orders: dict[str, np.ndarray]) -> None:
    """Give each unit its place, block by block, then the units it carries theirs."""
    standing = np.empty(table.group.size, dtype=np.int64)
    order = np.empty_like(standing)
    for places, units in _runs(table, pairs):
        standing[places] = units.start + linear_sum_assignment(table.products[places, units], maximize=True)[1]
        order[units] = standing[places]
    orders[table.group.name] = order
    for inner in table.carried:
        _assign(inner, list(enumerate(standing.tolist())), orders)


def _best_inside(table: _Table, outer: int) -> np.ndarray:
    """Return [outer, outer] the product of the best assignment inside every pair of outer places and units."""
    width = table.group.size // outer
    pairs = table.products.reshape(outer, width, outer, width).swapaxes(1, 2)
    if width == 1:
        return pairs[..., 0, 0]
    return np.array([[pair[linear_sum_assignment(pair, maximize=True)].sum() for pair in row] for row in pairs])


def _certainties(table: _Table, pairs: Pairs, orders: Mapping[str, np.ndarray]) -> Iterator[GroupMatch]:
    """Yield how sure the present orders are, of a group and of those it carries."""
    group, order = table.group, orders[table.group.name]
    standing, margins, certain = np.empty_like(order), [], 0
    for places, units in _runs(table, pairs):
        standing[places] = order[units]
        squares = table.of_place[places] + table.of_unit[order[units]]
        for share, sure in _exchanges(table.products[places][:, order[units]], squares):
            margins.append(share)
            certain += sure
    known = [margin for margin in margins if margin is not None]
    yield GroupMatch(group.name, group.size, certain, min(known, default=None))
    for inner in table.carried:
        yield from _certainties(inner, list(enumerate(standing.tolist())), orders)


def _exchanges(products: np.ndarray, squares: np.ndarray, rows: int = 512) -> Iterator[tuple[float | None, int]]:
    """Yield (least margin, certain units) for runs of units; product [i, j] is of place i with the unit that stands at j."""
    n, apart = len(products), np.maximum(squares - 2 * products.diagonal(), 0)
    for start in range(0, n, rows):
        run = np.arange(start, min(start + rows, n))
        kept = products.diagonal()[run, None] + products.diagonal()
        added = 2 * (kept - products[run] - products[:, run].T)
        scale = squares[run, None] + squares
        share = np.divide(added, scale, out=np.zeros_like(added), where=scale > 0)
        doubled = (added > apart[run, None] + apart) & (share > ROUNDING)
        share[np.arange(run.size), run], doubled[np.arange(run.size), run] = np.inf, True
        yield (float(share.min()) if n > 1 else None), int(doubled.all(axis=1).sum())


def _rows(tensor: torch.Tensor, axis: int, index: np.ndarray) -> torch.Tensor:
    """Return [units, everything that stands at a unit's positions] as float32."""
    return _real(tensor).movedim(axis, 0)[torch.from_numpy(np.ascontiguousarray(index))].reshape(len(index), -1)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().float()


def _weight(key: str, reference: torch.Tensor, own: torch.Tensor) -> float:
    """Return one over the reference's mean square (1 where that is zero)."""
    squares = [float(_real(t).double().square().mean()) if t.numel() else 0.0 for t in (reference, own)]
    if not np.isfinite(squares).all():
        raise InputError(f"Tensor {key!r} holds values that are not finite; units are matched by their weights.", where=key)
    return 1 / squares[0] if squares[0] else 1.0
