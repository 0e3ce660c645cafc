"""How predicted losses agree with measured ones: layer by layer over hundreds of what-ifs, and whole networks after three.

Run: python bench/predictions.py [digits] [mnist] [language]      default: all; mnist and language need ../shared/data

A layer's what-ifs are sizes along two orders, that of elimination and a quick one; cost is weighted by the Fisher information
of the predictions, and KL to the original is measured on held-out rows. Whole networks are what a session predicts: its probe
is the held-out rows, even ones to fit on and odd ones to measure on. Those along the front of parameters are predicted after
three along it were measured, those of random sizes after three more off it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from peers.subjects import DATA, Subject, cnn, digits, language, mlp, mnist
from pruning import Ours
from scipy.stats import spearmanr

from cipm.allocation import nearest, thinned
from cipm.load.probe import Probe
from cipm.options import parse_options
from cipm.pipeline.budgets import WHOLE_SHARES, along
from cipm.pipeline.context import Context
from cipm.pipeline.pruning import Pruner
from cipm.pruning.consumers import consumed, gram
from cipm.pruning.curvature import curvatures
from cipm.pruning.elimination import Curve, quick_curve
from cipm.pruning.network import group_curves
from cipm.pruning.sequence import refit_alone

WHAT_IFS = 320
"""At least so many what-ifs of one model."""
HELD_BACK = 24
"""Whole networks that predictions are held against, half of them along the front."""
MOST_ROWS = 2000
"""Rows of a session's probe: half to fit on, half to measure on."""


def layers(title: str, subject: Subject, rows: int) -> None:
    """Print the rank correlation of predicted cost and measured KL for each layer."""
    start, one = time.process_time(), Ours(subject)
    x = subject.held_out[0][:rows]
    whole = _logs(one, one.checkpoint, x)
    weights = curvatures(one.checkpoint, one.found, one.rows)
    careful = group_curves(one.checkpoint, one.found, one.groups, one.moments, curvature=weights)
    each, found, total = -(-WHAT_IFS // (2 * len(one.groups))), {}, 0
    for name, group in one.groups.items():
        pairs = []
        for curve in (careful[name], _quick(one, name, weights)):
            for size in np.unique(np.linspace(1, group.size - 1, min(group.size - 1, 2 * each)).astype(int)):
                kept = one.labels.what_stays({name: curve.kept(int(size))})
                made = _logs(one, refit_alone(one.checkpoint, one.found, kept, one.moments), x)
                kl = float(F.kl_div(made, whole, log_target=True, reduction="batchmean"))
                pairs.append((float(curve.cost[size]), kl))
        found[name], total = float(spearmanr(*np.array(pairs).T).statistic), total + len(pairs)
    print(f"{title}: {total} what-ifs on {len(x)} held-out rows, {time.process_time() - start:.0f} s of the processor: "
          + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)


def _quick(one: Ours, name: str, weights: dict[str, np.ndarray]) -> Curve:
    """Return the curve of a simpler order."""
    group, readers = one.groups[name], consumed(one.found, name)
    columns = [reader.columns(reader.units[name]) for reader in readers]
    grams = [weights[reader.node][np.ix_(at, at)] / 2 if reader.node in weights else gram(reader, group, one.checkpoint)
             for reader, at in zip(readers, columns, strict=True)]
    seen = [one.moments[reader.node] for reader in readers]
    covariances = [moments.covariance[np.ix_(at, at)] for moments, at in zip(seen, columns, strict=True)]
    return quick_curve(covariances, grams, samples=min(moments.samples for moments in seen), units=group.size,
                       blocks=group.blocks)


def _logs(one: Ours, checkpoint: object, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([one.logits(checkpoint)(part) for part in x.split(250)]).flatten(0, -2).log_softmax(-1)


def wholes(title: str, subject: Subject) -> None:
    """Print by which factors whole networks were missed after few were measured."""
    start, one, (x, y) = time.process_time(), Ours(subject), (part[:MOST_ROWS] for part in subject.held_out)
    kept = {"checkpoint": one.checkpoint, "symmetry": one.symmetry, "probe": Probe({one.name: x}, y, len(x), len(x), ())}
    context = Context({}, parse_options({}), {}, lambda event: None, kept)
    pruner = Pruner(context, 2 * len(WHOLE_SHARES) + HELD_BACK)
    choices, generator = thinned(pruner.front("parameters")), np.random.default_rng(0)
    front = [choices[int(at)].keep for at in np.linspace(1, len(choices) - 1, HELD_BACK // 2)]
    known = along(choices), [pruner.even(share) for share in WHOLE_SHARES]
    drawn = [{name: nearest(group, generator.uniform(0.1, 1)) for name, group in pruner.groups.items()}
             for _ in range(HELD_BACK // 2)]
    words = []
    for where, several, first in (("along the front", front, known[0]), ("sizes at random", drawn, known[1])):
        pruner.calibrate(first)
        points = [pruner.point(keep) for keep in several]
        pairs = np.array([(point.predicted["kl"], point.measured["kl"]) for point in points])
        factors = np.exp(np.abs(np.diff(np.log(pairs + 1e-3 * pairs[:, 1].max()), axis=1)))
        words.append(f"{where} {np.median(factors):.2f} ({np.quantile(factors, 0.9):.2f})")
    spent = time.process_time() - start
    print(f"{title}: {', '.join(words)}; {HELD_BACK} networks, {spent:.0f} s of the processor", flush=True)


def main(words: Sequence[str]) -> None:
    """Print both for the models asked for."""
    asked = list(words) or ["digits", "mnist", "language"]
    if not DATA.is_dir():
        print("mnist and language: their data and weights (../shared/data) are not here")
        asked = [word for word in asked if word == "digits"]
    made = {"digits": lambda: [("Digits MLP", digits(mlp, 0), 719), ("Digits CNN", digits(cnn, 0), 719)],
            "mnist": lambda: [("MNIST MLP", mnist(0), 2000)], "language": lambda: [("Byte language model", language(), 100)]}
    subjects = [subject for word in asked for subject in made[word]()]
    print("Spearman of predicted cost and measured KL, by layer")
    for title, subject, rows in subjects:
        layers(title, subject, rows)
    print("\nFactor by which the KL of whole networks was missed: median (90th percentile)")
    for title, subject, _ in subjects:
        wholes(title, subject)


if __name__ == "__main__":
    main(sys.argv[1:])
