"""Tracking of widths and streams that do not fit, each against the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cipm.errors import InputError
from cipm.statistics import (
    Covariance,
    Interpolated,
    PairCorrelations,
    Projection,
    Running,
    accumulate,
    correlation,
    exact_neighbours,
    measured_recall,
    significant_of,
    significant_pairs,
    top_neighbours,
)
from cipm.statistics import neighbours as blocked
from cipm.statistics.neighbours import keep_best


def clustered(samples: int, units: int, *, seed: int = 0, noise: float = 0.7, size: int = 20) -> np.ndarray:
    """Units in clusters of 20 with a few factors shared by all."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((samples, 8)) @ rng.standard_normal((8, units)) / 8**0.5
    clusters = max(units // size, 1)
    own = rng.standard_normal((samples, clusters))[:, np.arange(units) % clusters]
    return (own + 0.6 * shared + noise * rng.standard_normal((samples, units)) + 3).astype(np.float32)


def strongest(c: np.ndarray, k: int) -> np.ndarray:
    size = np.abs(c)
    np.fill_diagonal(size, 0)
    return np.argsort(-size, axis=1, kind="stable")[:, :k]


def batches(x: np.ndarray, rows: int = 300):
    return lambda: (x[start:start + rows] for start in range(0, len(x), rows))


# --- strongest neighbours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 50, 4096])
def test_exact_neighbours_are_those_of_the_matrix(monkeypatch, block):
    monkeypatch.setattr(blocked, "BLOCK_UNITS", block)
    x = clustered(400, 120)
    x[:, 5] = 2
    c = correlation([x])
    found = exact_neighbours(x, k=6)
    live = np.arange(120) != 5
    assert np.array_equal(found.units[live], strongest(c, 6)[live]) and (found.units[5] == -1).all()
    np.testing.assert_allclose(found.correlations[live], np.take_along_axis(c, strongest(c, 6), axis=1)[live], atol=1e-6)
    assert not (found.units == 5).any() and (found.correlations[5] == 0).all()


def test_ties_go_to_the_smaller_index():
    units, values = np.full((1, 3), -1), np.zeros((1, 3), np.float32)
    keep_best(np.array([[0.5, -0.5, 0.5, 0.9, 0.5]], np.float32), 10, units, values)
    assert units.tolist() == [[13, 10, 11]] and values[0].tolist() == pytest.approx([0.9, 0.5, -0.5])


def test_fewer_units_than_neighbours():
    found = exact_neighbours(np.random.default_rng(0).standard_normal((30, 3)), k=5)
    assert (found.units[:, 2:] == -1).all() and (found.units[:, :2] >= 0).all()
    assert exact_neighbours(np.random.default_rng(0).standard_normal((30, 1)), k=2).units.tolist() == [[-1, -1]]


def test_each_pair_once():
    x = clustered(200, 40)
    found = exact_neighbours(x, k=4)
    pairs, values = found.pairs()
    assert len(np.unique(pairs, axis=0)) == len(pairs) and (pairs[:, 0] < pairs[:, 1]).all()
    np.testing.assert_allclose(values, correlation([x])[pairs[:, 0], pairs[:, 1]], atol=1e-6)


@pytest.mark.parametrize("bad, words", [(np.ones((1, 4)), "at least two samples; there is one"),
                                        (np.ones(4), r"shape \[samples, units\]"),
                                        (np.array([[1.0, 2], [np.nan, 3]]), "Sample 1 has nan at unit 0")])
def test_exact_neighbours_refuse_in_words(bad, words):
    with pytest.raises(InputError, match=words):
        exact_neighbours(bad)


def test_top_neighbours_find_nearly_all_and_say_how_many():
    x = clustered(1200, 1500)
    x[:, 7] = 1
    found = top_neighbours(batches(x), 1500, 10, width=96, count=60, generator=np.random.default_rng(0))
    truth = exact_neighbours(x, 10)
    recall = found.recall(truth)
    assert recall >= 0.95 and (found.units[7] == -1).all()
    measured = measured_recall(batches(x), found, units=200, generator=np.random.default_rng(1))
    assert abs(measured - recall) < 0.03
    c = correlation([x])
    there = found.units >= 0
    rows = np.repeat(np.arange(1500)[:, None], 10, axis=1)
    assert np.abs(found.correlations[there] - c[rows[there], found.units[there]]).max() <= 2e-6


def test_recall_says_when_nothing_is_found():
    x = clustered(300, 100)
    none = blocked.Neighbours.none(100, 10)
    assert measured_recall(batches(x), none, generator=np.random.default_rng(0)) == 0
    assert exact_neighbours(x).recall(exact_neighbours(x)) == 1


def test_projection_errs_by_the_root_of_its_width():
    x = clustered(2000, 200) + np.float32(1000)
    c = correlation([x])
    for width in (64, 256):
        factors = accumulate(Projection.create(200, width=width, generator=np.random.default_rng(0)), batches(x)()).finalise()
        error = (factors @ factors.T - c)[np.triu_indices(200, 1)]
        assert 0.6 / width**0.5 < error.std() < 1.2 / width**0.5


def test_projections_of_shards_add_up():
    """Shards have numbers of their own; the sum estimates the same correlation."""
    x = clustered(2000, 100) + np.linspace(0, 50, 2000, dtype=np.float32)[:, None]
    parts = [accumulate(Projection.create(100, width=400, generator=np.random.default_rng(seed)), batches(part)())
             for seed, part in enumerate(np.split(x, 2))]
    factors = parts[0].merge(parts[1]).finalise()
    assert np.abs((factors @ factors.T - correlation([x]))[np.triu_indices(100, 1)]).mean() < 1 / 400**0.5


def test_the_search_leaves_the_unit_itself_out():
    factors = np.random.default_rng(0).standard_normal((700, 5)).astype(np.float32)
    found = blocked.strongest(factors, 3)
    scores = factors @ factors.T
    assert np.array_equal(found.units, strongest(scores, 3))


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-11)])
def test_pair_correlations_equal_the_matrix_and_merge(dtype, tolerance):
    x = (clustered(900, 60) + 1000).astype(dtype)
    x[:, 3] = 4
    partners = np.random.default_rng(0).integers(-1, 60, (60, 5))
    partners[3] = [0, 1, 2, 4, -1]
    c = correlation([x])
    expected = np.where(partners >= 0, c[np.arange(60)[:, None], partners], 0)
    start = PairCorrelations.create(partners)
    whole = accumulate(start, batches(x, 250)())
    parts = [start.update(part) for part in np.split(x, [100, 101, 640])]
    merged = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    for found in (whole, merged):
        assert np.abs(found.finalise() - expected).max() <= tolerance and found.samples == 900


