"""Ways to find modules: beside scikit-learn in noise, choice of the resolution, opposite units, levels, many units."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score

from cipm.errors import InputError, OptionError
from cipm.modules import Clustering, describe_modules, hierarchy, partition, partition_factors
from cipm.modules.halving import drawn_halves
from cipm.modules.methods import View, potts, resolutions
from cipm.statistics import correlation
from cipm.statistics.spectrum import denoise, factors_of_samples

UNEVEN = (6, 8, 10, 14, 18, 24, 32, 44, 60, 80, 100, 120)


def planted(sizes, samples, rho, *, seed=0, loose=0):
    """Return samples of modules of these sizes whose units correlate by rho, and the truth (each loose unit alone)."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = np.sqrt(rho) * rng.standard_normal((samples, len(sizes)))[:, truth]
    x = x + np.sqrt(1 - rho) * rng.standard_normal((samples, truth.size))
    return np.c_[x, rng.standard_normal((samples, loose))], np.r_[truth, len(sizes) + np.arange(loose)]


def halved(x):
    return correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))


def ari(truth, labels):
    lone = labels.max() + 1 + np.arange(labels.size)
    return adjusted_rand_score(truth, np.where(labels >= 0, labels, lone))


def sklearn_best(x, c, truth, modules):
    """Return the best agreement of four clusterers told the number of modules, each on what suits it."""
    z = ((x - x.mean(axis=0)) / x.std(axis=0)).T
    found = [KMeans(modules, n_init=3, random_state=0).fit_predict(c), AgglomerativeClustering(modules).fit_predict(z),
             AgglomerativeClustering(modules, metric="precomputed", linkage="average").fit_predict(1 - c),
             SpectralClustering(modules, affinity="precomputed", random_state=0).fit_predict(np.maximum(c, 0))]
    return max(adjusted_rand_score(truth, labels) for labels in found)


def test_modules_are_found_where_clusterers_told_their_number_begin_to_fail():
    ours, theirs = [], []
    for seed in (0, 1):
        x, truth = planted(UNEVEN, 140, 0.15, seed=seed)
        c, halves = halved(x)
        ours.append(ari(truth, partition(c, samples=len(x), halves=halves).labels))
        theirs.append(sklearn_best(x, c, truth, len(UNEVEN)))
    assert np.mean(theirs) < 0.92 and np.mean(ours) > 0.95, (theirs, ours)


def test_modules_too_weak_for_a_factor_each_are_found():
    x, truth = planted((43,) * 12, 150, 0.1, seed=0)
    c, halves = halved(x)
    assert denoise(c, 150).strong < 10
    assert ari(truth, partition(c, samples=150, halves=halves).labels) > max(0.8, sklearn_best(x, c, truth, 12) - 0.05)


@pytest.mark.parametrize("samples", [1000, 200])
@pytest.mark.parametrize("given", [True, False], ids=["halves", "no halves"])
def test_the_resolution_is_chosen_as_well_as_it_can_be(samples, given):
    x, truth = planted(UNEVEN[:10], samples, 0.2, loose=60, seed=1)
    c, halves = halved(x)
    chosen = ari(truth, partition(c, samples=samples, halves=halves if given else None).labels)
    factors = denoise(c, samples, weak=True).loadings
    view = View(factors, c)
    best = max(ari(truth, labels) for labels in potts(view, resolutions(factors, False), False, 0))
    assert chosen > best - 0.02 and best > 0.9


def test_noise_of_every_kind_has_no_module():
    """200 matrices: Gaussian, heavy-tailed, rectified, and with more units than samples."""
    rng = np.random.default_rng(0)
    kinds = [rng.standard_normal, lambda shape: rng.standard_t(3, shape),
             lambda shape: np.maximum(rng.standard_normal(shape), 0)]
    shapes = [(100, 40), (400, 30), (40, 80), (30, 12)]
    false = drawn = 0
    for number in range(200):
        c, halves = halved(kinds[number % 3](shapes[number % 4]))
        samples = shapes[number % 4][0]
        false += partition(c, samples=samples, halves=halves).modules > 0
        drawn += partition(c, samples=samples).modules > 0
    assert false <= 10 and drawn <= 10


