"""Every accumulator against the same statistic computed at once, in float64, by numpy or scipy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from cipm.errors import InputError
from cipm.statistics import (
    RANGES,
    ActivationRange,
    Activity,
    ClassConditional,
    CoActivation,
    Covariance,
    CrossCovariance,
    Histogram,
    Means,
    Quantiles,
    Spearman,
    accumulate,
    rv_coefficient,
)
from cipm.statistics.centring import CHUNK_ROWS
from cipm.statistics.device import DeviceCentring, DeviceProducts
from cipm.statistics.scatter import Scatter
from cipm.statistics.triangle import PANEL, Products, diagonal, to_square, triangle_words


def draw(samples: int, units: int, mean: float = 0.0, dtype=np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, units)) @ (np.eye(units) + rng.standard_normal((units, units)) / units**0.5)
    return (x + mean).astype(dtype)


def parts(*arrays: np.ndarray, rows: int = 177):
    """Yield the arrays in batches, as tuples where there are several."""
    for start in range(0, len(arrays[0]), rows):
        cut = tuple(array[start:start + rows] for array in arrays)
        yield cut if len(cut) > 1 else cut[0]


# --- the triangle -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2, 7, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL + 13])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_become_a_square(units, dtype):
    x = draw(50, units, dtype=dtype)
    triangle, products = np.zeros(triangle_words(units)), Products(units, dtype)
    for part in parts(x, rows=20):
        products.add(part)
    products.flush(triangle)
    expected = x.T.astype(np.float64) @ x
    scale = np.linspace(1, 2, units)
    found = to_square(triangle, units, scale, offset=scale)
    np.testing.assert_allclose(found, (expected + np.outer(scale, scale)) * np.outer(scale, scale), rtol=1e-5, atol=1e-3)
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(diagonal(triangle, units), expected.diagonal(), rtol=1e-5)


@pytest.mark.parametrize("units", [5, PANEL, 2 * PANEL + 9])
def test_square_in_the_memory_of_its_triangle(units):
    words = triangle_words(units)
    memory = np.zeros(max(words, units * units) + 7)
    memory[:words] = np.random.default_rng(0).standard_normal(words)
    expected = to_square(memory[:words].copy(), units, np.ones(units))
    assert np.array_equal(to_square(memory[:words], units, np.ones(units), into=memory), expected)


# --- covariance in hard cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [3, PANEL + 60])
def test_means_that_jump_and_an_outlier_first(units):
    x = draw(5 * CHUNK_ROWS + 11, units)
    x[0] = 1e4
    x[2 * CHUNK_ROWS:] += 3e3
    expected = np.corrcoef(x.T.astype(np.float64))
    found = accumulate(Covariance.create(units), parts(x)).correlation()
    assert np.abs(found - expected).max() <= 2e-6


def test_far_means_of_both_signs_at_every_chunk():
    x = draw(4000, 6) + np.array([1e4, -1e4, 3e3, 0, 50, -2e4], dtype=np.float32)
    x[:, 3] = np.maximum(x[:, 3], 0)
    assert np.abs(accumulate(Covariance.create(6), parts(x)).correlation() - np.corrcoef(x.T.astype(float))).max() <= 2e-6


@pytest.mark.parametrize("reading", ["covariance", "correlation", "cosine"])
def test_reading_changes_nothing_and_may_happen_at_any_time(reading):
    x = draw(3000, 9, 2.0, np.float64)
    read, unread = Covariance.create(9), Covariance.create(9)
    for part in parts(x, rows=450):
        read, unread = read.update(part), unread.update(part)
        getattr(read, reading)()
    np.testing.assert_allclose(getattr(read, reading)(), getattr(unread, reading)(), rtol=1e-12, atol=1e-14)


def test_cosine_is_that_of_the_columns():
    x = draw(2000, 8, 3.0)
    x[:, 2], x[:, 5] = 0, 7
    wide = x.astype(np.float64)
    norms = np.maximum(np.linalg.norm(wide, axis=0), 1)
    expected = (wide.T @ wide) / np.outer(norms, norms)
    expected[2, 2] = 1
    assert np.abs(accumulate(Covariance.create(8), parts(x)).cosine() - expected).max() <= 2e-6


def test_variance_is_the_diagonal():
    x = draw(700, 5)
    x[:, 1] = 4
    found = Covariance.create(5).update(x)
    np.testing.assert_allclose(found.variance, found.covariance().diagonal(), rtol=1e-12)
    assert found.variance[1] == 0


def test_exact_products_of_float32_samples_equal_float64_ones():
    x = draw(3000, 12, 20.0)
    exact = accumulate(Covariance.create(12, exact=True), parts(x)).covariance()
    np.testing.assert_allclose(exact, np.cov(x.T.astype(np.float64)), rtol=1e-12, atol=1e-12)


def test_samples_of_both_precisions_in_one_stream():
    x = draw(1200, 7, 5.0)
    found = Covariance.create(7).update(x[:500]).update(x[500:800].astype(np.float64)).update(x[800:])
    assert np.abs(found.correlation() - np.corrcoef(x.T.astype(np.float64))).max() <= 2e-6 and found.samples == 1200


def test_more_units_than_samples():
    """The correlation has rank samples − 1 and is as right as ever: only its noise is larger."""
    x = draw(20, 90)
    found = Covariance.create(90).update(x).correlation()
    assert np.abs(found - np.corrcoef(x.T.astype(np.float64))).max() <= 2e-6
    assert np.linalg.matrix_rank(found, tol=1e-4) == 19


def test_group_of_one_unit():
    x = draw(30, 1)
    found = Covariance.create(1).update(x)
    assert found.correlation().tolist() == [[1.0]] and found.covariance() == pytest.approx(x.astype(float).var(ddof=1))


def test_memory_stays_within_its_bound():
    units = 2048
    x = np.ones((CHUNK_ROWS + 1, units), np.float32)
    Covariance.create(3).update(x[:, :3])
    tracemalloc.start()
    try:
        found = Covariance.create(units).update(x).update(x)
        assert tracemalloc.get_traced_memory()[1] <= 1.2 * 8 * units**2
        assert found.dead.all() and found.samples == 2 * len(x)
        assert tracemalloc.get_traced_memory()[0] <= 0.6 * 8 * units**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_path_gives_the_same_on_any_device(dtype):
    """The path for CUDA, on whatever torch device there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.from_numpy(draw(9000, 70, 300.0)).to(dtype)
    x[:, 4], x[:4000, 5] = 2.5, 1.25
    scatter = Scatter.create(70, exact=False)
    scatter._centring, scatter._products = DeviceCentring(70, ("cpu", str(dtype))), DeviceProducts(70)
    for part in x.split(2500):
        for chunk in scatter._centring.take(part.to(device)):
            scatter._add(chunk)
    found, expected = Covariance(scatter), Covariance.create(70).update(x)
    assert np.abs(found.correlation() - expected.correlation()).max() <= 2e-6
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    assert found.dead.tolist() == expected.dead.tolist() and found.samples == 9000


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_device_path_where_squares_leave_float32(scale):
    x = torch.from_numpy(draw(300, 5) * np.float32(scale))
    scatter = Scatter.create(5, exact=False)
    scatter._centring, scatter._products = DeviceCentring(5, ("cpu", "")), DeviceProducts(5)
    for chunk in scatter._centring.take(x):
        scatter._add(chunk)
    assert np.abs(Covariance(scatter).correlation() - np.corrcoef(x.double().numpy().T)).max() < 2e-6


