"""What a process can have ready before it knows its job: compiled loops from their cache, and what tracing imports."""

from __future__ import annotations

import numpy as np
import torch

from cipm.ordering.warm import prepare as prepare_orders
from cipm.statistics import Covariance, Profile
from cipm.statistics.triangle import PANEL


def prepare() -> None:
    """Call each compiled loop and trace a module once, on toys; the jail calls this before it locks.

    Locked, a process finds no cache, and the first trace imports for 2 s. Nothing here may start a thread.
    """
    generator = np.random.default_rng(0)
    points = generator.normal(size=(8, 2)).astype(np.float32)
    for samples in (points, points.astype(np.float64)):
        wide = np.tile(samples, (1, PANEL // 2 + 1))  # a whole panel and a part of one: loops over both layouts
        Covariance.create(PANEL + 2).update(np.where(np.arange(PANEL + 2) > 0, wide, 0).astype(samples.dtype)).correlation()
        Profile.create(2, classes=2).update(samples, samples, np.arange(8) % 2)
    prepare_orders()
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),), strict=False)
