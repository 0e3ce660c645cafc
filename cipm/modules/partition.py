"""Modules of a group: units that correlate with each other beyond noise, at the most reproducible resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.errors import OptionError
from cipm.modules.louvain import by_size, communities
from cipm.statistics.spectrum import denoise

GRID = tuple(float(g) for g in np.geomspace(0.01, 0.85, 16))
CHANCE = 0.1  # agreement of the two halves below which the modules found are called noise
EVERYTHING = 0.95  # a module with this share of the units says no more than that all correlate
PLATEAU = 0.02  # resolutions whose agreement is this close to the best are equally good


@dataclass(frozen=True, eq=False)
class Partition:
    """Modules of units: `labels` [units] int, 0 the largest module, −1 = in no module.

    `resolution` is the correlation two units must exceed to attract each other. `stability` is the agreement (adjusted
    Rand index: 1 equal, 0 chance) of the partitions of the two probe halves at this resolution, NaN-free: None where
    no halves were given. `half_labels` are those two partitions. `how` says in words how the resolution came about.
    """

    labels: np.ndarray
    resolution: float
    stability: float | None
    how: str
    half_labels: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def modules(self) -> int:
        return int(self.labels.max(initial=-1)) + 1


def partition(correlation: np.ndarray, *, samples: int, resolution: float = 0.0,
              halves: tuple[np.ndarray, np.ndarray] | None = None,
              generator: np.random.Generator | None = None) -> Partition:
    """Return the modules of a correlation [units, units] sampled `samples` times.

    Signed constant-Potts communities of the correlation denoised at the random-matrix edge: pairs above `resolution`
    attract, the others (anti-correlated ones most) repel. With `halves` (the correlations of the two probe halves)
    resolution 0 chooses the one at which the halves agree best, and modules that do not reproduce at all are dropped;
    without, it takes the value that splits the denoised correlations best in two (Otsu). Nothing above the edge of
    noise means no module. A unit alone is in no module.

    Cost: see `denoise`; then milliseconds per resolution at 512 units. Deterministic for a given generator state.
    """
    if not 0 <= resolution < 1:
        raise OptionError(f"The resolution is a correlation from 0 to below 1; it cannot be {resolution}.",
                          where="resolution")
    seed = int((generator or np.random.default_rng(0)).integers(2**31))
    whole = denoise(correlation, samples).loadings
    if whole.shape[1] == 0:
        return _none(correlation.shape[0], resolution, "no factor stands above the noise of so many samples")
    if halves is None:
        chosen = resolution or _otsu(whole)
        how = "given" if resolution else "best split of the denoised correlations in two (no probe halves)"
        return Partition(_labels(whole, chosen, seed), chosen, None, how)
    split = tuple(denoise(half, samples // 2).loadings for half in halves)
    grid = (resolution,) if resolution else GRID
    pairs = [(_labels(split[0], gamma, seed), _labels(split[1], gamma, seed)) for gamma in grid]
    scores = np.array([agreement(*pair) for pair in pairs])
    best = _choose(scores, pairs)
    if scores[best] < CHANCE:
        return _none(correlation.shape[0], grid[best], "the two probe halves do not agree on any module")
    how = "given" if resolution else f"most stable of {len(grid)} resolutions over the two probe halves"
    return Partition(_labels(whole, grid[best], seed), grid[best], float(scores[best]), how, pairs[best])


def labels(correlation: np.ndarray, samples: int) -> np.ndarray:
    """Return a module label [units] per unit, −1 = in no module; see `partition`."""
    return partition(np.asarray(correlation), samples=samples).labels


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the adjusted Rand index of two partitions in which each unit labelled −1 stands alone.

    Partitions that say nothing (no module at all in one of them) agree 0.

    Source: Hubert & Arabie, "Comparing partitions" (1985).
    """
    if (a < 0).all() or (b < 0).all():
        return 0.0
    a, b = _alone(a), _alone(b)
    _, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    together, in_a, in_b = (_pairs(c) for c in (counts, np.bincount(a), np.bincount(b)))
    expected, largest = in_a * in_b / _pairs(np.array([a.size])), (in_a + in_b) / 2
    return float((together - expected) / (largest - expected)) if largest > expected else 1.0


def _none(units: int, resolution: float, how: str) -> Partition:
    return Partition(np.full(units, -1), resolution, None, how)


def _labels(loadings: np.ndarray, resolution: float, seed: int) -> np.ndarray:
    """Return module labels with −1 for units alone (dead units are always alone)."""
    live = np.flatnonzero(np.abs(loadings).sum(axis=1) > 0)
    found = communities(loadings[live], resolution, generator=np.random.default_rng(seed))
    sizes = np.bincount(found, minlength=1)
    result = np.full(loadings.shape[0], -1)
    result[live] = np.where(sizes[found] > 1, found, -1)
    return result


def _choose(scores: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Return the most telling resolution: agreement × √(share of units in modules), one-module answers last.

    Agreement alone would favour a few pairs of near-duplicates, or one module of everything.
    """
    worth = scores * np.sqrt([min((a >= 0).mean(), (b >= 0).mean()) for a, b in pairs])
    telling = np.array([max(_largest(a), _largest(b)) < EVERYTHING for a, b in pairs])
    if (telling & (scores > 0.5)).any():
        worth = np.where(telling, worth, -1)
    return _middle_of_plateau(worth)


def _largest(labels: np.ndarray) -> float:
    """Return the share of the units that are in any module which the largest module holds."""
    held = labels[labels >= 0]
    return np.bincount(held).max() / held.size if held.size else 0.0


def _middle_of_plateau(scores: np.ndarray) -> int:
    """Return the middle of the longest run of scores within PLATEAU of the best."""
    good = scores >= scores.max() - PLATEAU
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int)))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int((starts[longest] + stops[longest] - 1) // 2)


def _otsu(loadings: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that separates the denoised correlations of different units into two classes.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    """
    live = loadings[np.abs(loadings).sum(axis=1) > 0]
    stride = max(1, live.shape[0] // 2048)
    pairs = (live[::stride] @ live[::stride].T)[np.triu_indices(len(live[::stride]), 1)]
    counts, borders = np.histogram(np.clip(pairs, -1, 1), bins=bins, range=(-1, 1))
    centres, share = (borders[1:] + borders[:-1]) / 2, np.cumsum(counts) / max(counts.sum(), 1)
    below = np.cumsum(counts * centres) / max(counts.sum(), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (below[-1] * share - below) ** 2 / (share * (1 - share))
    return float(np.clip(centres[np.nanargmax(np.where(np.isfinite(between), between, -1))], GRID[0], GRID[-1]))


def _alone(labels: np.ndarray) -> np.ndarray:
    result = labels.copy()
    result[labels < 0] = labels.max() + 1 + np.arange((labels < 0).sum())
    return by_size(result)


def _pairs(counts: np.ndarray) -> float:
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
