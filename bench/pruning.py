"""What is left after removal without retraining, beside Torch-Pruning's importances and neuron merging at equal widths.

Run: python bench/pruning.py [digits] [mnist] [resnet] [language] [speed]      default: all of them

Each row of a table is measured in one run: all methods remove the same share of every group of the same trained networks.
`mnist`, `resnet`, `language` and `speed` need ../shared/data. ResNet-20 loses channels inside its blocks and of its residual
streams alike (by neuron merging, which knows no streams, inside its blocks alone); the language model loses hidden units of its
gated layers.

What is chosen how: the training of the digits networks by the accuracy of whole networks on a fifth of the training rows
(peers/subjects.py), never by what pruning leaves; weights and units from training rows alone, without labels, also which of two
choices of units is taken (`refit_again`); the labels of training rows are for peers that want gradients. Accuracies and
cross-entropies are those of held-out rows that chose nothing. Trained networks are kept in the folder for temporary files.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from peers.importances import KINDS, merged, torch_pruning
from peers.subjects import Logits, Subject, cifar, cnn, digits, language, mlp, mnist, print_tables
from peers.timing import fastest
from torch import nn

from cipm.allocation import even
from cipm.export import export_pruned
from cipm.load import load
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import Curve, shrink
from cipm.pruning.again import refit_again
from cipm.pruning.consumers import consumers
from cipm.pruning.counts import parameter_count
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import read_aims, read_moments, refit
from cipm.symmetry import discover_groups, prove
from cipm.testing.models import save_pt2
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

REMOVED = (0.25, 0.5, 0.75, 0.9)
PEER = "Torch-Pruning L2"
REFITTED = "CIPM, refitted in sequence"
EARLIER_L2, EARLIER = (0.181, 0.504, 1.08), (0.039, 0.123, 0.325)
"""Rises of the cross-entropy of a gated byte language model without 50, 75 and 90 % of its hidden units, by L2 and by the
method that this one grew from, measured on a model that is not kept. How much is lost depends on width and training."""
Scores = dict[str, list[float]]
"""Mean scores by method, one of each share removed; of "whole" one."""


class Ours:
    """All that is known of pruning one subject."""

    def __init__(self, subject: Subject, checkpoint: Checkpoint | None = None):
        self.subject = subject
        x = subject.fit[0]
        self.checkpoint = checkpoint or as_checkpoint(subject.model, (x[:2],))
        self.symmetry = prove(self.checkpoint, discover_groups(self.checkpoint), draws=1)
        self.name = self.checkpoint.graph.inputs[0].name
        self.rows = [{self.name: part} for part in x.split(100)]
        self.labels = Labels.of(self.checkpoint, self.symmetry)
        self.found = consumers(self.checkpoint, self.symmetry)
        groups, _ = prunable(self.symmetry, self.found)
        gated = {name: g for name, g in groups.items() if all(".ffn." in place.tensor for place in g.places)}
        self.groups = gated or groups
        self.moments = read_moments(self.checkpoint, self.found, self.rows)
        self.curvature = curvatures(self.checkpoint, self.found, self.rows)
        self.curves = group_curves(self.checkpoint, self.found, self.groups, self.moments, curvature=self.curvature)
        self.aims = read_aims(self.checkpoint, self.found, self.rows)

    def logits(self, checkpoint: Checkpoint) -> Logits:
        return lambda x: run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {self.name: x})[0]

    def evenly(self, share: float) -> dict[str, int]:
        """Return sizes at which every group keeps this share of its units."""
        return even(self.groups, share)

    def evenly_within(self, parameters: int) -> dict[str, int]:
        """Return the largest such sizes that leave at most so many parameters."""
        count = parameter_count(self.checkpoint, self.symmetry)
        return next(sizes for sizes in map(self.evenly, np.linspace(1, 0.01, 500)) if count(sizes) <= parameters)

    def pruned(self, sizes: Mapping[str, int], *, again: bool = False, curves: Mapping[str, Curve] | None = None) -> Checkpoint:
        """Return the smaller model with so many units of each group, chosen by curves (its own) alone, or perhaps again."""
        keep = {name: (curves or self.curves)[name].kept(size) for name, size in sizes.items()}
        if again:
            made, keep, _ = refit_again(self.labels, self.found, self.groups, keep, self.curvature, self.rows, aims=self.aims)
        else:
            made, _ = refit(self.checkpoint, self.symmetry, self.labels.what_stays(keep), self.rows, aims=self.aims,
                            found=self.found)
        return shrink(made, self.symmetry, keep).checkpoint


def table(title: str, subjects: Sequence[Subject], shares: Sequence[float]) -> Scores:
    """Print the mean score (and parameters) of every method at every share, and our processor seconds a network."""
    known = [Ours(subject) for subject in subjects]
    base = np.mean([subject.judge(subject.model) for subject in subjects])
    kind = "accuracy, %" if subjects[0].score == "accuracy" else "cross-entropy and perplexity"
    print(f"\n{title}: {kind}, whole {_score(float(base), subjects[0])} ({len(subjects)} networks); "
          "parameters left in brackets")
    print(f"  {'removed of every group':<40}" + "".join(f"{share:>22.0%}" for share in shares))
    peers: dict[str, Callable[[Subject, float], nn.Module]] = {
        f"Torch-Pruning {kind}": lambda subject, share, kind=kind: torch_pruning(subject, kind, share) for kind in KINDS}
    peers["neuron merging"] = lambda subject, share: merged(subject.model, share)
    scores, counts = {"whole": [float(base)]}, {}
    for name, remove in peers.items():
        cells = [[_whole(remove(subject, share)) for subject in subjects] for share in shares]
        scores[name] = _line(name, subjects, cells)
        counts[name] = [cell[0][1] for cell in cells]
    for name, again in ((REFITTED, False), ("CIPM, units chosen again or not", True)):
        start = time.process_time()
        small = [[one.pruned(one.evenly(1 - share), again=again) for one in known] for share in shares]
        spent = (time.process_time() - start) / len(shares) / len(subjects)
        scores[name] = _line(f"{name}, {spent:.1f} s", subjects, _cells(known, small))
    if counts[PEER] != [row[0].parameters for row in small]:
        fair = [[one.pruned(one.evenly_within(count), again=True) for one in known] for count in counts[PEER]]
        _line("CIPM, at Torch-Pruning's parameters", subjects, _cells(known, fair))
    return scores


def _cells(known: Sequence[Ours], small: Sequence[Sequence[Checkpoint]]) -> list[list[tuple[Logits, int]]]:
    return [[(one.logits(made), made.parameters) for one, made in zip(known, row, strict=True)] for row in small]


def _whole(model: nn.Module) -> tuple[Logits, int]:
    return model, sum(p.numel() for p in model.parameters())


def _line(name: str, subjects: Sequence[Subject], cells: Sequence[Sequence[tuple[Logits, int]]]) -> list[float]:
    """Print a method's scores and parameters; cross-entropies also as perplexities. Return the scores."""
    scores, text = [], ""
    for cell in cells:
        scores.append(float(np.mean([subject.judge(logits) for subject, (logits, _) in zip(subjects, cell, strict=True)])))
        text += f"{_score(scores[-1], subjects[0]):>12} ({np.mean([count for _, count in cell]):>7,.0f})"
    print(f"  {name:<40}" + text, flush=True)
    return scores