@pytest.mark.parametrize("method", ["potts", "agglomerative", "spectral"])
def test_every_method_finds_planted_modules_by_itself(method):
    x, truth = planted((12, 20, 30, 40), 1500, 0.4, seed=2)
    c, halves = halved(x)
    for split in (halves, None):
        found = partition(c, samples=len(x), halves=split, clustering=Clustering(method))
        assert ari(truth, found.labels) > 0.97, found.how
        assert (found.resolution is None) == (method != "potts") and "most stable" in found.how


@pytest.mark.parametrize("method", ["agglomerative", "spectral"])
def test_a_given_number_of_modules_is_used(method):
    x, _ = planted((12, 20, 30, 40), 1500, 0.4, seed=2)
    c, halves = halved(x)
    found = partition(c, samples=len(x), halves=halves, clustering=Clustering(method, modules=3))
    assert found.modules == 3 and found.how.startswith("given") and found.stability > 0.5


@pytest.mark.parametrize("method", ["potts", "agglomerative", "spectral"])
def test_opposite_units_belong_together_where_that_is_asked_for(method):
    x, truth = planted((20, 30, 40), 1500, 0.4, seed=3)
    side = np.where(np.random.default_rng(1).random(truth.size) < 0.3, -1.0, 1.0)
    c, halves = halved(x * side)
    joined = partition(c, samples=len(x), halves=halves, clustering=Clustering(method, "absolute"))
    apart = partition(c, samples=len(x), halves=halves, clustering=Clustering(method))
    assert ari(truth, joined.labels) > 0.97 and "belong together" in joined.how
    assert ari(truth * 2 + (side < 0), apart.labels) > 0.97 and "repel" in apart.how and apart.signs is None
    for module in describe_modules(c, joined):
        units = list(module.units)
        assert abs((joined.signs * side)[units].sum()) == len(units)  # the sides are right, up to which is called +
        assert module.coherence == pytest.approx(0.4, abs=0.06) and len(module.opposed) < len(units) / 2


def test_factors_of_samples_are_those_of_their_correlation():
    x, truth = planted((400, 300, 350, 150), 1500, 0.2, seed=4)
    x[:, 7] = 3.0
    here, there = factors_of_samples(x, weak=True), denoise(correlation([x]), len(x), weak=True)
    assert here.values == pytest.approx(there.values, rel=1e-4) and (here.loadings[7] == 0).all()
    few = factors_of_samples(x[:200])
    assert few.values == pytest.approx(denoise(correlation([x[:200]]), 200).values, rel=1e-4)
    np.testing.assert_allclose(few.loadings, denoise(correlation([x[:200]]), 200).loadings, atol=2e-3)


def test_many_units_from_samples_alone():
    """More units than the resolution is tried on and than any start with; no matrix of pairs is formed."""
    x, truth = planted((100,) * 40, 600, 0.3, seed=5)
    whole = factors_of_samples(x, weak=True)
    halves = tuple(factors_of_samples(x[i::2], count=whole.strong, weak=True) for i in (0, 1))
    found = partition_factors(whole, halves, samples=len(x))
    assert ari(truth, found.labels) > 0.98 and found.stability > 0.9 and "tried on 2048 of 4000" in found.how


def test_drawn_halves_are_two_independent_samples_of_the_same():
    x, _ = planted((20, 20), 400, 0.5)
    c = correlation([x])
    one, other = drawn_halves(c, 400, np.random.default_rng(0))
    pairs = np.triu_indices(40, 1)
    apart = (one - other)[pairs] / (np.sqrt(2) * (1 - c[pairs] ** 2) / np.sqrt(200))  # √2 × the sd of a half's correlation
    assert apart.std() == pytest.approx(1, abs=0.25)
    np.testing.assert_allclose((one + other) / 2, c, atol=0.03)
    few = drawn_halves(correlation([x[:30]]), 30, np.random.default_rng(0))  # fewer samples than units: still two scatters
    assert np.linalg.matrix_rank(few[0], tol=1e-6) == 15 and np.linalg.matrix_rank(few[1], tol=1e-6) == 14


