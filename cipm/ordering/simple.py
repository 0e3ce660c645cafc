"""Orders that need no search: by module."""

from __future__ import annotations

import numpy as np

from cipm.modules.partition import Partition
from cipm.ordering.seriation import spectral
from cipm.permutation import Permutation


def by_module(correlation: np.ndarray, partition: Partition, samples: int) -> Permutation:
    """Return the order with modules biggest first, each seriated within; units in no module come last, seriated."""
    runs = [np.flatnonzero(partition.labels == m) for m in [*range(partition.modules), -1]]
    return Permutation(np.concatenate([run[spectral(correlation[np.ix_(run, run)], samples).order] for run in runs]))
