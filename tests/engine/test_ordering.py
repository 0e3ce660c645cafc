"""Orders: canonical bytes over copies, exact leaf order against brute force, seriation on planted structure, scores."""

from __future__ import annotations

import itertools

import fastcluster
import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering
from scipy.spatial.distance import pdist, squareform

from cipm.errors import InputError, OptionError
from cipm.modules import partition
from cipm.ordering import by_module, canonical_orders, nodesort, scores, seriate, spectral, within_blocks
from cipm.ordering.leaves import leaf_order
from cipm.permutation import Permutation
from cipm.statistics import correlation
from cipm.symmetry.groups import Place, Symmetry, SymmetryGroup

# --- symmetry objects of real shapes ----------------------------------------------------------------------------------


def place(tensor: str, axis: int, length: int, index: np.ndarray | None = None) -> Place:
    return Place(tensor, axis, length, np.arange(length)[:, None] if index is None else index)


def group(name: str, size: int, places: list[Place], blocks: int = 1, parent: str | None = None) -> SymmetryGroup:
    return SymmetryGroup(name, "units", size, blocks, parent, tuple(places), (), True)


def mlp(rng, sizes=(6, 9, 7, 3)) -> tuple[Symmetry, dict[str, torch.Tensor]]:
    tensors, groups = {}, []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        tensors[f"w{i}"] = torch.tensor(rng.standard_normal((m, n)), dtype=torch.float32)
        tensors[f"b{i}"] = torch.tensor(rng.standard_normal(m), dtype=torch.float32)
    for i, m in enumerate(sizes[1:-1]):
        groups.append(group(f"h{i}", m, [place(f"w{i}", 0, m), place(f"b{i}", 0, m), place(f"w{i + 1}", 1, m)]))
    return Symmetry(tuple(groups), (), None, 1.0), tensors


