"""What merging the near-duplicates of a group would save and cost: pairs to show, and the what-if that removes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import linalg

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import Consumer, consumed, gram
from cipm.pruning.elimination import default_ridge
from cipm.pruning.merging import Duplicate, near_duplicates
from cipm.pruning.ridge import ridged_factor
from cipm.pruning.sequence import Moments
from cipm.symmetry import SymmetryGroup


@dataclass(frozen=True)
class Merges:
    """The near-duplicates of a group, and what it costs its consumers when all of them go, as shares of all that it gives them.

    `merged`: each is replaced by scale × the unit that it is like + offset. `refitted`: all that stay take over by least
    squares, which is the cost of the what-if that keeps `keep` (to be measured as any other). The scale is that of
    `Curve.cost` divided by cost[0].
    """

    pairs: tuple[Duplicate, ...]
    keep: tuple[int, ...]
    merged: float
    refitted: float

    def to_json(self) -> dict[str, Any]:
        """Return {pairs: [{removed, kept, scale, offset, r2}], keep, merged, refitted}."""
        return {"pairs": [asdict(pair) for pair in self.pairs], "keep": list(self.keep), "merged": self.merged,
                "refitted": self.refitted}


def find_merges(checkpoint: Checkpoint, found: Sequence[Consumer], group: SymmetryGroup, moments: Mapping[str, Moments], *,
                r2: float = 0.95) -> Merges:
    """Return the pairs of units of a group of which one nearly gives the other (R² at least `r2`), and what merging costs.

    Units are compared at all their consumers' inputs, each by its share of the variance; those of several elements (the
    positions of a channel) by one map for all. Of a group in blocks only units of one block are merged, equally many in each,
    the most alike first. Raises OptionError for an r2 that is not in (0, 1].
    Cost: units² × elements² for the comparison, one factor of the size of what stays for `refitted`.
    """
    seen = [_Seen.of(consumer, group, checkpoint, moments[consumer.node]) for consumer in consumed(found, group.name)]
    pairs = _even(group, [near_duplicates(covariance, mean, r2=r2) for covariance, mean in _blocks(group, seen)])
    gone = np.array(sorted(pair.removed for pair in pairs), dtype=np.int64)
    keep = np.setdiff1d(np.arange(group.size), gone)
    total = sum(one.total for one in seen)
    if not pairs or total <= 0:
        return Merges(pairs, tuple(keep.tolist()), 0.0, 0.0)
    merged = sum(one.merged(pairs) for one in seen)
    refitted = sum(one.refitted(keep, gone) for one in seen)
    return Merges(pairs, tuple(keep.tolist()), merged / total, refitted / total)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A group at one consumer: covariance and Gram [units × e, units × e] and mean of what it reads, of `samples` samples."""

    covariance: np.ndarray
    gram: np.ndarray
    mean: np.ndarray
    units: int
    samples: int

    @classmethod
    def of(cls, consumer: Consumer, group: SymmetryGroup, checkpoint: Checkpoint, seen: Moments) -> _Seen:
        columns = consumer.columns(consumer.units[group.name])
        return cls(seen.covariance[np.ix_(columns, columns)], gram(consumer, group, checkpoint), seen.mean[columns],
                   group.size, seen.samples)

    @property
    def elements(self) -> int:
        return len(self.mean) // self.units

    @property
    def total(self) -> float:
        return float(np.einsum("ij,ij->", self.covariance, self.gram))

    def alike(self) -> tuple[np.ndarray, np.ndarray]:
        """Return covariance [units, units] and mean [units] over all elements."""
        shape = (self.units, self.elements)
        return np.einsum("iaja->ij", self.covariance.reshape(*shape, *shape)) / self.elements, self.mean.reshape(shape).mean(1)

    def columns(self, units: np.ndarray) -> np.ndarray:
        return (units[:, None] * self.elements + np.arange(self.elements)).ravel()

    def merged(self, pairs: Sequence[Duplicate]) -> float:
        """Return the expected squared change of the output where each goes for its map of another."""
        error = np.zeros((len(pairs), self.units))
        for row, pair in enumerate(pairs):
            error[row, [pair.removed, pair.kept]] = 1, -pair.scale
        error = np.kron(error, np.eye(self.elements))
        gone = self.columns(np.array([pair.removed for pair in pairs]))
        return float(np.einsum("ij,ij->", error @ self.covariance @ error.T, self.gram[np.ix_(gone, gone)]))

    def refitted(self, keep: np.ndarray, gone: np.ndarray) -> float:
        """Return the same where all that stay take over."""
        k, s = self.columns(keep), self.columns(gone)
        level = float(np.trace(self.covariance)) / len(self.covariance)
        factor, _ = ridged_factor(self.covariance[np.ix_(k, k)], default_ridge(len(self.mean), self.samples), level)
        cross = self.covariance[np.ix_(k, s)]
        left = self.covariance[np.ix_(s, s)] - cross.T @ linalg.cho_solve(factor, cross, check_finite=False)
        return max(float(np.einsum("ij,ij->", left, self.gram[np.ix_(s, s)])), 0.0)


def _blocks(group: SymmetryGroup, seen: Sequence[_Seen]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return covariance and mean of the units of each block, over all consumers."""
    parts = [one.alike() for one in seen]
    shares = [1 / level if (level := float(np.trace(covariance))) > 0 else 0.0 for covariance, _ in parts]
    whole = sum(share * covariance for share, (covariance, _) in zip(shares, parts, strict=True))
    mean = sum(part for _, part in parts) / len(parts)
    return [(whole[np.ix_(units, units)], mean[units]) for units in np.split(np.arange(group.size), group.blocks)]


def _even(group: SymmetryGroup, found: Sequence[Sequence[Duplicate]]) -> tuple[Duplicate, ...]:
    width, most = group.size // group.blocks, min(len(pairs) for pairs in found)
    pairs = [Duplicate(pair.removed + number * width, pair.kept + number * width, pair.scale, pair.offset, pair.r2)
             for number, block in enumerate(found) for pair in block[:most]]
    return tuple(sorted(pairs, key=lambda pair: -pair.r2))


__all__ = ["Merges", "find_merges"]
