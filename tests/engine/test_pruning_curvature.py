"""Costs weighted by what matters to the predictions: the Fisher information in closed form, and KL in nats across layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from cipm.pruning.consumers import consumers
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import read_moments, refit_alone
from cipm.symmetry import discover_groups, prove
from cipm.testing.networks import as_checkpoint
from cipm.trace import run


def drawn(model: nn.Module, shape: tuple[int, ...], rows: int):
    checkpoint = as_checkpoint(model.eval(), (torch.zeros(2, *shape),))
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    return checkpoint, symmetry, consumers(checkpoint, symmetry), [{checkpoint.graph.inputs[0].name: x}]


def test_of_the_layer_that_writes_the_logits_it_is_the_covariance_of_the_predictions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4))
    checkpoint, _, found, rows = drawn(model, (5,), 512)
    p = model(next(iter(rows[0].values()))).detach().double().softmax(-1)
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0).numpy()
    weight = model[2].weight.detach().double().numpy()
    wanted, made = weight.T @ fisher @ weight, curvatures(checkpoint, found, rows)[found[0].node]
    assert np.linalg.norm(made - wanted) < 0.05 * np.linalg.norm(wanted)


def test_from_labels_it_is_the_second_moment_of_what_was_predicted_wrong():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4))
    checkpoint, _, found, rows = drawn(model, (5,), 200)
    (name, x), = rows[0].items()
    y = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(2))
    wrong = (model(x).detach().double().softmax(-1) - F.one_hot(y, 4)).numpy()
    weight, share = model[2].weight.detach().double().numpy(), 4 / (4 + 200)
    fisher = wrong.T @ wrong / 200
    wanted = weight.T @ ((1 - share) * fisher + share * np.trace(fisher) / 4 * np.eye(4)) @ weight
    for parts in ([200], [150, 50]):
        batches = [{name: part} for part in x.split(parts)]
        made = curvatures(checkpoint, found, batches, labels=y.split(parts))[found[0].node]
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-6)


def test_without_classes_and_through_a_convolution_it_is_the_squared_change_of_the_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))
    checkpoint, _, found, rows = drawn(model, (2, 5, 5), 300)
    matrix = found[0].matrix(checkpoint.tensors[found[0].key])
    made = curvatures(checkpoint, found, rows)[found[0].node] / 25  # positions of a row
    assert np.linalg.norm(made - matrix @ matrix.T) < 0.05 * np.linalg.norm(matrix @ matrix.T)


def test_layers_of_very_different_scale_are_compared_in_nats():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
                          nn.Linear(24, 5))
    with torch.no_grad():  # the same function of the input, but the first consumer writes large numbers
        model[2].weight *= 30
        model[2].bias *= 30
        model[4].weight /= 30
        model[6].weight *= 3
    checkpoint, symmetry, found, rows = drawn(model, (8,), 500)
    labels = Labels.of(checkpoint, symmetry)
    groups, _ = prunable(symmetry, found)
    moments = read_moments(checkpoint, found, rows)
    both = [group_curves(checkpoint, found, groups, moments, curvature=c) for c in (None, curvatures(checkpoint, found, rows))]
    whole = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, rows[0])[0].log_softmax(-1)
    costs, measured = [], []
    for name in groups:
        for size in (20, 16, 12, 8):
            made = refit_alone(checkpoint, found, labels.what_stays({name: both[1][name].kept(size)}), moments)
            logits = run(made.graph, made.tensors, made.constants, rows[0])[0]
            measured.append(float(F.kl_div(logits.log_softmax(-1), whole, log_target=True, reduction="batchmean")))
            costs.append([curves[name].cost[size] for curves in both])
    plain, weighted = np.array(costs).T
    assert spearmanr(weighted, measured)[0] > 0.97 > spearmanr(plain, measured)[0] + 0.1
    assert np.exp(np.median(np.log(np.array(measured) / weighted))) == pytest.approx(1, rel=0.3)


class Rounded(nn.Module):
    """A layer behind which nothing has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu()).argmax(-1)


def test_where_no_gradient_comes_through_the_curve_says_so():
    torch.manual_seed(0)
    checkpoint, symmetry, found, rows = drawn(Rounded(), (6,), 64)
    groups, _ = prunable(symmetry, found)
    made = curvatures(checkpoint, found, rows)
    curves = group_curves(checkpoint, found, groups, read_moments(checkpoint, found, rows), curvature=made)
    assert made == {} and "No gradient of the predictions reaches all that reads these units" in curves["one"].notes[-1]
