"""Refit a whole network: what reads pruned units takes over what they gave, each layer seeing what earlier ones changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import linalg

from cipm.load.checkpoint import Checkpoint
from cipm.pruning.consumers import Consumer, consumers
from cipm.pruning.elimination import default_ridge
from cipm.pruning.kept import Kept
from cipm.pruning.readers import TURNS, Constant, base_name, constant_of, readers_of
from cipm.pruning.ridge import ridged_factor
from cipm.pruning.shrink import Intervene, left_out
from cipm.statistics import Covariance
from cipm.statistics.sampling import Padding
from cipm.symmetry import Symmetry
from cipm.trace import Node
from cipm.trace.interpret import call_node, last_uses

Rows = Sequence[Mapping[str, torch.Tensor]]
FEWEST_SAMPLES = 16_384
PER_FEATURE = 10
"""A consumer is fitted on ten samples per feature and at least 16,384, as far as the rows have so many positions."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a consumer's inputs in the whole model."""

    mean: np.ndarray
    covariance: np.ndarray
    samples: int


@dataclass(frozen=True, eq=False)
class _Fit:
    """What a consumer is fitted from: covariance `own` [in, in] of what it sees in the smaller model, `cross` [in, out] of that
    with what it is to give, and the means of both."""

    own: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    aim: np.ndarray
    samples: int


Aims = Mapping[str, Sequence[torch.Tensor]]
"""By a consumer's node what it gave in the whole model, one tensor [samples, outputs] of each batch, without its bias; or the
inputs it saw, where they are fewer than its outputs."""


def read_moments(checkpoint: Checkpoint, found: Sequence[Consumer], rows: Rows) -> dict[str, Moments]:
    """Return the moments of every consumer's input in the whole model, by the name of its node. Cost: one forward pass."""
    pending = {one.node: one for one in found}
    moments: dict[str, Moments] = {}
    _Lockstep(checkpoint, rows, found=found).walk(lambda node, step: moments.update(
        {node.name: step.moments(pending[node.name])}) if node.name in pending else None)
    return moments


def read_aims(checkpoint: Checkpoint, found: Sequence[Consumer], rows: Rows) -> Aims:
    """Return what every consumer is to give, for several `refit`s on the same rows. Cost: one forward pass. Memory: a number
    for every sample and output of each consumer, or input where there are fewer (`aim_numbers`)."""
    pending = {one.node: one for one in found}
    aims: dict[str, Sequence[torch.Tensor]] = {}
    _Lockstep(checkpoint, rows, found=found).walk(lambda node, step: aims.update(
        {node.name: step.gathered_aims(pending[node.name])}) if node.name in pending else None)
    return aims


