"""Orders beside scipy's linkage with optimal leaf ordering and other heuristics, judged on rows they have not seen; scaling.

Run: python bench/ordering.py [units …]   (default 256 1024 4096 16384). Uses the MNIST networks in ../shared/data where
they are, and planted modules. Seconds are wall time and, after the slash, processor time of the fastest of several runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fastcluster
import numpy as np
import torch
import torch.nn.functional as F
from peers.memory import NOW, forget_peak, resident
from peers.timing import timed
from safetensors.torch import load_file
from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from cipm.modules import partition
from cipm.ordering import Link, Scores, by_module, chance, coordinate, portfolio, scores, spectral
from cipm.ordering.leaves import leaf_order
from cipm.ordering.portfolio import METHODS, angle, average_linkage, fiedler
from cipm.permutation import Permutation
from cipm.pruning import elimination_curve
from cipm.statistics import correlation

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
FEW_UNITS = 128  # of these the rows are split in several ways
SCIPY_UNITS = 1024  # scipy's leaf order takes a minute and more beyond
OURS = dict(zip(METHODS, (spectral, angle, fiedler, average_linkage), strict=True))
HEAD = f"  {'':<36} {'seconds':>15}  banded AR  path   R²16   AR     2-SUM"


def distances(c: np.ndarray) -> np.ndarray:
    return squareform(np.sqrt(np.maximum(2 - 2 * c, 0)), checks=False)


def scipys(c: np.ndarray, method: str = "average") -> Permutation:
    """Return scipy's way: linkage on √(2 − 2C), optimal leaf ordering."""
    condensed = distances(c)
    return Permutation(leaves_list(optimal_leaf_ordering(fastcluster.linkage(condensed, method), condensed)))


def first_component(c: np.ndarray) -> Permutation:
    return Permutation(np.argsort(np.linalg.eigh(c)[1][:, -1], kind="stable"))


def nearest_neighbours(c: np.ndarray) -> Permutation:
    """Return the greedy path: from the unit most correlated with all, always on to the nearest unit not yet visited."""
    left, path = c.astype(np.float64), [int(c.sum(axis=0).argmax())]
    for _ in range(len(c) - 1):
        left[:, path[-1]] = -np.inf
        path.append(int(left[path[-1]].argmax()))
    return Permutation(np.array(path))


def compare(title: str, x: np.ndarray) -> None:
    """Order by one half of the rows, print the scores on the other half; rows are [rows, units] or [rows, places, units]."""
    seen, unseen = x[::2], x[1::2]
    n, rows = x.shape[-1], len(seen)
    c, judge = (correlation([part.reshape(-1, n)]) for part in (seen, unseen))
    halves = tuple(correlation([seen[i::2].reshape(-1, n)]) for i in (0, 1))
    orders = [("original", lambda: Permutation.identity(n))]
    if n <= SCIPY_UNITS:
        orders += [("average linkage + scipy leaf order", lambda: scipys(c)),
                   ("Ward + scipy leaf order", lambda: scipys(c, "ward")),
                   ("first component", lambda: first_component(c)),
                   ("nearest neighbours", lambda: nearest_neighbours(c))]
    orders += [(f"cipm {name}", lambda method=method: method(c, rows)) for name, method in OURS.items()
               if n <= 4096 or name in ("spectral", "angle")]
    orders.append(("cipm modules", lambda: by_module(c, partition(c, samples=rows, halves=halves), rows)))
    print(f"\n{title}: {n} units, {rows} rows seen, scores on {len(unseen)} others\n{HEAD}")
    found = {name: judged(name, run, judge) for name, run in orders}
    wall, processor, best = timed(lambda: portfolio(c, halves, rows))
    found["portfolio"] = show(f"cipm portfolio: {best.chosen}", wall, processor, scores(judge, best.order))
    random = chance(judge, generator=np.random.default_rng(0))
    show("random: mean of 5", 0, 0, random.mean)
    show("random: sd", 0, 0, random.sd)
    if peer := found.get("average linkage + scipy leaf order"):
        near, contrast = ratios(found["portfolio"], peer)
        print(f"  portfolio ÷ average linkage + scipy: banded anti-Robinson {near:.3f}, R²16 {contrast:.3f}", flush=True)
    if n <= FEW_UNITS:
        other_splits(x)


