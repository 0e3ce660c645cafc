"""Properties of the accumulators: any sharding and order of merging gives the same statistics."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cipm.ordering import seriate
from cipm.permutation import Permutation
from cipm.pruning import elimination_curve
from cipm.statistics import (
    RANGES,
    Activity,
    ClassConditional,
    ClassMeans,
    CoActivation,
    Covariance,
    CrossCovariance,
    Histogram,
    Means,
    PairCorrelations,
    Profile,
    Quantiles,
    Running,
    Spearman,
    correlation,
)

finite = st.floats(-1e6, 1e6, allow_nan=False, width=64)


@st.composite
def sharded(draw):
    """Draw samples (offset far from zero), borders of shards and an order of merging."""
    seed, units, rows = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 8)), draw(st.integers(2, 60))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, units)) + draw(st.sampled_from([0.0, 30.0, 1e4]))
    borders = sorted(draw(st.sets(st.integers(1, rows - 1), max_size=6)))
    shards = np.split(x, borders)
    return x, shards, draw(st.permutations(range(len(shards))))


def accumulated(shards):
    return [Covariance.create(shard.shape[1]).update(shard) for shard in shards]


@given(sharded())
@settings(max_examples=150, deadline=None)
def test_any_sharding_and_merge_order_gives_the_same(case):
    x, shards, order = case
    whole = Covariance.create(x.shape[1]).update(x)
    parts = accumulated(shards)
    merged = reduce(Covariance.merge, [parts[i] for i in order])
    scale = np.sqrt(np.outer(whole.covariance().diagonal(), whole.covariance().diagonal())) + 1e-300
    # 1e-12 relative, plus what rounding the samples themselves (mean up to 1e4) leaves
    slack = 1e-12 + 1e-15 * np.abs(x).max() / max(x.std(axis=0).min(), 1e-3)
    assert (np.abs(merged.covariance() - whole.covariance()) / scale).max() <= slack
    assert merged.samples == whole.samples
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)


def merged(start, shards, order):
    """Return the accumulators of all shards merged in this order."""
    return reduce(lambda a, b: a.merge(b), [start().update(*shards[i]) for i in order])


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


@given(sharded())
@settings(max_examples=40, deadline=None)
def test_exact_products_of_float32_samples_merge_to_the_same_however_sharded(case):
    x, shards, order = case
    whole = Covariance.create(x.shape[1], exact=True).update(x.astype(np.float32))
    parts = merged(lambda: Covariance.create(x.shape[1], exact=True), [(s.astype(np.float32),) for s in shards], order)
    variance = whole.covariance().diagonal()
    scale = np.sqrt(np.outer(variance, variance)) + 1e-300
    slack = 1e-12 * (1 + (np.abs(x).max() / np.sqrt(variance[variance > 0].min(initial=1))) * 1e-3)
    assert (np.abs(parts.covariance() - whole.covariance()) / scale)[np.ix_(whole.varies, whole.varies)].max(initial=0) <= slack


@given(sharded())
@settings(max_examples=60, deadline=None)
def test_counts_are_the_same_bits_however_sharded(case):
    """Co-activation, histograms and activity count integers."""
    x, shards, order = case
    units, single = x.shape[1], [(s,) for s in shards]
    one, other = CoActivation.create(units).update(x), merged(lambda: CoActivation.create(units), single, order)
    assert np.array_equal(one.counts(), other.counts()) and np.array_equal(one.finalise(), other.finalise())
    one, other = Histogram.create(units, bins=8).update(x), merged(lambda: Histogram.create(units, bins=8), single, order)
    assert all(np.array_equal(a, b) for a, b in zip(one.finalise(), other.finalise(), strict=True))
    assert (one.counts.sum(axis=1) == len(x)).all()
    tanh = RANGES["tanh"]
    one, other = Activity.create(units, tanh).update(x), merged(lambda: Activity.create(units, tanh), single, order)
    assert np.array_equal(one.finalise().extreme, other.finalise().extreme)
    assert np.array_equal(one.finalise().constant, other.finalise().constant)


@given(sharded(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_means_classes_and_two_groups_merge_to_the_same_however_sharded(case, seed):
    x, shards, order = case
    x, shards = x - x.mean(axis=0).round(), [s - x.mean(axis=0).round() for s in shards]
    units, rng = x.shape[1], np.random.default_rng(seed)
    y, labels = rng.standard_normal((len(x), 3)), rng.integers(0, 3, len(x))
    borders = np.cumsum([len(s) for s in shards])[:-1]
    ys, cut = np.split(y, borders), np.split(labels, borders)
    one, other = Means.create(units).update(x), merged(lambda: Means.create(units), [(s,) for s in shards], order)
    close(other.mean, one.mean)
    close(other.variance(), one.variance())
    one = CrossCovariance.create(units, 3).update(x, y)
    other = merged(lambda: CrossCovariance.create(units, 3), list(zip(shards, ys, strict=True)), order)
    close(other.covariance(), one.covariance())
    close(other.finalise(), one.finalise())
    one = ClassConditional.create(units, 3).update(x, labels)
    other = merged(lambda: ClassConditional.create(units, 3), list(zip(shards, cut, strict=True)), order)
    close(other.means, one.means)
    assert np.array_equal(other.counts, one.counts)
    spread = np.sqrt(one.scatter.diagonal(axis1=1, axis2=2))
    slack = 1e-12 * (spread[:, :, None] * spread[:, None]) + 1e-13 * (1 + np.abs(x).max() ** 2)
    assert (np.abs(other.scatter - one.scatter) <= slack).all()
    one = ClassMeans.create(units, 3).update(x, labels)
    other = merged(lambda: ClassMeans.create(units, 3), list(zip(shards, cut, strict=True)), order)
    close(other.means, one.means)
    close(other.within, one.within)
    close(other.selectivity(), one.selectivity())


@given(sharded(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_profiles_and_tracking_merge_to_the_same_however_sharded(case, seed):
    x, shards, order = case
    x, shards = x - x.mean(axis=0).round(), [s - x.mean(axis=0).round() for s in shards]
    units, labels = x.shape[1], np.random.default_rng(seed).integers(-1, 3, len(x))
    cut = np.split(labels, np.cumsum([len(s) for s in shards])[:-1])
    whole = Profile.create(units, range=RANGES["tanh"], classes=3).update(x, x, labels)
    parts = merged(lambda: Profile.create(units, range=RANGES["tanh"], classes=3), list(zip(shards, shards, cut, strict=True)),
                   order)
    for name, array in Profile.from_state(parts.state()).state().items():
        if name != "activity/first":  # of whichever shard came first
            close(array, whole.state()[name])
    chosen = np.tile(np.arange(units), (units, 1))
    one = PairCorrelations.create(chosen).update(x)
    close(merged(lambda: PairCorrelations.create(chosen), [(s,) for s in shards], order).finalise(), one.finalise())
    one = Running.create(units, decay=0.9).update(x)
    close(merged(lambda: Running.create(units, decay=0.9), [(s,) for s in shards], order).finalise(), one.finalise())


@given(sharded())
@settings(max_examples=60, deadline=None)
def test_float32_shards_that_begin_at_cuts_give_the_whole_in_any_order(case):
    _, shards, order = case
    shards = [shard.astype(np.float32) for shard in shards]
    whole = Covariance.create(shards[0].shape[1])
    for shard in shards:
        whole = whole.cut().update(shard)
    parts = reduce(Covariance.merge, [accumulated([shards[i]])[0] for i in order])
    assert (whole.samples, whole.dead.tolist()) == (parts.samples, parts.dead.tolist())
    scale = np.sqrt(np.outer(whole.variance, whole.variance)) + 1e-300
    slack = 1e-12 + 1e-15 * np.abs(whole.mean).max() / max(np.sqrt(whole.variance[whole.varies].min(initial=1)), 1e-3)
    assert (np.abs(whole.covariance() - parts.covariance()) / scale)[np.ix_(whole.varies, whole.varies)].max(initial=0) <= slack


@given(st.integers(0, 2**32 - 1), st.integers(20, 900), st.data())
@settings(max_examples=40, deadline=None)
def test_ranks_stay_within_their_error_however_sharded(seed, rows, data):
    """And Spearman merges: shards with the same quantiles give the same in any order."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal((rows, 2)) + rng.standard_normal((rows, 1)), data.draw(st.integers(0, 9)))
    shards = np.split(x, sorted(data.draw(st.sets(st.integers(1, rows - 1), max_size=5))))
    order = data.draw(st.permutations(range(len(shards))))
    sketch = merged(lambda: Quantiles.create(2, size=16), [(s,) for s in shards], order)
    exact = ((x[:, None] < x[None]).sum(axis=1), (x[:, None] > x[None]).sum(axis=1))
    middle = (exact[1] + len(x) - exact[0]) / 2 / len(x)
    assert np.abs(sketch.ranks().of(x) - middle).max() <= sketch.rank_error + 1e-12
    one = Spearman.create(sketch).update(x).finalise()
    close(merged(lambda: Spearman.create(sketch), [(s,) for s in shards], order).finalise(), one)


