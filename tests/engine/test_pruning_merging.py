"""Near-duplicates: planted ones are found with their map, and none is counted twice."""

from __future__ import annotations

import numpy as np
import pytest

from cipm.errors import OptionError
from cipm.pruning.merging import near_duplicates


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
