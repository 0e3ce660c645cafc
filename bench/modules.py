"""Modules beside scikit-learn's clusterers told the true number: planted truth over noise, scaling, false modules, methods.

Run: python bench/modules.py [units …]   (default 256 1024 4096 16384). Agreement is the adjusted Rand index over the planted
units, mean of three draws. Seconds are wall time and, after the slash, processor time. "known factors" assigns each unit to
the planted factor it correlates with most: nobody without them can do better.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from peers.memory import resident
from peers.timing import timed
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score

from cipm.compiled import side_by_side
from cipm.modules import Clustering, partition, partition_factors
from cipm.modules.methods import View, potts, resolutions
from cipm.statistics import correlation
from cipm.statistics.spectrum import denoise, factors_of_samples

UNEVEN = (6, 8, 10, 14, 18, 24, 32, 44, 60, 80, 100, 120)
FULL_CORRELATION_UNITS = 4096  # beyond, from the samples alone


@dataclass(frozen=True)
class Planting:
    """Modules of these sizes whose units correlate by `rho`; `common` is shared by all units, `loose` are in no module."""

    title: str
    sizes: tuple[int, ...]
    rho: float
    common: float = 0.0
    loose: int = 0

    def draw(self, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return samples [samples, units], the module of each planted unit, and the planted factors [samples, modules]."""
        rng = np.random.default_rng(seed)
        truth = rng.permutation(np.repeat(np.arange(len(self.sizes)), self.sizes))
        factors = rng.standard_normal((samples, len(self.sizes)))
        shared = np.sqrt(self.common) * rng.standard_normal((samples, 1))
        x = np.sqrt(self.rho) * factors[:, truth] + shared
        x += np.sqrt(1 - self.rho - self.common) * rng.standard_normal(x.shape)
        rest = shared + np.sqrt(1 - self.common) * rng.standard_normal((samples, self.loose))
        return np.c_[x, rest], truth, factors


PLANTINGS = (Planting("uneven modules (6 to 120 units)", UNEVEN, 0.15),
             Planting("uneven modules, a factor common to all, a quarter loose units", UNEVEN[:10], 0.2, 0.2, 100),
             Planting("12 equal modules of 43 units", (43,) * 12, 0.1))


def took(run: Callable[[], object]) -> tuple[str, object]:
    wall, processor, result = timed(run)
    return f"{wall:.2f}/{processor:.2f} s", result


def agreement(truth: np.ndarray, labels: np.ndarray) -> float:
    """Return the adjusted Rand index over the planted units, which come first; a unit in no module stands alone."""
    labels = labels[:truth.size]
    return adjusted_rand_score(truth, np.where(labels >= 0, labels, labels.max() + 1 + np.arange(labels.size)))


def clusterers(x: np.ndarray, c: np.ndarray, modules: int) -> dict[str, Callable[[], np.ndarray]]:
    """Return scikit-learn's clusterers by name, each on what suits it."""
    z = ((x - x.mean(axis=0)) / x.std(axis=0)).T
    distances = np.sqrt(np.maximum(2 - 2 * c, 0)).astype(np.float64)
    average = AgglomerativeClustering(modules, metric="precomputed", linkage="average")
    spectral = SpectralClustering(modules, affinity="precomputed", random_state=0)
    return {"KMeans of units": lambda: KMeans(modules, n_init=5, random_state=0).fit_predict(z),
            "KMeans of correlations": lambda: KMeans(modules, n_init=5, random_state=0).fit_predict(c),
            "Ward": lambda: AgglomerativeClustering(modules).fit_predict(z),
            "average linkage": lambda: average.fit_predict(1 - c),
            "spectral": lambda: spectral.fit_predict(np.maximum(c, 0)),
            "HDBSCAN": lambda: HDBSCAN(min_cluster_size=5, metric="precomputed", copy=True).fit_predict(distances)}


def over_noise(planting: Planting, draws: int = 3) -> None:
    """Print the agreement over ever fewer samples."""
    print(f"\n{planting.title}, correlation {planting.rho}: {sum(planting.sizes) + planting.loose} units")
    for samples in (1000, 400, 200, 150, 120):
        rows: dict[str, list[float]] = {}
        for seed in range(draws):
            for name, value in _one_draw(planting, samples, seed):
                rows.setdefault(name, []).append(value)
        found = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in rows.items())
        print(f"  {samples:>5} samples: {found}", flush=True)


