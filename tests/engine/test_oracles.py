"""Discovered groups equal permutation specifications that people wrote by hand and published.

Facts of the specifications, in the names of the modules here; nothing of their code:

* git-re-basin (Ainsworth, Hayase, Srinivasa 2023), `src/weight_matching.py`: `mlp_permutation_spec`,
  `vgg16_permutation_spec` and `resnet20_permutation_spec` (layer norm over channels, as its networks have), and
  `resnet50_permutation_spec` of its ResNet-50 branch (batch norm);
* mergekit (Arcee AI), `mergekit/_data/architectures/llama.json`: the input and output space of every tensor.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cipm.load import load
from cipm.symmetry import discover_groups, prove
from cipm.testing.models import Mlp, save_huggingface
from cipm.testing.networks import Network, as_checkpoint
from cipm.testing.networks_residual import ChannelNorm, Vgg, resnet20, resnet50, vgg16_plan

Spec = dict[str, set[tuple[str, int]]]
"""For each permutation the axes that it moves, in torch's layout: axis 0 of a weight is written, axis 1 read."""


def spec_of(*parts: dict[tuple[str, int], str | None]) -> Spec:
    """Return the axes by permutation from permutations by axis; None: the axis stays."""
    found: Spec = {}
    for part in parts:
        for axis, permutation in part.items():
            if permutation is not None:
                found.setdefault(permutation, set()).add(axis)
    return found


def layer(name: str, reads: str | None, writes: str | None, *, bias: bool = False) -> dict[tuple[str, int], str | None]:
    return {(f"{name}.weight", 1): reads, (f"{name}.weight", 0): writes} | ({(f"{name}.bias", 0): writes} if bias else {})


def norm(name: str, moves: str, *, statistics: bool = False) -> dict[tuple[str, int], str | None]:
    """`statistics`: the published specification leaves the running statistics out and computes them anew."""
    names = ("weight", "bias", "running_mean", "running_var") if statistics else ("weight", "bias")
    return {(f"{name}.{part}", 0): moves for part in names}


def git_rebasin_mlp(hidden: int) -> Spec:
    spaces = [None, *(f"P_{i}" for i in range(hidden)), None]
    return spec_of(*(layer(f"layers.{i}", spaces[i], spaces[i + 1], bias=True) for i in range(hidden + 1)))


def git_rebasin_vgg16() -> Spec:
    convs = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]  # places of Conv_0 … Conv_12 among norms, ReLUs and pools
    spaces = [None, *(f"P_Conv_{i}" for i in range(13)), "P_Dense_0", "P_Dense_1", None]
    parts = [layer(f"features.{at}", spaces[i], spaces[i + 1], bias=True) | norm(f"features.{at + 1}", spaces[i + 1])
             for i, at in enumerate(convs)]
    return spec_of(*parts, *(layer(f"classifier.{at}", spaces[13 + i], spaces[14 + i], bias=True)
                             for i, at in enumerate((0, 3, 5))))


def residual_parts(stages: tuple[int, ...], inner: int, first_changes: bool, statistics: bool):
    """Yield the parts of a residual network: blocks of `inner` hidden permutations around the stream of their stage."""
    normed = partial(norm, statistics=statistics)
    yield layer("stem.0", None, "P_bg0") | normed("stem.1", "P_bg0")
    stream = "P_bg0"
    for stage, blocks in enumerate(stages):
        reads, stream = stream, f"P_bg{stage + first_changes}"
        for block in range(blocks):
            name = f"stages.{stage}.{block}"
            spaces = [reads if block == 0 else stream, *(f"P_{name}_inner{i}" for i in range(inner)), stream]
            for i in range(inner + 1):
                yield layer(f"{name}.conv{i + 1}", spaces[i], spaces[i + 1]) | normed(f"{name}.norm{i + 1}", spaces[i + 1])
            if reads != stream and block == 0:
                yield layer(f"{name}.shortcut.0", reads, stream) | normed(f"{name}.shortcut.1", stream)
    yield layer("head", stream, None, bias=True)


