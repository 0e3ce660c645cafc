"""Orders of several groups that fit each other: strong weights move towards the diagonals of the matrices between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cipm.permutation import Permutation

WINDOWS = 16  # runs of a group that has no modules
SWEEPS = 30
POWER_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Link:
    """The strengths |W| [units of `rows`, units of `cols`] with which one tensor connects two groups, none negative."""

    rows: str
    cols: str
    strengths: np.ndarray
    tensor: str = ""


@dataclass(frozen=True, eq=False)
class Coordinated:
    """The orders of all groups, and the alignment of each link (by number) before and after; see `alignment`."""

    orders: Mapping[str, Permutation]
    before: tuple[float, ...]
    after: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the alignments, and their means, as JSON-ready values."""
        return {"before": list(self.before), "after": list(self.after), "mean_before": _mean(self.before),
                "mean_after": _mean(self.after)}


def alignment(link: Link, rows: Permutation, cols: Permutation) -> float:
    """Return how far the strengths lie along the diagonal: 12 Σ_ij (w_ij − r_i c_j) p_i q_j.

    w are the strengths divided by their sum, r and c its row and column sums, p and q the places of the units from 0 to
    1. That is about the correlation of row place and column place under w: 1 = on the diagonal, 0 = as a matrix with the
    same row and column sums and no structure. It is −6 × the amount by which the 2-SUM Σ w_ij (p_i − q_j)² differs
    from that of this structureless matrix.
    """
    return _Graph.of([link]).alignments({link.rows: _places(rows), link.cols: _places(cols)})[0]


def coordinate(orders: Mapping[str, Permutation], links: Sequence[Link], *, labels: Mapping[str, np.ndarray] | None = None,
               blocks: Mapping[str, int] | None = None, fixed: Collection[str] = ()) -> Coordinated:
    """Return orders in which the modules of all groups line up along the matrices between them.

    Each group's order is cut into runs: where `labels` [units] name its modules (−1: none), the stretches of one module;
    elsewhere 16 stretches of equal length. Runs move as wholes and may turn round; inside, the given order stays. Groups
    with `blocks` > 1 keep every unit in its block; `fixed` groups stay as they are and still pull the others. A residual
    stream is a group like another, with many links.

    The mean `alignment` of the links never falls: one group at a time is placed best given all others, which is exact
    (the objective is linear in one group's places, so runs sorted by their mean pull are optimal: Smith's rule), until a
    sweep changes nothing. This starts from the given orders and from the second eigenvector of the whole graph of
    units; the better end is returned. Deterministic. Cost: at most 240 passes over the matrices.

    Source: Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning" (2001), for the start,
    taken from one matrix to the graph of all; Smith, "Various optimizers for single-stage production" (1956), for the
    placing of runs of different lengths.
    """
    graph = _Graph.of(links)
    assert graph.names <= set(orders)
    layouts = {name: _Layout.of(order, (labels or {}).get(name), (blocks or {}).get(name, 1)) for name, order in orders.items()}
    free = [name for name in orders if name not in set(fixed) and name in graph.names]
    start = {name: layout.places for name, layout in layouts.items()}
    before = graph.alignments(start)
    ends = [_settle(graph, layouts, free), _settle(graph, _spectral_start(graph, layouts, free), free)]
    best = max(ends, key=lambda end: _mean(graph.alignments({name: layout.places for name, layout in end.items()})))
    after = graph.alignments({name: layout.places for name, layout in best.items()})
    if _mean(after) <= _mean(before):
        best, after = layouts, before
    return Coordinated({name: Permutation(layout.order) for name, layout in best.items()}, before, after)


@dataclass(frozen=True, eq=False)
class _Layout:
    """An order [units] as runs: `starts` are the first places of the runs, `block` [runs] the block of each."""

    order: np.ndarray
    starts: np.ndarray
    block: np.ndarray

    @classmethod
    def of(cls, order: Permutation, labels: np.ndarray | None, blocks: int) -> _Layout:
        """Cut an order into runs at the borders of modules, of windows and of blocks."""
        n = len(order)
        place = np.arange(n)
        block = place // max(1, n // blocks)
        window = place * WINDOWS // max(1, n // blocks)
        label = np.full(n, -1) if labels is None else np.asarray(labels)[order.order]
        kind = np.where(label >= 0, label, -1 - window)
        cuts = (np.diff(kind, prepend=0) != 0) | (np.diff(block, prepend=0) != 0)
        cuts[:1] = True
        starts = np.flatnonzero(cuts)
        return cls(order.order, starts, block[starts])

    @property
    def places(self) -> np.ndarray:
        """Return the place [units] of each unit, from 0 to 1."""
        return _places(Permutation(self.order))

    def placed(self, pull: np.ndarray) -> _Layout:
        """Return the layout that maximises Σ pull_i × place_i over orders of the runs and their directions."""
        runs = np.split(self.order, self.starts[1:])
        runs = [run[::-1] if np.dot(np.arange(run.size) - (run.size - 1) / 2, pull[run]) < 0 else run for run in runs]
        means = np.array([pull[run].mean() for run in runs])
        sequence = np.lexsort((np.arange(len(runs)), means, self.block))
        sizes = np.array([runs[r].size for r in sequence])
        return _Layout(np.concatenate([runs[r] for r in sequence]), np.cumsum(sizes) - sizes, self.block[sequence])


