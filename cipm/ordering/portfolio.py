"""Several seriations, and the choice among them on probe rows that they have not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from cipm.compiled import side_by_side
from cipm.ordering.assignment import assignment_sort
from cipm.ordering.exchange import clearness, exchanged
from cipm.ordering.leaves import leaf_order
from cipm.ordering.scores import Scores, scores
from cipm.ordering.seriation import forward, placed, points_of, seriate_points
from cipm.ordering.tree import average
from cipm.permutation import Permutation
from cipm.statistics.spectrum import Factors, denoise, isolated

MATRIX_UNITS = 4096  # beyond, only methods that need no matrix of all pairs compete
DENSE_UNITS = 1024  # up to here the Fiedler vector by a dense solver
EXCHANGED = "exchanged"  # what the chosen method's order scores after exchanges
CRITERION = "clearness (block contrast, banded anti-Robinson, path)"


@dataclass(frozen=True)
class Portfolio:
    """The chosen `order` over all rows; `chosen` names its method, `half` is that method's order of the first half of the
    rows (the whole order where there were no halves).

    `held_out` are the scores of each method's order of the first half of the rows, judged on the second half, and of the
    chosen one after exchanges (empty where there were no halves). `how` says in words how the choice was made.
    """

    order: Permutation
    chosen: str
    held_out: Mapping[str, Scores]
    how: str
    half: Permutation

    def to_json(self) -> dict[str, Any]:
        """Return everything but the orders as JSON-ready values."""
        return {"chosen": self.chosen, "held_out": {name: s.to_json() for name, s in self.held_out.items()}, "how": self.how}


def portfolio(correlation: np.ndarray, halves: tuple[np.ndarray, np.ndarray] | None, samples: int, *,
              blocks: int = 1) -> Portfolio:
    """Return the order of a correlation [units, units] by the seriation that does best on rows it has not seen.

    `halves` are the correlations of the two halves of the `samples`. Every method of METHODS orders the first half; its
    order is judged on the second by its `clearness`, and the clearest method (ties: the first of METHODS) makes the order
    from all rows. Then pairs of units are exchanged (`exchanged`) in that order and in the one of the first half; where
    this makes the latter no clearer on the second half, neither is kept. Without halves the order is that of `spectral`.
    Units stay within their one of `blocks` equal runs. Beyond 4096 units a block only `spectral` and `angle` compete, as
    the others need units² memory for each of several matrices, and nothing is exchanged.

    The scores in `held_out` took part in the choice, so those of the chosen method are a little too good (the best of
    five); judge the order on a third set of rows where that matters. Cost: the sum of the methods', `scores` for each, and
    twice that of `exchanged`.
    """
    if halves is None:
        only = _every(correlation, samples, blocks, ("spectral",))["spectral"]
        return Portfolio(only, "spectral", {}, "without probe halves there is nothing to choose by; the usual best", only)
    small = len(correlation) // blocks <= MATRIX_UNITS
    names = tuple(METHODS) if small else ("spectral", "angle")
    tried = _every(halves[0], samples // 2, blocks, names)
    held_out = {name: scores(halves[1], order) for name, order in tried.items()}
    chosen = max(names, key=lambda name: round(clearness(held_out[name]), 6))
    how = f"best of {len(names)} by {CRITERION} on the probe half not seen"
    whole, half = _every(correlation, samples, blocks, (chosen,))[chosen], tried[chosen]
    if small:
        better, clearer = side_by_side(lambda pair: _exchanged(*pair, blocks), ((correlation, whole), (halves[0], half)))
        held_out[EXCHANGED] = scores(halves[1], clearer)
        if clearness(held_out[EXCHANGED]) > clearness(held_out[chosen]):
            whole, half, how = better, clearer, f"{how}; then pairs of units exchanged where that is clearer"
    return Portfolio(whole, chosen, held_out, how, half)


def _exchanged(correlation: np.ndarray, order: Permutation, blocks: int) -> Permutation:
    """Return the order after exchanges within each block."""
    width = len(correlation) // blocks
    runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
    inner = [exchanged(correlation[run, run], order.order[run] - run.start) + run.start for run in runs]
    return Permutation(np.concatenate(inner))


def angle(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the order by the angle of the two first eigenvectors of the denoised correlation, then sorted by assignment.

    The circle is cut at its widest gap. With one factor, the order along it. Cost: that of `denoise` and `assignment_sort`.

    Source: Friendly, "Corrgrams: exploratory displays for correlation matrices" (2002); the sorting as in `spectral`.
    """
    return _one("angle", correlation, samples)


