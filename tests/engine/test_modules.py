"""Modules against planted truth, noise and the data's own halves; redundancy against least squares."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from cipm.errors import OptionError
from cipm.modules import agreement, describe_modules, labels, partition, redundancy
from cipm.modules.louvain import communities, quality
from cipm.statistics import Covariance, correlation


def planted(units, modules, samples, rho, *, common=0.0, loose=0, seed=0):
    """Return samples whose units share a factor by module (`rho`) and one by all (`common`), the last ones loose."""
    rng = np.random.default_rng(seed)
    member = rng.integers(0, modules, units)
    x = np.sqrt(rho) * rng.standard_normal((samples, modules))[:, member]
    x += np.sqrt(common) * rng.standard_normal((samples, 1))
    x += np.sqrt(1 - rho - common) * rng.standard_normal((samples, units))
    return np.c_[x, rng.standard_normal((samples, loose))], np.r_[member, modules + np.arange(loose)]


def found(x, **options):
    halves = correlation([x[::2]]), correlation([x[1::2]])
    return partition(correlation([x]), samples=len(x), halves=halves, **options)


def alone(values):
    result = values.copy()
    result[values < 0] = values.max() + 1 + np.arange((values < 0).sum())
    return result


@pytest.mark.parametrize("case", [
    dict(units=256, modules=8, samples=2000, rho=0.3), dict(units=256, modules=8, samples=300, rho=0.3),
    dict(units=200, modules=6, samples=2000, rho=0.2, loose=80),
    dict(units=256, modules=8, samples=2000, rho=0.2, common=0.3), dict(units=24, modules=3, samples=1000, rho=0.5)],
    ids=["easy", "few samples", "loose units", "common factor", "small"])
def test_planted_modules_are_found(case):
    x, truth = planted(**case)
    result = found(x)
    assert adjusted_rand_score(truth, alone(result.labels)) > 0.97
    assert result.stability > 0.8 and "most stable" in result.how
    if case.get("loose"):
        assert (result.labels[-case["loose"]:] == -1).mean() > 0.95


def test_without_halves_they_are_drawn_from_the_correlation():
    x, truth = planted(200, 6, 2000, 0.3)
    result = partition(correlation([x]), samples=2000)
    assert adjusted_rand_score(truth, alone(result.labels)) > 0.97 and "drawn from the correlation" in result.how
    assert result.stability is None and np.array_equal(labels(correlation([x]), 2000), result.labels)


def test_pure_noise_has_no_module():
    rng = np.random.default_rng(0)
    false = sum(found(rng.standard_normal((samples, units))).modules > 0
                for samples, units in [(100, 40), (500, 60), (60, 120)] for _ in range(20))
    assert false <= 3


def test_anticorrelated_units_are_kept_apart():
    rng = np.random.default_rng(0)
    factor, side = rng.standard_normal((2000, 1)), np.repeat([1.0, -1.0], 20)
    result = found(factor * side + 0.5 * rng.standard_normal((2000, 40)))
    assert result.modules == 2 and adjusted_rand_score(side, result.labels) == 1


def test_labels_are_biggest_first_deterministic_and_dead_units_alone():
    x, _ = planted(120, 5, 1500, 0.4, seed=3)
    x[:, [0, 7]] = 2.0
    a, b = found(x), found(x)
    assert np.array_equal(a.labels, b.labels) and (a.labels[[0, 7]] == -1).all()
    sizes = np.bincount(a.labels[a.labels >= 0])
    assert (np.diff(sizes) <= 0).all() and sizes.min() > 1


def test_given_resolution_is_used_and_checked():
    x, _ = planted(60, 3, 1000, 0.4)
    result = found(x, resolution=0.2)
    assert result.resolution == 0.2 and result.how.startswith("given") and result.stability > 0.9
    with pytest.raises(OptionError, match="from 0 to below 1"):
        partition(np.eye(3), samples=10, resolution=1.5)


@pytest.mark.parametrize("units", [1, 2])
def test_tiny_groups(units):
    x = np.random.default_rng(0).standard_normal((100, 1)) @ np.ones((1, units))
    assert found(x).modules == (1 if units == 2 else 0)


def test_local_optimum_cannot_be_improved_by_moving_a_unit():
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((30, 4)).astype(np.float32) / 2
    for gamma in (0.05, 0.3):
        result = communities(factors, gamma, generator=np.random.default_rng(0))
        value = quality(factors, result, gamma)
        for unit in range(30):
            for target in range(result.max() + 2):
                other = result.copy()
                other[unit] = target
                assert quality(factors, other, gamma) <= value + 1e-3
        assert value >= quality(factors, np.zeros(30, dtype=int), gamma) - 1e-3


def test_agreement_is_the_adjusted_rand_index():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    assert agreement(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert agreement(a, a) == 1 and agreement(a, np.full(50, -1)) == 0
    a[:5] = -1
    assert agreement(a, b) == pytest.approx(adjusted_rand_score(alone(a), b))


def test_described_modules():
    x, _ = planted(90, 3, 2000, 0.5)
    result = found(x)
    described = describe_modules(correlation([x]), result)
    sizes = [m.size for m in described]
    assert [m.id for m in described] == [0, 1, 2] and sizes == sorted(sizes, reverse=True)
    for module in described:
        block = np.corrcoef(x[:, list(module.units)].T)
        assert module.coherence == pytest.approx(block[np.triu_indices(module.size, 1)].mean(), abs=1e-5)
        assert module.coherence == pytest.approx(0.5, abs=0.06) and module.stability == pytest.approx(1)


def test_redundancy_equals_regression():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((800, 6))
    x[:, 5] = x[:, 0] + x[:, 1] + 0.1 * rng.standard_normal(800)
    found_ = redundancy(np.cov(x.T), samples=800)
    centred = x - x.mean(axis=0)
    for unit in range(6):
        others = np.delete(centred, unit, axis=1)
        residual = centred[:, unit] - others @ np.linalg.lstsq(others, centred[:, unit], rcond=None)[0]
        adjusted = 1 - (residual @ residual / (centred[:, unit] @ centred[:, unit])) * 799 / 794
        assert found_.r2[unit] == pytest.approx(max(adjusted, 0), abs=1e-4)
    assert found_.share == 0.5 and "adjusted" in found_.how  # any of the three follows from the other two


def test_redundancy_is_not_feigned_by_few_samples():
    """Independent units, fewer samples than units: the other half knows better."""
    x = np.random.default_rng(0).standard_normal((60, 80))
    halves = tuple(Covariance.create(80).update(x[i::2]).covariance() for i in (0, 1))
    judged = redundancy(np.cov(x.T), samples=60, halves=halves)
    assert judged.share == 0 and judged.r2_median < 0.1 and "judged on the other" in judged.how
    assert "only 60 samples for 80 units" in redundancy(np.cov(x.T), samples=60).how


def test_dead_units_are_fully_redundant_and_do_not_break_anything():
    x = np.random.default_rng(0).standard_normal((500, 5))
    x[:, 1] = 3.0
    x[::2, 4] = 1.0  # dead on one half only
    halves = tuple(Covariance.create(5).update(x[i::2]).covariance() for i in (0, 1))
    result = redundancy(Covariance.create(5).update(x).covariance(), samples=500, halves=halves)
    assert np.isfinite(result.r2).all() and result.r2[1] == 1 and result.share == 0.2


def test_a_half_in_which_nothing_stands_above_the_noise_ends():
    """Signal over all rows, none in either half: no module, and an answer (this once never returned)."""
    generator = np.random.default_rng(0)
    assert communities(np.zeros((0, 3)), 0.1, generator=generator).size == 0
    signal = np.kron(np.eye(2), np.full((4, 4), 0.9)) + 0.1 * np.eye(8)
    found = partition(signal, samples=60, halves=(np.eye(8), np.eye(8)))
    assert found.modules == 0 and "do not agree" in found.how