def aim_numbers(checkpoint: Checkpoint, found: Sequence[Consumer]) -> int:
    """Return the most numbers that `read_aims` holds."""
    return sum(_wanted(one) * min(one.features, checkpoint.meta(one.key).numel() // one.features) for one in found)


def walk_rows(checkpoint: Checkpoint, rows: Rows, visit: Callable[[Node, Mapping[str, list[Any]]], None]) -> None:
    """Run the whole model on all rows node by node; `visit(node, values)` sees every node before it runs, and by name the
    values there are by then, one of each batch. Memory: the activations of all rows at one place of the graph."""
    _Lockstep(checkpoint, rows).walk(lambda node, step: visit(node, step.plain))


def refit(checkpoint: Checkpoint, symmetry: Symmetry, kept: Kept, rows: Rows, *, aims: Aims | None = None,
          found: Sequence[Consumer] | None = None) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint with every consumer of changed inputs refitted, in graph order, and notes.

    Both models run side by side over `rows` (batches of inputs). At each consumer the weights of what stays are fitted so that
    they make of the smaller model's inputs what the whole weights made of the whole model's, by least squares with a ridge
    towards the weights as they are; the constant goes into the bias or the mean of a batch norm behind, and where there is
    neither the fit is through zero. Removed units are zero in the result: `shrink` takes them out.

    With `aims` (`read_aims`, on the same rows) the whole model runs only up to where the smaller one differs; `found` are the
    consumers, where they are known.

    Cost: a forward pass of both models, one product of samples × (features that stay + outputs)² and one factor of features³
    per consumer. Memory: the activations of all rows at one place of the graph.

    Source: least-squares reconstruction layer by layer (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
    Networks", eq. 1 and 3.2) with the asymmetric targets of Zhang et al. 2016.
    """
    if not kept.removed:
        return checkpoint, ()
    found = consumers(checkpoint, symmetry) if found is None else found
    lockstep = _Lockstep(checkpoint, rows, kept, left_out(checkpoint.graph, kept), aims, found)
    notes = _refit_all(lockstep, found)
    return checkpoint.with_tensors({key: lockstep.tensor(key) for key in checkpoint.tensors}), tuple(notes)


def refitted_inputs(checkpoint: Checkpoint, found: Sequence[Consumer], kept: Kept, rows: Rows, nodes: Collection[str], *,
                    aims: Aims | None = None) -> dict[str, tuple[Moments, np.ndarray]]:
    """Return, for the consumers at these nodes whose inputs a refit changes, the moments of all inputs in the smaller model and
    the weights [features, outputs] that `refit` would give them. Cost: that of `refit` up to the last of them."""
    lockstep, seen = _Lockstep(checkpoint, rows, kept, left_out(checkpoint.graph, kept), aims, found), {}
    _refit_all(lockstep, found, frozenset(nodes), seen)
    return seen


def _refit_all(lockstep: _Lockstep, found: Sequence[Consumer], nodes: Set[str] = frozenset(),
               seen: dict[str, tuple[Moments, np.ndarray]] | None = None) -> dict[str, None]:
    """Refit consumers in graph order, and return notes; with `nodes` only up to these, which are looked at instead."""
    pending, waiting, notes = {one.node: one for one in found}, set(nodes), {}

    def visit(node: Node, step: _Lockstep) -> bool:
        consumer = pending.get(node.name)
        changed = consumer is not None and step.small[consumer.value] is not step.plain[consumer.value]
        if changed and node.name in nodes:
            fit = step.fit(consumer, None)
            weights, _ = _solve(fit, consumer.matrix(step.checkpoint.tensors[consumer.key]),
                                through_zero=_target(step.checkpoint, consumer) is None)
            seen[node.name] = Moments(fit.mean, fit.own, fit.samples), weights
        elif changed:
            positions = consumer.staying(step.kept)
            _refit_one(step, consumer, positions, step.fit(consumer, positions), notes)
        waiting.discard(node.name)
        return bool(nodes) and not waiting

    lockstep.walk(visit)
    return notes


def refit_alone(checkpoint: Checkpoint, found: Sequence[Consumer], kept: Kept, moments: Mapping[str, Moments]) -> Checkpoint:
    """Return the checkpoint as `refit` does, but each consumer from the whole model's `moments` alone: no forward pass."""
    step = _Lockstep(checkpoint, (), kept)
    for consumer in found:
        positions = consumer.staying(kept)
        if positions is not None and consumer.node in moments:
            known, staying = moments[consumer.node], consumer.columns(positions)
            whole, rows = consumer.matrix(checkpoint.tensors[consumer.key]), known.covariance[staying]
            seen = _Fit(rows[:, staying], rows @ whole, known.mean[staying], known.mean @ whole, known.samples)
            _refit_one(step, consumer, positions, seen, {})
    return checkpoint.with_tensors({key: step.tensor(key) for key in checkpoint.tensors})


def _refit_one(step: _Lockstep, consumer: Consumer, positions: np.ndarray | None, seen: _Fit, notes: dict[str, None]) -> None:
    """Fit a consumer whose inputs at these positions stay (None: all)."""
    checkpoint, staying = step.checkpoint, consumer.columns(np.arange(consumer.length) if positions is None else positions)
    weight = checkpoint.tensors[consumer.key]
    target = _target(checkpoint, consumer)
    whole = consumer.matrix(weight)
    fitted, rest = _solve(seen, whole[staying], through_zero=target is None)
    matrix = np.zeros_like(whole)
    matrix[staying] = fitted
    step.change(consumer.key, consumer.stored(matrix, weight))
    if target is None:
        why = "gives what a router weighs" if consumer.routed else "has no bias of its own"
        notes[f"{consumer.key} {why}: it is fitted without a constant."] = None
    else:
        _add_constant(step, target, consumer.constant(rest, weight))


def _target(checkpoint: Checkpoint, consumer: Consumer) -> Constant | None:
    """Return where a constant can be put behind a consumer."""
    if consumer.transposed or consumer.routed:
        return None
    return constant_of(checkpoint, readers_of(checkpoint.graph, consumer.key))


def _add_constant(step: _Lockstep, target: Constant, constant: np.ndarray) -> None:
    before = step.checkpoint.tensors[target.key]
    moved = before.detach().double() + target.sign * torch.from_numpy(constant.reshape(tuple(before.shape)))
    step.change(target.key, moved.to(before.dtype))


def _solve(seen: _Fit, start: np.ndarray, *, through_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (W′ [staying, out], constant [out]) that make W′x′ + constant closest to what is aimed at."""
    own, cross = seen.own, seen.cross
    if through_zero:
        own, cross = own + np.outer(seen.mean, seen.mean), cross + np.outer(seen.mean, seen.aim)
    level = float(np.trace(own)) / max(len(own), 1)
    factor, _ = ridged_factor(own, default_ridge(len(own), seen.samples), level)
    fitted = start + linalg.cho_solve(factor, cross - own @ start, check_finite=False) if level > 0 else start
    return fitted, seen.aim - seen.mean @ fitted


def _wanted(consumer: Consumer) -> int:
    """Return how many samples a consumer is fitted on, where there are so many."""
    return max(FEWEST_SAMPLES, PER_FEATURE * consumer.features)


@dataclass
class _Lockstep:
    """The whole model and the smaller one, run node by node over all rows; a value is one list of batches in both until it
    differs. From there on the whole model's is None where `aims` are known. Weights may be changed before the node that reads
    them runs. What the consumers `found` read beside their value is there until they run."""

    checkpoint: Checkpoint
    rows: Rows
    kept: Kept | None = None
    intervene: Intervene = field(default_factory=dict)
    aims: Aims | None = None
    found: Sequence[Consumer] = ()
    plain: dict[str, Any] = field(default_factory=dict)
    small: dict[str, list[Any]] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)

    def walk(self, visit: Any) -> None:
        """Run both models; `visit(node, self)` sees every node before it runs, and ends the walk by returning True."""
        graph, last = self.checkpoint.graph, last_uses(self.checkpoint.graph)
        held = frozenset().union(*(one.routed.held | one.routed.gathered for one in self.found if one.routed))
        for name, key in graph.constants.items():
            self._both(name, [self.checkpoint.constants[key]] * len(self.rows))
        for i in graph.inputs:
            self._both(i.name, [batch[i.name] for batch in self.rows])
        with torch.no_grad():
            for number, node in enumerate(graph.nodes):
                self._fetch(name for name in node.refs() if name not in self.plain and name in graph.tensors)
                if visit(node, self):
                    return
                self._fetch(name for name in node.refs() if name in graph.tensors)
                self._run(node)
                for name in last.get(number, ()):
                    if name not in held:
                        self.plain.pop(name, None), self.small.pop(name, None)

    def moments(self, consumer: Consumer) -> Moments:
        """Return the moments of a consumer's input here in the whole model."""
        found = Covariance.create(consumer.features)
        for seen in self._samples(consumer, self.plain):
            found = found.update(seen.float())
        return Moments(found.mean, found.covariance(), found.samples)

    def gathered_aims(self, consumer: Consumer) -> list[torch.Tensor]:
        """Return what a consumer gives here in the whole model, or its inputs where they are fewer."""
        matrix = consumer.matrix(self.checkpoint.tensors[consumer.key])
        weight = torch.from_numpy(matrix).float() if matrix.shape[1] < consumer.features else None
        return [seen.float() if weight is None else seen.float() @ weight for seen in self._samples(consumer, self.plain)]

    def fit(self, consumer: Consumer, positions: np.ndarray | None) -> _Fit:
        """Return what a consumer is fitted from here, of the smaller model's inputs those at these positions."""
        aims = self.gathered_aims(consumer) if self.aims is None else self.aims[consumer.node]
        outputs = aims[0].shape[1]
        found = Covariance.create(outputs + (consumer.length if positions is None else len(positions)) * consumer.inside)
        for aim, seen in zip(aims, self._samples(consumer, self.small, positions), strict=True):
            found = found.update(torch.cat([aim, seen.float()], 1), spend=True)
        both, mean = found.covariance(), found.mean
        own, cross, aim = both[outputs:, outputs:], both[outputs:, :outputs], mean[:outputs]
        matrix = consumer.matrix(self.checkpoint.tensors[consumer.key])
        if matrix.shape[1] >= consumer.features:
            cross, aim = cross @ matrix, aim @ matrix
        return _Fit(own, cross, mean[outputs:], aim, found.samples)

    def _samples(self, consumer: Consumer, values: Mapping[str, list[Any]],
                 positions: np.ndarray | None = None) -> Iterator[torch.Tensor]:
        """Yield the samples of a consumer's input, batch by batch."""
        counts = [len(next(iter(batch.values()))) for batch in self.rows]
        places = -(-_wanted(consumer) // max(sum(counts), 1))
        names = [consumer.value, *(consumer.routed.held if consumer.routed else ())]
        for number, (batch, count) in enumerate(zip(self.rows, counts, strict=True)):
            x = consumer.seen({name: values[name][number] for name in names})
            yield consumer.samples(x, Padding.of(batch), count, places, positions)

    def change(self, key: str, tensor: torch.Tensor) -> None:
        """Give the smaller model another stored tensor, also where it was turned already."""
        self.changed[key] = tensor
        names = {name for name, stored in self.checkpoint.graph.tensors.items() if stored == key}
        for name in names:
            self.small.pop(name, None)
        gathered = frozenset().union(*(one.routed.gathered for one in self.found if one.routed))
        for node in self.checkpoint.graph.nodes:
            turned = base_name(node) in TURNS or node.name in gathered
            if node.name in self.small and turned and not names.isdisjoint(node.refs()):
                self._fetch(names & self.checkpoint.graph.tensors.keys())
                self._run(node)
                names.add(node.name)

    def tensor(self, key: str) -> torch.Tensor:
        """Return a stored tensor of the smaller model: zeros where units go."""
        stored = self.changed.get(key, self.checkpoint.tensors[key])
        return stored if self.kept is None else self.kept.zeroed(stored, key)

    def _both(self, name: str, values: list[Any]) -> None:
        self.plain[name] = self.small[name] = values

    def _fetch(self, names: Iterable[str]) -> None:
        for name in names:
            key, count = self.checkpoint.graph.tensors[name], len(self.rows)
            if name not in self.plain:
                self.plain[name] = [self.checkpoint.tensors[key]] * count
            if name not in self.small:
                touched = key in self.changed or self.kept is not None and self._goes(key)
                self.small[name] = [self.tensor(key)] * count if touched else self.plain[name]

    def _goes(self, key: str) -> bool:
        shape = self.checkpoint.meta(key).shape
        return any(self.kept.stored_mask(key, axis) is not None for axis in range(len(shape)))

    def _run(self, node: Node) -> None:
        same = all(self.small[name] is self.plain[name] for name in node.refs()) and node.name not in self.intervene
        self.plain[node.name] = self._called(node, self.plain) if same or self.aims is None else None
        self.small[node.name] = self.plain[node.name] if same else [
            self.intervene.get(node.name, _as_is)(made) for made in self._called(node, self.small)]

    def _called(self, node: Node, values: Mapping[str, list[Any]]) -> list[Any]:
        refs = list(node.refs())
        return [call_node(node, {name: values[name][batch] for name in refs}, None, torch.device("cpu"))
                for batch in range(len(self.rows))]


def _as_is(value: Any) -> Any:
    return value