def test_device_path_names_what_is_not_finite():
    x = torch.from_numpy(draw(300, 5))
    x[120, 3] = np.inf
    with pytest.raises(InputError, match="Sample 120 has inf at unit 3"):
        list(DeviceCentring(5, ("cpu", "")).take(x))


# --- the others ---------------------------------------------------------------------------------------------------


def test_means_and_variances():
    x = draw(1000, 6, 1e4, np.float64)
    found = accumulate(Means.create(6), parts(x))
    np.testing.assert_allclose(found.finalise(), x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.variance(), x.var(axis=0, ddof=1), rtol=1e-11)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_correlation_of_two_groups(mean, dtype):
    x = draw(40_000, 60, mean, dtype)
    left, right = x[:, :25], x[:, 25:]
    found = accumulate(CrossCovariance.create(25, 35), parts(left, right, rows=2900))
    expected = np.corrcoef(x.T.astype(np.float64))[:25, 25:]
    assert np.abs(found.finalise() - expected).max() <= (2e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(found.covariance(), np.cov(x.T.astype(np.float64))[:25, 25:], rtol=0, atol=1e-5)


def test_cross_correlation_with_constant_units_and_huge_values():
    x, y = draw(900, 4), draw(900, 3, seed=1) + draw(900, 4)[:, :3]
    x[:, 1], y[:, 2] = 0.1, 5
    found = accumulate(CrossCovariance.create(4, 3), parts(x * np.float32(1e25), y)).finalise()
    expected = np.corrcoef(x[:, [0, 2, 3]].T.astype(float), y[:, :2].T.astype(float))[:3, 3:]
    assert np.abs(found[np.ix_([0, 2, 3], [0, 1])] - expected).max() < 2e-6
    assert (found[1] == 0).all() and (found[:, 2] == 0).all()


def test_cross_correlation_refuses_unequal_samples_and_one_sample():
    with pytest.raises(InputError, match="same samples; there are 4 and 5"):
        CrossCovariance.create(2, 3).update(np.ones((4, 2)), np.ones((5, 3)))
    with pytest.raises(InputError, match="at least two samples; there is one"):
        CrossCovariance.create(2, 3).update(np.ones((1, 2)), np.ones((1, 3))).finalise()


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_co_activation_is_the_jaccard_index(threshold):
    x = draw(5000, 20)
    x[:, 3] = -1
    found = accumulate(CoActivation.create(20, threshold=threshold), parts(x))
    active = x > threshold
    expected = 1 - squareform(pdist(active.T, "jaccard"))
    expected[3], expected[:, 3] = 0, 0
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(found.finalise(), expected, atol=1e-12)
    assert np.array_equal(found.counts(), active.T.astype(int) @ active) and found.active.tolist() == active.sum(0).tolist()


@pytest.mark.parametrize("mean", [0, 1e4])
def test_class_conditional_statistics(mean):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 3000)
    x = (draw(3000, 6) + 3 * rng.standard_normal((5, 6))[labels] + mean).astype(np.float32)
    x[:, 5] = 7
    x[labels == 1, 4] = 0.1  # constant in one class
    found = accumulate(ClassConditional.create(6, 5), parts(x, labels))  # class 4 has no sample
    wide = x.astype(np.float64)
    for label in range(4):
        mine = wide[labels == label]
        varies = mine.std(axis=0) > 0
        expected = np.eye(6)
        expected[np.ix_(varies, varies)] = np.corrcoef(mine[:, varies].T)
        np.testing.assert_allclose(found.correlation_of(label), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.means[label], mine.mean(axis=0), rtol=1e-12)
    left = (wide - np.stack([wide[labels == k].mean(axis=0) for k in range(4)])[labels])[:, :5]
    means, within = found.finalise()
    np.testing.assert_allclose(within[:5, :5], np.corrcoef(left.T), rtol=0, atol=1e-12)
    assert within[5].tolist() == [0] * 5 + [1] and not means[4].any()
    assert found.counts.tolist() == [*np.bincount(labels), 0] and found.samples == 3000


