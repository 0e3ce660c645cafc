"""Trees by chains of nearest neighbours, their branches, and what is worked on side by side."""

from __future__ import annotations

import fastcluster
import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from scipy.spatial.distance import pdist, squareform

from cipm.compiled import side_by_side
from cipm.ordering import seriation
from cipm.ordering.tree import average, branches, squared_distances, ward

SIZES = [2, 3, 70, 300]  # 300 leaves: the matrix is moved together twice


def points(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
def test_trees_equal_fastclusters(n):
    x = points(n)
    for ours, method in ((ward(x), "ward"), (average(squareform(pdist(x))), "average")):
        theirs = fastcluster.linkage(pdist(x), method)
        np.testing.assert_array_equal(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]])
        np.testing.assert_allclose(ours[:, 2], theirs[:, 2], atol=1e-5)


def test_a_weight_counts_as_so_many_equal_points():
    x, weights = points(40), np.random.default_rng(0).integers(1, 5, 40)
    ours = ward(x, weights.astype(np.float32))
    theirs = fastcluster.linkage(np.repeat(x, weights, axis=0), "ward")[-39:]
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-4)


def test_equal_points_make_a_tree_too():
    merges = ward(np.zeros((90, 3), dtype=np.float32))
    assert merges[-1, 3] == 90 and (merges[:, 2] == 0).all()


def test_distances_are_the_same_on_both_sides():
    x = points(700)
    found = squared_distances(x)
    assert (found == found.T).all()
    np.testing.assert_allclose(found, squareform(pdist(x)) ** 2, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 299, 300, 1000])
def test_branches_are_the_clusters_of_the_cut_tree(count):
    merges = ward(points(300))
    leaves, starts, above = branches(merges, count)
    cut = fcluster(merges, min(count, 300), "maxclust")
    assert sorted(leaves) == list(range(300)) and len(starts) == min(count, 300) == len(above) + 1
    runs = np.split(leaves, starts[1:])
    assert all(len(set(cut[run])) == 1 for run in runs) and len({cut[run[0]] for run in runs}) == len(runs)
    np.testing.assert_array_equal(above[:, 2], merges[300 - len(starts):, 2])
    assert len(above) == 0 or above[-1, 3] == len(starts)


def test_a_tree_in_parts_keeps_groups_together(monkeypatch):
    """Three levels: parts of 60 units, their 16 branches each, and these in parts again."""
    monkeypatch.setattr(seriation, "TREE_UNITS", 60)
    monkeypatch.setattr(seriation, "BRANCHES", 16)
    centres = 20 * np.random.default_rng(1).standard_normal((8, 5))
    group = np.random.default_rng(2).permutation(np.repeat(np.arange(8), 100))
    x = (centres[group] + np.random.default_rng(3).standard_normal((800, 5))).astype(np.float32)
    order = seriation.seriate_points(x)
    assert sorted(order) == list(range(800))
    assert (np.diff(group[order]) != 0).sum() == 7


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_come_back_in_their_order(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert side_by_side(lambda part: part**2, range(10)) == [part**2 for part in range(10)]
    finally:
        torch.set_num_threads(before)