@given(sharded(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_float32_shards_merge_alike_in_any_order(case, seed):
    _, shards, order = case
    parts = accumulated([shard.astype(np.float32) for shard in shards])
    one = reduce(Covariance.merge, parts)
    other = reduce(Covariance.merge, [parts[i] for i in order])
    scale = np.sqrt(np.outer(one.covariance().diagonal(), one.covariance().diagonal())) + 1e-300
    assert (np.abs(one.covariance() - other.covariance()) / scale)[np.ix_(one.varies, one.varies)].max(initial=0) <= 1e-11


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 6)), elements=finite))
@settings(max_examples=200, deadline=None)
def test_correlation_is_never_nan_and_always_a_correlation(x):
    c = correlation([x])
    assert np.isfinite(c).all() and (np.abs(c) <= 1).all() and np.array_equal(c, c.T) and (c.diagonal() == 1).all()
    constant = (x == x[0]).all(axis=0)
    assert (c[constant][:, ~constant] == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_orders_are_permutations_and_curves_fall(seed, units):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 3)) @ rng.standard_normal((3, units)) + rng.standard_normal((80, units))
    c = correlation([x])
    assert len(Permutation(seriate(c, 80))) == units
    w = rng.standard_normal((4, units))
    curve = elimination_curve([np.cov(x.T).reshape(units, units)], [w.T @ w], samples=80)
    assert sorted(curve.removal_order.tolist()) == list(range(units))
    assert (np.diff(curve.cost) <= 1e-9).all() and curve.cost[-1] == 0
