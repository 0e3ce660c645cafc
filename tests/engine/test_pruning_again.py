"""Units chosen anew behind smaller layers, against the same elimination on covariances and weights computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cipm.pruning import elimination_curve
from cipm.pruning.again import chosen_again, refit_again
from cipm.pruning.consumers import consumers
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import prunable
from cipm.pruning.sequence import read_aims, refit, refitted_inputs
from cipm.symmetry import discover_groups, prove
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

ROWS = 300


class Known:
    """A chain of layers with everything that choosing units needs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
        self.checkpoint = as_checkpoint(self.model, (torch.zeros(2, 12),))
        self.symmetry = prove(self.checkpoint, discover_groups(self.checkpoint), draws=1)
        self.labels, self.found = Labels.of(self.checkpoint, self.symmetry), consumers(self.checkpoint, self.symmetry)
        self.groups, _ = prunable(self.symmetry, self.found)
        self.x = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(1))
        self.rows = [{self.checkpoint.graph.inputs[0].name: part} for part in self.x.split(100)]
        self.plain = {one.node: (w := one.matrix(self.checkpoint.tensors[one.key])) @ w.T for one in self.found}
        self.keep = {"0": [0, 3, 4, 9, 17, 21], "2": [1, 2, 3, 4]}


@pytest.fixture(scope="module")
def known() -> Known:
    return Known()


def behind(one: Known) -> tuple[np.ndarray, np.ndarray]:
    """Return what the last layer sees [rows, 20] once the first kept its units and the second was refitted, and its weights
    refitted on that."""
    with torch.no_grad():
        first, second, last = (known(one.x).double().numpy() for known in (one.model[:2], one.model[:3], one.model))
    hidden = np.maximum(_fitted(first[:, one.keep["0"]], second), 0)
    centred = hidden - hidden.mean(0)
    return hidden, np.linalg.lstsq(centred, last - last.mean(0), rcond=None)[0]


def _fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wide = np.column_stack([x, np.ones(len(x))])
    return wide @ np.linalg.lstsq(wide, y, rcond=None)[0]


def test_what_a_consumer_sees_and_would_weigh_is_that_of_the_smaller_model(known):
    node = known.found[1].node
    kept = known.labels.what_stays({"0": known.keep["0"]})
    hidden, weights = behind(known)
    for aims in (None, read_aims(known.checkpoint, known.found, known.rows)):
        (moments, fitted), = refitted_inputs(known.checkpoint, known.found, kept, known.rows, {node}, aims=aims).values()
        assert moments.samples == ROWS
        np.testing.assert_allclose(moments.covariance, np.cov(hidden.T), rtol=0.02, atol=2e-3)
        live = hidden.std(0) > 0  # weights of units that are dead by now stay as they were
        np.testing.assert_allclose(fitted[live], weights[live], rtol=0.05, atol=0.02)
    made, _ = refit(known.checkpoint, known.symmetry, kept, known.rows)
    np.testing.assert_allclose(known.found[1].matrix(made.tensors["4.weight"]), fitted, atol=1e-5)
    first = known.found[0].node
    assert refitted_inputs(known.checkpoint, known.found, kept, known.rows, {first}).keys() == {first}


def test_a_layer_behind_a_smaller_one_is_eliminated_on_what_it_sees_then(known):
    chosen = chosen_again(known.labels, known.found, known.groups, known.keep, known.plain, known.rows)
    hidden, weights = behind(known)
    wanted = elimination_curve([np.cov(hidden.T)], [weights @ weights.T], samples=ROWS).kept(4)
    assert chosen["0"] == known.keep["0"] and chosen["2"] == wanted.tolist()
    assert chosen["2"] != known.keep["2"]


def test_without_curvature_or_at_full_size_units_stay_as_given(known):
    assert chosen_again(known.labels, known.found, known.groups, known.keep, {}, known.rows) == known.keep
    whole = {name: list(range(group.size)) for name, group in known.groups.items()}
    assert chosen_again(known.labels, known.found, known.groups, whole, known.plain, known.rows) == whole
    made, units, notes = refit_again(known.labels, known.found, known.groups, whole, known.plain, known.rows)
    assert made is known.checkpoint and units == whole and notes == ()


def test_the_nearer_of_both_choices_is_taken(known):
    weighted = curvatures(known.checkpoint, known.found, known.rows)
    apart = {}
    again = chosen_again(known.labels, known.found, known.groups, known.keep, weighted, known.rows)
    for name, keep in (("given", known.keep), ("best", again)):
        made, _ = refit(known.checkpoint, known.symmetry, known.labels.what_stays(keep), known.rows)
        apart[name] = divergence(known, made)
    made, units, _ = refit_again(known.labels, known.found, known.groups, known.keep, weighted, known.rows)
    assert apart["best"] < apart["given"]  # the given ones were drawn, not chosen
    assert divergence(known, made) == pytest.approx(apart["best"]) and units != known.keep
    good = refit_again(known.labels, known.found, known.groups, units, weighted, known.rows)[1]
    assert len(good["2"]) == 4 and good["0"] == units["0"]


def divergence(known: Known, made: object) -> float:
    """Return the KL divergence of predictions from the whole model's."""
    whole, small = (torch.cat([run(one.graph, one.tensors, one.constants, batch)[0] for batch in known.rows]).log_softmax(-1)
                    for one in (known.checkpoint, made))
    return float(nn.functional.kl_div(small, whole, log_target=True, reduction="batchmean"))
