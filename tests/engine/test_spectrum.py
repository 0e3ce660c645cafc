"""The factors above the edge of noise where the iterative solver is in difficulty: few samples, equal units, no noise."""

from __future__ import annotations

import numpy as np
import pytest

from cipm.statistics.spectrum import EXACT_UNITS, denoise


def few_samples(units: int, samples: int) -> np.ndarray:
    """Return the correlation of pairs of equal units with twelve factors; its rank is below the number of samples."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 12)) @ rng.standard_normal((12, units)) + 2 * rng.standard_normal((samples, units))
    x[:, 1::2] = x[:, ::2]
    return np.corrcoef(x.T)


def no_noise(units: int) -> np.ndarray:
    """Return the correlation of units along a line: a dozen eigenvalues hold all of it."""
    where = np.arange(units)
    return np.exp(-0.5 * ((where[:, None] - where) / (units / 10)) ** 2)


@pytest.mark.parametrize(("c", "samples"), [(few_samples(1200, 250), 250), (no_noise(1100), 100_000)])
def test_factors_equal_the_dense_solvers(c, samples):
    assert len(c) > EXACT_UNITS
    found = denoise(c, samples)
    values, vectors = np.linalg.eigh(c)
    above = values > found.edge
    assert found.values == pytest.approx(values[above][::-1], rel=1e-4)
    np.testing.assert_allclose(found.loadings @ found.loadings.T, (vectors[:, above] * values[above]) @ vectors[:, above].T,
                               atol=0.02)


@pytest.mark.parametrize("units", [300, 1100])
def test_weak_factors_follow_the_strong_ones(units):
    x = np.random.default_rng(0).standard_normal((400, units))
    x[:, :200] += np.repeat(np.random.default_rng(1).standard_normal((400, 4)), 50, axis=1)
    c = np.corrcoef(x.T)
    strict, found = denoise(c, 400), denoise(c, 400, weak=True)
    assert strict.strong == strict.values.size == 4 <= found.strong and found.values.size == 2 * found.strong
    np.testing.assert_allclose(found.values[:4], strict.values, rtol=1e-4)
    assert found.values[4:].max() < found.edge and (np.diff(found.values) <= 0).all()
    more = denoise(c, 400, count=30, weak=True)
    assert (more.strong, more.values.size) == (30, 46)
