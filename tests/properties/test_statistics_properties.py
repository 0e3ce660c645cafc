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
from cipm.statistics import Covariance, correlation

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
