"""Block sparsity: orders of rows and columns in which a share of square blocks holds as much of the weights as possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint
from cipm.ordering import Link
from cipm.permutation import Permutation
from cipm.pruning.sparse_model import SparseModel, SparseWeight, zeroed
from cipm.symmetry import Place, Symmetry

SWEEPS = 30


@dataclass(frozen=True, eq=False)
class BlockOrders:
    """Orders of groups, and for each link which blocks to keep (bool [runs of rows, runs of columns], in these orders).

    `before` is what the best blocks of the given orders hold of the strengths of each link, `after` those of these orders;
    `retained_before` and `retained_after` are their sums, of `total`. `best_possible` is what as many entries hold that need
    not lie in blocks: a bound.
    """

    orders: Mapping[str, Permutation]
    kept: tuple[np.ndarray, ...]
    size: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    best_possible: float
    total: float

    @property
    def retained_before(self) -> float:
        return sum(self.before)

    @property
    def retained_after(self) -> float:
        return sum(self.after)


def block_orders(links: Sequence[Link], *, size: int = 16, share: float = 0.5, blocks: Mapping[str, int] | None = None,
                 fixed: Collection[str] = (), tries: int = 4, seed: int = 0) -> BlockOrders:
    """Return orders in which the best `share` of the size × size blocks of each link holds most of its strengths.

    A link is one matrix between two groups; one matrix alone is a link between "rows" and "cols". Where `size` does not
    divide a group, its last run is short; all blocks count alike. Groups with `blocks` > 1 keep every unit in its one of
    equal runs; `fixed` groups stay. The result holds at least as much as the given orders.

    Starts: the given orders; units gathered greedily, each run the most similar to a unit of largest norm; and `tries` random
    orders. From each, blocks are chosen and one group at a time is assigned anew to its places, which is exact for chosen
    blocks, until that gains nothing. Deterministic. Raises OptionError where size or share does not fit.
    Cost: a linear assignment of each group in each sweep (at most 30): units³ at worst.

    Source: alternating between the sides is Hartigan, "Direct clustering of a data matrix" (1972); here in runs of one size.
    """
    if size < 1 or not 0 < share <= 1:
        raise OptionError(f"Blocks have a size of at least 1 and a share in (0, 1]; they cannot be {size} and {share}.",
                          where="share")
    search = _Search(tuple(links), size, share, dict(blocks or {}))
    given = {name: np.arange(units) for name, units in search.units.items()}
    free = [name for name in given if name not in set(fixed)]
    generator = np.random.default_rng(seed)
    starts = [given, {name: search.gathered(name) if name in free else order for name, order in given.items()}]
    for _ in range(tries):
        starts.append({name: Permutation.random(order.size, generator=generator, blocks=search.blocks.get(name, 1)).order
                       if name in free else order for name, order in given.items()})
    ends = [given, *(search.settled(start, free) for start in starts)]
    best = max(ends, key=search.retained)
    return BlockOrders({name: Permutation(order) for name, order in best.items()}, search.kept(best), size, search.held(given),
                       search.held(best), search.bound(), float(sum(link.strengths.sum(dtype=np.float64) for link in links)))


def block_mask(kept: np.ndarray, rows: int, cols: int, size: int) -> np.ndarray:
    """Return which entries [rows, cols] stand in kept blocks (bool), in the order of the blocks."""
    return np.repeat(np.repeat(kept, size, axis=0)[:rows], size, axis=1)[:, :cols]


def block_sparsify(checkpoint: Checkpoint, symmetry: Symmetry, links: Sequence[Link], found: BlockOrders) -> SparseModel:
    """Return the reordered model with zeros outside the kept blocks.

    `links` are those that `found` was made from (`cipm.ordering.links`), each with the name of its tensor. Kernels go or stay
    whole. Raises OptionError where a group moves together with the one that carries it.
    """
    moved = {name for name, order in found.orders.items() if not order.is_identity}
    if nested := [name for name in moved if symmetry.group(name).parent in moved]:
        raise OptionError(f"The units of {nested[0]} move within units that move too, so blocks of them would not stay blocks.",
                          where=nested[0], fix=f"Keep {symmetry.group(nested[0]).parent} fixed.")
    masks: dict[str, torch.Tensor] = {}
    weights = []
    for link, kept, before, after in zip(links, found.kept, found.before, found.after, strict=True):
        rows, cols = (_places(symmetry, name, link.tensor) for name in (link.rows, link.cols))
        at, by = next((a, b) for a in rows for b in cols if a.axis != b.axis)
        pairs = torch.from_numpy(block_mask(kept, len(at.index), len(by.index), found.size))
        mask = masks.setdefault(link.tensor, torch.ones(checkpoint.meta(link.tensor).shape, dtype=torch.bool))
        view = mask.movedim((at.axis, by.axis), (0, 1))
        for one in at.index.T:
            for two in by.index.T:
                where = np.ix_(one, two)
                view[where] &= pairs.reshape(*pairs.shape, *[1] * (mask.ndim - 2))
        weights.append(SparseWeight(link.tensor, (at.axis, by.axis), before, after,
                                    float(link.strengths.sum(dtype=np.float64)), by_magnitude=True))
    plan = symmetry.plan(found.orders)
    return SparseModel(zeroed(checkpoint, plan, masks), masks, plan, tuple(weights), _left_out(checkpoint, symmetry, masks))


def _left_out(checkpoint: Checkpoint, symmetry: Symmetry, masks: Collection[str]) -> dict[str, str]:
    """Return why matrices that have an axis of a group stay dense."""
    keys = dict.fromkeys(place.tensor for group in symmetry.groups for place in group.places)
    return {key: "only one of its axes is that of a group" for key in keys
            if key not in masks and checkpoint.meta(key).ndim > 1}


def _places(symmetry: Symmetry, name: str, tensor: str) -> list[Place]:
    return [place for place in symmetry.group(name).places if place.tensor == tensor]


@dataclass(frozen=True, eq=False)
class _Search:
    """The links with the size of blocks, the share kept, and the number of runs in which each group's units stay."""

    links: tuple[Link, ...]
    size: int
    share: float
    blocks: Mapping[str, int]

    @property
    def units(self) -> dict[str, int]:
        sides = [(name, n) for link in self.links for name, n in zip((link.rows, link.cols), link.strengths.shape, strict=True)]
        return dict(sides)

    def sums(self, link: Link, orders: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the sum of every block [runs of rows, runs of columns]."""
        return self._by_run(self._by_run(link.strengths, orders[link.rows]).T, orders[link.cols]).T

    def kept(self, orders: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the blocks to keep of every link: those of largest sum, the first of equal ones."""
        return tuple(self._best(self.sums(link, orders)) for link in self.links)

    def held(self, orders: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """Return what the blocks to keep hold of every link."""
        return tuple(float(sums[self._best(sums)].sum()) for sums in (self.sums(link, orders) for link in self.links))

    def retained(self, orders: Mapping[str, np.ndarray]) -> float:
        return sum(self.held(orders))

    def bound(self) -> float:
        """Return what as many entries as the largest kept blocks have hold at most."""
        total = 0.0
        for link in self.links:
            runs = [-(-n // self.size) for n in link.strengths.shape]
            entries = min(link.strengths.size, self._count(runs[0] * runs[1]) * self.size ** 2)
            total += float(-np.sort(-link.strengths, axis=None)[:entries].sum(dtype=np.float64))
        return total

    def settled(self, orders: Mapping[str, np.ndarray], free: Sequence[str]) -> dict[str, np.ndarray]:
        """Return orders that assigning one group anew does not improve (or those after SWEEPS sweeps)."""
        orders, value = dict(orders), self.retained(orders)
        for _ in range(SWEEPS):
            before = value
            for name in free:
                changed = orders | {name: self._assigned(name, orders)}
                new = self.retained(changed)
                if new > value * (1 + 1e-9):
                    orders, value = changed, new
            if value == before:
                break
        return orders

    def gathered(self, name: str) -> np.ndarray:
        """Return the units in runs of similar ones, within their blocks."""
        sides = [(link.rows, link.strengths) for link in self.links] + [(link.cols, link.strengths.T) for link in self.links]
        features = np.concatenate([side for group, side in sides if group == name], axis=1).astype(np.float64)
        norms = np.linalg.norm(features, axis=1)
        features = features / np.maximum(norms, np.finfo(float).tiny)[:, None]
        order = []
        for block in np.split(np.arange(norms.size), self.blocks.get(name, 1)):
            left = block[np.argsort(-norms[block], kind="stable")]
            while left.size:
                room = self.size - len(order) % self.size
                like = features[left] @ features[left[0]]
                like[0] = np.inf
                chosen = np.argsort(-like, kind="stable")[:room]
                order.extend(left[chosen])
                left = np.delete(left, chosen)
        return np.array(order, dtype=np.int64)

    def _assigned(self, name: str, orders: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the order of a group that retains most for the blocks kept now."""
        units = orders[name].size
        worth = np.zeros((units, -(-units // self.size)))
        for link, kept in zip(self.links, self.kept(orders), strict=True):
            if link.rows == name:
                worth += self._by_run(link.strengths.T, orders[link.cols]).T @ kept.T
            if link.cols == name:
                worth += self._by_run(link.strengths, orders[link.rows]).T @ kept
        order = np.empty(units, dtype=np.int64)
        for block in np.split(np.arange(units), self.blocks.get(name, 1)):
            members = np.sort(orders[name][block])
            which, places = linear_sum_assignment(worth[members][:, block // self.size], maximize=True)
            order[block[places]] = members[which]
        return order

    def _by_run(self, matrix: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Return the sums [runs, columns] of the rows of every run."""
        return np.add.reduceat(matrix[order], np.arange(0, order.size, self.size), axis=0, dtype=np.float64)

    def _best(self, sums: np.ndarray) -> np.ndarray:
        chosen = np.zeros(sums.size, dtype=bool)
        chosen[np.argsort(-sums, axis=None, kind="stable")[:self._count(sums.size)]] = True
        return chosen.reshape(sums.shape)

    def _count(self, blocks: int) -> int:
        return max(1, round(self.share * blocks))
