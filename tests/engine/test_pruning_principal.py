"""A residual stream on its principal directions: the same function, smaller for less than unit by unit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cipm.allocation import SESSION_FILE, Session, read_session
from cipm.errors import OptionError, UnsupportedModel
from cipm.load.checkpoint import Checkpoint
from cipm.load.probe import Probe
from cipm.options import parse_options
from cipm.pipeline.context import Context
from cipm.pipeline.whatif import measure, whatif
from cipm.pruning import shrink
from cipm.pruning.consumers import consumers
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.principal import turn, turnable
from cipm.pruning.sequence import Rows, read_moments, refit
from cipm.symmetry import Symmetry, compare, discover_groups, example_inputs, prove, with_continuous
from cipm.testing.networks import NETWORKS, as_checkpoint
from cipm.trace import run


class Block(nn.Module):
    """Two linear layers behind a norm and around a shortcut."""

    def __init__(self, width: int, norm: type[nn.Module]):
        super().__init__()
        self.norm, self.up, self.down = norm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def streamed(norm: type[nn.Module], width: int = 16, directions: int = 6) -> tuple[Checkpoint, Symmetry, Rows]:
    """Return a network whose stream nearly lies in a few directions, none of them a coordinate."""
    torch.manual_seed(0)
    mix, _ = torch.linalg.qr(torch.randn(width, width))
    model = nn.Sequential(nn.Linear(8, width), Block(width, norm), Block(width, norm), norm(width), nn.Linear(width, 5))
    flat = mix[:, :directions] @ mix[:, :directions].T + 0.02 * torch.eye(width)
    with torch.no_grad():
        for layer in (model[0], model[1].down, model[2].down):
            layer.weight.copy_(flat @ layer.weight)
            layer.bias.copy_(flat @ (layer.bias + 0.3))
        for part in (model[1].norm, model[2].norm, model[3]):
            part.weight.uniform_(0.5, 1.5)
            if getattr(part, "bias", None) is not None:
                part.bias.normal_(0, 0.2)
    checkpoint = as_checkpoint(model.eval(), (torch.zeros(2, 8),))
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    return checkpoint, found(checkpoint), [{checkpoint.graph.inputs[0].name: x}]


def found(checkpoint: Checkpoint) -> Symmetry:
    return with_continuous(checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1))


def smaller(checkpoint: Checkpoint, symmetry: Symmetry, group: str, size: int, rows: Rows) -> tuple[float, Checkpoint]:
    """Return the error of the outputs with so many units of a group kept and refitted, and the smaller model."""
    labels, readers = Labels.of(checkpoint, symmetry), consumers(checkpoint, symmetry)
    groups, _ = prunable(symmetry, readers, labels=labels)
    curve = group_curves(checkpoint, readers, {group: groups[group]}, read_moments(checkpoint, readers, rows))[group]
    keep = {group: curve.kept(size)}
    made, _ = refit(checkpoint, symmetry, labels.what_stays(keep), rows)
    small = shrink(made, symmetry, keep).checkpoint
    before, after = (run(one.graph, one.tensors, one.constants, rows[0])[0] for one in (checkpoint, small))
    return float((before - after).square().mean() / before.var()), small


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_turned_it_is_the_same_function_and_few_directions_are_enough(norm):
    checkpoint, symmetry, rows = streamed(norm)
    (name,) = turnable(symmetry)
    turned = turn(checkpoint, symmetry, name, rows)
    assert turned.max_rel <= 1e-10 and len(turned.notes) == (norm is nn.LayerNorm)
    assert turned.shares.sum() == pytest.approx(1) and (np.diff(turned.shares) <= 0).all()
    assert turned.shares[:7].sum() > 0.99
    before, after = (run(one.graph, one.tensors, one.constants, rows[0]) for one in (checkpoint, turned.checkpoint))
    assert compare(before, after)[1] < 1e-5
    assert {key: (t.shape, t.dtype) for key, t in turned.checkpoint.tensors.items()} == {
        key: (t.shape, t.dtype) for key, t in checkpoint.tensors.items()}
    by_direction, small = smaller(turned.checkpoint, found(turned.checkpoint), name, 8, rows)
    by_unit, _ = smaller(checkpoint, symmetry, name, 8, rows)
    assert by_direction < 0.01 and by_direction < 0.2 * by_unit
    assert small.parameters < 0.62 * checkpoint.parameters


def test_a_decoder_is_turned_through_embedding_attention_and_gates():
    checkpoint = as_checkpoint(NETWORKS["llama_rotary"].make(), NETWORKS["llama_rotary"].example())
    symmetry = found(checkpoint)
    rows = [example_inputs(checkpoint, generator=torch.Generator().manual_seed(0), sizes=(20, 8))]
    turned = turn(checkpoint, symmetry, "embed", rows)
    assert turned.max_rel <= 1e-10 and set(turnable(symmetry)) == {"embed"}
    norm = turned.checkpoint.tensors["blocks.0.norm1.weight"]
    assert torch.allclose(norm, torch.ones_like(norm))


class After(nn.Module):
    """A linear layer around a shortcut, and a norm after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.linear(x).relu())


