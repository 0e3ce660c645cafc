"""What is said of modules and groups: representatives, top samples, interactions, dimensions; against what is known."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from cipm.errors import ProbeError
from cipm.modules import (
    TopSamples,
    describe_modules,
    effective_dimension,
    interactions,
    neighbour_dimension,
    partition,
    unit_weights,
)
from cipm.modules.dimension import EXACT_UNITS
from cipm.statistics import correlation


def test_the_medoid_comes_first():
    rng = np.random.default_rng(0)
    loadings = np.array([0.6, 0.9, 0.7, 0.5, 0.8, 0.65])
    x = rng.standard_normal((4000, 1)) * loadings + rng.standard_normal((4000, 6)) * np.sqrt(1 - loadings**2)
    module, = describe_modules(correlation([x]), partition(correlation([x]), samples=4000, resolution=0.1))
    assert module.representatives == (1, 4, 2) and module.opposed == () and json.dumps(asdict(module))


class TestTopSamples:
    labels = np.array([0, 0, 1, -1, 1, 0])
    x = np.random.default_rng(0).standard_normal((300, 6)) * [1, 5, 1, 1, 0.1, 0] + [0, 9, 0, 0, 3, 2]

    def start(self, **options):
        return TopSamples.create(self.labels, self.x.mean(axis=0), self.x.var(axis=0), **options)

    def expected(self, signs=1):
        z = (self.x - self.x.mean(axis=0)) / np.where(self.x.std(axis=0) > 0, self.x.std(axis=0), 1) * signs
        return z[:, [0, 1]].mean(axis=1), z[:, [2, 4]].mean(axis=1)  # unit 5 is constant

    def test_they_are_the_rows_of_highest_mean(self):
        found = self.start(kept=5).update(self.x[:100]).update(self.x[100:]).finalise()
        for top, values in zip(found, self.expected(), strict=True):
            assert [s.sample for s in top] == np.argsort(-values)[:5].tolist()
            assert [s.activation for s in top] == pytest.approx(np.sort(values)[::-1][:5])

    def test_shards_merge_to_the_same(self):
        names = np.arange(300)
        shards = [self.start().update(self.x[part], names[part]) for part in (slice(0, 50), slice(50, 220), slice(220, 300))]
        merged = shards[2].merge(shards[0].merge(shards[1]))
        assert merged.finalise() == self.start().update(self.x).finalise() and merged.samples == 300

    def test_a_sample_of_many_rows_counts_once_by_its_largest(self):
        names = np.arange(300) // 10
        batches = self.start(kept=4)
        for start in range(0, 300, 25):  # a sample's rows may come in two batches
            batches = batches.update(self.x[start:start + 25], names[start:start + 25])
        best = self.expected()[0].reshape(30, 10).max(axis=1)
        assert [s.sample for s in batches.finalise()[0]] == np.argsort(-best)[:4].tolist()

    def test_opposed_units_are_negated(self):
        signs = np.array([1, -1, 1, 1, 1, 1])
        found = self.start(signs=signs, kept=1).update(self.x).finalise()[0][0]
        assert found.sample == self.expected(signs)[0].argmax()

    def test_nothing_yet_and_nothing_finite(self):
        assert self.start().finalise() == [[], []]
        with pytest.raises(ProbeError, match="not finite"):
            self.start().update(np.full((2, 6), np.nan))


def test_interactions_show_what_is_planted_and_only_that():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(-1, 3, 90), rng.integers(-1, 4, 120)
    w = rng.standard_normal((90, 120)) * rng.uniform(0.2, 3, 90)[:, None]  # rows of very different strength are no structure
    plain = interactions(w, rows, columns)
    assert np.abs(plain.ratio - 1).max() < 0.25 and np.abs(plain.z).max() < 4
    w[np.ix_(rows == 1, columns == 2)] *= 3
    found = interactions(w, rows, columns)
    assert np.unravel_index(found.z.argmax(), (3, 4)) == (1, 2) and found.ratio[1, 2] > 1.15 and found.z[1, 2] > 5
    block = w[np.ix_(rows == 1, columns == 2)]
    assert found.strength[1, 2] == pytest.approx(np.sqrt((block**2).mean())) and json.dumps(found.to_json())
    energy = w**2
    expected = energy[rows == 1].sum() * energy[:, columns == 2].sum() / energy.sum()
    assert found.ratio[1, 2] == pytest.approx(np.sqrt((block**2).sum() / expected))


def test_interactions_z_is_the_deviation_over_random_columns():
    rng = np.random.default_rng(1)
    w, rows, columns = rng.standard_normal((20, 30)), np.repeat([0, 1], 10), np.repeat([0, 1, 2], 10)
    drawn = np.array([interactions(w, rows, rng.permutation(columns)).z for _ in range(400)])
    assert np.abs(drawn.mean(axis=0)).max() < 0.2 and np.abs(drawn.std(axis=0) - 1).max() < 0.15


def test_interactions_of_nothing():
    for w in (np.zeros((4, 3)), np.ones((4, 3))):
        found = interactions(w, np.array([0, 0, 1, -1]), np.array([0, 0, 1]))
        assert (found.ratio == 1).all() and np.abs(found.z).max() < 1e-6
    assert interactions(np.ones((4, 3)), np.full(4, -1), np.zeros(3, dtype=int)).strength.shape == (0, 1)


def test_weights_between_units_of_several_elements():
    kernel = np.random.default_rng(0).standard_normal((8, 3, 3, 6))
    found = unit_weights(kernel, (3, np.array([[0, 3], [1, 4], [2, 5]])), (0, np.arange(8)[:, None]))
    assert found.shape == (3, 8)
    assert found[1, 5] == pytest.approx(np.sqrt((kernel[5][:, :, [1, 4]] ** 2).mean()))


def test_dimension_has_its_two_halves():
    x = np.random.default_rng(0).standard_normal((1000, 5)) @ np.random.default_rng(1).standard_normal((5, 60))
    x += 0.1 * np.random.default_rng(2).standard_normal(x.shape)
    c, halves = correlation([x]), [correlation([x[i::2]]) for i in (0, 1)]
    found = effective_dimension(c, 1000, halves)
    assert found.spectral_edge == 5 and found.variance_95 <= 5 and found.halves["spectral_edge"] == (5, 5)
    low, high = found.halves["participation_ratio"]
    assert low <= high and abs(found.participation_ratio - (low + high) / 2) < 0.2
    assert effective_dimension(c, 1000).halves is None and json.dumps(asdict(found))
    dead = effective_dimension(np.zeros((4, 4)), 10, [np.zeros((4, 4))] * 2)
    assert dead.halves["variance_95"] == (0, 0) and dead.participation_ratio == 0


def test_dimension_of_many_units_is_close_to_the_exact_one():
    n, rank = EXACT_UNITS + 100, 300
    rng = np.random.default_rng(0)
    root = rng.standard_normal((n, rank)).astype(np.float32) * np.linspace(1, 0.05, rank, dtype=np.float32)
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(root.T @ root)[::-1]
    found = effective_dimension(root @ root.T, 100_000)
    assert found.variance_95 == pytest.approx(np.searchsorted(np.cumsum(values) / values.sum(), 0.95) + 1, rel=0.06)
    assert found.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)


@pytest.mark.parametrize("dimensions", [1, 2, 5, 10])
def test_neighbours_know_the_dimension(dimensions):
    rng = np.random.default_rng(dimensions)
    flat = rng.random((1500, dimensions))
    curved = np.c_[flat, np.sin(3 * flat), flat[:, :1] ** 2] @ rng.standard_normal((2 * dimensions + 1, 40))
    found = neighbour_dimension(curved.astype(np.float32))
    assert found.value == pytest.approx(dimensions, rel=0.12)
    low, high = found.halves
    assert low <= high and low == pytest.approx(dimensions, rel=0.2) and found.rows == 1500
    assert "TwoNN" in found.how


def test_neighbours_of_bad_rows():
    rng = np.random.default_rng(0)
    twice = np.repeat(rng.standard_normal((200, 3)), 2, axis=0)
    assert neighbour_dimension(twice).rows == 200 and neighbour_dimension(twice).value == pytest.approx(3, rel=0.25)
    constant = neighbour_dimension(np.ones((50, 3)))
    assert constant.value is None and constant.halves is None and "1 different rows are too few" in constant.how
    grid = neighbour_dimension(np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2))
    assert grid.value is None and "same distance" in grid.how
