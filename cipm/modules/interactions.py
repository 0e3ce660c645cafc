"""What modules read and write: the strength of the weights between the modules of two neighbouring groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Interactions:
    """Strength between modules, [modules of the rows, modules of the columns].

    `strength` is the root-mean-square weight between a unit of the one and a unit of the other. `ratio` is it over the
    strength that would be if modules did not matter: the squared weights of each unit kept, but spread over the units of
    the other group as these share in the total (1: as expected; 2: twice the weight). `z` says how far the block's squared
    weights are from that expectation, in standard deviations over random sets of as many columns.
    """

    strength: np.ndarray
    ratio: np.ndarray
    z: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("strength", "ratio", "z")}


def interactions(weights: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Interactions:
    """Return the strength between modules from `weights` [units, units] of either sign and the labels of its rows and
    its columns (−1: in no module, counted in the expectation alone).

    Expected of the squared weights between modules A and B is R_A C_B / T: what A's rows have in all, what B's columns
    have in all, over the total, as in the configuration model. Where nothing is expected (all weights of a module are
    zero) ratio is 1; where columns do not differ z is 0. Cost: units².

    Source: Newman, "Modularity and community structure in networks" (2006), for the null model.
    """
    energy = np.square(weights, dtype=np.float64)
    members = np.bincount(rows[rows >= 0], minlength=rows.max(initial=-1) + 1)
    sizes = np.bincount(columns[columns >= 0], minlength=columns.max(initial=-1) + 1)
    read = _grouped(energy, rows, members.size)  # [modules of rows, columns]
    blocks = _grouped(read.T, columns, sizes.size).T
    total, of_rows, of_columns = energy.sum(), read.sum(axis=1), energy.sum(axis=0)
    share = of_columns / total if total > 0 else np.zeros(columns.size)
    expected = of_rows[:, None] * _grouped(share[:, None], columns, sizes.size).T
    spread = (read - of_rows[:, None] * share).var(axis=1, ddof=min(columns.size - 1, 1))
    drawn = sizes * (columns.size - sizes) / columns.size  # variance of a sum of so many drawn without putting back
    deviation = np.sqrt(np.outer(spread, drawn))
    known = expected > 0
    return Interactions(np.sqrt(blocks / np.maximum(np.outer(members, sizes), 1)),
                        np.sqrt(np.where(known, blocks / np.where(known, expected, 1), 1)),
                        np.where(deviation > 0, (blocks - expected) / np.where(deviation > 0, deviation, 1), 0))


def unit_weights(tensor: np.ndarray, rows: tuple[int, np.ndarray], columns: tuple[int, np.ndarray]) -> np.ndarray:
    """Return [units, units]: the root-mean-square weight of a tensor between the units of two groups.

    `rows` and `columns` say where the units stand: the axis, and the positions [units, elements] of each unit on it (as a
    symmetry group's places do). The mean is over their elements and over all other axes (the kernel of a convolution).
    """
    (row_axis, row_index), (column_axis, column_index) = rows, columns
    assert row_axis != column_axis, "no weight lies between units on one axis"
    energy = np.square(np.moveaxis(tensor, (row_axis, column_axis), (0, 1)), dtype=np.float64)
    energy = energy.reshape(*energy.shape[:2], -1).mean(axis=2)
    energy = energy[row_index].mean(axis=1)
    return np.sqrt(energy[:, column_index].mean(axis=2))


def _grouped(values: np.ndarray, labels: np.ndarray, modules: int) -> np.ndarray:
    """Return the sums of rows [modules, …] by label; −1 is left out."""
    member = np.zeros((modules, labels.size))
    inside = np.flatnonzero(labels >= 0)
    member[labels[inside], inside] = 1
    return member @ values
