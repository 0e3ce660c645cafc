"""Near-duplicates: planted ones are found with their map, and none is counted twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import OptionError
from cipm.pruning import find_merges
from cipm.pruning.consumers import consumers
from cipm.pruning.kept import Labels
from cipm.pruning.merging import near_duplicates
from cipm.pruning.sequence import read_moments, refit_alone
from cipm.symmetry import discover_groups, prove
from cipm.testing.networks import as_checkpoint
from cipm.trace import run


def test_planted_duplicates_are_found():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 8))
    x[:, 3] = -0.5 * x[:, 1] + 2 + 0.01 * rng.standard_normal(2000)
    x[:, 6] = 0.8 * x[:, 1] + 0.05 * rng.standard_normal(2000)
    x[:, 7] = 1.0
    found = near_duplicates(np.cov(x.T), x.mean(0), r2=0.9)
    assert [(one.removed, one.kept) for one in found] == [(3, 1), (6, 1)]
    assert found[0].scale == pytest.approx(-0.5, abs=0.01) and found[0].offset == pytest.approx(2, abs=0.01)
    assert found[0].r2 > found[1].r2 > 0.99
    assert near_duplicates(np.cov(x.T), x.mean(0), r2=1) == ()


def test_a_unit_is_never_merged_and_merged_into():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 1)) * np.array([3, 2, 1, 4]) + 0.01 * rng.standard_normal((500, 4))
    found = near_duplicates(np.cov(x.T), x.mean(0))
    merged, takers = {one.removed for one in found}, {one.kept for one in found}
    assert found and not merged & takers and len(merged) == len(found)


def test_the_share_must_be_one():
    with pytest.raises(OptionError, match="must be more than 0 and at most 1; it cannot be 1.5"):
        near_duplicates(np.eye(2), np.zeros(2), r2=1.5)


@pytest.fixture(scope="module")
def planted():
    """Return a network with near-duplicates among its first units, its groups, consumers, moments and rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 4))
    with torch.no_grad():
        for unit, other, scale in ((3, 1, 2.0), (8, 1, 0.5), (12, 4, 1.5)):
            model[0].weight[unit] = scale * model[0].weight[other] + 0.01 * torch.randn(12)
            model[0].bias[unit] = scale * model[0].bias[other]
    checkpoint = as_checkpoint(model.eval(), (torch.zeros(2, 12),))
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    rows = [{checkpoint.graph.inputs[0].name: torch.randn(600, 12, generator=torch.Generator().manual_seed(1))}]
    found = consumers(checkpoint, symmetry)
    return checkpoint, symmetry, found, read_moments(checkpoint, found, rows), rows


def test_merging_is_a_what_if_that_is_predicted_and_measured_as_any_other(planted):
    checkpoint, symmetry, found, moments, rows = planted
    group = symmetry.group("0")
    merges = find_merges(checkpoint, found, group, moments)
    assert {(pair.removed, pair.kept) for pair in merges.pairs} == {(1, 3), (8, 3), (4, 12)}  # the one with more variance stays
    assert merges.keep == tuple(unit for unit in range(16) if unit not in (1, 4, 8))
    assert 0 < merges.refitted < merges.merged < 1e-3
    made = refit_alone(checkpoint, found, Labels.of(checkpoint, symmetry).what_stays({"0": merges.keep}), moments)
    seen: list[torch.Tensor] = []
    for one in (checkpoint, made):
        run(one.graph, one.tensors, one.constants, rows[0], observe={found[0].node: lambda x: seen.append(x.double())})
    change = float((seen[0] - seen[1]).square().sum(1).mean())
    total = float((seen[0] - seen[0].mean(0)).square().sum(1).mean())
    assert merges.refitted == pytest.approx(change / total, rel=0.05)
    assert merges.to_json()["pairs"][0]["r2"] == merges.pairs[0].r2 > 0.99


def test_a_group_without_duplicates_merges_nothing(planted):
    checkpoint, symmetry, found, moments, _ = planted
    merges = find_merges(checkpoint, found, symmetry.group("2"), moments, r2=0.999)
    assert merges.pairs == () and len(merges.keep) == 10 and merges.merged == merges.refitted == 0


def test_units_of_a_convolution_and_of_blocks_are_merged_by_one_map_for_all_their_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    with torch.no_grad():
        model[0].weight[1], model[0].weight[5] = model[0].weight[0], model[0].weight[4] + 0.001
        model[0].weight[3] = model[0].weight[2]
    checkpoint = as_checkpoint(model.eval(), (torch.zeros(2, 2, 6, 6),))
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    found = consumers(checkpoint, symmetry)
    rows = [{checkpoint.graph.inputs[0].name: torch.randn(40, 2, 6, 6, generator=torch.Generator().manual_seed(1))}]
    inner = next(group for group in symmetry.groups if group.blocks == 2)
    merges = find_merges(checkpoint, found, inner, read_moments(checkpoint, found, rows), r2=0.98)
    assert len(merges.pairs) == 2 and [pair.removed // 4 for pair in merges.pairs].count(0) == 1  # one of each block
    assert merges.refitted <= merges.merged < 0.02
