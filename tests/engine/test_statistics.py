"""Covariance and correlation against numpy in float64, and the noise edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cipm.errors import InputError
from cipm.modules import effective_dimension
from cipm.statistics import Covariance, HalfSplit, correlation
from cipm.statistics.centring import CHUNK_ROWS
from cipm.statistics.covariance import BLOCK_SAMPLES
from cipm.statistics.spectrum import denoise, isolated, spectral_edge
from cipm.statistics.triangle import PANEL


def draw(samples: int, units: int, mean: float = 0.0, dtype=np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, units)) @ (np.eye(units) + rng.standard_normal((units, units)) / units**0.5)
    return (x + mean).astype(dtype)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correlation_equals_numpy_in_float64(mean, dtype):
    x = draw(9000, 40, mean, dtype)
    expected = np.corrcoef(x.T.astype(np.float64))
    found = correlation(x[i:i + 700] for i in range(0, len(x), 700))
    assert np.abs(found - expected).max() <= (2e-6 if dtype == np.float32 else 1e-12)
    assert np.array_equal(found, found.T) and (found.diagonal() == 1).all()


def test_covariance_and_mean_equal_numpy():
    x = draw(2 * BLOCK_SAMPLES + 5, 12, 7.0, np.float64)
    found = Covariance.create(12).update(x)
    np.testing.assert_allclose(found.covariance(), np.cov(x.T), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    assert found.samples == len(x)


def test_batches_that_drift_are_exact_too():
    """Sorted data: every batch has another mean, far from the first one's."""
    x = draw(6000, 10, 0.0) + np.linspace(0, 1e4, 6000, dtype=np.float32)[:, None] * np.arange(10, dtype=np.float32)
    found = correlation(x[i:i + 50] for i in range(0, 6000, 50))
    assert np.abs(found - np.corrcoef(x.T.astype(np.float64))).max() <= 2e-6


def test_dead_units_are_masked_and_nothing_is_nan():
    x = draw(500, 6, 3.0)
    x[:, 2], x[:, 5] = 0.1, 1e7  # neither is exactly representable after averaging
    found = Covariance.create(6).update(x[:100]).update(x[100:])
    assert found.dead.tolist() == [False, False, True, False, False, True]
    c = found.correlation()
    assert np.isfinite(c).all() and (c.diagonal() == 1).all()
    assert (c[2, [0, 1, 3, 4, 5]] == 0).all() and (found.covariance()[5] == 0).all()


def test_unit_that_changes_only_between_batches_is_alive():
    found = Covariance.create(2).update(np.ones((3, 2))).update(np.array([[1.0, 2.0]]))
    assert found.dead.tolist() == [True, False]
    merged = Covariance.create(1).update(np.ones((2, 1))).merge(Covariance.create(1).update(2 * np.ones((2, 1))))
    assert not merged.dead[0]


def test_one_ulp_of_variation_is_variation():
    x = np.full((100, 2), 1e4, dtype=np.float32)
    x[::2, 0] = np.nextafter(np.float32(1e4), np.float32(2e4))
    assert Covariance.create(2).update(x).dead.tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_values_whose_squares_leave_float32(scale):
    x = draw(300, 5) * np.float32(scale)
    assert np.abs(correlation([x]) - np.corrcoef(x.T.astype(np.float64))).max() < 2e-6


def test_values_whose_squares_leave_float64_are_refused():
    with pytest.raises(InputError, match="too large to square"):
        correlation([draw(10, 3, dtype=np.float64) * 1e200])


def test_nonfinite_value_is_named():
    x = draw(300, 4)
    x[200, 3] = np.nan
    with pytest.raises(InputError, match="Sample 260 has nan at unit 3") as caught:
        Covariance.create(4).update(x[:60]).update(x)
    assert caught.value.where == "sample 260, unit 3"


@pytest.mark.parametrize("rows, word", [(0, "there are none"), (1, "there is one")])
def test_too_few_samples_are_refused(rows, word):
    with pytest.raises(InputError, match=word):
        correlation([np.ones((rows, 3))] if rows else [])


