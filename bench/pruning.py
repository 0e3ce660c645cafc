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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from peers.importances import KINDS, merged, torch_pruning
from peers.subjects import DATA, Logits, Subject, cifar, cnn, digits, language, mlp, mnist
from peers.timing import fastest
from torch import nn

from cipm.allocation import even
from cipm.export import export_pruned
from cipm.load import load
from cipm.load.checkpoint import Checkpoint
from cipm.pruning import shrink
from cipm.pruning.again import refit_again
from cipm.pruning.consumers import consumers
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import read_aims, read_moments, refit
from cipm.symmetry import discover_groups, prove
from cipm.testing.models import save_pt2
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

REMOVED = (0.25, 0.5, 0.75, 0.9)


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

    def pruned(self, removed: float, *, again: bool = False) -> Checkpoint:
        """Return the smaller model, every group without this share; its units chosen by the curves alone, or perhaps again."""
        keep = {name: self.curves[name].kept(size) for name, size in even(self.groups, 1 - removed).items()}
        if again:
            made, keep, _ = refit_again(self.labels, self.found, self.groups, keep, self.curvature, self.rows, aims=self.aims)
        else:
            made, _ = refit(self.checkpoint, self.symmetry, self.labels.what_stays(keep), self.rows, aims=self.aims,
                            found=self.found)
        return shrink(made, self.symmetry, keep).checkpoint


def table(title: str, subjects: Sequence[Subject], shares: Sequence[float]) -> None:
    """Print the mean score (and parameters) of every method at every share, and our processor seconds a network."""
    known = [Ours(subject) for subject in subjects]
    base = np.mean([subject.judge(subject.model) for subject in subjects])
    print(f"\n{title}: {subjects[0].score}, whole {_score(float(base), subjects[0])} ({len(subjects)} networks); "
          "parameters left in brackets")
    print(f"  {'removed of every group':<40}" + "".join(f"{share:>20.0%}" for share in shares))
    peers: dict[str, Callable[[Subject, float], nn.Module]] = {
        f"Torch-Pruning {kind}": lambda subject, share, kind=kind: torch_pruning(subject, kind, share) for kind in KINDS}
    peers["neuron merging"] = lambda subject, share: merged(subject.model, share)
    for name, remove in peers.items():
        _line(name, subjects, [[_whole(remove(subject, share)) for subject in subjects] for share in shares])
    for name, again in (("CIPM, refitted in sequence", False), ("CIPM, units chosen again or not", True)):
        start = time.process_time()
        small = [[one.pruned(share, again=again) for one in known] for share in shares]
        spent = (time.process_time() - start) / len(shares) / len(subjects)
        _line(f"{name}, {spent:.1f} s", subjects,
              [[(one.logits(made), made.parameters) for one, made in zip(known, row, strict=True)] for row in small])


def _whole(model: nn.Module) -> tuple[Logits, int]:
    return model, sum(p.numel() for p in model.parameters())


def _line(name: str, subjects: Sequence[Subject], cells: Sequence[Sequence[tuple[Logits, int]]]) -> None:
    text = ""
    for cell in cells:
        score = np.mean([subject.judge(logits) for subject, (logits, _) in zip(subjects, cell, strict=True)])
        text += f"{_score(float(score), subjects[0]):>9} ({np.mean([count for _, count in cell]):>8,.0f})"
    print(f"  {name:<40}" + text, flush=True)


def _score(value: float, subject: Subject) -> str:
    return f"{value:.1f}" if subject.score == "accuracy" else f"{value:.3f}"


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
    "language": lambda: [table(f"Byte language model, 4 gated layers of {hidden} units", [language(hidden=hidden)], REMOVED[1:])
                         for hidden in (256, 512)],
    "speed": lambda: speed(mnist(0)),
}
REAL = ("mnist", "resnet", "language", "speed")


def main(words: Sequence[str]) -> None:
    """Print the tables asked for."""
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for name in list(words) or TABLES:
        if name in REAL and not DATA.is_dir():
            print(f"\n{name}: its real data and weights (../shared/data) are not here")
        else:
            TABLES[name]()


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # numba takes bench/coverage.py for the package of that name
    main(sys.argv[1:])