def _one_draw(planting: Planting, samples: int, seed: int) -> list[tuple[str, float]]:
    x, truth, factors = planting.draw(samples, seed)
    c, halves = correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))
    view = View(denoise(c, samples, weak=True).loadings, c)
    tried = potts(view, resolutions(view.factors, False), False, 0) if view.factors.shape[1] else []
    ours = [("cipm", partition(c, samples=samples, halves=halves).labels),
            ("without halves", partition(c, samples=samples).labels)]
    theirs = [(name, run()) for name, run in clusterers(x, c, len(planting.sizes)).items()]
    known = (x[:, :truth.size] - x[:, :truth.size].mean(axis=0)).T @ (factors - factors.mean(axis=0)) / factors.std(axis=0)
    found = [(name, agreement(truth, labels)) for name, labels in ours]
    best = ("best resolution", max((agreement(truth, labels) for labels in tried), default=0.0))
    return [*found, best, *((name, agreement(truth, labels)) for name, labels in theirs),
            ("known factors", agreement(truth, known.argmax(axis=1)))]


def scaling(units: int, samples: int = 4000) -> None:
    """Print the time for modules of 128 units, from samples and, where it is not too large, from the correlation."""
    sizes = (128,) * (units // 128)
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = np.sqrt(np.float32(0.2)) * rng.standard_normal((samples, len(sizes)), dtype=np.float32)[:, truth]
    x += np.sqrt(np.float32(0.8)) * rng.standard_normal(x.shape, dtype=np.float32)
    began = time.perf_counter()
    spent, whole = took(lambda: factors_of_samples(x, weak=True))
    halves_spent, halves = took(lambda: tuple(side_by_side(
        lambda half: factors_of_samples(half, count=whole.strong, weak=True), (x[::2], x[1::2]))))
    found_spent, found = took(lambda: partition_factors(whole, halves, samples=samples))
    print(f"  {units:>6} units from samples: factors {spent}, those of the halves {halves_spent}, modules {found_spent}, "
          f"together {time.perf_counter() - began:.2f} s, agreement {agreement(truth, found.labels):.3f}")
    if units <= FULL_CORRELATION_UNITS:
        c, split = correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))
        spent, found = took(lambda: partition(c, samples=samples, halves=split))
        print(f"         from correlations, factors and all: {spent}, agreement {agreement(truth, found.labels):.3f}")
    if units <= 1024:
        for name, run in clusterers(x, c, len(sizes)).items():
            spent, labels = took(run)
            print(f"         {name}: {spent}, agreement {agreement(truth, labels):.3f}")


def methods() -> None:
    """Print what the ways to find modules do by themselves, also where units of opposite sign belong together."""
    print("\nways to find modules, number and resolution chosen by the halves; uneven modules, 600 samples")
    x, truth, _ = PLANTINGS[0].draw(600, 0)
    turned = x * np.where(np.random.default_rng(0).random(x.shape[1]) < 0.3, -1, 1)
    for pairs, rows in (("signed", x), ("absolute", turned)):
        c, halves = correlation([rows]), (correlation([rows[::2]]), correlation([rows[1::2]]))
        for method in ("potts", "agglomerative", "spectral"):
            way = Clustering(method, pairs)
            spent, found = took(lambda c=c, halves=halves, way=way: partition(c, samples=600, halves=halves, clustering=way))
            print(f"  {method:<14} {pairs:<9} agreement {agreement(truth, found.labels):.3f}, {found.modules} modules, {spent}")


def false_modules(matrices: int = 200) -> None:
    """Print how often pure noise shows a module."""
    print(f"\nfalse modules: share of {matrices} noise matrices in which one is found, with halves and without")
    rng = np.random.default_rng(0)
    kinds = {"Gaussian": rng.standard_normal, "Student, 3 degrees of freedom": lambda shape: rng.standard_t(3, shape),
             "rectified": lambda shape: np.maximum(rng.standard_normal(shape), 0),
             "active in 1 % of samples": lambda shape: (rng.random(shape) < 0.01) * rng.exponential(size=shape)}
    for name, draw in kinds.items():
        counts = np.zeros(2)
        for number in range(matrices):
            samples, units = ((100, 40), (500, 60), (60, 120), (200, 12))[number % 4]
            x = draw((samples, units))
            c, halves = correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))
            counts += [partition(c, samples=samples, halves=given).modules > 0 for given in (halves, None)]
        print(f"  {name:<32} {counts[0] / matrices:.3f}  {counts[1] / matrices:.3f}")


def main(sizes: list[int]) -> None:
    partition(correlation([PLANTINGS[0].draw(200, 0)[0]]), samples=200)  # compiled loops
    for planting in PLANTINGS:
        over_noise(planting)
    methods()
    false_modules()
    print("\nscaling: modules of 128 units, correlation 0.2, 4000 samples")
    for units in sizes:
        scaling(units)
    print(f"  most memory held: {resident() / 1e9:.1f} GB")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [256, 1024, 4096, 16384])
