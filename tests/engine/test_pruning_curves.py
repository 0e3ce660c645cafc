"""Whole curves: elements of a unit that go together, equal runs, a given order, and the quick first answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cipm.pruning import cost_of_order, elimination_curve, quick_curve


def draw(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a covariance and a consumers' Gram."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((5, size))
    return np.cov(rng.standard_normal((300, size)) @ rng.standard_normal((size, size)), rowvar=False), w.T @ w


def schur(c: np.ndarray, g: np.ndarray, gone: np.ndarray) -> float:
    """Return tr(G_SS (C_SS − C_SK C_KK⁻¹ C_KS)) directly."""
    s, k = np.flatnonzero(gone), np.flatnonzero(~gone)
    rest = c[np.ix_(s, s)]
    if k.size:
        rest = rest - c[np.ix_(s, k)] @ np.linalg.solve(c[np.ix_(k, k)], c[np.ix_(k, s)])
    return float(np.trace(g[np.ix_(s, s)] @ rest))


def greedy(c: np.ndarray, g: np.ndarray, units: int) -> tuple[list[int], list[float]]:
    """Remove the cheapest unit again and again, every one tried by the direct formula."""
    e, removed, costs = len(c) // units, [], [0.0]
    while len(removed) < units:
        left = [u for u in range(units) if u not in removed]
        trials = [schur(c, g, np.repeat(np.isin(np.arange(units), [*removed, u]), e)) for u in left]
        removed.append(left[int(np.argmin(trials))])
        costs.append(min(trials))
    return removed, costs[::-1]


def ridged(c: np.ndarray, share: float = 1e-6) -> np.ndarray:
    return c + share * np.trace(c) / len(c) * np.eye(len(c))


@pytest.mark.parametrize("units, elements", [(9, 3), (70, 2)])
def test_elements_of_a_unit_go_together(units, elements):
    c, g = draw(units * elements)
    curve = elimination_curve([c], [g], samples=10_000, ridge=1e-6, units=units)
    if units < 10:
        order, costs = greedy(ridged(c), g, units)
        assert curve.removal_order.tolist() == order
        np.testing.assert_allclose(curve.cost, costs, rtol=1e-6, atol=1e-9 * costs[0])
    np.testing.assert_allclose(curve.cost, cost_of_order([c], [g], curve.removal_order, ridge=1e-6), rtol=1e-6,
                               atol=1e-9 * curve.cost[0])
    assert sorted(curve.removal_order) == list(range(units))


def test_taps_with_different_elements_share_one_order():
    (c1, g1), (c2, g2) = draw(8), draw(24, 1)
    curve = elimination_curve([c1, c2], [g1, g2], samples=10_000, ridge=1e-6, units=8)
    cost = sum(cost_of_order([c], [g], curve.removal_order, ridge=1e-6) for c, g in ((c1, g1), (c2, g2)))
    np.testing.assert_allclose(curve.cost, cost, rtol=1e-6, atol=1e-9 * cost[0])
    best = min(sum(schur(ridged(c), g, np.repeat(np.arange(8) == u, len(c) // 8)) for c, g in ((c1, g1), (c2, g2)))
               for u in range(8))
    assert curve.cost[7] == pytest.approx(best, rel=1e-6)


def test_equal_runs_lose_units_evenly():
    c, g = draw(12)
    for made in (elimination_curve, quick_curve):
        order = made([c], [g], samples=10_000, blocks=3).removal_order
        for taken in range(1, 13):
            counts = np.bincount(order[:taken] // 4, minlength=3)
            assert counts.max() - counts.min() <= 1


def test_many_units_with_dead_and_equal_ones():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((900, 40)) @ rng.standard_normal((40, 150)) + 0.1 * rng.standard_normal((900, 150))
    x[:, 7], x[:, 20] = 1.0, x[:, 21]
    w = rng.standard_normal((30, 150))
    curve = elimination_curve([np.cov(x.T)], [w.T @ w], samples=900)
    assert curve.removal_order[0] == 7 and len({20, 21} & set(curve.removal_order[:60].tolist())) > 0
    assert (np.diff(curve.cost) <= 0).all() and curve.cost[-1] == 0
    exact = cost_of_order([np.cov(x.T)], [w.T @ w], curve.removal_order, ridge=curve.ridge)
    np.testing.assert_allclose(curve.cost, exact, rtol=1e-6, atol=1e-7 * exact[0])


def test_the_quick_curve_is_a_true_cost_near_the_careful_one():
    c, g = draw(60)
    quick, careful = (made([c], [g], samples=10_000, ridge=1e-6) for made in (quick_curve, elimination_curve))
    for keep in (15, 30, 45):
        gone = ~np.isin(np.arange(60), quick.kept(keep))
        assert quick.cost[keep] == pytest.approx(schur(ridged(c), g, gone), rel=1e-6)
    some = slice(6, 54)
    random = np.mean([cost_of_order([c], [g], np.random.default_rng(s).permutation(60), ridge=1e-6) for s in range(5)], axis=0)
    assert careful.cost[some].sum() <= quick.cost[some].sum() < random[some].sum()


def test_fewer_samples_than_units_is_said():
    c, g = draw(20)
    for made, samples in itertools.product((elimination_curve, quick_curve), (10, 40)):
        notes = made([c], [g], samples=samples).notes
        assert bool(notes) == (samples == 10)