def nested(samples=800):
    """Return samples of 4 modules that consist of 4 smaller ones each, and both truths."""
    rng = np.random.default_rng(0)
    small = np.repeat(np.arange(16), 15)
    x = 0.5 * rng.standard_normal((samples, 4))[:, small // 4] + 0.55 * rng.standard_normal((samples, 16))[:, small]
    return x + 0.67 * rng.standard_normal((samples, small.size)), small // 4, small


@pytest.mark.parametrize("pairs", ["signed", "absolute"])
def test_levels_are_nested_and_found_where_they_are_planted(pairs):
    x, coarse, fine = nested()
    if pairs == "absolute":
        x = x * np.where(np.random.default_rng(1).random(fine.size) < 0.5, -1, 1)
    c, halves = halved(x)
    found = partition(c, samples=len(x), halves=halves, clustering=Clustering(pairs=pairs))
    levels = hierarchy(found, absolute=pairs == "absolute")
    assert any(np.array_equal(level.labels, found.labels) for level in levels)
    assert [level.resolution for level in levels] == sorted(level.resolution for level in levels)
    for above, below in zip(levels, levels[1:], strict=False):
        for module in range(below.labels.max() + 1):
            assert np.unique(above.labels[below.labels == module]).size == 1
        assert (below.labels[above.labels < 0] == -1).all()
    for truth in (coarse, fine):
        assert max(ari(truth, level.labels) for level in levels) > 0.97
    read = json.loads(json.dumps([level.to_json() for level in levels]))
    assert set(read[0]) == {"resolution", "stability", "labels"} and len(read) == len(levels)
    alone = partition(c, samples=len(x), clustering=Clustering(pairs=pairs))
    assert [level.resolution for level in hierarchy(alone)] == [alone.resolution]


@pytest.mark.parametrize(("c", "samples", "words"), [
    (np.ones((1, 1)), 100, "a group of one unit has no modules"),
    (np.eye(3), 1, "1 probe samples cannot be halved"),
    (np.zeros((5, 5)), 100, "no factor stands above the noise"),
    (np.zeros((0, 0)), 100, "a group of one unit has no modules")], ids=["one unit", "one sample", "constant units", "none"])
@pytest.mark.parametrize("method", ["potts", "agglomerative", "spectral"])
def test_too_little_to_see_is_said(c, samples, words, method):
    for halves in (None, (c, c)):
        found = partition(c, samples=samples, halves=halves, clustering=Clustering(method))
        assert found.modules == 0 and found.labels.size == len(c) and words in found.how


def test_fewer_samples_than_units_is_said():
    x, truth = planted((30, 40, 50), 60, 0.6)
    c, halves = halved(x)
    found = partition(c, samples=60, halves=halves)
    assert "fewer samples than units" in found.how and ari(truth, found.labels) > 0.95


def test_what_is_no_correlation_is_refused():
    with pytest.raises(InputError, match="not finite"):
        partition(np.array([[1, np.nan], [np.nan, 1]]), samples=10)
    with pytest.raises(InputError, match=r"square matrix .* shape \[2, 3\]"):
        partition(np.ones((2, 3)), samples=10)
    with pytest.raises(InputError, match=r"shape \[3, 3\] where 2"):
        partition(np.eye(2), samples=10, halves=(np.eye(3), np.eye(3)))
    for wrong, words in ((dict(method="louvain"), "one of potts, agglomerative, spectral"),
                         (dict(pairs="both"), "one of signed"), (dict(modules=3), "number of modules"),
                         (dict(method="spectral", modules=1), "2 or more")):
        with pytest.raises(OptionError, match=words):
            Clustering(**wrong)