# --- significance -------------------------------------------------------------------------------------------------


def test_significance_equals_scipy_and_its_corrections():
    x = np.random.default_rng(0).standard_normal((60, 12))
    x[:, 1] += x[:, 0]
    x[:, 3] -= 0.5 * x[:, 2]
    c = np.corrcoef(x.T)
    rows, columns = np.triu_indices(12, 1)
    chance = 2 * stats.norm.sf(np.abs(np.arctanh(c[rows, columns])) * np.sqrt(57))
    for correction, expected in [("benjamini-hochberg", stats.false_discovery_control(chance, method="bh")),
                                 ("benjamini-yekutieli", stats.false_discovery_control(chance, method="by")),
                                 ("bonferroni", np.minimum(chance * 66, 1))]:
        found = significant_of(c, samples=60, level=0.05, correction=correction)
        kept = np.flatnonzero(expected <= 0.05)
        assert {tuple(p) for p in found.pairs} == {(rows[i], columns[i]) for i in kept} and (0, 1) == tuple(found.pairs[0])
        np.testing.assert_allclose(np.sort(found.adjusted), np.sort(expected[kept]), rtol=0.01)
        assert (np.diff(np.abs(found.z)) <= 0).all() and found.tests == 66


@pytest.mark.parametrize("correction", ["bonferroni", "benjamini-hochberg", "benjamini-yekutieli"])
def test_noise_has_hardly_ever_a_significant_pair(correction):
    rng = np.random.default_rng(0)
    runs = [significant_of(correlation([rng.standard_normal((80, 25))]), samples=80, level=0.05, correction=correction)
            for _ in range(100)]
    assert sum(len(run.pairs) > 0 for run in runs) <= 12


def test_strongest_pairs_alone_give_a_part_of_the_answer():
    x = clustered(300, 60)
    whole = significant_of(correlation([x]), samples=300)
    some = significant_pairs(*exact_neighbours(x, 5).pairs(), samples=300, tests=60 * 59 // 2)
    assert 0 < len(some.pairs) <= len(whole.pairs)
    assert {tuple(p) for p in some.pairs} <= {tuple(p) for p in whole.pairs}


def test_equal_units_are_significant_and_finite_and_dead_ones_untested():
    x = clustered(100, 20)
    x[:, 1], x[:, 2] = x[:, 0], 5
    found = significant_of(correlation([x]), samples=100)
    assert tuple(found.pairs[0]) == (0, 1) and np.isfinite(found.z).all() and found.tests == 19 * 18 // 2
    assert not (found.pairs == 2).any()
    assert significant_of(np.eye(1), samples=10).pairs.shape == (0, 2)


def test_significance_of_three_samples_is_refused():
    with pytest.raises(InputError, match="at least 4 independent samples; there are 3"):
        significant_of(np.eye(3), samples=3)


# --- streams that change ------------------------------------------------------------------------------------------


def test_running_estimate_is_the_weighted_correlation():
    x = clustered(600, 20).astype(np.float64)
    decay, steps = 0.8, np.split(x, 6)
    found = accumulate(Running.create(20, decay=decay), steps)
    weights = np.repeat(decay ** np.arange(5, -1, -1.0), 100)
    expected = np.cov(x.T, aweights=weights)
    scale = np.sqrt(expected.diagonal())
    np.testing.assert_allclose(found.finalise(), expected / scale / scale[:, None], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance(), expected, rtol=1e-10)
    assert found.effective_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum()) and found.samples == 600


