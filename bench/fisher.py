"""Fisher weights from given labels beside those of the model's own predictions, and none: what is left of the same networks.

Run: python bench/fisher.py [digits] [resnet] [language]      default: all; resnet and language need ../shared/data

Held-out rows are divided: even ones stand for rows with labels that the model has not seen, odd ones judge. Weights are fitted,
and units chosen, on rows that the model was trained on, or on as many of the even held-out ones. "evenly": the same share of
every group goes, so that the Fisher weights choose units alone; "by cost": as many parameters are left, spread over the
groups by their costs, which are nats with either kind (without, squared changes: shares of what each group gives are compared).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from peers.subjects import Subject, cifar, cnn, digits, language, print_tables
from pruning import Ours
from scipy.stats import spearmanr
from torch import Tensor

from cipm.allocation import front, within
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import Curve
from cipm.pruning.consumers import consumed
from cipm.pruning.counts import parameter_count
from cipm.pruning.curvature import curvatures
from cipm.pruning.network import group_curves
from cipm.pruning.sequence import refit_alone

KINDS = ("none", "predictions", "labels")
SIZES = (0.7, 0.4, 0.2, 0.1)
"""Shares of a group's units at which it alone is measured, for the rank correlation."""


class Judged:
    """A subject fitted on some rows, judged on the odd held-out ones."""

    def __init__(self, subject: Subject):
        self.x, self.y = (part[1::2] for part in subject.held_out)
        self.subject = replace(subject, held_out=(self.x, self.y))
        self.one = Ours(self.subject)
        classes = list(subject.fit[1].split(100))
        grams = {"none": None, "predictions": self.one.curvature,
                 "labels": curvatures(self.one.checkpoint, self.one.found, self.one.rows, labels=classes)}
        self.curves = {kind: group_curves(self.one.checkpoint, self.one.found, self.one.groups, self.one.moments,
                                          curvature=gram) for kind, gram in grams.items()}
        self.whole = self._logs(self.one.checkpoint)

    def _logs(self, checkpoint: Checkpoint) -> Tensor:
        parts = [self.one.logits(checkpoint)(part) for part in self.x.split(100)]
        return torch.cat(parts).float().flatten(0, -2).log_softmax(-1)

    def kl(self, checkpoint: Checkpoint) -> float:
        """Return the mean KL divergence to the whole model's predictions."""
        return float(F.kl_div(self._logs(checkpoint), self.whole, log_target=True, reduction="batchmean"))

    def agreement(self, kind: str) -> float:
        """Return the rank correlation, over all groups alone at some sizes, of cost and measured KL."""
        one, pairs = self.one, []
        for name, group in one.groups.items():
            if consumed(one.found, name):
                for share in SIZES:
                    size = max(1, round(group.size // group.blocks * share)) * group.blocks
                    kept = one.labels.what_stays({name: self.curves[kind][name].kept(size)})
                    made = refit_alone(one.checkpoint, one.found, kept, one.moments)
                    pairs.append((_costs(self.curves[kind], kind)[name][size], self.kl(made)))
        return float(spearmanr(*np.array(pairs).T)[0])

    def left(self, kind: str, sizes: Mapping[str, int]) -> tuple[float, float]:
        """Return (score, KL) of the network with so many units of each group, chosen by curves of this kind."""
        made = self.one.pruned(sizes, curves=self.curves[kind])
        return self.subject.judge(self.one.logits(made)), self.kl(made)

    def by_cost(self, kind: str, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes that leave as many parameters as these, spread over the groups by the costs."""
        one, count = self.one, parameter_count(self.one.checkpoint, self.one.symmetry)
        costs = _costs(self.curves[kind], kind)
        choices = front(costs, count, one.groups)
        return dict(within(choices, count(sizes), count, costs, one.groups, what="parameters").keep)


def _costs(curves: Mapping[str, Curve], kind: str) -> dict[str, np.ndarray]:
    """Return costs that groups are compared by: nats, or without Fisher weights shares."""
    return {name: curve.cost / (max(curve.cost[0], 1e-30) if kind == "none" else 1) for name, curve in curves.items()}


def table(title: str, subjects: Sequence[Subject], removed: Sequence[float]) -> None:
    """Print what is left by each kind of Fisher weights, means over the subjects."""
    whole = np.mean([replace(s, held_out=(s.held_out[0][1::2], s.held_out[1][1::2])).judge(s.model) for s in subjects])
    print(f"\n{title}: {subjects[0].score} and KL on held-out rows, whole {whole:.3f} ({len(subjects)} networks)")
    heads = [f"{how} {share:.0%}" for share in removed for how in ("evenly", "by cost")]
    print(f"  {'rows':<14}{'Fisher weights':<16}{'cost ~ KL':>10}" + "".join(f"{head:>18}" for head in heads))
    for rows, change in (("of training", lambda s: s), ("not seen", _on_unseen)):
        known = [Judged(change(subject)) for subject in subjects]
        for kind in KINDS:
            text = f"{np.mean([one.agreement(kind) for one in known]):>10.3f}"
            for share in removed:
                for sizes in (lambda one, share=share: one.one.evenly(1 - share),
                              lambda one, share=share, kind=kind: one.by_cost(kind, one.one.evenly(1 - share))):
                    score, kl = np.mean([one.left(kind, sizes(one)) for one in known], axis=0)
                    text += f"{score:>9.3f} {kl:>8.4f}"
            print(f"  {rows:<14}{kind:<16}{text}", flush=True)


def _on_unseen(subject: Subject) -> Subject:
    """Return the subject with the even held-out rows to fit on, as many as there were at most."""
    x, y = subject.held_out
    count = len(subject.fit[0])
    return replace(subject, fit=(x[0::2][:count], y[0::2][:count]))


TABLES: dict[str, Callable[[], object]] = {
    "digits": lambda: table("Digits CNN 32-64-64", [digits(cnn, seed) for seed in range(3)], (0.5, 0.75, 0.9)),
    "resnet": lambda: table("ResNet-20 on CIFAR-10, published weights", [cifar()], (0.25, 0.5)),
    "language": lambda: table("Byte language model, 4 gated layers of 256 units", [language()], (0.5, 0.75, 0.9)),
}


if __name__ == "__main__":
    print_tables(sys.argv[1:], TABLES, ("resnet", "language"))
