"""Units of experts that a router chooses: their cost, refit and removal."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cipm.load import Checkpoint
from cipm.pruning import shrink
from cipm.pruning.consumers import Consumer, consumed, consumers
from cipm.pruning.curvature import curvatures
from cipm.pruning.kept import Labels
from cipm.pruning.network import group_curves, prunable
from cipm.pruning.sequence import Rows, read_aims, read_moments, refit
from cipm.pruning.shrink import left_out
from cipm.pruning.sparse_model import sparse_orders, sparsify
from cipm.symmetry import Symmetry, SymmetryGroup, discover_groups, prove
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

EXPERTS, UNITS = 4, 8


class Layer(nn.Module):
    """A shortcut around four experts of eight units each, of which a router chooses two; `gated` False: the answers are summed.

    Half of the units of an expert are sums of the others, so that these can take over.
    """

    def __init__(self, *, gated: bool = True, bent: bool = False):
        super().__init__()
        self.gated, self.bent = gated, bent
        self.router, self.head = nn.Linear(6, EXPERTS), nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(EXPERTS, UNITS, 6)), nn.Parameter(torch.randn(EXPERTS, 6, UNITS))
        self.bias = nn.Parameter(torch.randn(EXPERTS, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight, best = self.router(x).softmax(-1).topk(2)
        flat, own = best.reshape(-1), x.repeat_interleave(2, dim=0)
        hidden = torch.bmm(self.up[flat], own[:, :, None])[..., 0].relu()
        made = torch.bmm(self.down[flat], hidden[:, :, None])[..., 0] + self.bias[flat]
        made = made.tanh() if self.bent else made
        made = made * weight.reshape(-1, 1) if self.gated else made
        return self.head(x + made.view(-1, 2, 6).sum(1))


@cache
def layer(gated: bool = True, bent: bool = False) -> tuple[Checkpoint, Symmetry, Rows]:
    model = Layer(gated=gated, bent=bent).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(generator=generator)
    model.up[:, UNITS // 2:] = 0.5 * model.up[:, :UNITS // 2] + 0.2 * model.up[:, UNITS // 2:]
    checkpoint = as_checkpoint(model, (torch.randn(4, 6),))
    rows = [{checkpoint.graph.inputs[0].name: torch.randn(300, 6, generator=generator)} for _ in range(2)]
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1), rows


def units_of(symmetry: Symmetry) -> SymmetryGroup:
    return next(group for group in symmetry.groups if group.kind == "units in experts")


def reader(checkpoint: Checkpoint, symmetry: Symmetry) -> Consumer:
    one, = consumed(consumers(checkpoint, symmetry), units_of(symmetry).name)
    return one


def hidden(checkpoint: Checkpoint, x: Tensor, *, gated: bool) -> np.ndarray:
    """Return g h of all units of all experts [rows, experts × units], 0 where not chosen, in float64."""
    t = {key: tensor.double() for key, tensor in checkpoint.tensors.items()}
    x = x.double()
    weight, best = (x @ t["router.weight"].T + t["router.bias"]).softmax(-1).topk(2)
    gate = torch.zeros(len(x), EXPERTS, dtype=torch.float64).scatter(1, best, weight if gated else torch.ones_like(weight))
    return (torch.einsum("bd,eud->beu", x, t["up"]).relu() * gate[..., None]).flatten(1).numpy()


@pytest.mark.parametrize("gated", [True, False])
def test_the_reader_of_all_experts_is_one_linear_map(gated: bool) -> None:
    checkpoint, symmetry, rows = layer(gated)
    one = reader(checkpoint, symmetry)
    assert one.features == EXPERTS * UNITS and (one.routed.gate is not None) is gated
    x = np.concatenate([hidden(checkpoint, batch[checkpoint.graph.inputs[0].name], gated=gated) for batch in rows])
    moments = read_moments(checkpoint, [one], rows)[one.node]
    assert moments.samples == 600 and moments.mean == pytest.approx(x.mean(0), rel=1e-4, abs=1e-5)
    assert moments.covariance == pytest.approx(np.cov(x.T), rel=1e-4, abs=1e-4)
    down = checkpoint.tensors["down"].double().transpose(1, 2).reshape(EXPERTS * UNITS, 6).numpy()
    assert np.array_equal(one.matrix(checkpoint.tensors["down"]), down)
    assert torch.equal(one.stored(down, checkpoint.tensors["down"]), checkpoint.tensors["down"])
    curve = group_curves(checkpoint, [one], {units_of(symmetry).name: units_of(symmetry)}, {one.node: moments})[
        units_of(symmetry).name]
    gone = curve.removal_order[:UNITS * EXPERTS // 2]
    stay, c = np.setdiff1d(np.arange(EXPERTS * UNITS), gone), np.cov(x.T)
    lost = c[np.ix_(gone, gone)] - c[np.ix_(gone, stay)] @ np.linalg.pinv(c[np.ix_(stay, stay)]) @ c[np.ix_(stay, gone)]
    assert curve.cost[stay.size] == pytest.approx(np.trace(down[gone].T @ lost @ down[gone]), rel=0.02)


def test_what_is_lost_counts_by_what_the_predictions_make_of_it() -> None:
    checkpoint, symmetry, rows = layer()
    one = reader(checkpoint, symmetry)
    found = curvatures(checkpoint, [one], rows)[one.node]
    head, down = checkpoint.tensors["head.weight"].double().numpy(), one.matrix(checkpoint.tensors["down"])
    logits = torch.cat([run(checkpoint.graph, checkpoint.tensors, {}, batch)[0] for batch in rows]).double()
    p = logits.softmax(-1).numpy()
    fisher = head.T @ ((np.einsum("bi,ij->bij", p, np.eye(3)) - np.einsum("bi,bj->bij", p, p)).mean(0)) @ head
    exact = down @ fisher @ down.T
    assert np.linalg.norm(found - exact) <= 0.15 * np.linalg.norm(exact)  # drawn vectors, four a row


def test_what_stays_of_all_experts_takes_over() -> None:
    checkpoint, symmetry, rows = layer()
    one, group, labels = reader(checkpoint, symmetry), units_of(symmetry), Labels.of(checkpoint, symmetry)
    staying = np.concatenate([np.arange(UNITS // 2) + UNITS * expert for expert in range(EXPERTS)])
    kept = labels.what_stays({group.name: staying})
    assert np.array_equal(one.staying(kept), staying)
    x = np.concatenate([hidden(checkpoint, batch[checkpoint.graph.inputs[0].name], gated=True) for batch in rows])
    down = one.matrix(checkpoint.tensors["down"])
    best = np.linalg.lstsq(x[:, staying], x @ down, rcond=None)[0]
    for aims in (None, read_aims(checkpoint, [one], rows)):
        made, notes = refit(checkpoint, symmetry, kept, rows, aims=aims, found=[one])
        fitted = one.matrix(made.tensors["down"])
        left, least, cut = (float(np.square(x[:, staying] @ w - x @ down).sum())
                            for w in (fitted[staying], best, down[staying]))
        assert left <= 1.001 * least and left < 0.1 * cut
        assert not fitted[np.setdiff1d(np.arange(len(fitted)), staying)].any()
        assert any("a router weighs" in note for note in notes)
    after, before = (run(one.graph, one.tensors, {}, rows[0])[0] for one in (made, checkpoint))
    plain = checkpoint.with_tensors({key: kept.zeroed(tensor, key) for key, tensor in checkpoint.tensors.items()})
    cut = run(plain.graph, plain.tensors, {}, rows[0])[0]
    assert float((after - before).square().sum()) < 0.1 * float((cut - before).square().sum())


def test_where_answers_are_bent_before_they_are_summed_there_is_no_such_map() -> None:
    checkpoint, symmetry, _ = layer(bent=True)
    assert not consumed(consumers(checkpoint, symmetry), units_of(symmetry).name)
    groups, _ = prunable(symmetry, consumers(checkpoint, symmetry), labels=Labels.of(checkpoint, symmetry))
    assert units_of(symmetry).name in groups  # by masking


def test_each_expert_keeps_units_of_its_own_in_the_smaller_model() -> None:
    checkpoint, symmetry, _ = layer()
    rng = np.random.default_rng(0)
    keep = np.concatenate([np.sort(rng.permutation(UNITS)[:3]) + UNITS * expert for expert in range(EXPERTS)])
    made = shrink(checkpoint, symmetry, {units_of(symmetry).name: keep})
    assert made.max_rel <= 1e-10 and tuple(made.checkpoint.tensors["up"].shape) == (EXPERTS, 3, 6)
    assert torch.equal(made.checkpoint.tensors["down"][1], checkpoint.tensors["down"][1][:, keep[3:6] - UNITS])


def test_an_expert_and_units_of_the_others_go_together() -> None:
    checkpoint, symmetry, rows = layer()
    group, one = units_of(symmetry), reader(checkpoint, symmetry)
    keep = {group.name: np.concatenate([np.arange(5) + UNITS * expert for expert in range(EXPERTS)]), group.parent: [0, 2, 3]}
    made = shrink(checkpoint, symmetry, keep)
    assert made.max_rel <= 1e-10 and tuple(made.checkpoint.tensors["down"].shape) == (3, 6, 5)
    kept = Labels.of(checkpoint, symmetry).what_stays(keep)
    assert np.array_equal(one.staying(kept), np.concatenate([np.arange(5) + UNITS * expert for expert in (0, 2, 3)]))
    refitted, _ = refit(checkpoint, symmetry, kept, rows, found=[one])
    masks = dict(left_out(checkpoint.graph, kept))
    cut = checkpoint.with_tensors({key: kept.zeroed(tensor, key) for key, tensor in checkpoint.tensors.items()})
    whole = run(checkpoint.graph, checkpoint.tensors, {}, rows[1])[0]
    lost = [float((run(model.graph, model.tensors, {}, rows[1], intervene=masks)[0] - whole).square().sum())
            for model in (refitted, cut)]
    assert lost[0] < 0.5 * lost[1]


def test_two_of_four_is_kept_in_every_expert_in_an_order_of_its_own() -> None:
    checkpoint, symmetry, _ = layer()
    found = sparse_orders(symmetry, checkpoint)
    order = found[units_of(symmetry).name].order
    assert order.keeps_blocks(EXPERTS)
    made = sparsify(checkpoint, symmetry, {units_of(symmetry).name: order})
    weight, = [one for one in made.weights if one.tensor == "down"]
    assert (weight.axis, made.masks["down"].unflatten(2, (-1, 4)).sum(-1).unique().tolist()) == (2, [2])
    moved = order.order.reshape(EXPERTS, UNITS) % UNITS
    size = torch.stack([checkpoint.tensors["down"][expert][:, moved[expert]] for expert in range(EXPERTS)]).abs()
    best = float(size.unflatten(2, (-1, 4)).topk(2).values.double().sum())
    assert weight.retained == pytest.approx(best, rel=1e-5) and weight.retained > weight.retained_before
