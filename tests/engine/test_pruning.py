"""The elimination curve against brute force, the refit against least squares, the calibration's promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cipm.errors import InputError, OptionError
from cipm.pruning import calibrate, default_ridge, elimination_curve


def draw(units: int, samples: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return correlated samples, their covariance and a consumer's weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, units)) @ rng.standard_normal((units, units)) + rng.standard_normal(units)
    return x, np.cov(x.T), rng.standard_normal((outputs, units))


def schur_cost(c: np.ndarray, g: np.ndarray, removed: list[int]) -> float:
    """Return tr(G_SS (C_SS − C_SK C_KK⁻¹ C_KS)) directly."""
    kept = [u for u in range(len(c)) if u not in removed]
    rest = c[np.ix_(removed, removed)]
    if kept:
        rest = rest - c[np.ix_(removed, kept)] @ np.linalg.solve(c[np.ix_(kept, kept)], c[np.ix_(kept, removed)])
    return float(np.trace(g[np.ix_(removed, removed)] @ rest))


def obs_oracle(cs: list[np.ndarray], gs: list[np.ndarray]) -> tuple[list[int], list[float]]:
    """Remove one unit at a time, trying every one by the direct formula."""
    removed: list[int] = []
    costs = [0.0]
    while len(removed) < len(cs[0]):
        left = [u for u in range(len(cs[0])) if u not in removed]
        trials = [sum(schur_cost(c, g, [*removed, u]) for c, g in zip(cs, gs, strict=True)) for u in left]
        removed.append(left[int(np.argmin(trials))])
        costs.append(min(trials))
    return removed, costs[::-1]


def regularised(c: np.ndarray, ridge: float) -> np.ndarray:
    return c + ridge * np.trace(c) / len(c) * np.eye(len(c))


@pytest.mark.parametrize("units, taps", [(5, 1), (12, 1), (12, 2)])
def test_curve_equals_greedy_brute_force(units, taps):
    drawn = [draw(units, 200, 7, seed) for seed in range(taps)]
    cs, gs = [c for _, c, _ in drawn], [w.T @ w for *_, w in drawn]
    curve = elimination_curve(cs, gs, samples=200, ridge=1e-4)
    order, costs = obs_oracle([regularised(c, 1e-4) for c in cs], gs)
    assert curve.removal_order.tolist() == order
    np.testing.assert_allclose(curve.cost, costs, rtol=1e-7, atol=1e-9)


def test_blocks_do_not_change_exact_elimination():
    """Over several blocks the cost stays the Schur complement of the units that are gone."""
    _, c, w = draw(200, 1000, 40)
    curve = elimination_curve([c], [w.T @ w], samples=1000)
    ridged = regularised(c, curve.ridge)
    for keep in (199, 137, 136, 135, 72, 71, 30, 1, 0):
        removed = curve.removal_order[:200 - keep].tolist()
        assert curve.cost[keep] == pytest.approx(schur_cost(ridged, w.T @ w, removed), rel=1e-6)
    assert (np.diff(curve.cost) <= 0).all() and curve.cost[200] == 0


def test_greedy_is_close_to_the_best_subset():
    _, c, w = draw(8, 400, 4)
    ridged = regularised(c, 1e-4)
    curve = elimination_curve([c], [w.T @ w], samples=400, ridge=1e-4)
    best = min(schur_cost(ridged, w.T @ w, list(s)) for s in itertools.combinations(range(8), 3))
    assert best - 1e-12 <= curve.cost[5] <= 2 * best


def test_duplicate_and_dead_units_go_first_and_cost_almost_nothing():
    x, _, _ = draw(10, 500, 5)
    x = np.c_[x, x[:, 3], np.ones(500)]
    c, w = np.cov(x.T), np.random.default_rng(1).standard_normal((5, 12))
    curve = elimination_curve([c], [w.T @ w], samples=500)
    assert set(curve.removal_order[:2].tolist()) in ({11, 3}, {11, 10})
    assert curve.cost[10] < 1e-3 * curve.cost[0]
    assert sorted(curve.removal_order.tolist()) == list(range(12))


def test_fewer_samples_than_units_is_said_and_stays_finite():
    _, c, w = draw(40, 10, 5)
    curve = elimination_curve([c], [w.T @ w], samples=10)
    assert np.isfinite(curve.cost).all() and curve.ridge > default_ridge(40, 1000)
    assert "10 samples for 40 units" in curve.notes[0]


def test_ridge_grows_until_a_rounded_covariance_can_be_factored():
    x, c, w = draw(20, 8, 5)
    rounded = c - 1e-6 * np.trace(c) / 20 * np.eye(20)
    curve = elimination_curve([rounded], [w.T @ w], samples=8, ridge=0)
    assert np.isfinite(curve.cost).all()


def test_all_dead_costs_nothing():
    curve = elimination_curve([np.zeros((4, 4))], [np.zeros((4, 4))], samples=100)
    assert curve.removal_order.tolist() == [0, 1, 2, 3] and (curve.cost == 0).all()


def test_bad_matrices_are_refused():
    with pytest.raises(InputError, match="one square shape"):
        elimination_curve([np.eye(3)], [np.eye(4)], samples=9)
    with pytest.raises(InputError, match="not finite"):
        elimination_curve([np.full((3, 3), np.nan)], [np.eye(3)], samples=9)


def test_curve_predicts_the_error_of_the_refit():
    """The cost is what refitting really leaves, measured on the samples it came from."""
    x, c, w = draw(30, 2000, 6)
    curve = elimination_curve([c], [w.T @ w], samples=2000, ridge=1e-9)
    kept = curve.kept(12)
    removed = np.setdiff1d(np.arange(30), kept)
    weights = np.linalg.lstsq(np.c_[x[:, kept], np.ones(len(x))], x[:, removed], rcond=None)[0]
    error = (x[:, removed] - np.c_[x[:, kept], np.ones(len(x))] @ weights) @ w[:, removed].T
    assert curve.cost[12] == pytest.approx(np.square(error).sum() / 1999, rel=1e-4)


def test_calibration_meets_its_points_and_is_monotone():
    cost = np.geomspace(10, 1e-3, 20).tolist() + [0.0]
    points = [(15, 0.01), (8, 0.2), (2, 3.0)]
    loss = calibrate(np.array(cost), points)
    for keep, rise in points:
        assert loss[keep] == pytest.approx(rise)
    assert loss[20] == 0 and (np.diff(loss) <= 0).all()
    assert loss[16] / loss[15] == pytest.approx(cost[16] / cost[15])


def test_calibration_floors_at_zero_and_keeps_order():
    cost = np.array([4.0, 2.0, 1.0, 0.0])
    assert (calibrate(cost, [(1, -0.1), (2, 0.0)]) == 0).all()
    loss = calibrate(cost, [(2, 0.5), (1, 0.3), (0, -0.2)])
    assert (np.diff(loss) <= 0).all() and loss[2] == pytest.approx(0.5)
    with pytest.raises(OptionError, match="at least one measured point"):
        calibrate(cost, [])
    with pytest.raises(OptionError, match="keep 0 to 3 units"):
        calibrate(cost, [(7, 0.1)])