def test_unit_that_only_tells_the_class_varies_within_none():
    labels = np.arange(200) % 2
    x = np.stack([labels + 0.1, np.random.default_rng(0).standard_normal(200)], axis=1).astype(np.float32)
    found = ClassConditional.create(2, 2).update(x, labels)
    assert found.within_correlation().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("labels, words", [
    ([0, 1, 5], "Sample 2 has the label 5; labels go from 0 to 2"), ([0, -1, 1], "Sample 1 has the label -1"),
    ([0.0, 1.0, 2.0], "must be 3 integers"), ([0, 1], "must be 3 integers"),
])
def test_wrong_labels_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        ClassConditional.create(4, 3).update(np.eye(3, 4), np.array(labels))


def test_classes_of_one_sample_each_say_so():
    found = ClassConditional.create(4, 3).update(np.eye(3, 4), np.arange(3))
    with pytest.raises(InputError, match="A correlation within classes needs at least two samples; there is one"):
        found.within_correlation()
    with pytest.raises(InputError, match="The correlation of class 2 needs at least two samples; there is one"):
        found.correlation_of(2)


def test_histogram_counts_what_lies_between_its_edges():
    x = draw(4000, 5, 3.0)
    x[:, 1], x[:, 2], x[17, 3] = 0, 1e-20 * x[:, 2], 1e6
    found = accumulate(Histogram.create(5, bins=32), parts(x))
    edges, counts = found.finalise()
    for unit in range(5):
        assert np.array_equal(np.histogram(x[:, unit].astype(float), edges[unit])[0], counts[unit])
    assert (counts.sum(axis=1) == 4000).all() and counts.shape == (5, 32)
    filled = (counts > 0).sum(axis=1)
    assert filled[1] == 1 and filled[0] > 10, "bins are about as narrow as the range allows"


