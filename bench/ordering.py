"""Orders, modules and pruning curves beside their peers in one run, judged on rows the order has not seen.

Run: python bench/ordering.py [units …]. Uses the MNIST MLP in ../shared/data where it is, and planted modules.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import fastcluster
import numpy as np
from safetensors.numpy import load_file
from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from cipm.modules import partition
from cipm.ordering import by_module, scores, spectral
from cipm.permutation import Permutation
from cipm.pruning import elimination_curve
from cipm.statistics import correlation

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
SCIPY_UNITS = 1024  # scipy's leaf order takes a minute and more beyond


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peer(c: np.ndarray) -> Permutation:
    """Return scipy's way: average linkage on √(2 − 2C), optimal leaf ordering."""
    distances = squareform(np.sqrt(np.maximum(2 - 2 * c, 0)), checks=False)
    return Permutation(leaves_list(optimal_leaf_ordering(fastcluster.linkage(distances, "average"), distances)))


def compare(title: str, x: np.ndarray) -> None:
    """Order by one half of the rows, print the scores on the other half."""
    n, samples = x.shape[1], len(x) // 2
    seen, unseen = correlation([x[::2]]), correlation([x[1::2]])
    rows = [("original", 0.0, Permutation.identity(n)),
            ("random", 0.0, Permutation.random(n, generator=np.random.default_rng(0)))]
    if n <= SCIPY_UNITS:
        rows.append(("average linkage + scipy leaf order", *timed(lambda: peer(seen))))
    seconds, found = timed(lambda: partition(seen, samples=samples))
    rows += [("cipm spectral", *timed(lambda: spectral(seen, samples))),
             ("cipm modules", *timed(lambda: by_module(seen, found, samples)))]
    print(f"\n{title}: {n} units, {samples} rows seen, held-out scores; partition {seconds:.2f} s")
    for name, seconds, order in rows:
        s = scores(unseen, order)
        print(f"  {name:<36} {seconds:7.2f} s  banded anti-Robinson {s.banded_anti_robinson:.3f}  path {s.path:.3f}  "
              f"block contrast {s.block_contrast:.3f}")


def planted(units: int, modules: int, samples: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, modules, units)
    x = np.sqrt(rho) * rng.standard_normal((samples, modules), dtype=np.float32)[:, labels]
    return x + np.float32(np.sqrt(1 - rho)) * rng.standard_normal((samples, units), dtype=np.float32), labels


def modules(units: int, count: int, samples: int, rho: float) -> None:
    """Print the agreement with planted modules, ours and sklearn's spectral clustering told the true number."""
    x, truth = planted(units, count, samples, rho)
    c, halves = correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))
    seconds, found = timed(lambda: partition(c, samples=samples, halves=halves))
    clusterer = SpectralClustering(count, affinity="precomputed", random_state=0)
    theirs, labels = timed(lambda: clusterer.fit_predict(np.maximum(c, 0)))
    print(f"  {units} units, {count} modules, correlation {rho}, {samples} samples: "
          f"ARI {adjusted_rand_score(truth, found.labels):.3f} ({seconds:.2f} s, resolution {found.resolution:.3f}); "
          f"sklearn told {count}: {adjusted_rand_score(truth, labels):.3f} ({theirs:.2f} s)")


def hidden_layers(rows: int = 10_000) -> list[tuple[str, np.ndarray]]:
    """Return the hidden activations of the MNIST MLP on real digits, or nothing where the data is not there."""
    weights, digits = DATA / "mnist_zoo" / "mlp_784-512x3-10_seed0.safetensors", DATA / "datasets" / "mnist.npz"
    if not (weights.exists() and digits.exists()):
        print(f"No MNIST MLP under {DATA.resolve()}: planted data only.")
        return []
    w = load_file(weights)
    x = (np.load(digits)["x_train"][:rows].reshape(rows, -1).astype(np.float32) / 255 - 0.1307) / 0.3081
    layers = []
    for i in (1, 2, 3):
        x = np.maximum(x @ w[f"fc{i}.weight"].T + w[f"fc{i}.bias"], 0)
        layers.append((f"MNIST MLP fc{i}", x))
    return layers


def main(sizes: list[int]) -> None:
    warm, _ = planted(64, 4, 500, 0.4)
    seconds, _ = timed(lambda: (spectral(correlation([warm]), 500), partition(correlation([warm]), samples=500)))
    print(f"first call with compiling (or loading from the cache): {seconds:.2f} s")
    for title, x in hidden_layers():
        compare(title, x)
    for units in sizes:
        compare("planted modules", planted(units, units // 40, 4000, 0.2)[0])
    print("\nmodules against planted truth")
    modules(512, 12, 4000, 0.3)
    modules(1024, 24, 1000, 0.1)
    modules(1024, 24, 600, 0.1)
    print("\nelimination curve")
    for units in sizes:
        x, _ = planted(units, units // 40, 4000, 0.2)
        w = np.random.default_rng(1).standard_normal((units, units))
        c, g = np.cov(x.T), w.T @ w
        print(f"  {units} units: {timed(lambda c=c, g=g: elimination_curve([c], [g], samples=4000))[0]:.2f} s")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [512, 2048])
