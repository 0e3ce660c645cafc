"""Three ways to find modules in one look at a group: constant-Potts communities, agglomeration, spectral clustering.

Each takes the values of its own setting at once (resolutions, or numbers of modules) and returns the labels of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fastcluster
import numpy as np
from scipy import linalg

from cipm.modules.louvain import communities
from cipm.modules.refine import refined
from cipm.statistics.spectrum import leading

MANY = 512  # units up to which a single resolution tries more than two local optima
TRIED = 16  # values of the setting that are compared
TAIL = (0.6, 0.002)  # shares of the pairs above a resolution, from the lowest to the highest resolution


@dataclass(frozen=True, eq=False)
class View:
    """One look at a group's units: `factors` [units, factors] and, where it is at hand, their `correlation`."""

    factors: np.ndarray
    correlation: np.ndarray | None = None

    def among(self, units: np.ndarray) -> View:
        """Return the look at some of the units."""
        return View(self.factors[units], None if self.correlation is None else self.correlation[np.ix_(units, units)])

    @property
    def live(self) -> np.ndarray:
        """Return the units that any factor reaches (dead ones are not among them)."""
        return np.flatnonzero(np.abs(self.factors).sum(axis=1) > 0)


def potts(view: View, resolutions: Sequence[float], absolute: bool, seed: int) -> list[np.ndarray]:
    """Return labels [units] (−1: in no module) of the constant-Potts communities at each resolution.

    Where several are compared each is the best of two local optima; a single one of more.
    """
    starts = 2 if len(resolutions) > 1 and len(view.factors) <= MANY else None
    return [_potts(view, resolution, absolute, seed, starts) for resolution in resolutions]


def _potts(view: View, resolution: float, absolute: bool, seed: int, starts: int | None) -> np.ndarray:
    live, labels, generator = view.live, np.full(len(view.factors), -1), np.random.default_rng(seed)
    found = communities(view.factors[live], resolution, generator=generator, starts=starts, absolute=absolute)
    labels[live] = together(found)
    return labels if view.correlation is None else together(refined(view.correlation, labels, resolution, absolute=absolute))


def agglomerative(view: View, numbers: Sequence[int], absolute: bool, seed: int) -> list[np.ndarray]:
    """Return labels of average linkage on 1 − denoised correlation, cut where so many modules of two and more stand.

    Of the cuts with that number the lowest in the tree is not taken but the highest, which leaves fewest units alone.
    Cost: units² time and memory.
    """
    live, n = view.live, len(view.factors)
    if live.size < 2:
        return [np.full(n, -1) for _ in numbers]
    distances = (1 - _denoised(view.factors[live], absolute))[np.triu_indices(live.size, 1)]
    merges = fastcluster.linkage(np.maximum(distances, 0), method="average", preserve_input=False)
    counts = _modules_after(merges)
    found = []
    for number in numbers:
        labels = np.full(n, -1)
        labels[live] = together(_cut(merges, int(np.flatnonzero(counts == min(number, counts.max()))[-1])))
        found.append(labels)
    return found


def _modules_after(merges: np.ndarray) -> np.ndarray:
    """Return [merges + 1]: how many modules of two units and more stand after so many merges."""
    pieces = len(merges) + 1
    born = (merges[:, :2] < pieces).sum(axis=1) - 1  # two units: one more; a unit and a module: as many; two modules: one less
    return np.r_[0, np.cumsum(born)]


def _cut(merges: np.ndarray, count: int) -> np.ndarray:
    """Return a label per leaf after the first `count` merges."""
    pieces = len(merges) + 1
    top = np.arange(pieces + count)
    for step in range(count - 1, -1, -1):  # a node's top is its parent's, and parents come later
        top[merges[step, :2].astype(np.int64)] = top[pieces + step]
    return top[:pieces]