def cnn(rng) -> tuple[Symmetry, dict[str, torch.Tensor]]:
    """Two convolutions with a residual one between, batch norm, and a flattened 2 × 2 image into a linear layer."""
    def draw(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    c, d = 6, 5
    tensors = {"c1": draw(c, 2, 3, 3), "bn": draw(c), "res": draw(c, c, 3, 3), "c2": draw(d, c, 1, 1), "fc": draw(4, 4 * d)}
    flat = np.arange(4 * d).reshape(d, 4)
    a = group("a", c, [place("c1", 0, c), place("bn", 0, c), place("res", 0, c), place("res", 1, c), place("c2", 1, c)])
    b = group("b", d, [place("c2", 0, d), place("fc", 1, 4 * d, flat)])
    return Symmetry((a, b), (), None, 1.0), tensors


def heads(rng, count=3, width=4, embed=5) -> tuple[Symmetry, dict[str, torch.Tensor]]:
    """Attention with fused qkv: units in blocks (q with k, and v), heads around them."""
    def draw(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    n = count * width
    tensors = {"qkv": draw(3 * n, embed), "bias": draw(3 * n), "out": draw(embed, n)}
    unit, head = np.arange(n)[:, None], np.arange(n).reshape(count, width)
    qk, every = np.c_[unit, unit + n], np.c_[head, head + n, head + 2 * n]
    groups = (group("qk", n, [place("qkv", 0, 3 * n, qk), place("bias", 0, 3 * n, qk)], count, "heads"),
              group("v", n, [place("qkv", 0, 3 * n, unit + 2 * n), place("bias", 0, 3 * n, unit + 2 * n),
                             place("out", 1, n)], count, "heads"),
              group("heads", count, [place("qkv", 0, 3 * n, every), place("bias", 0, 3 * n, every),
                                     place("out", 1, n, head)]))
    return Symmetry(groups, (), None, 1.0), tensors


FAMILIES = {"mlp": mlp, "cnn": cnn, "heads": heads}


def with_twins(symmetry: Symmetry, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in which units 0, 1 and 2 of the last group are equal and units 3 and 4 dead (all zeros)."""
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    for spot in symmetry.groups[0].places if symmetry.groups[-1].size < 5 else symmetry.groups[-1].places:
        rows = changed[spot.tensor].movedim(spot.axis, 0)
        rows[spot.index[1]] = rows[spot.index[0]]
        rows[spot.index[2]] = rows[spot.index[0]]
        if len(spot.index) > 4:
            rows[spot.index[3]] = 0
            rows[spot.index[4]] = 0
    return changed


def member(symmetry: Symmetry, tensors, rng):
    orders = {g.name: Permutation.random(g.size, generator=rng, blocks=g.blocks) for g in symmetry.groups}
    return symmetry.plan(orders).apply(tensors)


def canonical_bytes(symmetry: Symmetry, tensors) -> bytes:
    found = canonical_orders(symmetry, tensors)
    assert not found.unresolved
    moved = symmetry.plan(found.orders).apply(tensors)
    return b"".join(moved[key].contiguous().numpy().tobytes() for key in sorted(moved))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("twins", [False, True])
def test_canonical_order_gives_the_same_bytes_for_every_copy(family, twins):
    rng = np.random.default_rng(7)
    for _ in range(5):
        symmetry, tensors = FAMILIES[family](rng)
        tensors = with_twins(symmetry, tensors) if twins else tensors
        expected = canonical_bytes(symmetry, tensors)
        copies = [member(symmetry, tensors, rng) for _ in range(20)]
        assert any(not torch.equal(copies[0][k], tensors[k]) for k in tensors)
        assert all(canonical_bytes(symmetry, copy) == expected for copy in copies)


def test_canonical_order_tells_different_models_apart():
    rng = np.random.default_rng(0)
    symmetry, tensors = mlp(rng)
    other = {**tensors, "b1": tensors["b1"] + torch.eye(7)[0] * 1e-7}
    assert canonical_bytes(symmetry, tensors) != canonical_bytes(symmetry, other)


@pytest.mark.parametrize("signs", [1.0, -1.0])
def test_canonical_order_with_few_weight_values(signs):
    """±1 weights tie everywhere; refinement, twins and trial must still agree over copies."""
    rng = np.random.default_rng(3)
    symmetry, tensors = mlp(rng, (2, 6, 5, 2))
    tensors = {key: torch.sign(tensor) * signs for key, tensor in tensors.items()}
    expected = canonical_bytes(symmetry, tensors)
    assert all(canonical_bytes(symmetry, member(symmetry, tensors, rng)) == expected for _ in range(20))


def test_symmetric_ties_are_resolved_by_trial():
    """A ring of equal units: no two are twins, every rotation is a symmetry."""
    symmetry = Symmetry((group("ring", 6, [place("w", 0, 6), place("w", 1, 6)]),), (), None, 1.0)
    tensors = {"w": torch.roll(torch.eye(6), 1, 0)}
    rng = np.random.default_rng(0)
    expected = canonical_bytes(symmetry, tensors)
    assert all(canonical_bytes(symmetry, member(symmetry, tensors, rng)) == expected for _ in range(10))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex128])
def test_canonical_order_reads_every_dtype(dtype):
    rng = np.random.default_rng(5)
    symmetry, tensors = mlp(rng)
    tensors = {key: (tensor * 3).to(dtype) for key, tensor in tensors.items()}
    expected = [t.clone() for t in symmetry.plan(canonical_orders(symmetry, tensors).orders).apply(tensors).values()]
    copy = member(symmetry, tensors, rng)
    found = symmetry.plan(canonical_orders(symmetry, copy).orders).apply(copy)
    assert all(torch.equal(a, b) for a, b in zip(expected, found.values(), strict=True))


# --- leaf order and seriation -----------------------------------------------------------------------------------------


def path(distances: np.ndarray, order: np.ndarray) -> float:
    return float(distances[order[:-1], order[1:]].sum())


def flips(merges: np.ndarray, n: int) -> list[list[int]]:
    """Return every leaf order that flipping branches allows."""
    orders: list[list[list[int]]] = [[[leaf]] for leaf in range(n)]
    for left, right, *_ in merges:
        pairs = itertools.product(orders[int(left)], orders[int(right)])
        orders.append([order for a, b in pairs for order in (a + b, b + a)])
    return orders[-1]


@pytest.mark.parametrize("n", [3, 4, 7, 8])
def test_leaf_order_is_the_best_of_all_flips(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        d = squareform(pdist(rng.standard_normal((n, 3))))
        merges = fastcluster.linkage(squareform(d), "ward")
        order = leaf_order(merges, d)
        candidates = flips(merges, n)
        assert order.tolist() in candidates
        assert path(d, order) == pytest.approx(min(path(d, np.array(o)) for o in candidates), rel=1e-5)


def test_leaf_order_is_never_longer_than_scipy():
    rng = np.random.default_rng(0)
    for n in (30, 100):
        condensed = pdist(rng.standard_normal((n, 5)))
        merges = fastcluster.linkage(condensed, "average")
        d = squareform(condensed)
        scipy_order = leaves_list(optimal_leaf_ordering(merges, condensed))
        assert path(d, leaf_order(merges, d)) <= path(d, scipy_order) * (1 + 1e-5)


def planted(units: int, modules: int, samples: int, rho: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, modules, units)
    x = np.sqrt(rho) * rng.standard_normal((samples, modules))[:, labels]
    return x + np.sqrt(1 - rho) * rng.standard_normal((samples, units)), labels


def test_spectral_puts_planted_modules_together_on_held_out_rows():
    x, labels = planted(200, 8, 2000, 0.3)
    order = spectral(correlation([x[::2]]), 1000)
    changes = int((np.diff(labels[order.order]) != 0).sum())
    assert changes == 7
    held_out = correlation([x[1::2]])
    found, plain = scores(held_out, order), scores(held_out, Permutation.identity(200))
    assert found.banded_anti_robinson < plain.banded_anti_robinson - 0.03
    assert found.block_contrast > plain.block_contrast + 0.3


def test_spectral_recovers_a_line():
    """Units along a line, correlated by nearness, come back in line (up to direction)."""
    rng = np.random.default_rng(1)
    where = rng.permutation(60)
    kernel = np.exp(-0.5 * ((where[:, None] - where) / 6.0) ** 2)
    found = where[spectral(kernel, 100_000).order]
    assert abs(np.corrcoef(found, np.arange(60))[0, 1]) > 0.995


def test_spectral_does_not_depend_on_the_order_it_is_given():
    x, _ = planted(90, 5, 1500, 0.4)
    c = correlation([x])
    shuffle = np.random.default_rng(0).permutation(90)
    base, moved = seriate(c, 1500), shuffle[seriate(c[np.ix_(shuffle, shuffle)], 1500)]
    assert moved.tolist() in (base.tolist(), base[::-1].tolist())
    assert seriate(c, 1500).tolist() == base.tolist()


def test_noise_and_dead_units_keep_their_order():
    rng = np.random.default_rng(0)
    x, _ = planted(20, 2, 500, 0.5)
    x[:, [4, 11]] = 1.0
    assert seriate(correlation([x]), 500)[-2:].tolist() == [4, 11]
    assert seriate(correlation([rng.standard_normal((300, 15))]), 300).tolist() == list(range(15))


@pytest.mark.parametrize("n", [1, 2])
def test_tiny_groups_have_an_order(n):
    c = np.full((n, n), 0.9) + 0.1 * np.eye(n)
    assert sorted(seriate(c, 1000).tolist()) == list(range(n))


def test_by_module_is_biggest_first_and_loose_units_last():
    x, labels = planted(120, 4, 2000, 0.4)
    loose = np.random.default_rng(3).standard_normal((2000, 10))
    c = correlation([np.c_[x, loose]])
    found = partition(c, samples=2000)
    order = by_module(c, found, 2000)
    shown = found.labels[order.order]
    assert shown[shown >= 0].tolist() == sorted(shown[shown >= 0]) and (shown[-10:] == -1).all()
    sizes = np.bincount(shown[shown >= 0])
    assert (np.diff(sizes) <= 0).all() and sizes.size == 4


def test_within_blocks_keeps_blocks():
    x, _ = planted(60, 3, 1000, 0.5)
    order = within_blocks(lambda c: spectral(c, 1000), correlation([x]), 4)
    assert order.keeps_blocks(4) and not order.is_identity


# --- NodeSort and scores ----------------------------------------------------------------------------------------------


def test_nodesort_equals_exact_integer_keys():
    """Python's integers have no overflow: the published keys, exactly."""
    weights = np.random.default_rng(0).integers(-50, 50, (40, 200))
    keys = [sum(int(w) * 10**j for j, w in enumerate(row)) for row in weights]
    assert nodesort(weights, 10).order.tolist() == sorted(range(40), key=lambda u: keys[u])


def test_nodesort_is_invariant_and_breaks_ties_by_index():
    weights = np.random.default_rng(1).standard_normal((30, 64))
    shuffle = np.random.default_rng(2).permutation(30)
    np.testing.assert_array_equal(weights[nodesort(weights, 1.1).order],
                                  weights[shuffle][nodesort(weights[shuffle], 1.1).order])
    assert nodesort(np.ones((4, 3)), 2).order.tolist() == [0, 1, 2, 3]


def test_nodesort_refuses_bad_input():
    with pytest.raises(OptionError, match="positive number"):
        nodesort(np.ones((2, 2)), 0)
    with pytest.raises(InputError, match="Weight 1 of unit 0 is nan"):
        nodesort(np.array([[1.0, np.nan]]), 2)


def direct_scores(c: np.ndarray) -> tuple[float, float]:
    n, d = len(c), 1 - c
    mean = d[~np.eye(n, dtype=bool)].mean()
    band = max(1, n // 5)
    weights = {(i, j): band + 1 - abs(i - j) for i in range(n) for j in range(n) if 0 < abs(i - j) <= band}
    banded = sum(w * d[ij] for ij, w in weights.items()) / (sum(weights.values()) * mean)
    return banded, np.diag(d, 1).mean() / mean


def test_scores_equal_their_definitions():
    x, _ = planted(35, 3, 400, 0.4)
    c = correlation([x])
    order = Permutation.random(35, generator=np.random.default_rng(0))
    found = scores(c, order)
    expected = direct_scores(c[np.ix_(order.order, order.order)])
    assert (found.banded_anti_robinson, found.path) == pytest.approx(expected, rel=1e-5)


def test_block_contrast_is_one_on_exact_blocks_and_small_at_random():
    labels = np.repeat(np.arange(4), 8)
    c = np.where(labels[:, None] == labels, 0.8, 0.1)
    np.fill_diagonal(c, 1)
    assert scores(c, Permutation.identity(32)).block_contrast == pytest.approx(1, abs=1e-6)
    shuffled = scores(c, Permutation.random(32, generator=np.random.default_rng(0)))
    assert shuffled.block_contrast < 0.7


def test_scores_of_tiny_and_uncorrelated_groups():
    assert scores(np.eye(2), Permutation.identity(2)).to_json() == {
        "banded_anti_robinson": 1.0, "path": 1.0, "block_contrast": 0.0, "anti_robinson": 0.5, "two_sum": 1.0}
    found = scores(np.eye(10), Permutation.identity(10))
    assert (found.banded_anti_robinson, found.path, found.block_contrast) == (1.0, 1.0, 0.0)
