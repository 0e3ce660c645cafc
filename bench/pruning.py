"""Accuracy after removal without retraining, beside Torch-Pruning's importances at equal widths; prediction; time per curve.

Run: python bench/pruning.py [digits] [resnet] [prediction] [curves] [units …]   (default: digits, resnet and prediction, and
curves of 256 1024 2048 units). Each row of a table is measured in one run: all methods remove the same share of every group
of the same trained networks. ResNet-20 needs its published weights in ../shared/data, and removes the insides of blocks and
the residual streams alike.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from scipy.stats import spearmanr
from torch import Tensor, nn

from cipm.load.checkpoint import Checkpoint
from cipm.pruning import elimination_curve, quick_curve, shrink
from cipm.pruning.allocation import even
from cipm.pruning.consumers import consumers
from cipm.pruning.kept import what_stays
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import read_moments, refit, refit_alone
from cipm.symmetry import discover_groups, example_inputs, prove
from cipm.symmetry.walk import walk
from cipm.testing.digits import Recipe, load, train
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
REMOVED = (0.25, 0.5, 0.75, 0.9)
SIZES = (256, 1024, 2048)


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network with the rows that weights are fitted on (with labels, for Taylor's importance) and held-out ones."""

    model: nn.Module
    fit: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]

    def accuracy(self, logits: Callable[[Tensor], Tensor]) -> float:
        """Return the share of held-out rows that are right."""
        x, y = self.held_out
        with torch.no_grad():
            return float(torch.cat([logits(part).argmax(-1) for part in x.split(250)]).eq(y).float().mean())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def digits(make: Callable[[], nn.Module], seed: int) -> Subject:
    """Return a network trained on the digits; weights are refitted on training rows and judged on held-out ones."""
    data = load()
    torch.manual_seed(seed)
    model = make()
    train(model, data, Recipe(15, 3e-3, seed=seed), lambda net, x: net(x))
    return Subject(model.eval(), (data.train_x, data.train_y), (data.test_x, data.test_y))


