"""Cholesky factors of covariances that samples, rounding or duplicates have left singular."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import linalg

SMALLEST = 1e-12  # share of the mean variance that is always added


def ridged_factor(matrix: np.ndarray, ridge: float, level: float) -> tuple[Any, float]:
    """Return the Cholesky factor (for `cho_solve`) of matrix + ridge · level · I, and the ridge it took.

    The ridge grows tenfold until the factor exists: float32 products leave eigenvalues down to −1e-7 of the largest.
    `level` is the mean variance; a matrix of zeros (level 0) becomes the identity.
    """
    share = max(ridge, SMALLEST)
    while True:
        c = np.array(matrix, dtype=np.float64)
        c[np.diag_indices(len(c))] += share * level if level > 0 else 1.0
        try:
            return linalg.cho_factor(c, lower=True, overwrite_a=True, check_finite=False), share
        except linalg.LinAlgError:
            share *= 10
            assert share < 1e6, "not a covariance"