def spectral(view: View, numbers: Sequence[int], absolute: bool, seed: int) -> list[np.ndarray]:
    """Return labels of spectral clustering: the directions of units among the leading eigenvectors of their similarity.

    The similarity is the denoised correlation, negative pairs set to zero. A unit that on average does not go along with its
    module is in none. Cost: units² memory, units² × modules time.

    Source: Shi & Malik, "Normalized cuts and image segmentation" (2000), for the normalised similarity; Damle, Minden,
    Ying, "Simple, direct and efficient multi-way spectral clustering" (2019), for the directions.
    """
    live, n = view.live, len(view.factors)
    if live.size < 2:
        return [np.full(n, -1) for _ in numbers]
    alike = _denoised(view.factors[live], absolute)
    points = _embedding(np.maximum(alike, 0), min(max(numbers), live.size))
    found = []
    for number in numbers:
        labels = np.full(n, -1)
        labels[live] = _leaving(alike, _nearest(points[:, :number]))
        found.append(labels)
    return found


def _embedding(similarity: np.ndarray, dimensions: int) -> np.ndarray:
    """Return the leading eigenvectors [units, dimensions] of D^−½ S D^−½, with D the row sums of S."""
    scale = 1 / np.sqrt(similarity.sum(axis=1))
    normalised = (similarity * scale * scale[:, None]).astype(np.float32)
    return leading(normalised, lambda values: np.arange(values.size) < dimensions)[1]


def _nearest(points: np.ndarray) -> np.ndarray:
    """Return the direction that each point [units, modules] lies along, of as many as the points have dimensions.

    The directions are those of the points that a pivoted QR picks as most unlike each other, made orthogonal.
    """
    picked = linalg.qr(points.T, pivoting=True, mode="r")[1][:points.shape[1]]
    left, _, right = linalg.svd(points[picked].T)
    return np.abs(points @ (left @ right)).argmax(axis=1)


def _leaving(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the labels without the units whose mean similarity to the others of their module is not positive."""
    member = labels[:, None] == np.arange(labels.max() + 1)
    inside = (similarity @ member)[np.arange(labels.size), labels] - similarity.diagonal()
    return together(np.where(inside > 0, labels, -1))


def _denoised(factors: np.ndarray, absolute: bool) -> np.ndarray:
    product = np.clip(factors @ factors.T, -1, 1)
    return np.abs(product) if absolute else product


def together(labels: np.ndarray) -> np.ndarray:
    """Return labels in which units alone are −1 and the modules are numbered, largest first (ties by first unit)."""
    values, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((counts > 1) & (values >= 0))
    rank = np.full(values.size, -1)
    rank[kept[np.lexsort((first[kept], -counts[kept]))]] = np.arange(kept.size)
    return rank[inverse]


def resolutions(factors: np.ndarray, absolute: bool) -> tuple[float, ...]:
    """Return the resolutions worth comparing: between the correlations that ever fewer pairs exceed, .6 to .002 of them.

    Half of them stand halfway between two such quantiles: close where pairs are many, and one in the middle of a gap
    between two kinds of pairs. The other half are evenly spaced.
    """
    levels = np.quantile(_pairs(factors, absolute), 1 - np.geomspace(*TAIL, TRIED // 2 + 1))
    even = np.linspace(levels[0], levels[-1], TRIED // 2 + 2)[1:-1]
    found = np.unique(np.clip(np.r_[(levels[1:] + levels[:-1]) / 2, even], 0.005, 0.99))
    return tuple(float(value) for value in found)


def numbers(factors: np.ndarray, absolute: bool) -> tuple[int, ...]:
    """Return the numbers of modules worth comparing: from 2 to twice what so many factors can tell apart."""
    units, dimensions = factors.shape
    most = max(min(units // 2, 2 * dimensions + 2), 2)
    return tuple(int(value) for value in np.unique(np.geomspace(2, most, TRIED).round()))


def _pairs(factors: np.ndarray, absolute: bool) -> np.ndarray:
    """Return the denoised correlations of different live units (of evenly spread ones where there are many)."""
    live = factors[np.abs(factors).sum(axis=1) > 0]
    some = live[::max(1, len(live) // 2048)]
    return _denoised(some, absolute)[np.triu_indices(len(some), 1)]


@dataclass(frozen=True)
class Method:
    """A way to find modules: `find` labels for each value of its `setting`, of which `values` are worth comparing."""

    find: Callable[[View, Sequence, bool, int], list[np.ndarray]]
    setting: str
    values: Callable[[np.ndarray, bool], tuple]


METHODS = {"potts": Method(potts, "resolution", resolutions), "agglomerative": Method(agglomerative, "modules", numbers),
           "spectral": Method(spectral, "modules", numbers)}
