"""The exact canonical form: one for all permuted copies of every family, ties of any kind, and what the budget leaves open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from cipm.load.checkpoint import Checkpoint
from cipm.ordering import canonical_orders
from cipm.permutation import Permutation
from cipm.symmetry import Symmetry, SymmetryGroup, discover_groups, prove
from cipm.symmetry.groups import Place
from cipm.testing.models import cnn_residual, mlp, seeded
from cipm.testing.networks import NETWORKS, as_checkpoint, randomize

Tensors = Mapping[str, torch.Tensor]


def build(name: str) -> tuple[Checkpoint, Symmetry]:
    """Return a small network of a family with its proved symmetry; no tensor is uniform."""
    models = {"mlp": lambda: (mlp((5, 9, 7, 3)), (torch.randn(2, 5),)),
              "residual convolutions": lambda: (cnn_residual(1, 4, 3), (torch.randn(2, 1, 6, 6),)),
              "grouped convolutions": lambda: (NETWORKS["resnext"].make(), NETWORKS["resnext"].example()),
              "transformer": transformer, "rotary, grouped queries": rotary}
    model, example = models[name]()
    randomize(model, 1)
    checkpoint = as_checkpoint(model.requires_grad_(False), example)
    return checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)


def transformer() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layer = seeded(lambda: nn.TransformerEncoderLayer(12, 4, 10, batch_first=True, dropout=0.0), 0).eval()
    return nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3)).eval(), (torch.randn(2, 4, 5),)


def rotary() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return NETWORKS["llama_rotary"].make(), NETWORKS["llama_rotary"].example()


SAMPLES = ("mlp", "residual convolutions", "transformer")
FAMILIES = (*SAMPLES, "grouped convolutions", "rotary, grouped queries")


def plain(symmetry: Symmetry, tensors: Tensors) -> Tensors:
    return tensors


def twins_and_dead(symmetry: Symmetry, tensors: Tensors) -> Tensors:
    """Make unit 1 of every group the double of unit 0, and the last one of the larger groups dead: heads too."""
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    for group in symmetry.groups:
        for place in group.places:
            numbers = changed[place.tensor].view(-1)
            there = place.line_up(torch.arange(len(numbers)).reshape(changed[place.tensor].shape))[place.index]
            numbers[there[1]] = numbers[there[0]]
            if group.size // group.blocks > 3:
                numbers[there[-1]] = 0
    return changed


def signs(symmetry: Symmetry, tensors: Tensors) -> Tensors:
    """Make every weight +1 or −1."""
    return {key: torch.where(tensor < 0, -1, 1).to(tensor.dtype) for key, tensor in tensors.items()}


def member(symmetry: Symmetry, tensors: Tensors, rng: np.random.Generator) -> Tensors:
    orders = {g.name: Permutation.random(g.size, generator=rng, blocks=g.blocks) for g in symmetry.groups}
    return symmetry.plan(orders).apply(tensors)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Checkpoint, Symmetry]:
    return request.param, *build(request.param)


@pytest.mark.parametrize("change", [plain, twins_and_dead, signs])
def test_a_hundred_copies_have_one_form(family, change):
    name, checkpoint, symmetry = family
    assert len(symmetry.groups) > 1 and all(group.proved for group in symmetry.groups)
    tensors, rng = change(symmetry, checkpoint.tensors), np.random.default_rng(0)
    copies, forms, moved = 100 if name in SAMPLES else 20, set(), 0
    for _ in range(copies):
        copy = member(symmetry, tensors, rng)
        found = canonical_orders(symmetry, copy)
        assert not found.unresolved
        form = symmetry.plan(found.orders).apply(copy)
        forms.add(b"".join(form[key].numpy().tobytes() for key in sorted(form)))
        moved += any(not torch.equal(copy[key], tensors[key]) for key in tensors)
    assert len(forms) == 1 and moved > copies / 2


# --- ties that refinement alone does not break ------------------------------------------------------------------------


def graph(adjacency: np.ndarray) -> tuple[Symmetry, Tensors]:
    """Return one group that stands on both axes of one matrix: a canonical form is one of the graph."""
    n = len(adjacency)
    places = tuple(Place("w", axis, n, np.arange(n)[:, None]) for axis in (0, 1))
    return one_symmetry(SymmetryGroup("g", "units", n, 1, None, places, (), True)), {"w": torch.tensor(adjacency)}


def rows_and_columns(matrix: np.ndarray) -> tuple[Symmetry, Tensors]:
    groups = [SymmetryGroup(name, "units", n, 1, None, (Place("w", axis, n, np.arange(n)[:, None]),), (), True)
              for name, axis, n in (("rows", 0, len(matrix)), ("columns", 1, matrix.shape[1]))]
    return one_symmetry(*groups), {"w": torch.tensor(matrix)}


def chains(count: int) -> tuple[Symmetry, Tensors]:
    """Return two layers of which each unit has one equal unit to itself: no two are twins, any two chains may change places."""
    spots = [[("w0", 0), ("w1", 1)], [("w1", 0), ("w2", 1)]]
    groups = [SymmetryGroup(f"h{i}", "units", count, 1, None,
                            tuple(Place(key, axis, count, np.arange(count)[:, None]) for key, axis in own), (), True)
              for i, own in enumerate(spots)]
    return one_symmetry(*groups), {"w0": torch.ones(count, 3), "w1": torch.eye(count), "w2": torch.ones(2, count)}


def one_symmetry(*groups: SymmetryGroup) -> Symmetry:
    return Symmetry(groups, (), None, 1.0)


def rings(*sizes: int) -> np.ndarray:
    return torch.block_diag(*[torch.roll(torch.eye(n), 1, 0) + torch.roll(torch.eye(n), -1, 0) for n in sizes]).numpy()


PETERSEN = np.array([[len({a, b} & {c, d}) == 0 for c in range(5) for d in range(c)] for a in range(5) for b in range(a)])
TIED = {"rings that look alike": graph(rings(3, 3, 6)), "pairs": graph(rings(*[2] * 5)), "Petersen": graph(PETERSEN),
        "chains": chains(8), "Hadamard": rows_and_columns(hadamard(8))}


def forms(symmetry: Symmetry, tensors: Tensors, copies: int, **options: int) -> tuple[set[bytes], list[Mapping[str, int]]]:
    rng, found, unresolved = np.random.default_rng(0), set(), []
    for _ in range(copies):
        copy = member(symmetry, tensors, rng)
        result = canonical_orders(symmetry, copy, **options)
        found.add(b"".join(t.numpy().tobytes() for t in symmetry.plan(result.orders).apply(copy).values()))
        unresolved.append(result.unresolved)
    return found, unresolved


@pytest.mark.parametrize("name", TIED)
def test_ties_are_broken_alike_in_every_copy(name):
    found, unresolved = forms(*TIED[name], 8)
    assert len(found) == 1 and not any(unresolved)


def test_graphs_that_look_alike_have_different_forms():
    one, _ = forms(*graph(rings(3, 3)), 5)
    two, _ = forms(*graph(rings(6)), 5)
    assert one.isdisjoint(two)


def test_what_the_budget_leaves_open_is_said():
    symmetry, tensors = graph(rings(3, 3, 6))
    found, unresolved = forms(symmetry, tensors, 20, refinements=3)
    assert unresolved == [{"g": 12}] * 20 and len(found) > 1


def test_a_symmetry_without_groups_has_no_orders():
    found = canonical_orders(one_symmetry(), {"w": torch.zeros(3)})
    assert found.orders == {} and found.unresolved == {}


def test_many_dead_heads_stay_within_the_budget():
    """Twelve heads of eight units, all but two of them zero: no search, though each copy has its units in another order."""
    n, heads = 96, 12
    unit, head = np.arange(n)[:, None], np.arange(n).reshape(heads, -1)
    groups = (SymmetryGroup("units", "units in heads", n, heads, "heads", (Place("v", 0, n, unit), Place("o", 1, n, unit)), ()),
              SymmetryGroup("heads", "heads", heads, 1, None, (Place("v", 0, n, head), Place("o", 1, n, head)), ()))
    tensors = {"v": torch.randn(n, 5), "o": torch.randn(4, n)}
    tensors["v"][16:], tensors["o"][:, 16:] = 0, 0
    found, unresolved = forms(one_symmetry(*groups), tensors, 10, refinements=0)
    assert len(found) == 1 and not any(unresolved)