def test_quantiles_keep_their_rank_error():
    x = draw(40_000, 3, dtype=np.float64)
    found = accumulate(Quantiles.create(3, size=64), parts(x))
    assert 0 < found.rank_error < 0.1 and sum(len(level) for level in found.levels if level is not None) < 64 * 12
    exact = stats.rankdata(x, axis=0) / len(x)
    assert np.abs(found.ranks().of(x) - exact).max() <= found.rank_error
    for share in (0.1, 0.5, 0.99):
        reached = (x <= found.quantile(share)).mean(axis=0)
        assert np.abs(reached - share).max() <= found.rank_error + 1 / len(x)


@pytest.mark.parametrize("samples, tolerance", [(900, 1e-9), (20_000, 2e-3)])
def test_spearman_equals_scipy(samples, tolerance):
    x = np.exp(draw(samples, 8, dtype=np.float64))
    x[:, 2] = np.maximum(x[:, 2], 1.5)  # many ties
    found = accumulate(Spearman.create(accumulate(Quantiles.create(8, size=512), parts(x))), parts(x)).finalise()
    assert np.abs(found - stats.spearmanr(x).statistic).max() <= tolerance


def test_rv_is_linear_cka():
    x = draw(500, 12, dtype=np.float64)
    x[:, 9:12] = 1
    index = np.random.default_rng(0).permutation(9).reshape(3, 3)
    index = np.concatenate([index, [[9, 10, 11]]])
    found = rv_coefficient(accumulate(Covariance.create(12), parts(x)).covariance(), index)
    centred = x - x.mean(axis=0)
    def cka(a, b):
        return np.linalg.norm(a.T @ b)**2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    expected = np.eye(4)
    expected[:3, :3] = [[cka(centred[:, a], centred[:, b]) for b in index[:3]] for a in index[:3]]
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert rv_coefficient(np.eye(3), np.arange(3)[:, None]).tolist() == np.eye(3).tolist()


def test_activity_in_the_words_of_its_range():
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((300, 4))).astype(np.float32)
    x[:, 1], x[:, 2] = 0, 2
    idle = accumulate(Activity.create(4, RANGES["relu"]), parts(x)).finalise()
    assert idle.constant.tolist() == [False, True, True, False] and idle.never_active.tolist() == [False, True, False, False]
    assert not idle.saturated.any() and idle.extreme.tolist() == [0, 1, 0, 0]
    y = np.stack([np.sign(rng.standard_normal(300)) * 0.9999, rng.uniform(-1, 1, 300), np.full(300, -0.999)], axis=1)
    idle = accumulate(Activity.create(3, RANGES["tanh"]), parts(y)).finalise()
    assert idle.saturated.tolist() == [True, False, False] and idle.never_active.tolist() == [False, False, True]
    open_ended = Activity.create(3, ActivationRange()).update(y).finalise()
    assert not open_ended.saturated.any() and not open_ended.never_active.any() and open_ended.constant.tolist()[2]


# --- bad input, the same for all ----------------------------------------------------------------------------------

ONE = {"covariance": Covariance.create(3), "means": Means.create(3), "histogram": Histogram.create(3),
       "quantiles": Quantiles.create(3), "co-activation": CoActivation.create(3), "activity": Activity.create(3)}


@pytest.fixture(params=list(ONE))
def fresh(request):
    kind = type(ONE[request.param])
    return kind.create(3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_named_mid_stream(fresh, value):
    x = draw(700, 3)
    x[650, 1] = value
    with pytest.raises(InputError, match=f"Sample 650 has {value} at unit 1") as caught:
        accumulate(fresh, parts(x))
    assert caught.value.where == "sample 650, unit 1"


def test_nothing_was_seen(fresh):
    with pytest.raises(InputError, match="needs at least (one sample|two samples); there are none"):
        fresh.finalise()


def test_empty_batches_count_nothing(fresh):
    assert fresh.update(np.zeros((0, 3))).samples == 0