def cifar() -> Subject:
    """Return the published ResNet-20 with 600 training and 1,000 test images."""
    state = torch.load(DATA / "cifar10_resnet" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    model = Published()
    model.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
    images = np.load(DATA / "datasets" / "cifar10_lossless_4k_1k.npz")
    x, y = (torch.from_numpy(np.concatenate([images[f"{kind}_train"][:600], images[f"{kind}_test"]])) for kind in "xy")
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    x, y = (x.permute(0, 3, 1, 2).float() / 255 - mean) / deviation, y.long()
    return Subject(model.eval(), (x[:600], y[:600]), (x[600:], y[600:]))


class Block(nn.Module):
    """A basic block whose shortcut subsamples and pads with zeros (option A of He et al., 2015)."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.pad = (out - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x))


class Published(nn.Module):
    """The ResNet-20 for CIFAR-10 of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for n, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            blocks = [Block(before if b == 0 else width, width, 2 if b == 0 and n > 1 else 1) for b in range(3)]
            setattr(self, f"layer{n}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))).mean((2, 3)))


class Ours:
    """All that is known of pruning one subject."""

    def __init__(self, subject: Subject):
        self.subject = subject
        x = subject.fit[0]
        self.checkpoint = as_checkpoint(subject.model, (x[:2],))
        self.symmetry = prove(self.checkpoint, discover_groups(self.checkpoint), draws=1)
        self.name = self.checkpoint.graph.inputs[0].name
        self.rows = [{self.name: part} for part in x.split(100)]
        self.walked = walk(self.checkpoint, example_inputs(self.checkpoint, generator=torch.Generator().manual_seed(0)))
        self.found = consumers(self.checkpoint, self.symmetry)
        self.groups, _ = prunable(self.symmetry, self.found)
        self.moments = read_moments(self.checkpoint, self.found, self.rows)
        self.curves = group_curves(self.checkpoint, self.found, self.groups, self.moments)

    def logits(self, checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
        return lambda x: run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {self.name: x})[0]

    def pruned(self, removed: float, locked: Sequence[str] = ()) -> Checkpoint:
        """Return the smaller model, every group without this share."""
        keep = {name: self.curves[name].kept(size) for name, size in even(self.groups, 1 - removed, locked=locked).items()}
        kept = what_stays(self.checkpoint, self.symmetry, keep, self.walked)
        made, _ = refit(self.checkpoint, self.symmetry, kept, self.rows)
        return shrink(made, self.symmetry, keep).checkpoint

    def what_if(self, name: str, size: int) -> Checkpoint:
        """Return the masked model with one group smaller, from the whole model's moments alone."""
        kept = what_stays(self.checkpoint, self.symmetry, {name: self.curves[name].kept(size)}, self.walked)
        return refit_alone(self.checkpoint, self.found, kept, self.moments)


def torch_pruning(subject: Subject, importance: str, removed: float, ignored: Sequence[str] = ()) -> nn.Module:
    """Return what Torch-Pruning makes of the model at this share."""
    model, (x, y) = copy.deepcopy(subject.model), subject.fit
    kind = tp.importance.GroupMagnitudeImportance(p=2) if importance == "L2" else tp.importance.GroupTaylorImportance()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    names = dict(model.named_modules())
    pruner = tp.pruner.BasePruner(model, x[:1], importance=kind, pruning_ratio=removed, round_to=None, num_heads={},
                                  ignored_layers=[last, *(names[name] for name in ignored)],
                                  in_channel_groups={}, out_channel_groups={})
    if importance != "L2":
        F.cross_entropy(model(x), y).backward()
    pruner.step()
    return model


def table(title: str, subjects: Sequence[Subject], shares: Sequence[float]) -> None:
    """Print mean accuracy (and parameters) of every method at every share."""
    known = [Ours(subject) for subject in subjects]
    base = np.mean([subject.accuracy(subject.model) for subject in subjects])
    print(f"\n{title}: accuracy % of the whole {100 * base:.1f} ({len(subjects)} networks); parameters left in brackets")
    print(f"  {'removed of every group':<38}" + "".join(f"{share:>20.0%}" for share in shares))
    for importance in ("L2", "Taylor"):
        cells = [[_peer(subject, importance, share) for subject in subjects] for share in shares]
        print(f"  {'Torch-Pruning ' + importance:<38}" + "".join(map(_cell, cells)))
    cells = [[_ours(one, share) for one in known] for share in shares]
    print(f"  {'CIPM, refitted in sequence':<38}" + "".join(map(_cell, cells)))


def _peer(subject: Subject, importance: str, share: float) -> tuple[float, int]:
    model = torch_pruning(subject, importance, share)
    return subject.accuracy(model), sum(p.numel() for p in model.parameters())


def _ours(one: Ours, share: float) -> tuple[float, int]:
    checkpoint = one.pruned(share)
    return one.subject.accuracy(one.logits(checkpoint)), checkpoint.parameters


def _cell(found: Sequence[tuple[float, int]]) -> str:
    accuracy, parameters = np.mean(np.array(found, dtype=float), axis=0)
    return f"{100 * accuracy:>9.1f} ({parameters:>8,.0f})"


def prediction(title: str, subject: Subject) -> None:
    """Print the rank correlation of predicted cost and measured KL on held-out rows over every what-if of one group."""
    one = Ours(subject)
    x = subject.held_out[0]
    whole = one.logits(one.checkpoint)(x).log_softmax(-1)
    found, total = {}, 0
    for name, group in one.groups.items():
        sizes = np.unique(np.linspace(1, group.size - 1, min(group.size - 1, 110)).astype(int))
        kl = [float(F.kl_div(one.logits(one.what_if(name, int(size)))(x).log_softmax(-1), whole, log_target=True,
                             reduction="batchmean")) for size in sizes]
        found[name], total = float(spearmanr(one.curves[name].cost[sizes], kl).statistic), total + len(sizes)
    print(f"{title}: Spearman of predicted cost and measured KL over {total} what-ifs: "
          + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def curves(sizes: Sequence[int]) -> None:
    """Print processor seconds of a whole curve, and of one product of the same size beside it."""
    print(f"\n{'units':>8} {'curve s':>9} {'quick s':>9} {'products of n × n':>18}   processor seconds, "
          f"{torch.get_num_threads()} threads; 16,384 takes 64 × what 4,096 takes")
    for n in sizes:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2 * n, n // 4)) @ rng.standard_normal((n // 4, n)) + 0.3 * rng.standard_normal((2 * n, n))
        w = rng.standard_normal((64, n))
        c, g = np.cov(x.T), w.T @ w
        slow = _seconds(lambda c=c, g=g, n=n: elimination_curve([c], [g], samples=2 * n))
        quick = _seconds(lambda c=c, g=g, n=n: quick_curve([c], [g], samples=2 * n))
        product = _seconds(lambda c=c, g=g: c @ g)
        print(f"{n:>8} {slow:>9.2f} {quick:>9.2f} {slow / product:>18.1f}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main(words: Sequence[str]) -> None:
    """Print the tables asked for."""
    sizes = [int(word) for word in words if word.isdecimal()] or list(SIZES)
    wanted = [word for word in words if not word.isdecimal()] or ["digits", "resnet", "prediction", "curves"]
    if "digits" in wanted:
        table("Digits MLP 64-256-256-10", [digits(mlp, seed) for seed in range(3)], REMOVED)
        table("Digits CNN 32-64-64", [digits(cnn, seed) for seed in range(3)], REMOVED)
    if "resnet" in wanted and DATA.is_dir():
        table("ResNet-20 on CIFAR-10", [cifar()], REMOVED[:2])
    elif "resnet" in wanted:
        print("ResNet-20: its published weights (../shared/data) are not here")
    if "prediction" in wanted:
        print()
        prediction("Digits MLP", digits(mlp, 0))
        prediction("Digits CNN", digits(cnn, 0))
    if "curves" in wanted:
        curves(sizes)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # numba takes bench/coverage.py for the package of that name
    main(sys.argv[1:])
