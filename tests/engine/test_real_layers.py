"""Orders, modules and pruning on the hidden layers of a really trained MNIST network, judged on rows not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from cipm.modules import describe_modules, partition, redundancy
from cipm.ordering import scores, spectral
from cipm.permutation import Permutation
from cipm.pruning import calibrate, elimination_curve
from cipm.statistics import Covariance

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
WEIGHTS, DIGITS = DATA / "mnist_zoo" / "mlp_784-512x3-10_seed0.safetensors", DATA / "datasets" / "mnist.npz"
pytestmark = pytest.mark.skipif(not (WEIGHTS.exists() and DIGITS.exists()), reason=f"no MNIST network under {DATA}")
ROWS = 3000


@pytest.fixture(scope="module")
def network() -> dict[str, np.ndarray]:
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return rows to learn from and other rows to judge by."""
    data = np.load(DIGITS)
    return tuple((data[name][:ROWS].reshape(ROWS, -1).astype(np.float32) / 255 - 0.1307) / 0.3081
                 for name in ("x_train", "x_test"))


def hidden(w, x, last, replace=None):
    """Return the activations of layer `last`, or the log-probabilities for layer 4."""
    for i in range(1, last + 1):
        x = x @ w[f"fc{i}.weight"].T + w[f"fc{i}.bias"]
        x = np.maximum(x, 0) if i < 4 else x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        x = replace(x) if replace and i == 2 else x
    return x


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_structure_is_real_on_held_out_rows(network, digits, layer):
    seen, unseen = (Covariance.create(512).update(hidden(network, x, layer)).correlation() for x in digits)
    order, plain = spectral(seen, ROWS), Permutation.random(512, generator=np.random.default_rng(0))
    found, by_chance = scores(unseen, order), scores(unseen, plain)
    assert found.banded_anti_robinson < 0.87 < by_chance.banded_anti_robinson
    assert found.path < 0.7 < by_chance.path and found.block_contrast > 0.25 > 0.01 > by_chance.block_contrast


def test_modules_and_redundancy_of_a_trained_layer(network, digits):
    x = hidden(network, digits[0], 2)
    halves = [Covariance.create(512).update(x[i::2]) for i in (0, 1)]
    whole = halves[0].merge(halves[1])
    found = partition(whole.correlation(), samples=ROWS, halves=tuple(h.correlation() for h in halves))
    modules = describe_modules(whole.correlation(), found)
    assert found.stability > 0.4 and 2 <= len(modules) < 200
    assert np.mean([m.coherence for m in modules[:3]]) > 0.15
    judged = redundancy(whole.covariance(), samples=ROWS, halves=tuple(h.covariance() for h in halves))
    assert 0.5 < judged.r2_median < 1 and (found.labels[whole.dead] == -1).all()


def test_predicted_cost_follows_the_measured_loss(network, digits):
    statistics = Covariance.create(512).update(hidden(network, digits[0], 2))
    c, w = statistics.covariance(), network["fc3.weight"].astype(np.float64)
    curve = elimination_curve([c], [w.T @ w], samples=ROWS)
    base, keeps = hidden(network, digits[1], 4), [400, 300, 200, 150, 100, 60, 30, 10]
    measured = []
    for keep in keeps:
        kept = curve.kept(keep)
        removed = np.setdiff1d(np.arange(512), kept)
        own = c[np.ix_(kept, kept)] + curve.ridge * np.trace(c) / 512 * np.eye(keep)
        weights = np.linalg.solve(own, c[np.ix_(kept, removed)])
        bias = statistics.mean[removed] - statistics.mean[kept] @ weights

        def pruned(x, kept=kept, removed=removed, weights=weights, bias=bias):
            y = x.copy()
            y[:, removed] = x[:, kept] @ weights + bias
            return y

        logs = hidden(network, digits[1], 4, pruned)
        measured.append(float((np.exp(base) * (base - logs)).sum(axis=1).mean()))
        if keep == 200:
            assert (logs.argmax(axis=1) == base.argmax(axis=1)).mean() > 0.99
    assert spearmanr(curve.cost[keeps], measured).statistic > 0.99
    calibrated = calibrate(curve.cost, [(keeps[i], measured[i]) for i in (0, 3, 6)])
    ratio = calibrated[keeps] / np.array(measured)
    assert np.median(np.maximum(ratio, 1 / ratio)) < 1.25