def fiedler(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the order along the Fiedler vector of the denoised correlation, its negative entries set to zero.

    The vector is the second one of the normalised Laplacian I − D^(−1/2) S D^(−1/2), times D^(−1/2); S gets a thousandth of
    its mean everywhere, so that it is connected. Cost: units³ up to 1024 units; beyond, 60 products of S with 8 vectors.

    Source: Atkins, Boman, Hendrickson, "A spectral algorithm for seriation and the consecutive ones problem" (1998); the
    normalisation of Shi & Malik, "Normalized cuts and image segmentation" (2000).
    """
    return _one("fiedler", correlation, samples)


def average_linkage(correlation: np.ndarray, samples: int) -> Permutation:
    """Return the order of the tree of average linkage on √(2 − 2C), laid out by its exact leaf order.

    The correlation is taken as it is (`samples` are not used): a method that does not depend on an edge of noise. Units
    without any correlation come last. Cost: that of `leaf_order`.
    """
    return _one("average linkage", correlation, samples)


def _one(name: str, correlation: np.ndarray, samples: int) -> Permutation:
    return _every(correlation, samples, 1, (name,))[name]


def _every(correlation: np.ndarray, samples: int, blocks: int, names: tuple[str, ...]) -> dict[str, Permutation]:
    """Return the order of each method; the factors are found once for each block."""
    if blocks > 1:
        width = len(correlation) // blocks
        runs = [slice(b * width, (b + 1) * width) for b in range(blocks)]
        parts = [_every(correlation[run, run], samples, 1, names) for run in runs]
        return {name: Permutation(np.concatenate([run.start + part[name].order for run, part in zip(runs, parts, strict=True)]))
                for name in names}
    factors = denoise(correlation, samples) if names != ("average linkage",) else None
    return {name: Permutation(METHODS[name](correlation, factors)) for name in names}


def _spectral(correlation: np.ndarray, factors: Factors) -> np.ndarray:
    return seriate_points(points_of(factors))


def _angle(correlation: np.ndarray, factors: Factors) -> np.ndarray:
    return placed(points_of(factors), lambda live: assignment_sort(live, _around(live[:, :2])))


def _around(vectors: np.ndarray) -> np.ndarray:
    """Return the order around the circle of two eigenvectors [units, 2] (or along the only one), of any lengths."""
    if vectors.shape[1] < 2:
        return np.argsort(vectors[:, 0], kind="stable")
    first, second = (vectors / np.linalg.norm(vectors, axis=0)).T
    angles = np.arctan2(second, first)
    order = np.argsort(angles, kind="stable")
    gaps = np.diff(angles[order], append=angles[order[0]] + 2 * np.pi)
    return np.roll(order, -1 - int(gaps.argmax()))


def _fiedler(correlation: np.ndarray, factors: Factors) -> np.ndarray:
    return placed(factors.loadings, lambda live: np.argsort(_fiedler_vector(live), kind="stable"))


def _fiedler_vector(loadings: np.ndarray) -> np.ndarray:
    n, loadings = len(loadings), loadings.astype(np.float32)
    similarity = np.maximum(loadings @ loadings.T, 0)
    similarity += 1e-3 * similarity.mean()
    root = 1 / np.sqrt(similarity.sum(axis=1))
    similarity *= root[:, None] * root
    if n <= DENSE_UNITS:
        return root * linalg.eigh(similarity.astype(np.float64), subset_by_index=(n - 2, n - 1), check_finite=False)[1][:, 0]
    basis = np.c_[1 / root, np.random.default_rng(0).standard_normal((n, 7))].astype(np.float32)
    for _ in range(60):
        basis = np.linalg.qr(similarity @ basis)[0]
    vectors = linalg.eigh((basis.T @ (similarity @ basis)).astype(np.float64), check_finite=False)[1]
    return root * (basis @ vectors[:, -2].astype(np.float32))


def _average(correlation: np.ndarray, factors: Factors | None) -> np.ndarray:
    def lay_out(live: np.ndarray) -> np.ndarray:
        distances = np.sqrt(np.maximum(2 - 2 * live, 0))
        return leaf_order(average(distances), distances)

    connected = np.flatnonzero(~isolated(correlation))
    rest = np.setdiff1d(np.arange(len(correlation)), connected)
    inner = np.asarray(correlation[np.ix_(connected, connected)], dtype=np.float32)
    return np.concatenate([connected[forward(lay_out(inner))] if connected.size > 2 else connected, rest])


METHODS: Mapping[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "spectral": _spectral, "angle": _angle, "fiedler": _fiedler, "average linkage": _average}
"""The methods that compete; each takes the correlation and its factors (None where it needs none)."""