def test_a_stream_that_may_not_be_mixed_is_refused():
    model = nn.Sequential(nn.Linear(8, 12), After(12), nn.Linear(12, 3)).eval()
    checkpoint = as_checkpoint(model, (torch.zeros(2, 8),))
    symmetry = found(checkpoint)
    with pytest.raises(UnsupportedModel, match="The units of 0 may not be mixed: the model is not the same function"):
        turn(checkpoint, symmetry, symmetry.group("0").name, [])


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_a_session_has_a_stream_by_direction_beside_it_by_coordinate(norm, tmp_path):
    checkpoint, symmetry, rows = streamed(norm)
    kept = {"checkpoint": checkpoint, "symmetry": symmetry, "probe": Probe(rows[0], None, 600, 600, ())}
    context = Context({}, parse_options({}), {"whatif": tmp_path}, lambda event: None, kept)
    whatif(context, tmp_path)
    session, (name,) = Session.from_json(read_session(tmp_path / SESSION_FILE)), turnable(symmetry)
    other = f"{name} by direction"
    assert dict(session.turned) == {other: name}
    size = symmetry.group(name).size
    coordinate, direction = (session.rises["kl"][one] for one in (name, other))
    assert direction[6] < 0.2 * coordinate[6] and direction[size] == 0
    for count in session.counts.values():
        assert count({other: 8}) == pytest.approx(count({name: 8}))
    plain, turned = session.front("parameters"), session.front("parameters", turned=[other])
    assert other not in plain[-1].keep and name not in turned[-1].keep and turned[-1].keep[other] < size
    found = []
    for one in (name, other):
        context.request = {"keep": {one: 6}}
        measure(context, tmp_path)
        found.append(json.loads((tmp_path / "measure.json").read_text()))
        assert found[-1]["keep"] == {one: 6} and found[-1]["predicted"] == pytest.approx(session.losses({one: 6}))
    assert found[1]["kl"] < 0.1 * found[0]["kl"] and "principal directions" in found[1]["notes"][0]
    with pytest.raises(OptionError, match="are the same stream"):
        session.checked({name: 8, other: 8})


def test_a_stream_that_may_not_be_turned_says_so_in_a_session(tmp_path):
    model = nn.Sequential(nn.Linear(8, 12), After(12), nn.Linear(12, 3)).eval()
    checkpoint = as_checkpoint(model, (torch.zeros(2, 8),))
    rows = {checkpoint.graph.inputs[0].name: torch.randn(60, 8, generator=torch.Generator().manual_seed(0))}
    kept = {"checkpoint": checkpoint, "symmetry": found(checkpoint), "probe": Probe(rows, None, 60, 60, ())}
    whatif(Context({}, parse_options({"measured_points": 1}), {}, lambda event: None, kept), tmp_path)
    session = Session.from_json(read_session(tmp_path / SESSION_FILE))
    assert not session.turned and session.unavailable["0 by direction"].startswith("It can be cut by coordinate alone")