def ratios(ours: Scores, peer: Scores) -> tuple[float, float]:
    """Return banded anti-Robinson and block contrast as shares of the peer's."""
    return ours.banded_anti_robinson / peer.banded_anti_robinson, ours.block_contrast / peer.block_contrast


def other_splits(x: np.ndarray, splits: int = 10) -> None:
    """Print the same two ratios over random splits of the rows: blocks of a few units differ from split to split."""
    found, n = [], x.shape[-1]
    for seed in range(splits):
        rows = np.random.default_rng(seed).permutation(len(x))
        seen, unseen = x[rows[::2]], x[rows[1::2]]
        c, judge, *halves = (correlation([part.reshape(-1, n)]) for part in (seen, unseen, seen[::2], seen[1::2]))
        best = portfolio(c, tuple(halves), len(seen))
        found.append(ratios(scores(judge, best.order), scores(judge, scipys(c))))
    (near, contrast), (worst, least) = np.mean(found, axis=0), (max(f[0] for f in found), min(f[1] for f in found))
    print(f"  over {splits} random splits of the rows: banded anti-Robinson {near:.3f} (worst {worst:.3f}), "
          f"R²16 {contrast:.3f} (worst {least:.3f})", flush=True)


def judged(name: str, run: Callable[[], Permutation], judge: np.ndarray) -> Scores:
    wall, processor, order = timed(run)
    return show(name, wall, processor, scores(judge, order))


def show(name: str, wall: float, processor: float, s: Scores) -> Scores:
    values = f"{s.banded_anti_robinson:.3f}   {s.path:.3f}  {s.block_contrast:.3f}  {s.anti_robinson:.3f}  {s.two_sum:.3f}"
    print(f"  {name:<36} {wall:6.2f} / {processor:6.2f}    {values}", flush=True)
    return s


