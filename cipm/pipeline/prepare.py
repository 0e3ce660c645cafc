"""What a process can have ready before it knows its job: the compiled loops, from their cache on disk."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from cipm.modules.louvain import communities
from cipm.ordering.leaves import leaf_order


def prepare() -> None:
    """Call each compiled loop once on a toy; the jail calls this before it locks, as locked it finds no cache."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(8, 2)).astype(np.float32)
    communities(points, 0.1, generator=generator)
    leaf_order(linkage(points), squareform(pdist(points)))
