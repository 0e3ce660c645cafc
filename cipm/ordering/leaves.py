"""Exact leaf order of a binary tree: flip its branches so that neighbouring leaves are as close as possible.

Source: Bar-Joseph, Gifford, Jaakkola, "Fast optimal leaf ordering for hierarchical clustering" (2001); here the plain
dynamic programme, min-plus products over contiguous ranges, without its pruning.
"""

from __future__ import annotations

import numpy as np

from cipm.compiled import compiled


def leaf_order(merges: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the leaf order [n] with the shortest path among all 2^(n−1) flips of the tree.

    `merges` is a linkage [n−1, 4] (scipy's layout), `distances` [n, n] any symmetric distances. Cost: up to n³/2
    additions (n³/6 for a balanced tree), 3 n² float32.
    """
    n = distances.shape[0]
    if n < 3:
        return np.arange(n)
    leaves, splits = layout(merges, n)
    close = _arranged(np.ascontiguousarray(distances, dtype=np.float32), leaves)
    best = _best_paths(close, splits)
    return leaves[_trace(close, best, splits)]


def layout(merges: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leaves from left to right, and per node [start, middle, stop, left's middle, right's middle].

    Nodes come in order of merging, children first. A leaf's middle is −1.
    """
    sizes = np.r_[np.ones(n, dtype=np.int64), merges[:, 3].astype(np.int64)]
    start, middle = np.zeros(2 * n - 1, dtype=np.int64), np.full(2 * n - 1, -1)
    for node in range(2 * n - 2, n - 1, -1):  # the root comes last
        left, right = (int(child) for child in merges[node - n, :2])
        start[left], start[right] = start[node], start[node] + sizes[left]
        middle[node] = start[right]
    leaves = np.empty(n, dtype=np.int64)
    leaves[start[:n]] = np.arange(n)
    inner = np.arange(n, 2 * n - 1)
    left, right = merges[:, 0].astype(np.int64), merges[:, 1].astype(np.int64)
    return leaves, np.stack([start[inner], middle[inner], start[inner] + sizes[inner], middle[left], middle[right]], 1)


@compiled
def _arranged(distances, leaves):  # pragma: no cover  (compiled)
    """Return the distances [n, n] with rows and columns in the order of the leaves."""
    result = np.empty_like(distances)
    for i in range(leaves.size):
        row = distances[leaves[i]]
        for j in range(leaves.size):
            result[i, j] = row[leaves[j]]
    return result


@compiled
def _best_paths(close, splits):  # pragma: no cover  (compiled)
    """Return [n, n]: the shortest path through the smallest subtree that holds both leaves, from one to the other.

    A path from u on the left to w on the right leaves the left subtree in u's other half (at m), enters the right one at
    k and ends in k's other half (at w). So every node is four products (min, +): `reach` from u to k by way of m for
    either half of the left, `best` from u to w by way of k for either half of the right. Each product runs over panels
    of 32 × 512 entries, which stay in cache, four rows of a panel at a time.
    """
    n = close.shape[0]
    best, reach = np.zeros((n, n), dtype=np.float32), np.empty((n, n), dtype=np.float32)
    for node in range(splits.shape[0]):
        start, middle, stop, left_middle, right_middle = splits[node]
        for product in range(4):
            if product == 0:
                u0, u1, m0, m1, k0, k1 = start, left_middle, left_middle, middle, middle, stop
            elif product == 1:
                u0, u1, m0, m1, k0, k1 = left_middle, middle, start, left_middle, middle, stop
            elif product == 2:
                u0, u1, m0, m1, k0, k1 = start, middle, middle, right_middle, right_middle, stop
            else:
                u0, u1, m0, m1, k0, k1 = start, middle, right_middle, stop, middle, right_middle
            if product < 2:
                a, b, out = best, close, reach
            else:
                a, b, out = reach, best, best
            if (left_middle if product < 2 else right_middle) < 0:  # a leaf is both ends of its path
                for k in range(middle, stop if product == 0 else middle):
                    reach[start, k] = close[start, k]
                for u in range(start, middle if product == 2 else start):
                    best[u, middle] = reach[u, middle]
                continue
            for k in range(k0, k1, 512):
                k_end = min(k + 512, k1)
                for u in range(u0, u1):
                    for w in range(k, k_end):
                        out[u, w] = np.float32(3e38)
                for panel in range(m0, m1, 32):
                    panel_end = min(panel + 32, m1)
                    fours = panel + (panel_end - panel) // 4 * 4
                    for u in range(u0, u1):
                        row = out[u, k:k_end]
                        for m in range(panel, fours, 4):
                            a0, a1, a2, a3 = a[u, m], a[u, m + 1], a[u, m + 2], a[u, m + 3]
                            b0, b1, b2, b3 = b[m, k:k_end], b[m + 1, k:k_end], b[m + 2, k:k_end], b[m + 3, k:k_end]
                            for i in range(row.size):
                                row[i] = min(min(row[i], min(a0 + b0[i], a1 + b1[i])), min(a2 + b2[i], a3 + b3[i]))
                        for m in range(fours, panel_end):
                            a0, b0 = a[u, m], b[m, k:k_end]
                            for i in range(row.size):
                                row[i] = min(row[i], a0 + b0[i])
        for strip in range(middle, stop, 16):
            for u in range(start, middle):
                for w in range(strip, min(strip + 16, stop)):
                    best[w, u] = best[u, w]
    return best


def _trace(close: np.ndarray, best: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Return the positions in best order, walking the tree from the root with an explicit stack."""
    nodes = {(int(a), int(c)): (int(b), int(lm), int(rm)) for a, b, c, lm, rm in splits}
    start, middle, stop = (int(x) for x in splits[-1, :3])
    u, w = np.unravel_index(np.argmin(best[start:middle, middle:stop]), (middle - start, stop - middle))
    stack, path = [(start, stop, start + int(u), middle + int(w))], []
    while stack:
        low, high, first, last = stack.pop()
        if high - low == 1:
            path.append(low)
            continue
        middle, left_middle, right_middle = nodes[low, high]
        left, right = (low, middle, left_middle), (middle, high, right_middle)
        if first >= middle:
            left, right = right, left
        ms, ks = _partners(left, first), _partners(right, last)
        costs = best[first, ms][:, None] + close[ms[:, None], ks] + best[last, ks]
        m, k = np.unravel_index(np.argmin(costs), costs.shape)
        stack.append((*right[:2], int(ks[k]), last))
        stack.append((*left[:2], first, int(ms[m])))
    return np.array(path)


def _partners(subtree: tuple[int, int, int], end: int) -> np.ndarray:
    """Return the leaves at which a path through the subtree that starts at `end` can stop."""
    low, high, middle = subtree
    if middle < 0:
        return np.array([end])
    return np.arange(middle, high) if end < middle else np.arange(low, middle)
