"""The names that notebooks call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import cipm
from cipm.testing.models import mlp, save_pt2


def test_importing_cipm_alone_stays_light():
    code = "import cipm, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_of_the_facade_can_be_called():
    assert all(callable(getattr(cipm, name)) for name in cipm.__all__)


def test_load_discover_analyze(tmp_path: Path):
    path = save_pt2(mlp((64, 24, 16, 10)), torch.zeros(2, 64), tmp_path / "net.pt2")
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=generator.normal(size=(300, 64)).astype(np.float32),
             y=generator.integers(0, 10, 300))
    checkpoint = cipm.load(path)
    symmetry = cipm.discover(checkpoint)
    assert [group.size for group in symmetry.groups] == [24, 16] and symmetry.certificate.passed
    report = cipm.analyze(checkpoint, tmp_path / "rows.npz", {"measured_points": 1})
    assert [group["name"] for group in report["groups"]] == [group.name for group in symmetry.groups]
    assert report["baseline"]["loss_kind"] == "cross_entropy" and report["probe"]["rows"] == 300


def test_correlation_partition_seriate_and_curve_agree_with_numpy():
    generator = np.random.default_rng(1)
    source = generator.normal(size=(400, 3))
    x = np.repeat(source, 8, axis=1)[:, order := generator.permutation(24)] + 0.3 * generator.normal(size=(400, 24))
    c = cipm.correlation([x[:150], x[150:]])
    np.testing.assert_allclose(c, np.corrcoef(x.T), atol=1e-6)
    labels = cipm.partition(c, samples=400)
    assert len({tuple(sorted(np.flatnonzero(labels == m))) for m in range(3)} ^
               {tuple(sorted(np.flatnonzero(order // 8 == m))) for m in range(3)}) == 0
    shown = labels[cipm.seriate(c, samples=400)]
    assert (np.diff(shown) != 0).sum() == 2  # the three modules stand in one run each
    removal, cost = cipm.elimination_curve(np.cov(x.T), generator.normal(size=(5, 24)), samples=400)
    assert sorted(removal) == list(range(24)) and cost[24] == 0 and (np.diff(cost) <= 1e-9).all()
