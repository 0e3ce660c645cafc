"""Modules of a group: units that correlate with each other beyond noise, at the most reproducible resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.errors import InputError, OptionError
from cipm.modules.louvain import by_size
from cipm.modules.methods import METHODS, View, pairs, potts
from cipm.modules.refine import module_signs
from cipm.statistics.spectrum import Factors, denoise

CHANCE = 0.1  # agreement of the two halves below which the modules found are called noise
EVERYTHING = 0.95  # a module with this share of the units says no more than that all correlate
PLATEAU = 0.02  # settings whose agreement is this close to the best are equally good
SCANNED = 2048  # more units than these: the setting is chosen on as many of them, evenly spread
PAIRS = {"signed": "anti-correlated units repel each other", "absolute": "anti-correlated units belong together"}


@dataclass(frozen=True)
class Clustering:
    """How modules are sought: `method` "potts" (constant-Potts communities), "agglomerative" (average linkage) or
    "spectral"; `pairs` "signed" (anti-correlated units repel each other) or "absolute" (they belong together);
    `modules` their number for the last two methods, 0 = the most reproducible number.

    Raises OptionError for a name that does not exist and for a number that the method cannot take.
    """

    method: str = "potts"
    pairs: str = "signed"
    modules: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("pairs", self.pairs, PAIRS)):
            if value not in known:
                raise OptionError(f"The {name} of modules is one of {', '.join(known)}; it cannot be {value!r}.", where=name)
        if self.modules and (self.modules < 2 or self.method == "potts"):
            raise OptionError("The number of modules is 2 or more, for the methods agglomerative and spectral; "
                              f"{self.modules} with {self.method} cannot be.", where="modules",
                              fix="Give potts a resolution instead.")


@dataclass(frozen=True, eq=False)
class Partition:
    """Modules of units: `labels` [units] int, 0 the largest module, −1 = in no module.

    `resolution` is the correlation two units must exceed to attract each other; None for methods that are told a
    number of modules. `stability` is the agreement (adjusted Rand index: 1 equal, 0 chance) of the partitions of the
    two probe halves at this setting, NaN-free: None where no halves were given or no module was found.
    `half_labels` are those two partitions. `signs` [units] are the sides (±1) of units within their modules where
    anti-correlated units belong together, otherwise None. `how` says in words how the setting came about.
    """

    labels: np.ndarray
    resolution: float | None
    stability: float | None
    how: str
    half_labels: tuple[np.ndarray, np.ndarray] | None = None
    signs: np.ndarray | None = None

    @property
    def modules(self) -> int:
        return int(self.labels.max(initial=-1)) + 1


def partition(correlation: np.ndarray, *, samples: int, resolution: float = 0.0,
              halves: tuple[np.ndarray, np.ndarray] | None = None, clustering: Clustering = Clustering(),
              generator: np.random.Generator | None = None) -> Partition:
    """Return the modules of a correlation [units, units] sampled `samples` times.

    Signed constant-Potts communities of the correlation denoised at the random-matrix edge: pairs above `resolution`
    attract, the others (anti-correlated ones most) repel; then the correlation itself decides about each unit. With
    `halves` (the correlations of the two probe halves) resolution 0 chooses the one at which the halves agree best,
    and modules that do not reproduce at all are dropped; without, it takes the value that splits the denoised
    correlations best in two (Otsu). Nothing above the edge of noise means no module. A unit alone is in no module.

    Without halves the edge of noise is all there is against false modules, and it holds for activations without heavy
    tails: rarely active units that happen to fire together once pass it. A group of one unit, one sample, and units
    that are all constant have no module, and `how` says so. Fewer samples than units is allowed: the edge rises with
    units / samples, and weak modules are then not seen.

    Raises OptionError for a resolution outside [0, 1), InputError for a correlation that is not square or not finite.
    Cost: see `denoise` (thrice with halves); then milliseconds per resolution at 512 units. Deterministic for a given
    generator state.
    """
    whole, *split = (_checked(part, len(correlation)) for part in (correlation, *(halves or ())))
    reason = _nothing_to_see(len(whole), samples, halves is not None)
    if reason:
        return _none(len(whole), resolution, reason)
    factors = denoise(whole, samples)
    parts = tuple(denoise(part, samples // 2, count=factors.values.size) for part in split)
    views = [View(f.loadings, c) for f, c in zip((factors, *parts), (whole, *split), strict=True)]
    return _found(views, samples, resolution, clustering, generator)


def partition_factors(whole: Factors, *, samples: int, resolution: float = 0.0,
                      halves: tuple[Factors, Factors] | None = None, clustering: Clustering = Clustering(),
                      generator: np.random.Generator | None = None) -> Partition:
    """Return the modules from factors alone, for groups whose correlation is not at hand or too large; see `partition`.

    The halves' factors are best as many as the whole's (`count` of `denoise` and `factors_of_samples`). What the
    correlation would say below the edge of noise is not used. Cost: seconds at 16,384 units.
    """
    views = [View(part.loadings) for part in (whole, *(halves or ()))]
    reason = _nothing_to_see(len(whole.loadings), samples, halves is not None)
    if reason:
        return _none(len(whole.loadings), resolution, reason)
    return _found(views, samples, resolution, clustering, generator)


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
    _, counts = np.unique(a * (b.max() + 1) + b, return_counts=True)
    together, in_a, in_b = (_pairs(c) for c in (counts, np.bincount(a), np.bincount(b)))
    expected, largest = in_a * in_b / _pairs(np.array([a.size])), (in_a + in_b) / 2
    return float((together - expected) / (largest - expected)) if largest > expected else 1.0


def _found(views: list[View], samples: int, resolution: float, clustering: Clustering,
           generator: np.random.Generator | None) -> Partition:
    """Choose the setting, find the modules with it, and say how."""
    if not 0 <= resolution < 1:
        raise OptionError(f"The resolution is a correlation from 0 to below 1; it cannot be {resolution}.",
                          where="resolution")
    units, seed = len(views[0].factors), int((generator or np.random.default_rng(0)).integers(2**31))
    if views[0].factors.shape[1] == 0:
        return _none(units, resolution, "no factor stands above the noise of so many samples")
    method, absolute = METHODS[clustering.method], clustering.pairs == "absolute"
    given = clustering.modules if method.setting == "modules" else resolution
    chosen, how = (given, "given") if given else _setting(views, clustering, seed)
    found = [method.find(view, [chosen], absolute, seed)[0] for view in views]
    gamma = chosen if method.setting == "resolution" else None
    stability = agreement(found[1], found[2]) if len(views) > 1 else None
    if stability is not None and stability < CHANCE:
        return _none(units, gamma, "the two probe halves do not agree on any module")
    return Partition(found[0], gamma, stability, f"{how}; {_conditions(clustering, units, samples)}",
                     (found[1], found[2]) if len(views) > 1 else None,
                     _signs(views[0], found[0]) if absolute else None)


def _setting(views: list[View], clustering: Clustering, seed: int) -> tuple[float | int, str]:
    """Return the resolution or number of modules on which the halves agree best, and how it was found."""
    method, absolute = METHODS[clustering.method], clustering.pairs == "absolute"
    if len(views) == 1 and method.setting == "resolution":
        return _otsu(views[0].factors, absolute), "best split of the denoised correlations in two (no probe halves)"
    units = len(views[0].factors)
    some = np.unique(np.linspace(0, units - 1, min(units, SCANNED)).round().astype(np.int64))
    tried = [view.among(some) for view in views] if some.size < units else views
    if len(views) == 1:
        return _like_potts(tried[0], absolute, seed), "as many as Potts communities find (no probe halves)"
    values = method.values(tried[0].factors, absolute)
    found = list(zip(*(method.find(view, values, absolute, seed) for view in tried[1:]), strict=True))
    best = _choose(np.array([agreement(*pair) for pair in found]), found, values)
    where = "" if some.size == units else f", tried on {some.size} of {units} units"
    words = "resolutions" if method.setting == "resolution" else "numbers of modules"
    return values[best], f"most stable of {len(values)} {words} over the two probe halves{where}"


def _like_potts(view: View, absolute: bool, seed: int) -> int:
    found = potts(view, [_otsu(view.factors, absolute)], absolute, seed)[0]
    return max(int(found.max(initial=-1)) + 1, 2)


def _conditions(clustering: Clustering, units: int, samples: int) -> str:
    few = "; fewer samples than units: weak modules are not seen" if samples < units else ""
    return f"{PAIRS[clustering.pairs]}{few}"


def _signs(view: View, labels: np.ndarray) -> np.ndarray:
    """Return the sides of units within their modules, one module at a time."""
    signs = np.ones(labels.size, dtype=np.int64)
    for module in range(labels.max(initial=-1) + 1):
        units = np.flatnonzero(labels == module)
        block = view.factors[units] @ view.factors[units].T
        signs[units] = module_signs(block, np.zeros(units.size, dtype=np.int64))
    return signs


def _checked(correlation: np.ndarray, units: int) -> np.ndarray:
    correlation = np.asarray(correlation)
    if correlation.shape != (units, units):
        raise InputError(f"A correlation is a square matrix [units, units] and its halves are like it; "
                         f"one has the shape {list(correlation.shape)} where {units} units were expected.", where="correlation")
    if not np.isfinite(correlation).all():
        raise InputError("The correlation holds values that are not finite.", where="correlation",
                         fix="Leave out the rows with NaN or infinity, or give constant units a correlation of 0.")
    return correlation


def _nothing_to_see(units: int, samples: int, halves: bool) -> str:
    """Return why there can be no module, or nothing."""
    if units < 2:
        return "a group of one unit has no modules"
    if samples < 2:
        return "one probe sample shows no correlation: at least two are needed"
    few = halves and samples < 4
    return f"{samples} probe samples are too few to compare two halves: at least four are needed" if few else ""


def _none(units: int, resolution: float | None, how: str) -> Partition:
    return Partition(np.full(units, -1), resolution, None, how)


def _choose(scores: np.ndarray, found: list[tuple[np.ndarray, np.ndarray]], values: tuple) -> int:
    """Return the most telling setting: agreement × √(share of units in modules), one-module answers last.

    Agreement alone would favour a few pairs of near-duplicates, or one module of everything.
    """
    worth = scores * np.sqrt([min((a >= 0).mean(), (b >= 0).mean()) for a, b in found])
    telling = np.array([max(_largest(a), _largest(b)) < EVERYTHING for a, b in found])
    if (telling & (scores > 0.5)).any():
        worth = np.where(telling, worth, -1)
    return _middle_of_plateau(worth, np.asarray(values, dtype=np.float64))


def _largest(labels: np.ndarray) -> float:
    """Return the share of the units that are in any module which the largest module holds."""
    held = labels[labels >= 0]
    return np.bincount(held).max() / held.size if held.size else 0.0


def _middle_of_plateau(scores: np.ndarray, values: np.ndarray) -> int:
    """Return the middle of the widest run, by `values`, of scores within PLATEAU of the best."""
    good = scores >= scores.max() - PLATEAU
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int)))
    starts, stops = edges[::2], edges[1::2]
    widths = np.r_[values, values[-1]][stops] - values[starts]  # up to the first value that is no longer good
    widest = int(np.argmax(widths))
    run = np.arange(starts[widest], stops[widest])
    return int(run[np.abs(values[run] - (values[run[0]] + values[run[-1]]) / 2).argmin()])


def _otsu(factors: np.ndarray, absolute: bool, bins: int = 256) -> float:
    """Return the threshold that separates the denoised correlations of different units into two classes.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    """
    counts, borders = np.histogram(np.clip(pairs(factors, absolute), -1, 1), bins=bins, range=(-1, 1))
    centres, share = (borders[1:] + borders[:-1]) / 2, np.cumsum(counts) / max(counts.sum(), 1)
    below = np.cumsum(counts * centres) / max(counts.sum(), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (below[-1] * share - below) ** 2 / (share * (1 - share))
    return float(np.clip(centres[np.nanargmax(np.where(np.isfinite(between), between, -1))], 0.01, 0.85))


def _alone(labels: np.ndarray) -> np.ndarray:
    result = labels.copy()
    result[labels < 0] = labels.max() + 1 + np.arange((labels < 0).sum())
    return by_size(result)


def _pairs(counts: np.ndarray) -> float:
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
