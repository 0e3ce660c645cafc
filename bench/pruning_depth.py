"""What the Fisher weights and principal directions are worth: prediction against measurement, and streams cut both ways.

    python bench/pruning_depth.py [digits] [language]

`language` trains a byte model for some minutes and needs tinyshakespeare (bench/peers/subjects.py).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from peers.subjects import Subject, cnn, digits, language, mlp
from scipy.stats import spearmanr
from torch import Tensor

from cipm.load.checkpoint import Checkpoint
from cipm.pruning import shrink
from cipm.pruning.consumers import consumed, consumers
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.principal import turn, turnable
from cipm.pruning.sequence import read_moments, refit, refit_alone
from cipm.symmetry import Symmetry, discover_groups, prove, with_continuous
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
STREAM = (0.92, 0.83, 0.75, 0.67, 0.5)


class Known:
    """A subject as a checkpoint with its symmetry and rows."""

    def __init__(self, subject: Subject, rows: int, held_out: int):
        fit, self.x, self.y = subject.fit[0][:rows], subject.held_out[0][:held_out], subject.held_out[1][:held_out]
        self.checkpoint = as_checkpoint(subject.model, (fit[:2],))
        self.symmetry = with_continuous(self.checkpoint, prove(self.checkpoint, discover_groups(self.checkpoint), draws=1))
        self.name = self.checkpoint.graph.inputs[0].name
        self.rows = [{self.name: part} for part in fit.split(100)]
        self.whole = self.logits(self.checkpoint)

    def logits(self, checkpoint: Checkpoint) -> Tensor:
        made = (run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {self.name: x})[0] for x in self.x.split(100))
        return torch.cat(list(made)).float().flatten(0, -2)

    def kl(self, checkpoint: Checkpoint) -> float:
        both = self.logits(checkpoint).log_softmax(-1), self.whole.log_softmax(-1)
        return float(F.kl_div(*both, log_target=True, reduction="batchmean"))

    def rise(self, checkpoint: Checkpoint) -> float:
        """Return by how much the cross-entropy rises."""
        return float(F.cross_entropy(self.logits(checkpoint), self.y.flatten()) - F.cross_entropy(self.whole, self.y.flatten()))


def predictions(title: str, one: Known) -> None:
    """Print how costs with and without Fisher weights follow the measured KL of what-ifs of single groups."""
    found, labels = consumers(one.checkpoint, one.symmetry), Labels.of(one.checkpoint, one.symmetry)
    groups = {name: group for name, group in prunable(one.symmetry, found, labels=labels)[0].items()
              if consumed(found, name) and group.kind != "residual stream"}
    moments, start = read_moments(one.checkpoint, found, one.rows), time.process_time()
    weights = curvatures(one.checkpoint, found, one.rows)
    seconds = time.process_time() - start
    print(f"\n{title}: rank correlation of cost and measured KL (Fisher weights in {seconds:.2f} s of processor time)")
    for words, curvature in (("plain", None), ("with Fisher weights", weights)):
        curves = group_curves(one.checkpoint, found, groups, moments, curvature=curvature)
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
        for name, group in groups.items():
            for size in dict.fromkeys(max(1, round(group.size // group.blocks * share)) * group.blocks for share in SHARES):
                kept = labels.what_stays({name: curves[name].kept(size)})
                pairs[name].append((curves[name].cost[size], one.kl(refit_alone(one.checkpoint, found, kept, moments))))
        every = np.array([pair for own in pairs.values() for pair in own if min(pair) > 1e-9])
        layers = [spearmanr(*np.array(own).T)[0] for own in pairs.values()]
        spread = np.log(every[:, 1] / every[:, 0]).std()
        print(f"  {words:<20} {len(every)} what-ifs: all {spearmanr(*every.T)[0]:.3f}, layers {min(layers):.3f} (worst) "
              f"{np.median(layers):.3f} (median), sd of log KL/cost {spread:.2f}")


def streams(title: str, one: Known) -> None:
    """Print the rise of the cross-entropy with a stream cut by coordinate and by principal direction, both refitted."""
    group = next(iter(turnable(one.symmetry)))
    turned = turn(one.checkpoint, one.symmetry, group, one.rows)
    print(f"\n{title}: rise of the cross-entropy with a share of the stream {group} kept")
    print(f"  {'kept':<20}" + "".join(f"{share:>9.0%}" for share in STREAM))
    for words, checkpoint in (("coordinates", one.checkpoint), ("directions", turned.checkpoint)):
        rises = (one.rise(cut(one, checkpoint, one.symmetry, group, share)) for share in STREAM)
        print(f"  {words:<20}" + "".join(f"{rise:>9.4f}" for rise in rises))


def cut(one: Known, checkpoint: Checkpoint, symmetry: Symmetry, name: str, share: float) -> Checkpoint:
    """Return the checkpoint with a share of the units of a group, refitted and really smaller."""
    found, labels = consumers(checkpoint, symmetry), Labels.of(checkpoint, symmetry)
    group = {name: symmetry.group(name)}
    curve = group_curves(checkpoint, found, group, read_moments(checkpoint, found, one.rows))[name]
    keep = {name: curve.kept(round(group[name].size * share))}
    made, _ = refit(checkpoint, symmetry, labels.what_stays(keep), one.rows)
    return shrink(made, symmetry, keep).checkpoint


def main(parts: list[str]) -> None:
    """Print the parts asked for."""
    if "digits" in parts or not parts:
        predictions("digits MLP", Known(digits(mlp, 0), 600, 400))
        predictions("digits CNN", Known(digits(cnn, 0), 600, 400))
    if "language" in parts or not parts:
        one = Known(language(), 200, 150)
        predictions("byte language model", one)
        streams("byte language model", one)


if __name__ == "__main__":
    main(sys.argv[1:])
