"""Have the compiled loops ready before a process locks itself down."""

from __future__ import annotations

import numpy as np

from cipm.modules.louvain import communities
from cipm.ordering.assignment import smooth
from cipm.ordering.exchange import exchanged
from cipm.ordering.leaves import leaf_order
from cipm.ordering.scores import scores
from cipm.ordering.tree import ward
from cipm.permutation import Permutation


def prepare() -> None:
    """Compile, or load from numba's cache, every loop that orders and modules need (some seconds cold, 0.4 s warm).

    It starts no thread.
    """
    points = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.8]], dtype=np.float32)
    leaf_order(ward(points), np.abs(points[:, :1] - points[:, 0]))
    smooth(points, 1)
    exchanged(np.array([[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]]).repeat(2, 0).repeat(2, 1), np.arange(6))
    scores(np.eye(4, dtype=np.float32), Permutation.identity(4))
    communities(points, 0.1, generator=np.random.default_rng(0))