def test_effective_samples_approach_their_limit():
    found = accumulate(Running.create(2, decay=0.9), np.random.default_rng(0).standard_normal((300, 10, 2)))
    assert found.effective_samples == pytest.approx(10 * 1.9 / 0.1, rel=1e-9)
    everything = accumulate(Running.create(2, decay=1.0), np.random.default_rng(0).standard_normal((30, 10, 2)))
    assert everything.effective_samples == 300


def test_running_error_follows_the_effective_samples():
    rng = np.random.default_rng(0)
    for decay in (0.5, 0.9):
        found = [accumulate(Running.create(30, decay=decay), rng.standard_normal((60, 50, 30))) for _ in range(3)]
        error = np.std([run.finalise()[np.triu_indices(30, 1)] for run in found])
        assert error == pytest.approx(found[0].effective_samples**-0.5, rel=0.15)


def test_first_step_is_not_biased():
    x = clustered(200, 10)
    found = Running.create(10, decay=0.99).update(x)
    np.testing.assert_allclose(found.covariance(), Covariance.create(10).update(x).covariance(), rtol=1e-9)


def test_running_forgets_what_was():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 100, 1)) * np.ones((1, 1, 2)) + 0.1 * rng.standard_normal((40, 100, 2))
    b = a * np.array([1, -1])
    found = accumulate(Running.create(2, decay=0.7), [*a, *b])
    assert found.finalise()[0, 1] < -0.98


def test_shards_of_the_same_steps_merge():
    x = clustered(600, 9).astype(np.float64).reshape(6, 100, 9)
    x[:, :, 4] = 2
    whole = accumulate(Running.create(9, decay=0.6), x)
    shards = [accumulate(Running.create(9, decay=0.6), part) for part in (x[:, :30], x[:, 30:])]
    merged = shards[1].merge(shards[0])
    np.testing.assert_allclose(merged.finalise(), whole.finalise(), rtol=0, atol=1e-12)
    assert merged.effective_samples == pytest.approx(whole.effective_samples)
    assert (merged.finalise()[4] == np.eye(9)[4]).all()


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_wrong_decay_is_refused(decay):
    with pytest.raises(InputError, match="decay goes from 0 to 1"):
        Running.create(3, decay=decay)


def test_running_estimate_of_nothing_is_refused():
    with pytest.raises(InputError, match="there are none"):
        Running.create(3, decay=0.5).finalise()
    with pytest.raises(InputError, match="there is one"):
        Running.create(3, decay=0.5).update(np.ones((1, 3))).covariance()


def test_interpolation_is_a_correlation_and_stays_within_its_error():
    def at(step):
        angle = 0.3 * np.sin(step / 40)
        return np.array([[1.0, angle], [angle, 1.0]])
    line = Interpolated().add(0, at(0)).add(20, at(20))
    curvature = 0.3 / 40**2
    for step in range(21):
        found = line.at(step)
        assert np.abs(found - at(step)).max() <= 20**2 / 8 * curvature and np.linalg.eigvalsh(found).min() >= 0
    assert np.array_equal(line.at(-5), at(0)) and np.array_equal(line.at(99), at(20))
    assert line.drift == pytest.approx((at(20) - at(0))[0, 1] / 20)
    assert not line.due(21, 0.05) and line.due(40, 0.05)


def test_interpolation_before_and_out_of_order():
    with pytest.raises(InputError, match="no full correlation yet"):
        Interpolated().at(3)
    one = Interpolated().add(4, np.eye(2))
    assert one.due(5, 0.1) and one.drift is None and np.array_equal(one.at(9), np.eye(2))
    with pytest.raises(InputError, match="Steps go forward; 4 comes after 4"):
        one.add(4, np.eye(2))
    assert one.add(5, np.eye(2)).add(6, np.eye(2)).steps == (5, 6)
