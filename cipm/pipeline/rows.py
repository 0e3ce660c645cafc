"""Activations of some probe rows, a number a unit and row: for what sums cannot tell, such as which rows move a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipm.pipeline.context import Context, batches, fixed_rows
from cipm.statistics.plan import MIB
from cipm.statistics.sampling import Layout, Padding, real_samples
from cipm.symmetry import Tap, observers
from cipm.trace import run

MOST_ROWS = 2000


@dataclass(frozen=True, eq=False)
class RowMeans:
    """The mean activation over the positions of each row: `values` {tap key: [rows, units] float32}, and which probe
    `rows` those are. A tap whose units stand on axis 0 has no rows, and is not in it."""

    values: dict[str, np.ndarray]
    rows: np.ndarray


def row_means(context: Context, taps: Sequence[Tap]) -> RowMeans:
    """Run the model once on at most 2000 evenly spaced probe rows, fewer where a quarter of statistics_memory would not
    hold them, and return the row means of every tap. Padding does not count."""
    chosen = _chosen(context, sum(len(tap.index) for tap in taps))
    found: dict[str, list[torch.Tensor]] = {tap.key: [] for tap in taps}
    constants = {key: tensor.to(context.device) for key, tensor in context.checkpoint.constants.items()}
    for inputs in _batches(context, chosen):
        padding, count = Padding.of(inputs), next(iter(inputs.values())).shape[0]
        observe = observers(taps, _taking(found, padding, count, context.options.positions))
        with torch.no_grad():
            run(context.checkpoint.graph, context.tensors, constants, inputs, observe=observe)
    values = {key: torch.cat(parts).numpy() for key, parts in found.items() if parts}
    return RowMeans({key: rows for key, rows in values.items() if len(rows) == len(chosen)}, chosen)


def _chosen(context: Context, units: int) -> np.ndarray:
    """Return the numbers of the rows; whole batches for a model with a fixed one."""
    used, fixed = context.probe.used_rows, fixed_rows(context.checkpoint) or 1
    room = context.options.statistics_memory * MIB // 4 // max(4 * units, 1)
    wanted = max(fixed, min(MOST_ROWS, used, room) // fixed * fixed)
    return np.arange(wanted) * used // wanted


def _batches(context: Context, chosen: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
    rows = torch.from_numpy(chosen)
    probe = context.probe
    some = type(probe)({name: t[rows] for name, t in probe.inputs.items()}, None, len(rows), len(rows), ())
    return batches(some, context.checkpoint, context.options.batch_rows)


def _taking(found: dict[str, list[torch.Tensor]], padding: Padding, count: int, positions: int):
    def take(tap: Tap, x: torch.Tensor, axis: int) -> None:
        if axis > 0 and x.shape[0] != count and x.shape[0] % count == 0:
            x, axis = x.unflatten(0, (count, -1)), axis + 1
        if axis > 0 and x.shape[0] == count:
            layout = Layout(tuple(x.shape), axis, tap.index, positions)
            found[tap.key].append(_means(x, layout, padding.about(tuple(x.shape), axis)[0]).float().cpu())
    return take


def _means(x: torch.Tensor, layout: Layout, mask: np.ndarray | None) -> torch.Tensor:
    """Return the mean [rows, units] over the samples of each row; a row of nothing but padding gives zeros."""
    if mask is None or mask.all():
        return layout.of(x).mean(1)
    row, chosen = real_samples(mask, layout)
    sums = x.new_zeros((len(x), len(layout.index)))
    sums.index_add_(0, torch.from_numpy(row).to(x.device), layout.at(x, row, chosen))
    counts = torch.from_numpy(np.bincount(row, minlength=len(x))).clamp(min=1).to(sums)
    return sums / counts[:, None]