def _score(value: float, subject: Subject) -> str:
    return f"{value:.1f}" if subject.score == "accuracy" else f"{value:.3f} {np.exp(value):>5.2f}"


def language_models() -> None:
    """Print the tables of three language models, and what two of them, one that L2 hurts less than the earlier model and one
    that it hurts more, say of a model that it hurts as much."""
    made = {(hidden, steps): table(f"Byte language model, 4 gated layers of {hidden} units, trained {steps:,} steps",
                                   [language(steps, hidden=hidden)], REMOVED[1:])
            for hidden, steps in ((256, 1500), (512, 1500), (512, 700))}
    lost = {name: np.array([[score - scores["whole"][0] for score in scores[name]]
                            for scores in (made[512, 700], made[512, 1500])]) for name in (PEER, REFITTED)}
    between = [float(np.exp(np.interp(np.log(wanted), *np.log([l2, ours]), left=np.nan, right=np.nan)))
               for wanted, l2, ours in zip(EARLIER_L2, lost[PEER].T, lost[REFITTED].T, strict=True)]
    print("\nRise of the cross-entropy of a model that L2 would hurt as much as the earlier one, between those of 512 units\n"
          "trained 700 and 1,500 steps (straight lines in the logarithms of both rises; no such model was trained)")
    print(f"  {'removed of every group':<40}" + "".join(f"{share:>9.0%}" for share in REMOVED[1:]))
    for name, row in (("L2, 700 steps", lost[PEER][0]), (f"{REFITTED}, 700 steps", lost[REFITTED][0]),
                      ("L2, 1,500 steps", lost[PEER][1]), (f"{REFITTED}, 1,500 steps", lost[REFITTED][1]),
                      ("L2, earlier model", EARLIER_L2), ("earlier method, earlier model", EARLIER),
                      ("CIPM, interpolated at its L2", between)):
        print(f"  {name:<40}" + "".join(f"{rise:>9.3f}" for rise in row), flush=True)


def speed(subject: Subject, share: float = 0.5) -> None:
    """Print seconds of the ONNX file of the whole and of the smaller model in onnxruntime, on the processor."""
    x = subject.held_out[0]
    with tempfile.TemporaryDirectory() as folder:
        source = save_pt2(subject.model, x[:2], Path(folder) / "whole.pt2")
        one = Ours(subject, load(source))
        keep = {name: one.curves[name].kept(size) for name, size in even(one.groups, 1 - share).items()}
        made = {"whole": shrink(one.checkpoint, one.symmetry, {}), "smaller": shrink(one.checkpoint, one.symmetry, keep)}
        files = {name: export_pruned(which, source, Path(folder) / f"{name}.onnx", form="onnx") for name, which in made.items()}
        print(f"\nMNIST MLP 784-512-512-512-10 in onnxruntime, whole and without {share:.0%} of the units, fastest of 30:")
        for rows in (1, 64, 1000):
            given = x[:rows].numpy()
            runs = {name: partial(_session(file).run, None, {one.name: given}) for name, file in files.items()}
            times = fastest(runs, 30)
            print(f"  {rows:>5} rows: whole {1000 * times['whole']:.3f} ms, smaller {1000 * times['smaller']:.3f} ms, "
                  f"{times['whole'] / times['smaller']:.2f} × faster")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


TABLES: dict[str, Callable[[], object]] = {
    "digits": lambda: (table("Digits MLP 64-256-256-10", [digits(mlp, seed) for seed in range(5)], REMOVED),
                       table("Digits CNN 32-64-64", [digits(cnn, seed) for seed in range(3)], REMOVED)),
    "mnist": lambda: table("MNIST MLP 784-512-512-512-10", [mnist(seed) for seed in range(2)], REMOVED),
    "resnet": lambda: table("ResNet-20 on CIFAR-10, published weights", [cifar()], REMOVED[:2]),
    "language": language_models,
    "speed": lambda: speed(mnist(0)),
}
REAL = ("mnist", "resnet", "language", "speed")


def main(words: Sequence[str]) -> None:
    """Print the tables asked for."""
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print_tables(words, TABLES, REAL)


if __name__ == "__main__":
    main(sys.argv[1:])