@dataclass(frozen=True, eq=False)
class _Graph:
    """The links with their total strength, row and column sums; links without any strength pull nothing."""

    links: tuple[Link, ...]
    totals: tuple[float, ...]
    rows: tuple[np.ndarray, ...]
    cols: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, links: Sequence[Link]) -> _Graph:
        totals = [float(link.strengths.sum(dtype=np.float64)) or 1.0 for link in links]
        rows = tuple(link.strengths.sum(axis=1, dtype=np.float64) / t for link, t in zip(links, totals, strict=True))
        cols = tuple(link.strengths.sum(axis=0, dtype=np.float64) / t for link, t in zip(links, totals, strict=True))
        return cls(tuple(links), tuple(totals), rows, cols)

    @property
    def names(self) -> set[str]:
        return {name for link in self.links for name in (link.rows, link.cols)}

    def to_rows(self, number: int, places: np.ndarray) -> np.ndarray:
        """Return Σ_j (w_ij − r_i c_j) q_j of a link for the places [cols]."""
        centred = places - float(self.cols[number] @ places)
        return _product(self.links[number].strengths, centred) / self.totals[number]

    def to_cols(self, number: int, places: np.ndarray) -> np.ndarray:
        """Return Σ_i (w_ij − r_i c_j) p_i of a link for the places [rows]."""
        centred = places - float(self.rows[number] @ places)
        return _product(self.links[number].strengths.T, centred) / self.totals[number]

    def alignments(self, places: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        return tuple(12 * float(places[link.rows] @ self.to_rows(number, places[link.cols]))
                     for number, link in enumerate(self.links))

    def pull(self, name: str, places: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the slope of the sum of alignments in each place of a group's units."""
        total = np.zeros(places[name].size)
        for number, link in enumerate(self.links):
            if link.rows == name:
                total += self.to_rows(number, places[link.cols])
            if link.cols == name:
                total += self.to_cols(number, places[link.rows])
        return total

    def gain(self, name: str, pull: np.ndarray, shift: np.ndarray) -> float:
        """Return by how much the sum of alignments rises when the units of a group move by `shift`; `pull` is its slope."""
        bend = sum(float(shift @ self.to_rows(number, shift)) for number, link in enumerate(self.links)
                   if link.rows == link.cols == name)
        return float(pull @ shift) + bend


def _settle(graph: _Graph, layouts: Mapping[str, _Layout], free: Sequence[str]) -> dict[str, _Layout]:
    """Return layouts that no placing of one group improves (or those after SWEEPS sweeps)."""
    layouts = dict(layouts)
    places = {name: layout.places for name, layout in layouts.items()}
    for _ in range(SWEEPS):
        changed = False
        for name in free:
            pull = graph.pull(name, places)
            new = layouts[name].placed(pull)
            if graph.gain(name, pull, new.places - places[name]) > 1e-9:
                layouts[name], places[name], changed = new, new.places, True
        if not changed:
            break
    return layouts


def _spectral_start(graph: _Graph, layouts: Mapping[str, _Layout], free: Sequence[str]) -> dict[str, _Layout]:
    """Return layouts with the runs of each free group sorted along the second eigenvector of the graph of all units.

    The graph's matrix has (w_ij − r_i c_j) / √(d_i d_j) between the units of linked groups, d the sums over a unit's links;
    taking r_i c_j out removes each link's trivial pair of vectors. Power iteration, with half the old vector kept so that
    it does not alternate between ± eigenvalues.
    """
    names = [name for name in layouts if name in graph.names]
    degree = {name: np.full(layouts[name].order.size, 1e-12) for name in names}
    for number, link in enumerate(graph.links):
        degree[link.rows] += graph.rows[number]
        degree[link.cols] += graph.cols[number]
    vectors = {name: layouts[name].places - 0.5 for name in names}
    for _ in range(POWER_ROUNDS):
        scaled = {name: vector / np.sqrt(degree[name]) for name, vector in vectors.items()}
        moved = {name: graph.pull(name, scaled) / np.sqrt(degree[name]) + 0.5 * vectors[name] for name in names}
        length = np.sqrt(sum(float(v @ v) for v in moved.values()))
        vectors = {name: vector / (length or 1.0) for name, vector in moved.items()}
    return {name: layout.placed(vectors[name] / np.sqrt(degree[name])) if name in free else layout
            for name, layout in layouts.items()}


def _places(order: Permutation) -> np.ndarray:
    """Return the place [units] of each unit in an order, the middle of its slot, from 0 to 1."""
    return (order.coinverse.order + 0.5) / max(1, len(order))


def _product(strengths: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (strengths @ vector.astype(strengths.dtype)).astype(np.float64)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
