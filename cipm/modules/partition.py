"""Modules of a group: units that correlate with each other beyond noise, at the most reproducible resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cipm.compiled import side_by_side
from cipm.errors import InputError, OptionError
from cipm.modules.halving import drawn_halves
from cipm.modules.louvain import by_size
from cipm.modules.methods import METHODS, View
from cipm.modules.refine import module_signs
from cipm.statistics.spectrum import Factors, denoise

CHANCE = 0.1  # agreement of the two halves below which the modules found are called noise
EVERYTHING = 0.95  # a module with this share of the units says no more than that all correlate
PLATEAU, NOISY = 0.02, 0.15  # as good as the best: that share of it less, and more where the halves are noisy
NOTHING = "no factor stands above the noise of so many samples"
DISAGREEMENT = "the two probe halves do not agree on any module"
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
    `half_labels` are those two partitions, `loadings` [units, factors] the factors in which the modules of the whole and of
    the two halves were sought (None without halves). `signs` [units] are the sides (±1) of units within their modules where
    anti-correlated units belong together, otherwise None. `how` says in words how the setting came about.
    """

    labels: np.ndarray
    resolution: float | None
    stability: float | None
    how: str
    half_labels: tuple[np.ndarray, np.ndarray] | None = None
    signs: np.ndarray | None = None
    loadings: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def modules(self) -> int:
        return int(self.labels.max(initial=-1)) + 1