def planted(units: int, modules: int, samples: int, rho: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, modules, units)
    x = np.float32(np.sqrt(rho)) * rng.standard_normal((samples, modules), dtype=np.float32)[:, labels]
    for rows in np.array_split(x, max(1, samples // 500)):
        rows += np.float32(np.sqrt(1 - rho)) * rng.standard_normal(rows.shape, dtype=np.float32)
    return x


def digits(rows: int) -> torch.Tensor:
    images = np.load(DATA / "datasets" / "mnist.npz")["x_train"][:rows].astype(np.float32) / 255
    return torch.from_numpy((images - 0.1307) / 0.3081)


def stored(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.float() for key, tensor in load_file(DATA / "mnist_zoo" / f"{name}.safetensors").items()}


def perceptron() -> dict[str, torch.Tensor]:
    return stored("mlp_784-512x3-10_seed0")


def real_layers(rows: int = 8000) -> list[tuple[str, np.ndarray]]:
    """Return the hidden activations of the MNIST networks on real digits, or nothing where the data is not there."""
    if not (DATA / "mnist_zoo").is_dir():
        print(f"No MNIST networks under {DATA.resolve()}: planted data only.")
        return []
    w, images, layers = perceptron(), digits(rows), []
    x = images.flatten(1)
    for i in (1, 2, 3):
        x = F.relu(F.linear(x, w[f"fc{i}.weight"], w[f"fc{i}.bias"]))
        layers.append((f"MNIST MLP fc{i}", x.numpy()))
    w = stored("lenet_20-50-500-10_seed2")
    x = F.max_pool2d(F.conv2d(images[:rows // 2, None], w["conv1.weight"], w["conv1.bias"]), 2)
    x = F.max_pool2d(F.conv2d(x, w["conv2.weight"], w["conv2.bias"]), 2)
    layers.append(("LeNet conv2, 16 positions an image", x.flatten(2).mT.numpy()))
    layers.append(("LeNet fc1", F.relu(F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"])).numpy()))
    return layers


def leaves(units: list[int]) -> None:
    print("\nexact leaf order of Ward's tree of random points (20 dimensions), path as share of scipy's\n"
          "  units     seconds      scipy's   path")
    for n in units:
        points = np.random.default_rng(n).standard_normal((n, 20))
        d = np.sqrt(np.maximum((points**2).sum(1)[:, None] + (points**2).sum(1) - 2 * points @ points.T, 0))
        condensed = squareform(d, checks=False)
        merges, close = fastcluster.linkage(condensed, "ward"), d.astype(np.float32)
        wall, processor, order = timed(lambda merges=merges, close=close: leaf_order(merges, close), 3)
        text = "        –      –"
        if n <= SCIPY_UNITS:
            theirs, _, other = timed(lambda m=merges, c=condensed: leaves_list(optimal_leaf_ordering(m, c)))
            text = f"{theirs:9.2f}  {d[order[:-1], order[1:]].sum() / d[other[:-1], other[1:]].sum():.3f}"
        print(f"  {n:<6} {wall:6.2f} / {processor:.2f} {text}", flush=True)


def scaling(units: list[int]) -> None:
    """Print the seconds of `spectral` on planted modules of 40 units, what is found of them, and the memory on top."""
    print("\nspectral, planted modules of 40 units (correlation .2, 4000 rows); memory beside the correlation itself\n"
          "  units        seconds     R²16   R²16 of the planted order   GB")
    for n in sorted(units):
        x = planted(n, n // 40, 4000, 0.2)
        labels = np.random.default_rng(0).integers(0, n // 40, n)
        c = correlation([x]).astype(np.float32, copy=False)
        del x
        forget_peak()
        before = resident(NOW)
        wall, processor, order = timed(lambda c=c: spectral(c, 4000), 3 if n <= 4096 else 1)
        memory = (resident() - before) / 1e9
        ours, truth = (scores(c, o).block_contrast for o in (order, Permutation(np.argsort(labels, kind="stable"))))
        print(f"  {n:<6} {wall:7.2f} / {processor:6.2f}   {ours:.4f} {truth:10.4f} {memory:22.2f}", flush=True)


def coordination() -> None:
    """Print how the weights of the MLP lie along their diagonals before and after coordinating its three layers."""
    if not (DATA / "mnist_zoo").is_dir():
        return
    w, orders, labels = perceptron(), {}, {}
    for name, x in real_layers(4000)[:3]:
        c = correlation([x])
        labels[name[-3:]] = partition(c, samples=len(x)).labels
        orders[name[-3:]] = by_module(c, partition(c, samples=len(x)), len(x))
    links = [Link(f"fc{i}", f"fc{i - 1}", w[f"fc{i}.weight"].abs().numpy()) for i in (2, 3)]
    wall, processor, found = timed(lambda: coordinate(orders, links, labels=labels))
    before, after = (", ".join(f"{value:.4f}" for value in values) for values in (found.before, found.after))
    print(f"\ncoordinated modules of the MNIST MLP ({wall:.2f} / {processor:.2f} s): alignment of fc2 and fc3 with the layer "
          f"before them {before} → {after}")


def elimination(units: list[int]) -> None:
    print("\nelimination curve")
    for n in units:
        x = planted(n, n // 40, 4000, 0.2)
        w = np.random.default_rng(1).standard_normal((n, n))
        c, g = np.cov(x.T), w.T @ w
        wall, processor, _ = timed(lambda c=c, g=g: elimination_curve([c], [g], samples=4000))
        print(f"  {n} units: {wall:.2f} / {processor:.2f} s", flush=True)


def main(sizes: list[int]) -> None:
    wall, _, _ = timed(lambda: spectral(correlation([planted(64, 4, 500, 0.4)]), 500))
    print(f"first call with compiling (or loading from the cache): {wall:.2f} s; {torch.get_num_threads()} threads")
    for title, x in real_layers():
        compare(title, x)
    compare("planted modules", planted(512, 12, 4000, 0.2))
    coordination()
    leaves([n for n in (256, 1024, 4096) if n <= max(sizes)])
    scaling(sizes)
    elimination([n for n in (512, 2048) if n <= max(sizes)])


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [256, 1024, 4096, 16384])
