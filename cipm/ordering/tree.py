"""Agglomerative trees of many leaves, by chains of nearest neighbours on the whole matrix of distances.

Source: Murtagh, "A survey of recent advances in hierarchical clustering algorithms" (1983), for the chains; Lance &
Williams, "A general theory of classificatory sorting strategies" (1967), for the distances of what was merged.
"""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled
from cipm.ordering.leaves import layout

ROWS = 512  # of distances made at a time
FAR = np.float32(1e30)  # farther than any two leaves


def ward(points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return Ward's tree of points [n, dimensions], float32, as merges [n − 1, 4] in scipy's layout; a point of `weights` [n]
    counts so many times in the heights.

    Cost: n² × dimensions / 2 multiplications, then about n² steps of memory; 4 n² bytes.
    """
    distances = squared_distances(points)
    if weights is not None:
        distances *= 2 / (1 / weights + 1 / weights[:, None])
    merges = _tree(distances, True, weights)
    merges[:, 2] = np.sqrt(merges[:, 2])
    return merges


def average(distances: np.ndarray) -> np.ndarray:
    """Return the tree of average linkage of distances [n, n] as merges [n − 1, 4] in scipy's layout.

    Cost: about n² steps of memory; a copy of the distances in float32.
    """
    return _tree(np.minimum(distances, distances.T).astype(np.float32), False, None)


def branches(merges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the leaves [n] from left to right as the tree lists them, where each of the top `count` branches starts among
    them, and the merges [count − 1, 4] of these branches. With `count` not below n every leaf is a branch.
    """
    n = len(merges) + 1
    leaves, splits = layout(merges, n)
    start, children = np.r_[np.argsort(leaves), splits[:, 0]], merges[:, :2].astype(np.int64)
    count = min(count, n)
    below = 2 * n - count  # nodes from here on join branches
    top = np.setdiff1d(children[n - count:], np.arange(below, 2 * n - 1)) if count > 1 else np.array([2 * n - 2])
    top = top[np.argsort(start[top])]
    renamed = np.empty(2 * n - 1, dtype=np.int64)
    renamed[top], renamed[below:] = np.arange(count), np.arange(count, 2 * count - 1)
    held = np.ones(2 * count - 1)
    for node, (left, right) in enumerate(renamed[children[n - count:]], start=count):
        held[node] = held[left] + held[right]
    return leaves, start[top], np.c_[renamed[children[n - count:]], merges[n - count:, 2], held[count:]]


def squared_distances(points: np.ndarray) -> np.ndarray:
    """Return the squared distances [n, n] of float32 points, the same on both sides of the diagonal to the last bit."""
    n, result = len(points), np.empty((len(points), len(points)), dtype=np.float32)
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        np.matmul(points[start:stop], points[:stop].T, out=result[start:stop, :stop])
    _finish(result, np.einsum("ij,ij->i", points, points))
    return result


@compiled
def _finish(products, squares):  # pragma: no cover  (compiled)
    """Turn the products below the diagonal into squared distances on both sides, a tile of 64 × 64 at a time."""
    n = products.shape[0]
    for top in range(0, n, 64):
        for left in range(0, top + 1, 64):
            for i in range(top, min(top + 64, n)):
                for j in range(left, min(left + 64, i)):
                    products[i, j] = max(squares[i] + squares[j] - 2 * products[i, j], np.float32(0))
            for j in range(left, min(left + 64, n)):
                for i in range(max(top, j + 1), min(top + 64, n)):
                    products[j, i] = products[i, j]
    for i in range(n):
        products[i, i] = 0


def _tree(distances: np.ndarray, squared: bool, weights: np.ndarray | None) -> np.ndarray:
    """Return the merges of a symmetric matrix [n, n] float32, which is overwritten; Ward's of squared distances or average
    linkage.
    """
    np.fill_diagonal(distances, FAR)
    sizes = np.ones(len(distances)) if weights is None else weights
    pairs, heights = _chains(distances, squared, sizes.astype(np.float32))
    order = np.argsort(heights, kind="stable")
    return _labelled(pairs[order], heights[order])


@compiled
def _chains(d, squared, sizes):  # pragma: no cover  (compiled)
    """Return [n − 1, 2] leaves of either side of each merge and the heights [n − 1], in the order in which they were found.

    `sizes` [n] are those of the leaves (overwritten). A chain goes from a cluster to its nearest one, and so on, until two
    are nearest to each other: these merge. Clusters that are gone count as far; when half are gone the matrix is moved
    together.
    """
    extent = d.shape[0]
    merges = extent - 1
    pairs, heights = np.empty((merges, 2), dtype=np.int64), np.empty(merges, dtype=np.float32)
    gone = np.zeros(extent, dtype=np.float32)
    leaf, chain, moved = np.arange(extent), np.empty(extent + 1, dtype=np.int64), np.empty(extent, dtype=np.int64)
    length = 0
    for step in range(merges):
        if 2 * (merges + 1 - step) < extent and extent > 64:
            live = 0
            for i in range(extent):
                if gone[i] == 0:
                    moved[i] = live
                    leaf[live], sizes[live] = leaf[i], sizes[i]
                    column = 0
                    for j in range(extent):
                        if gone[j] == 0:
                            d[live, column] = d[i, j]
                            column += 1
                    live += 1
            for i in range(length):
                chain[i] = moved[chain[i]]
            extent = live
            gone[:extent] = 0
        if length == 0:
            first = 0
            while gone[first] > 0:
                first += 1
            chain[0], length = first, 1
        while True:
            a = chain[length - 1]
            row, off = d[a, :extent], gone[:extent]
            near, least = -1, FAR
            if length > 1:
                near = chain[length - 2]
                least = row[near]
            closest, where = FAR, 0
            for start in range(0, extent, 1024):
                smallest = FAR
                for j in range(start, min(start + 1024, extent)):
                    smallest = min(smallest, row[j] + off[j])
                if smallest < closest:
                    closest, where = smallest, start
            if near >= 0 and closest >= least:
                break
            near = where
            while row[near] + off[near] != closest:
                near += 1
            chain[length] = near
            length += 1
        a, b = chain[length - 1], chain[length - 2]
        length -= 2
        pairs[step, 0], pairs[step, 1], heights[step] = leaf[a], leaf[b], d[a, b]
        gone[a] = FAR
        mine, other, own, between = d[b, :extent], d[a, :extent], sizes[b], d[a, b]
        if squared:
            for j in range(extent):
                mine[j] = min(((own + sizes[j]) * mine[j] + (sizes[a] + sizes[j]) * other[j] - sizes[j] * between)
                              / (own + sizes[a] + sizes[j]), FAR)
        else:
            for j in range(extent):
                mine[j] = (own * mine[j] + sizes[a] * other[j]) / (own + sizes[a])
        mine[b] = FAR
        sizes[b] += sizes[a]
        for j in range(extent):
            if gone[j] == 0:
                d[j, b] = mine[j]
    return pairs, heights


@compiled
def _labelled(pairs, heights):  # pragma: no cover  (compiled)
    """Return the merges in scipy's layout: clusters by number, the earlier one first, height, leaves."""
    n = pairs.shape[0] + 1
    parent, node, size = np.arange(n), np.arange(n), np.ones(n)
    merges = np.empty((n - 1, 4))
    for step in range(n - 1):
        a, b = pairs[step, 0], pairs[step, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[a] = b
        merges[step, 0], merges[step, 1] = min(node[a], node[b]), max(node[a], node[b])
        size[b] += size[a]
        merges[step, 2], merges[step, 3] = heights[step], size[b]
        node[b] = n + step
    return merges