def partition(correlation: np.ndarray, *, samples: int, resolution: float = 0.0,
              halves: tuple[np.ndarray, np.ndarray] | None = None, clustering: Clustering = Clustering(),
              generator: np.random.Generator | None = None) -> Partition:
    """Return the modules of a correlation [units, units] sampled `samples` times.

    Signed constant-Potts communities of the correlation denoised at the random-matrix edge: pairs above `resolution`
    attract, the others (anti-correlated ones most) repel; then the correlation itself decides about each unit.
    Resolution 0 chooses the one at which the two probe halves agree best, and modules that do not reproduce at all are
    dropped. `halves` are their correlations; without them two halves are drawn from the correlation as if the samples
    were Gaussian. Nothing above the edge of noise means no module. A unit alone is in no module.

    Given halves keep out what chance made; drawn ones cannot where activations have heavy tails: rarely active units
    that once fired together look like a module in both. A group of one unit, one sample, and units
    that are all constant have no module, and `how` says so. Fewer samples than units is allowed: the edge rises with
    units / samples, and weak modules are then not seen.

    Raises OptionError for a resolution outside [0, 1), InputError for a correlation that is not square or not finite.
    Cost: see `denoise` (thrice), then milliseconds per resolution at 512 units. Deterministic for a given generator
    state.
    """
    whole, *split = (_checked(part, len(correlation)) for part in (correlation, *(halves or ())))
    reason = _nothing_to_see(len(whole), samples, resolution)
    factors = None if reason else denoise(whole, samples, weak=True)
    if reason or not factors.values.size:
        return _none(len(whole), resolution, reason or NOTHING)
    seed = int((generator or np.random.default_rng(0)).integers(2**31))
    view = View(factors.loadings, whole)
    if halves is None and (resolution or clustering.modules):
        return _found([view], samples, resolution, clustering, seed)
    some = np.arange(len(whole)) if split else _evenly(len(whole))
    among = split or drawn_halves(whole[np.ix_(some, some)], samples, np.random.default_rng(seed))
    parts = side_by_side(lambda part: View(denoise(part, samples // 2, count=factors.strong, weak=True).loadings, part), among)
    if split:
        return _found([view, *parts], samples, resolution, clustering, seed)
    return _by_drawn_halves(view, view.among(some), parts, samples, clustering, seed)


def partition_factors(whole: Factors, halves: tuple[Factors, Factors], *, samples: int, resolution: float = 0.0,
                      clustering: Clustering = Clustering(), generator: np.random.Generator | None = None) -> Partition:
    """Return the modules from factors alone, for groups whose correlation is not at hand or too large; see `partition`.

    The factors are best taken with `weak`, the halves' as many as the whole's (`count`); see `factors_of_samples`.
    What the correlation would say below the edge of noise is not used. Cost: seconds at 16,384 units.
    """
    reason = _nothing_to_see(len(whole.loadings), samples, resolution) or ("" if whole.values.size else NOTHING)
    if reason:
        return _none(len(whole.loadings), resolution, reason)
    seed = int((generator or np.random.default_rng(0)).integers(2**31))
    return _found([View(part.loadings) for part in (whole, *halves)], samples, resolution, clustering, seed)


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


def _found(views: list[View], samples: int, resolution: float, clustering: Clustering, seed: int) -> Partition:
    """Choose the setting, find the modules with it in the whole and the halves, and say how."""
    method, units = METHODS[clustering.method], len(views[0].factors)
    given = clustering.modules if method.setting == "modules" else resolution
    some = _evenly(units)
    tried = views if some.size == units else [view.among(some) for view in views]
    chosen, how = (given, "given") if given else _most_stable(tried, clustering, seed)[:2]
    where = "" if given or some.size == units else f", tried on {some.size} of {units} units"
    found = side_by_side(lambda view: method.find(view, [chosen], clustering.pairs == "absolute", seed)[0], views)
    stability = agreement(found[1], found[2]) if len(found) > 1 else None
    if stability is not None and stability < CHANCE:
        return _none(units, chosen if method.setting == "resolution" else None, DISAGREEMENT)
    said = f"{how}{' over the two probe halves' if not given else ''}{where}"
    return _result(views, found, chosen, stability, said, samples, clustering)


def _by_drawn_halves(whole: View, tried: View, parts: list[View], samples: int, clustering: Clustering,
                     seed: int) -> Partition:
    """Choose the setting by halves that were drawn; they say nothing of stability."""
    method, (units, used) = METHODS[clustering.method], (len(whole.factors), len(tried.factors))
    chosen, how, agreed = _most_stable([tried, *parts], clustering, seed)
    if agreed < CHANCE:
        return _none(units, chosen if method.setting == "resolution" else None, DISAGREEMENT)
    where = "" if used == units else f", tried on {used} of {units} units"
    found = method.find(whole, [chosen], clustering.pairs == "absolute", seed)
    said = f"{how} over two halves drawn from the correlation{where}"
    return _result([whole], found, chosen, None, said, samples, clustering)


def _most_stable(views: list[View], clustering: Clustering, seed: int) -> tuple[float | int, str, float]:
    """Return the resolution or number of modules on which the halves agree best, how it was found, and the agreement."""
    method, absolute = METHODS[clustering.method], clustering.pairs == "absolute"
    values = method.values(views[0].factors, absolute)
    found = list(zip(*side_by_side(lambda view: method.find(view, values, absolute, seed), views[1:]), strict=True))
    scores = np.array([agreement(*pair) for pair in found])
    worth = _worth(scores, found)
    best = _best_of_plateau(worth, np.array(values)) if method.setting == "resolution" else _most_modules(worth)
    words = "resolutions" if method.setting == "resolution" else "numbers of modules"
    return values[best], f"most stable of {len(values)} {words}", float(scores[best])


def _result(views: list[View], found: list[np.ndarray], chosen: float | int, stability: float | None, how: str, samples: int,
            clustering: Clustering) -> Partition:
    labels, gamma = found[0], chosen if METHODS[clustering.method].setting == "resolution" else None
    few = "; fewer samples than units: weak modules are not seen" if samples < labels.size else ""
    signs = _signs(views[0], labels) if clustering.pairs == "absolute" else None
    return Partition(labels, gamma, stability, f"{how}; {PAIRS[clustering.pairs]}{few}",
                     (found[1], found[2]) if len(found) > 1 else None, signs,
                     tuple(view.factors for view in views) if len(views) > 1 else None)


def _evenly(units: int) -> np.ndarray:
    """Return the units on which settings are compared."""
    return np.unique(np.linspace(0, units - 1, min(units, SCANNED)).round().astype(np.int64))


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


def _nothing_to_see(units: int, samples: int, resolution: float) -> str:
    """Return why there can be no module, or nothing; refuse a resolution that cannot be."""
    if not 0 <= resolution < 1:
        raise OptionError(f"The resolution is a correlation from 0 to below 1; it cannot be {resolution}.",
                          where="resolution")
    if units < 2:
        return "a group of one unit has no modules"
    return f"{samples} probe samples cannot be halved and compared: at least four are needed" if samples < 4 else ""


def _none(units: int, resolution: float | None, how: str) -> Partition:
    return Partition(np.full(units, -1), resolution, None, how)


def _worth(scores: np.ndarray, found: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return how telling each setting is: agreement × √(share of units in modules), one-module answers last.

    Agreement alone would favour a few pairs of near-duplicates, or one module of everything.
    """
    worth = scores * np.sqrt([min((a >= 0).mean(), (b >= 0).mean()) for a, b in found])
    telling = np.array([max(_largest(a), _largest(b)) < EVERYTHING for a, b in found])
    return np.where(telling, worth, -1) if (telling & (scores > 0.5)).any() else worth


def _largest(labels: np.ndarray) -> float:
    """Return the share of the units that are in any module which the largest module holds."""
    held = labels[labels >= 0]
    return np.bincount(held).max() / held.size if held.size else 0.0


def _most_modules(scores: np.ndarray) -> int:
    """Return the largest number of modules that is about as good as the best: those of a smaller one are joined."""
    return int(np.flatnonzero(scores >= scores.max() - PLATEAU)[-1])


def _best_of_plateau(scores: np.ndarray, values: np.ndarray) -> int:
    """Return the one to take of the widest run, by `values`, of scores that are about the best.

    That is the middle where the halves agree fully, and the less they do the nearer to the lower end: halves are noisier
    than the whole, and noise favours higher resolutions.
    """
    top = scores.max()
    good = scores >= top - max(top, 0) * (PLATEAU + NOISY * (1 - top))
    edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int)))
    starts, stops = edges[::2], edges[1::2]
    widths = np.r_[values, values[-1]][stops] - values[starts]  # up to the first value that is no longer good
    widest = int(np.argmax(widths))
    run = np.arange(starts[widest], stops[widest])
    return int(run[np.abs(values[run] - values[run[0]] - (values[run[-1]] - values[run[0]]) * top / 2).argmin()])


def _alone(labels: np.ndarray) -> np.ndarray:
    result = labels.copy()
    result[labels < 0] = labels.max() + 1 + np.arange((labels < 0).sum())
    return by_size(result)


def _pairs(counts: np.ndarray) -> float:
    counts = counts.astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