CASES = {
    "mlp": (Network(partial(Mlp, (7, 12, 11, 10, 3)), features=7), git_rebasin_mlp(3)),
    "vgg16": (Network(partial(Vgg, vgg16_plan(4, 5, 6, 7, 8), (12, 9), norm=ChannelNorm), side=32), git_rebasin_vgg16()),
    "resnet20": (Network(partial(resnet20, (6, 8, 10), 6, norm=ChannelNorm, shortcut=3), side=12),
                 spec_of(*residual_parts((3, 3, 3), 1, False, False))),
    "resnet50": (Network(partial(resnet50, (4, 5, 6, 7), 8, classes=3), side=48),
                 spec_of(*residual_parts((3, 4, 6, 3), 2, True, True))),
}
PERMUTATIONS = {"mlp": 3, "vgg16": 15, "resnet20": 3 + 9, "resnet50": 5 + 2 * 16}


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_of_git_rebasin(name):
    network, spec = CASES[name]
    assert len(spec) == PERMUTATIONS[name]
    checkpoint = as_checkpoint(network.make(), network.example())
    symmetry = prove(checkpoint, discover_groups(checkpoint), draws=1)
    assert symmetry.certificate.passed and all(group.proved for group in symmetry.groups)
    found = [frozenset((p.tensor, p.axis) for p in group.places) for group in symmetry.groups]
    assert len(found) == len(set(found)) and set(found) == {frozenset(axes) for axes in spec.values()}
    for group in symmetry.groups:
        assert group.blocks == 1 and group.parent is None
        for place in group.places:  # unit i stands at position i, wherever it stands
            assert place.length == group.size and np.array_equal(place.index[:, 0], np.arange(group.size))


def mergekit_llama(layers: int) -> Spec:
    residual, found = "running_residual", []
    for i in range(layers):
        at = f"model.layers.{i}"
        query_key, value, up = f"attn_qk_{i}", f"attn_v_{i}", f"up_{i}"
        found += [{(f"{at}.input_layernorm.weight", 0): residual, (f"{at}.post_attention_layernorm.weight", 0): residual},
                  layer(f"{at}.self_attn.q_proj", residual, query_key), layer(f"{at}.self_attn.k_proj", residual, query_key),
                  layer(f"{at}.self_attn.v_proj", residual, value), layer(f"{at}.self_attn.o_proj", value, residual),
                  layer(f"{at}.mlp.up_proj", residual, up), layer(f"{at}.mlp.gate_proj", residual, up),
                  layer(f"{at}.mlp.down_proj", up, residual)]
    return spec_of({("model.embed_tokens.weight", 1): residual, ("model.norm.weight", 0): residual}, *found,
                   layer("lm_head", residual, None))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """4 query heads over 2 key-value heads of 12 units, width 48, hidden 80, two layers; its groups before the proof."""
    folder = tmp_path_factory.mktemp("llama") / "llama"
    save_huggingface("llama", folder)
    checkpoint = load(folder)
    return checkpoint, discover_groups(checkpoint)


def test_groups_of_llama_are_the_spaces_of_mergekit_with_attention_spaces_divided_into_heads(llama):
    """Residual and hidden spaces are equal. mergekit's attn_qk and attn_v spaces know no heads; here they are divided:

    key-value groups (over both spaces at once), query heads within each group, and value units within each group. What a
    permutation of attn_qk alone would move, the units of queries and keys, is pinned by the rotary angles, which are
    constants of the code.
    """
    symmetry = prove(*llama, draws=1)
    assert symmetry.certificate.passed
    found = {frozenset((p.tensor, p.axis) for p in group.places): group for group in symmetry.groups}
    spec, divided = mergekit_llama(2), {}
    for i in range(2):
        query, key, value, out = ((f"model.layers.{i}.self_attn.{part}_proj.weight", int(part == "o")) for part in "qkvo")
        assert spec.pop(f"attn_qk_{i}") == {query, key} and spec.pop(f"attn_v_{i}") == {value, out}
        divided |= {frozenset({query, key, value, out}): (2, 1), frozenset({query, out}): (4, 2),
                    frozenset({value, out}): (24, 2)}
    same = {axes: (48 if name == "running_residual" else 80, 1) for name, axes in
            ((name, frozenset(axes)) for name, axes in spec.items())}
    assert {axes: (group.size, group.blocks) for axes, group in found.items()} == same | divided
    assert all(np.array_equal(p.index[:, 0], np.arange(p.length)) for axes in same for p in found[axes].places)


def test_index_maps_of_the_divided_spaces(llama):
    """Unit by unit: key-value group g holds query heads 2g and 2g + 1, key and value rows 12g … 12g + 11."""
    groups = llama[1].groups
    at = "model.layers.0.self_attn"
    places = {(group.size, p.tensor.removeprefix(f"{at}.").removesuffix("_proj.weight")): p.index
              for group in groups for p in group.places if p.tensor.startswith(at) and group.size in (2, 4, 24)}
    rows = np.arange(48)
    assert {key: index.tolist() for key, index in places.items()} == {
        (2, "q"): rows.reshape(2, 24).tolist(), (2, "o"): rows.reshape(2, 24).tolist(),
        (2, "k"): rows[:24].reshape(2, 12).tolist(), (2, "v"): rows[:24].reshape(2, 12).tolist(),
        (4, "q"): rows.reshape(4, 12).tolist(), (4, "o"): rows.reshape(4, 12).tolist(),
        (24, "v"): rows[:24].reshape(24, 1).tolist(),
        (24, "o"): rows.reshape(2, 2, 12).transpose(0, 2, 1).reshape(24, 2).tolist()}