def test_wrong_widths_are_refused():
    with pytest.raises(InputError, match=r"shape \[samples, 4\]; it has \[5, 3\]"):
        Covariance.create(4).update(np.ones((5, 3)))
    with pytest.raises(InputError, match=r"it has \[5\]"):
        correlation([np.ones(5)])
    with pytest.raises(InputError, match=r"shape \[samples, 3\]; it has \[2, 4\]"):
        correlation([np.ones((2, 3)), np.ones((2, 4))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_torch_tensors_of_any_type(dtype):
    x = (torch.from_numpy(draw(400, 5)) * 20).to(dtype)
    expected = np.corrcoef(x.double().numpy().T)
    assert np.abs(correlation([x]) - expected).max() < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    x = torch.from_numpy(draw(5000, 64, 100.0))
    assert np.abs(correlation([x.cuda()]) - correlation([x])).max() < 1e-5


def test_an_updated_accumulator_cannot_be_used_again():
    first = Covariance.create(2)
    first.update(np.eye(2))
    with pytest.raises(AssertionError, match="was updated"):
        first.update(np.eye(2))


def test_state_round_trip():
    split = HalfSplit(Covariance.create(3).update(draw(50, 3)), Covariance.create(3).update(draw(49, 3, seed=1)), 99)
    again = HalfSplit.from_state(split.state())
    assert np.array_equal(again.whole.correlation(), split.whole.correlation())
    assert (again.rows, again.samples) == (99, 99) and again.even.mean.tolist() == split.even.mean.tolist()
    assert np.array_equal(again.even.merge(again.odd).covariance(), split.whole.covariance())


# --- the edge of noise --------------------------------------------------------------------------------------------


def test_noise_rarely_exceeds_its_edge():
    rng = np.random.default_rng(0)
    exceeded = sum(denoise(correlation([rng.standard_normal((n_samples, units))]), n_samples).values.size > 0
                   for n_samples, units in [(60, 30), (200, 50), (50, 100), (400, 20)] for _ in range(25))
    assert exceeded <= 5


def test_edge_approaches_marchenko_pastur():
    assert spectral_edge(10_000, 1_000_000) == pytest.approx((1 + 0.1) ** 2, rel=0.01)
    assert all(np.isfinite(spectral_edge(n, s)) for n in (1, 2, 500) for s in (1, 2, 3, 10))


def test_block_iteration_equals_full_eigenvalues():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 1100)
    x = 0.7 * rng.standard_normal((3000, 30))[:, labels] + 0.7 * rng.standard_normal((3000, 1100))
    c = correlation([x])
    factors = denoise(c, 3000)
    values = np.linalg.eigvalsh(c)[::-1]
    expected = values[values > factors.edge]
    assert factors.values.size == expected.size == 30
    np.testing.assert_allclose(factors.values, expected, rtol=1e-4)
    full = np.linalg.eigh(c)
    top = full.eigenvectors[:, -30:] * np.sqrt(full.eigenvalues[-30:])
    assert np.abs(factors.loadings @ factors.loadings.T - top @ top.T).max() < 1e-3


def test_effective_dimension_of_known_spectra():
    x = np.random.default_rng(0).standard_normal((5000, 4))
    c = correlation([np.c_[x[:, :2] @ np.random.default_rng(1).standard_normal((2, 20)), np.ones(5000)]])
    found = effective_dimension(c, 5000)
    assert (found.spectral_edge, found.variance_95) == (2, 2) and 1 < found.participation_ratio <= 2
    assert effective_dimension(np.eye(5), 100).spectral_edge == 0
    assert isolated(c).tolist() == [False] * 20 + [True]


@pytest.mark.parametrize("units", [1, 70, PANEL, 2 * PANEL + 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_by_torch_equal_those_by_blas(units, dtype):
    x = draw(3 * CHUNK_ROWS + 11, units).astype(dtype)
    x[CHUNK_ROWS:] += 3e3
    found = [Covariance.create(units, threads=threads) for threads in ("blas", "torch")]
    for part in np.array_split(x, [40, 50, 2000]):
        found = [one.update(part) for one in found]
    assert np.abs(found[0].correlation() - found[1].correlation()).max() < 2e-6
    np.testing.assert_allclose(found[0].mean, found[1].mean, rtol=1e-9)


@pytest.mark.parametrize("threads", ["blas", "torch"])
def test_samples_that_may_be_overwritten_give_the_same(threads):
    x = draw(5 * CHUNK_ROWS, 30)
    kept, spent = x.copy(), x.copy()
    one, other = Covariance.create(30, threads=threads), Covariance.create(30, threads=threads)
    for a, b in ((0, 2000), (2000, 2100), (2100, len(x))):
        one, other = one.update(kept[a:b]), other.update(spent[a:b], spend=True)
    assert np.array_equal(kept, x) and not np.array_equal(spent, x)
    assert np.abs(one.correlation() - other.correlation()).max() < 2e-6
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-7)
    spent = x.copy()
    spent[2500, 3] = np.nan
    with pytest.raises(InputError, match="Sample 2500 has nan at unit 3"):
        Covariance.create(30, threads=threads).update(spent, spend=True)
