"""How alike units of several elements (heads, experts) are: the RV coefficient, which is linear CKA."""

from __future__ import annotations

import numpy as np

BLOCK = 64  # units whose blocks are gathered at once


def rv_coefficient(covariance: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the RV coefficient [units, units] of units of several elements, from the covariance of the elements.

    `index` [units, elements] says which rows of `covariance` belong to each unit. RV_ij = ‖C_ij‖² / (‖C_ii‖ ‖C_jj‖) with
    the blocks C_ij and Frobenius norms, from 0 to 1; the same for any orthogonal change within a unit. A unit of which
    every element is constant gets 0, and 1 on the diagonal. It is any accumulator's covariance, so it merges as that.

    Error: that of the covariance, 4e-6 for float32 samples. With few samples it is too high, by about elements/samples
    for independent units: look at it on probe halves. Cost: (units · elements)².

    Source: Robert, Escoufier (1976); as linear CKA: Kornblith et al., "Similarity of neural network representations
    revisited" (2019), eq. 5.
    """
    units, elements = index.shape
    energy = np.empty((units, units))
    for start in range(0, units, BLOCK):
        rows = index[start:start + BLOCK]
        block = covariance[np.ix_(rows.ravel(), index.ravel())].reshape(len(rows), elements, units, elements)
        energy[start:start + BLOCK] = np.einsum("iajb,iajb->ij", block, block)
    scale = np.sqrt(energy.diagonal())
    scale = np.where(scale > 0, scale, np.inf)
    result = np.clip(energy / scale[:, None] / scale, 0, 1)
    result = np.tril(result) + np.tril(result, -1).T
    np.fill_diagonal(result, 1)
    return result
