"""Orders at three scales: the portfolio of one layer, orders by single units, coordinated groups, policies; their scores."""

from __future__ import annotations

import fastcluster
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering
from scipy.spatial.distance import pdist, squareform

from cipm.errors import InputError, OptionError
from cipm.ordering import (
    Link,
    Scores,
    alignment,
    angle,
    average_linkage,
    by_class,
    by_elimination,
    by_importance,
    chance,
    class_selectivity,
    coordinate,
    coordinate_groups,
    exchange,
    fiedler,
    links,
    policy,
    portfolio,
    scores,
    spectral,
)
from cipm.ordering.assignment import smooth
from cipm.ordering.exchange import clearness, exchanged
from cipm.ordering.leaves import leaf_order
from cipm.ordering.policy import RULES
from cipm.ordering.portfolio import EXCHANGED, METHODS
from cipm.ordering.scores import _events
from cipm.permutation import Permutation
from cipm.statistics import correlation
from cipm.symmetry.groups import Place, SymmetryGroup


def planted(units: int, modules: int, samples: int, rho: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, modules, units)
    x = np.sqrt(rho) * rng.standard_normal((samples, modules))[:, labels]
    return x + np.sqrt(1 - rho) * rng.standard_normal((samples, units)), labels


def line(units: int, width: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of units along a line, correlated by nearness, and where on it each of them is."""
    where = np.random.default_rng(seed).permutation(units)
    return np.exp(-0.5 * ((where[:, None] - where) / width) ** 2), where


# --- exact leaf order -------------------------------------------------------------------------------------------------


def length(distances: np.ndarray, order: np.ndarray) -> float:
    return float(distances[order[:-1], order[1:]].sum())


@pytest.mark.parametrize("method", ["single", "average", "ward"])
@pytest.mark.parametrize("n", [9, 40, 180])
def test_leaf_order_is_never_longer_than_scipys_on_any_tree(method, n):
    """Panels of 32 rows and halves of one leaf all occur; single linkage gives trees that are chains."""
    rng = np.random.default_rng(n)
    shorter = 0
    for _ in range(3):
        condensed = pdist(rng.standard_normal((n, 4)))
        merges, d = fastcluster.linkage(condensed, method), squareform(condensed)
        ours, theirs = length(d, leaf_order(merges, d)), length(d, leaves_list(optimal_leaf_ordering(merges, condensed)))
        assert ours <= theirs * (1 + 1e-6)
        shorter += ours < theirs * (1 - 1e-6)
    assert shorter or n == 9


def test_leaf_order_of_a_wide_tree_beats_every_single_flip():
    """At 700 leaves the products run over several panels of 512: no flip of one branch makes the path shorter."""
    rng = np.random.default_rng(0)
    condensed = pdist(rng.standard_normal((700, 6)))
    merges, d = fastcluster.linkage(condensed, "ward"), squareform(condensed)
    order = leaf_order(merges, d)
    best, place = length(d, order), np.argsort(order)
    members = [[leaf] for leaf in range(700)]
    for left, right, *_ in merges:
        members.append(members[int(left)] + members[int(right)])
        at = place[members[-1]]
        assert at.max() - at.min() + 1 == len(at)
        flipped = order.copy()
        flipped[at.min():at.max() + 1] = flipped[at.min():at.max() + 1][::-1]
        assert length(d, flipped) >= best * (1 - 1e-6)


@pytest.mark.parametrize(("n", "radius"), [(9, 1), (9, 4), (9, 9), (50, 6)])
def test_moving_average_is_reflected_at_the_ends(n, radius):
    x = np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)
    mirrored = np.concatenate([x[::-1], x, x[::-1]])
    expected = [mirrored[n + i - radius:n + i + radius + 1].mean(axis=0) for i in range(n)]
    np.testing.assert_allclose(smooth(x, radius), expected, atol=1e-6)


# --- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [spectral, angle, fiedler, average_linkage])
def test_every_method_puts_planted_modules_together(method):
    x, labels = planted(150, 6, 3000, 0.4)
    shown = labels[method(correlation([x]), 3000).order]
    assert (np.diff(shown) != 0).sum() <= 8  # 5 changes are needed, 125 are expected by chance


@pytest.mark.parametrize("method", [spectral, fiedler])
@pytest.mark.parametrize("units", [60, 1100])
def test_a_line_comes_back_in_line(method, units):
    """1100 units take the iterative way to the Fiedler vector."""
    c, where = line(units, units / 10)
    assert abs(np.corrcoef(where[method(c, 100 * units).order], np.arange(units))[0, 1]) > 0.995


def test_the_angle_order_goes_round_a_circle():
    turn = np.random.default_rng(0).permutation(40) * 2 * np.pi / 40
    around = turn[angle(np.cos(turn[:, None] - turn), 10_000).order]
    steps = np.diff(around) % (2 * np.pi)
    assert np.allclose(steps, steps[0], atol=1e-6)


@pytest.mark.parametrize("method", [angle, fiedler, average_linkage])
def test_dead_units_come_last_and_noise_stays(method):
    x, _ = planted(20, 2, 500, 0.5)
    x[:, [4, 11]] = 1.0
    c = correlation([x])
    assert method(c, 500).order[-2:].tolist() == [4, 11]
    assert method(np.eye(7), 500).is_identity
    for n in (0, 1, 2):
        assert len(method(np.eye(n), 500)) == n


def test_the_portfolio_takes_the_method_that_does_best_on_the_other_half():
    x, _ = planted(120, 5, 2000, 0.3)
    halves = correlation([x[::2]]), correlation([x[1::2]])
    whole = correlation([x])
    found = portfolio(whole, halves, 2000)
    assert set(found.held_out) == {*METHODS, EXCHANGED} and found.chosen in METHODS
    for name, method in (("spectral", spectral), ("fiedler", fiedler)):
        assert found.held_out[name] == scores(halves[1], method(halves[0], 1000))
    assert clearness(found.held_out[found.chosen]) == max(clearness(found.held_out[name]) for name in METHODS)
    chosen = {"spectral": spectral, "angle": angle, "fiedler": fiedler, "average linkage": average_linkage}[found.chosen]
    plain, half = chosen(whole, 2000), chosen(halves[0], 1000)
    kept = clearness(found.held_out[EXCHANGED]) > clearness(found.held_out[found.chosen])
    assert found.held_out[EXCHANGED] == scores(halves[1], Permutation(exchanged(halves[0], half.order)))
    assert found.order == (Permutation(exchanged(whole, plain.order)) if kept else plain)
    assert found.to_json()["chosen"] == found.chosen and "clearness" in found.how and ("exchanged" in found.how) == kept


def test_the_portfolio_keeps_blocks_and_does_without_halves():
    x, _ = planted(60, 3, 1000, 0.5)
    whole, halves = correlation([x]), (correlation([x[::2]]), correlation([x[1::2]]))
    found = portfolio(whole, halves, 1000, blocks=4)
    assert found.order.keeps_blocks(4) and not found.order.is_identity
    alone = portfolio(whole, None, 1000)
    assert alone.order == spectral(whole, 1000) and alone.held_out == {} and "without probe halves" in alone.how


@pytest.mark.parametrize(("n", "tried"), [(5, 2**28), (17, 2**28), (50, 2**28), (50, 25_000)])
def test_exchanges_make_an_order_clearer_and_their_sums_hold(n, tried, monkeypatch):
    """The order cannot be made clearer by exchanging any one pair that was tried, once sweeps change nothing more."""
    monkeypatch.setattr(exchange, "TRIED", tried)
    monkeypatch.setattr(exchange, "SWEEPS", 100)
    c = correlation([planted(n, 3, 300, 0.4)[0]])
    order = exchanged(c, np.arange(n))
    best = clearness(scores(c, Permutation(order)))
    assert best > clearness(scores(c, Permutation.identity(n))) + 0.01
    for p in range(n):
        for q in range(p + 1, min(n, p + 1 + tried // n**2)):
            other = order.copy()
            other[[p, q]] = other[[q, p]]
            assert clearness(scores(c, Permutation(other))) < best + 1e-4


@pytest.mark.parametrize("c", [np.eye(9), np.ones((9, 9)), np.eye(3), np.zeros((0, 0))])
def test_nothing_is_exchanged_where_nothing_is_to_be_seen(c):
    np.testing.assert_array_equal(exchanged(c, np.arange(len(c))), np.arange(len(c)))


# --- scores -----------------------------------------------------------------------------------------------------------


def direct(c: np.ndarray) -> tuple[float, float]:
    """Return anti-Robinson share and 2-SUM by their definitions."""
    n, events, triples = len(c), 0.0, 0
    for i in range(n):
        for side in (c[i, i + 1:], c[i, :i][::-1]):
            near, far = np.triu_indices(side.size, 1)
            events += (side[far] > side[near]).sum() + 0.5 * (side[far] == side[near]).sum()
            triples += near.size
    apart = np.subtract.outer(np.arange(n), np.arange(n)) ** 2
    similar = np.maximum(c, 0) * (apart > 0)
    return events / triples, (similar * apart).sum() / (similar.sum() * apart[apart > 0].mean())


def all_events(c: np.ndarray) -> float:
    """Return the anti-Robinson share by counting at every place (that the counting is right is tested below)."""
    n = len(c)
    return _events(np.ascontiguousarray(c, dtype=np.float32), np.arange(n)) / (n * (n - 1) * (n - 2) / 3)


@pytest.mark.parametrize("n", [3, 4, 33, 300])
def test_anti_robinson_and_two_sum_equal_their_definitions(n):
    """Rounded correlations tie; 300 units take two strips of rows."""
    c = np.corrcoef(np.random.default_rng(n).standard_normal((n, 40))).round(1).astype(np.float32)
    order = Permutation.random(n, generator=np.random.default_rng(0))
    found = scores(c, order)
    assert (found.anti_robinson, found.two_sum) == pytest.approx(direct(c[np.ix_(order.order, order.order)]), rel=1e-5)


def test_events_counted_from_512_places_are_those_of_all():
    x, labels = planted(1300, 30, 600, 0.3)
    c = correlation([x])
    for order in (np.arange(1300), np.argsort(labels, kind="stable")):
        assert scores(c, Permutation(order)).anti_robinson == pytest.approx(all_events(c[np.ix_(order, order)]), abs=0.002)


def test_scores_tell_a_line_from_chance():
    c, where = line(200, 20)
    right, random = scores(c, Permutation(np.argsort(where))), chance(c, generator=np.random.default_rng(0))
    for name, value in right.to_json().items():
        mean, sd = random.to_json()["mean"][name], random.to_json()["sd"][name]
        assert (value > mean + 5 * sd) == (name == "block_contrast") and (value < mean - 5 * sd) == (name != "block_contrast")
    assert right.anti_robinson == pytest.approx(0, abs=1e-12) and random.draws == 5
    assert random.mean.anti_robinson == pytest.approx(0.5, abs=0.02) and random.mean.two_sum == pytest.approx(1, abs=0.1)


def test_scores_do_not_change_the_correlation():
    c = line(30, 4)[0].astype(np.float32)
    before = c.copy()
    scores(c, Permutation.identity(30))
    np.testing.assert_array_equal(c, before)


# --- single units -----------------------------------------------------------------------------------------------------


def test_importance_and_elimination_put_first_what_matters_within_blocks():
    assert by_importance(np.array([1.0, 4, 0, 1]), np.array([1.0, 1, 9, 3])).order.tolist() == [3, 1, 0, 2]
    assert by_importance(np.array([1.0, 4, 0, 1]), np.array([1.0, 1, 9, 3]), blocks=2).order.tolist() == [1, 0, 3, 2]
    assert by_elimination(np.array([2, 0, 3, 1])).order.tolist() == [1, 3, 0, 2]
    assert by_elimination(np.array([2, 0, 3, 1]), blocks=2).order.tolist() == [1, 0, 3, 2]
    with pytest.raises(InputError, match="importance of unit 1 is not finite"):
        by_importance(np.array([1.0, np.inf]), np.ones(2))


def test_units_are_grouped_by_the_class_they_prefer():
    means = np.array([[0.0, 5, 1, 2, 0], [0.0, 1, 9, 2, 1], [0.0, 1, 1, 2, 0]])
    found = class_selectivity(means, np.array([1.0, 2, 2, 1, 0]))
    assert found.preferred.tolist() == [-1, 0, 1, -1, 1]
    assert found.strength[:4].tolist() == [0, 2, 4, 0] and np.isfinite(found.strength).all()
    assert by_class(found).order.tolist() == [1, 4, 2, 0, 3]
    with pytest.raises(InputError, match="there is 1"):
        class_selectivity(means[:1], np.ones(5))
    with pytest.raises(InputError, match="class mean of unit 2 is not finite"):
        class_selectivity(np.where(np.arange(5) == 2, np.nan, means), np.ones(5))


# --- several groups ---------------------------------------------------------------------------------------------------


def blocky(rng, sizes: dict[str, int], modules: int, noise: float):
    """Return module labels of the groups, sorted, and a function that draws a matrix strong between equal modules."""
    labels = {name: np.sort(np.r_[np.arange(modules), rng.integers(0, modules, n - modules)]) for name, n in sizes.items()}

    def draw(a, b):
        noisy = noise * np.abs(rng.standard_normal((sizes[a], sizes[b])))
        return ((labels[a][:, None] == labels[b]) + noisy).astype(np.float32)
    return labels, draw


def by_modules_shuffled(rng, labels: np.ndarray) -> Permutation:
    modules = rng.permutation(labels.max() + 1)
    return Permutation(np.concatenate([rng.permutation(np.flatnonzero(labels == m)) for m in modules]))


def test_coordinated_groups_show_their_modules_in_the_same_order():
    rng = np.random.default_rng(0)
    labels, draw = blocky(rng, {"a": 60, "b": 90, "stream": 72}, 6, 0.3)
    given_links = [Link(x, y, draw(x, y)) for x, y in (("a", "b"), ("b", "stream"), ("a", "stream"), ("stream", "stream"))]
    start = {name: by_modules_shuffled(rng, of) for name, of in labels.items()}
    found = coordinate(start, given_links, labels=labels)
    shown = [labels[name][found.orders[name].order] for name in labels]
    sequences = [of[np.r_[True, np.diff(of) != 0]].tolist() for of in shown]
    assert sequences[0] == sequences[1] == sequences[2] and len(sequences[0]) == 6
    assert np.mean(found.after) > np.mean(found.before) + 0.1
    assert found.after[0] == pytest.approx(alignment(given_links[0], found.orders["a"], found.orders["b"]))
    for name, of in labels.items():  # inside a module the given order stays, or is turned round
        before, after = ([u for u in order[name].order if of[u] == 0] for order in (start, found.orders))
        assert after in (before, before[::-1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), noise=st.floats(0, 5), labelled=st.booleans(), blocks=st.sampled_from([1, 2, 4]))
def test_coordination_never_makes_the_alignment_worse(seed, noise, labelled, blocks):
    rng = np.random.default_rng(seed)
    labels, draw = blocky(rng, {"a": 12, "b": 20, "c": 8}, 3, noise)
    pairs = [("a", "b"), ("b", "c"), ("c", "c"), ("a", "a"), ("c", "a")]
    given_links = [Link(x, y, draw(x, y)) for x, y in pairs]
    start = {name: Permutation.random(of.size, generator=rng, blocks=blocks) for name, of in labels.items()}
    kept = {"labels": labels if labelled else None, "blocks": dict.fromkeys(labels, blocks), "fixed": ["b"]}
    found = coordinate(start, given_links, **kept)
    assert np.mean(found.after) >= np.mean(found.before)
    assert found.orders["b"] == start["b"] and all(order.keeps_blocks(blocks) for order in found.orders.values())
    assert coordinate(start, given_links, **kept).orders == found.orders


def test_alignment_is_the_fall_of_the_two_sum_below_a_matrix_without_structure():
    rng = np.random.default_rng(0)
    w = rng.random((7, 5))
    p, q = (Permutation.random(n, generator=rng) for n in (7, 5))
    share = w / w.sum()
    apart = ((p.coinverse.order[:, None] + 0.5) / 7 - (q.coinverse.order + 0.5) / 5) ** 2
    plain = np.outer(share.sum(1), share.sum(0))
    assert alignment(Link("a", "b", w), p, q) == pytest.approx(-6 * ((share - plain) * apart).sum())
    assert alignment(Link("a", "b", np.zeros((7, 5))), p, q) == 0
    same = Permutation.identity(200)
    assert alignment(Link("a", "b", np.eye(200)), same, same) == pytest.approx(1, abs=1e-3)


def test_coordination_of_nothing_returns_what_it_was_given():
    order = Permutation.random(5, generator=np.random.default_rng(0))
    found = coordinate({"a": order}, [])
    assert found.orders["a"] == order and found.to_json()["mean_after"] == 0


def place(tensor: str, axis: int, index: np.ndarray) -> Place:
    return Place(tensor, axis, int(index.max()) + 1, index)


def test_links_fold_kernels_and_flattened_images():
    rng = np.random.default_rng(0)
    tensors = {"conv": torch.tensor(rng.standard_normal((3, 2, 5, 5))), "fc": torch.tensor(rng.standard_normal((4, 12))),
               "steps": torch.arange(3)}
    a = SymmetryGroup("a", "channels", 2, 1, None, (place("conv", 1, np.arange(2)[:, None]),), (), True)
    three = np.arange(3)[:, None]
    b = SymmetryGroup("b", "channels", 3, 1, None, (place("conv", 0, three), place("steps", 0, three),
                                                    place("fc", 1, np.arange(12).reshape(3, 4))), (), True)
    c = SymmetryGroup("c", "units", 4, 1, None, (place("fc", 0, np.arange(4)[:, None]),), (), True)
    found = {(link.rows, link.cols): link.strengths for link in links((a, b, c), tensors)}
    conv, fc = tensors["conv"].numpy(), tensors["fc"].numpy().reshape(4, 3, 4)
    np.testing.assert_allclose(found["a", "b"], np.sqrt((conv**2).sum(axis=(2, 3))).T, rtol=1e-6)
    np.testing.assert_allclose(found["b", "c"], np.sqrt((fc**2).sum(axis=2)).T, rtol=1e-6)
    assert len(found) == 2 and [link.tensor for link in links((a, b, c), tensors, most=6)] == ["conv"]


def test_units_inside_heads_follow_the_stream_and_leave_it_where_it_is():
    rng = np.random.default_rng(0)
    heads, width, stream = 3, 8, 24
    n = heads * width
    tensors = {"v": torch.tensor(rng.standard_normal((n, stream))), "mlp": torch.tensor(rng.standard_normal((10, stream)))}
    unit, head = np.arange(n)[:, None], np.arange(n).reshape(heads, width)
    groups = (SymmetryGroup("v", "units in blocks", n, heads, "heads", (place("v", 0, unit),), (), True),
              SymmetryGroup("heads", "heads", heads, 1, None, (place("v", 0, head),), (), True),
              SymmetryGroup("stream", "residual stream", stream, 1, None,
                            (place("v", 1, np.arange(stream)[:, None]), place("mlp", 1, np.arange(stream)[:, None])), (), True),
              SymmetryGroup("h", "units", 10, 1, None, (place("mlp", 0, np.arange(10)[:, None]),), (), True))
    orders = {g.name: Permutation.identity(g.size) for g in groups}
    found = coordinate_groups(groups, links(groups, tensors), orders)
    outer = coordinate_groups(groups[1:], links(groups[1:], tensors), {name: orders[name] for name in ("heads", "stream", "h")})
    assert found.orders["v"].keeps_blocks(heads) and not found.orders["v"].is_identity
    assert all(found.orders[name] == outer.orders[name] for name in ("heads", "stream", "h"))
    assert len(found.after) == 3 and np.mean(found.after) > np.mean(found.before)


# --- one policy -------------------------------------------------------------------------------------------------------


def test_a_policy_takes_the_order_that_serves_the_objective():
    orders = {name: Permutation.identity(4) for name in ("elimination", "importance", "canonical", "portfolio", "coordinated")}
    held_out = {"portfolio": Scores(0.8, 1, 0), "coordinated": Scores(0.81, 1, 0)}

    def chosen(objective, **also):
        return policy(objective, {"g": orders, "plain": {"random": Permutation(np.array([1, 0]))}}, **also)

    assert chosen("compression")["g"].name == "elimination"
    assert chosen("transfer", unresolved={"g": 3})["g"].name == "canonical"
    assert "3 units" in chosen("transfer", unresolved={"g": 3})["g"].why
    assert chosen("interpretability", held_out={"g": held_out})["g"].name == "coordinated"
    worse = held_out | {"coordinated": Scores(0.9, 1, 0)}
    assert chosen("interpretability", held_out={"g": worse})["g"].name == "portfolio"
    assert chosen("interpretability")["g"].name == "coordinated"
    for objective in RULES:
        plain = chosen(objective)["plain"]
        assert plain.name == "original" and plain.order.is_identity
    with pytest.raises(OptionError, match="objectives are compression"):
        policy("beauty", {})
