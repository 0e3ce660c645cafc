"""Nothing is left on the table: for every standard block exactly the groups that mathematics allows, and no pin without need.

What an order of positions cannot say is no group here: the packed projection of nn.MultiheadAttention shares its input axis
between queries and keys, so cross-attention joins both streams.
"""

from __future__ import annotations

from functools import cache
from math import factorial, log10

import numpy as np
import pytest

from cipm.permutation import View
from cipm.symmetry import discover_groups, prove
from cipm.testing.networks import NETWORKS, as_checkpoint

# by hand: for each network its groups as (units, blocks): units permute within each block
EXPECTED = {
    "vgg16_bn": [(4, 1)] * 2 + [(5, 1)] * 2 + [(6, 1)] * 3 + [(7, 1)] * 3 + [(8, 1)] * 3 + [(12, 1), (9, 1)],
    # the stem, two streams; for each block four groups of the 3×3 convolution, its outputs and its inputs in each
    "resnext": [(10, 1), (48, 1), (64, 1), (4, 1), (12, 4), (12, 4)] + [(4, 1), (16, 4), (16, 4)] * 2,
    # the stem, every layer's own six channels, the transition, every layer's inner channels
    "densenet": [(8, 1)] + [(6, 1)] * 5 + [(10, 1)] + [(12, 1)] * 5,
    "mobilenet_v2": [(6, 1), (4, 1), (18, 1), (8, 1), (20, 1), (22, 1), (10, 1), (16, 1)],
    "mobilenet_v3": [(8, 1), (5, 1), (18, 1), (10, 1), (20, 1), (5, 1), (24, 1), (5, 1), (12, 1), (16, 1), (14, 1)],
    "efficientnet": [(8, 1), (2, 1), (6, 1), (16, 1), (3, 1), (10, 1), (22, 1), (3, 1), (26, 1), (4, 1), (12, 1), (18, 1)],
    # the first unit's two outputs of eight are each halved: what passes the second unit, and what it reads
    "shufflenet_v2": [(6, 1)] + [(4, 1)] * 4 + [(8, 1)] * 3 + [(12, 1)] * 3 + [(10, 1)],
    "squeezenet": [(8, 1), (4, 1), (6, 1), (7, 1), (5, 1), (9, 1), (10, 1)],
    # four groups of each norm and the channels in each; channels alone behind a transposed convolution
    "unet_group_norm": [(4, 1)] * 10 + [(8, 4)] * 4 + [(12, 4)] * 4 + [(20, 4)] * 2 + [(12, 1), (8, 1)],
    "unet_instance_norm": [(6, 1)] * 5 + [(10, 1)] * 5 + [(16, 1)] * 2,
    "inception_v3": [(n, 1) for n in (8, 4, 5, 6, 7, 7, 9, 10, 12, 11, 13, 14, 15, 15, 16, 17)],
    "mlp_mixer": [(14, 1)] + [(9, 1)] * 2 + [(20, 1)] * 2,
    "lstm": [(7, 1), (9, 1), (9, 1)],
    "lstm_both_ways": [(7, 1)] + [(9, 1)] * 4,
    "gru": [(7, 1), (9, 1), (9, 1)],
    "rnn": [(7, 1), (9, 1), (9, 1)],
    # one stream; for each of three attentions heads, query-key units and value units; two hidden layers
    "transformer": [(16, 1)] + [(4, 1), (16, 4), (16, 4)] * 3 + [(18, 1)] * 2,
    "multi_head": [(20, 1), (4, 1), (24, 4), (20, 4), (14, 1)],
    # for each block key-value groups, query heads in each, value units in each, hidden units; rotary pairs of all blocks
    "llama_rotary": [(20, 1)] + [(2, 1), (6, 2), (16, 2), (28, 1)] * 2 + [(4, 1)],
    "llama_constant_rotary": [(20, 1)] + [(2, 1), (6, 2), (16, 2), (28, 1)] * 2,
    "llama_tied": [(20, 1)] + [(2, 1), (6, 2), (16, 2), (16, 2), (28, 1)] * 2,
    # the stream; heads, query-key and value units in each; experts and the hidden units in each
    "mixture_of_experts": [(16, 1), (2, 1), (12, 2), (12, 2), (5, 1), (45, 5)],
    "mixture_in_one_layer": [(16, 1), (2, 1), (12, 2), (12, 2), (5, 1), (45, 5)],
}
IN_TEST_ORACLES = {"mlp", "vgg16", "resnet20", "resnet50"}  # every group of theirs, place by place
NEEDED = ("axis of the model's input", "axis of the model's output", "slides along it", "the values of an index")


@cache
def proved(name: str):
    network = NETWORKS[name]
    checkpoint = as_checkpoint(network.make(), network.example())
    return prove(checkpoint, discover_groups(checkpoint), draws=1)


def group_with(name: str, tensor: str, axis: int, *, blocks: int = 1, elements: int = 1):
    """Return the one group that stands on this axis in so many blocks and elements of a unit."""
    found, = [g for g in proved(name).groups for p in g.places
              if (p.tensor, p.axis, g.blocks, p.index.shape[1]) == (tensor, axis, blocks, elements)]
    return found


def places(group) -> dict[tuple[str, int], list[list[int]]]:
    return {(p.tensor, p.axis): p.index.tolist() for p in group.places}


def runs(*starts: int, size: int) -> list[list[int]]:
    """Return the places of units that have one element in each run of `size` positions."""
    return [[start + unit for start in starts] for unit in range(size)]


def test_every_network_has_its_line():
    assert set(EXPECTED) | IN_TEST_ORACLES == set(NETWORKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_and_their_number_of_members_are_those_counted_by_hand(name):
    symmetry = proved(name)
    assert symmetry.certificate.passed and not [n for n in symmetry.notes if "failed" in n]
    assert all(group.proved for group in symmetry.groups)
    assert sorted((g.size, g.blocks) for g in symmetry.groups) == sorted(EXPECTED[name])
    members = sum(blocks * log10(factorial(units // blocks)) for units, blocks in EXPECTED[name])
    assert symmetry.log10_equivalents == pytest.approx(members, rel=1e-12)


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_is_pinned_but_inputs_outputs_positions_and_rows_of_embeddings(name):
    unread = {("embed.weight", 0), ("embed.weight", 1)} if name == "llama_tied" else set()  # it is called head.weight there
    constant = {"llama_constant_rotary": "constant of the graph"}.get(name)
    lost = [pin for pin in proved(name).pins if not any(reason in pin.reason for reason in NEEDED)
            and (pin.tensor, pin.axis) not in unread and not (constant and constant in pin.reason)]
    assert lost == []


def test_depthwise_convolutions_and_gates_move_with_their_channels():
    inner = places(group_with("mobilenet_v3", "blocks.2.layers.1.0.weight", 0))
    expected = [("blocks.2.layers.0.0.weight", 0), ("blocks.2.layers.1.0.weight", 0), ("blocks.2.layers.2.down.weight", 1),
                ("blocks.2.layers.2.up.weight", 0), ("blocks.2.layers.2.up.bias", 0), ("blocks.2.layers.3.0.weight", 1)]
    norms = [(f"blocks.2.layers.{i}.1.{part}", 0) for i in (0, 1) for part in ("weight", "bias", "running_mean", "running_var")]
    assert set(inner) == {*expected, *norms} and all(index == runs(0, size=20) for index in inner.values())
    gate = places(group_with("mobilenet_v3", "blocks.2.layers.2.down.weight", 0))
    assert set(gate) == {("blocks.2.layers.2.down.weight", 0), ("blocks.2.layers.2.down.bias", 0),
                         ("blocks.2.layers.2.up.weight", 1)}


def test_a_residual_depthwise_block_without_expansion_is_one_stream_on_both_axes_of_its_projection():
    stream = places(group_with("mobilenet_v3", "stem.0.weight", 0))
    assert ("blocks.0.layers.2.0.weight", 0) in stream and ("blocks.0.layers.2.0.weight", 1) in stream


def test_grouped_convolution_has_its_groups_and_outputs_and_inputs_within_each():
    conv = "stages.0.0.conv2.weight"
    groups = places(group_with("resnext", conv, 0, elements=3))
    assert groups[conv, 0] == np.arange(12).reshape(4, 3).tolist() == groups["stages.0.0.conv1.weight", 0]
    outputs = places(group_with("resnext", conv, 0, blocks=4))
    assert outputs[conv, 0] == runs(0, size=12) == outputs["stages.0.0.conv3.weight", 1]
    inputs = group_with("resnext", conv, 1, blocks=4)
    assert places(inputs)[conv, 1] == runs(0, size=12) == places(inputs)["stages.0.0.conv1.weight", 0]
    assert [p.view for p in inputs.places if p.tensor == conv] == [View((4, 3, 3, 3, 3), (0, 2))]


def test_every_layer_of_a_dense_block_owns_a_segment_of_what_all_later_ones_read():
    second = places(group_with("densenet", "features.2.conv2.weight", 0))
    assert second["features.2.conv2.weight", 0] == runs(0, size=6)
    assert second["features.3.0.running_var", 0] == second["features.3.2.weight", 1] == runs(14, size=6)
    first = places(group_with("densenet", "features.1.conv2.weight", 0))
    assert first["features.2.conv1.weight", 1] == first["features.2.norm1.weight", 0] == runs(8, size=6)


def test_channel_shuffle_takes_every_half_to_its_own_places():
    written = "units.0.short.1.0.weight", 0
    passing = [places(group) for group in proved("shufflenet_v2").groups if written in places(group)]
    by_rows = {tuple(np.ravel(found[written])): found for found in passing}
    assert set(by_rows) == {(0, 1, 2, 3), (4, 5, 6, 7)}
    # the shuffle puts channel i of the short branch at 2i: the second half goes to places 0, 2, … of what the next unit reads
    assert by_rows[4, 5, 6, 7]["units.1.long.0.0.weight", 1] == [[0], [2], [4], [6]]
    # the first half passes as places 0, 2, 4, 6, and the next shuffle doubles them
    assert by_rows[0, 1, 2, 3]["units.2.long.0.0.weight", 1] == [[0], [4], [8], [12]]


def test_skips_of_a_unet_are_read_beside_what_comes_from_below():
    skip = places(group_with("unet_instance_norm", "down.0.1.0.weight", 0))
    below = places(group_with("unet_instance_norm", "up.1.weight", 1))
    assert skip["join.1.0.0.weight", 1] == runs(0, size=6) and below["join.1.0.0.weight", 1] == runs(6, size=6)
    assert skip["down.1.0.0.weight", 1] == runs(0, size=6)
    nested = places(group_with("unet_group_norm", "down.0.1.0.weight", 0, blocks=4))
    assert nested["join.1.0.0.weight", 1] == runs(0, size=8) and nested["down.0.1.1.bias", 0] == runs(0, size=8)


def test_mixer_hidden_units_of_tokens_and_of_channels_are_free():
    assert set(places(group_with("mlp_mixer", "blocks.0.tokens.0.weight", 0))) == {
        ("blocks.0.tokens.0.weight", 0), ("blocks.0.tokens.0.bias", 0), ("blocks.0.tokens.2.weight", 1)}
    assert set(places(group_with("mlp_mixer", "blocks.1.channels.0.weight", 0))) == {
        ("blocks.1.channels.0.weight", 0), ("blocks.1.channels.0.bias", 0), ("blocks.1.channels.2.weight", 1)}


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_hidden_units_of_a_recurrent_layer_move_in_all_gates_and_in_their_own_loop(name, gates):
    starts = [9 * gate for gate in range(gates)]
    first = places(group_with(name, "cell.weight_hh_l0", 1))
    written = {(f"cell.{part}_l0", 0): runs(*starts, size=9) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    assert first == {**written,
                     ("cell.weight_hh_l0", 1): runs(0, size=9), ("cell.weight_ih_l1", 1): runs(0, size=9)}
    assert places(group_with(name, "head.weight", 1))["cell.weight_hh_l1", 0] == runs(*starts, size=9)
    assert places(group_with(name, "embed.weight", 1)) == {("embed.weight", 1): runs(0, size=7),
                                                           ("cell.weight_ih_l0", 1): runs(0, size=7)}


def test_directions_of_a_recurrent_layer_are_free_of_each_other():
    back = places(group_with("lstm_both_ways", "cell.weight_hh_l0_reverse", 1))
    assert back["cell.weight_ih_l1", 1] == back["cell.weight_ih_l1_reverse", 1] == runs(9, size=9)


def test_packed_attention_has_heads_query_key_units_and_value_units():
    weight, out = ("body.encoder.layers.0.self_attn.in_proj_weight", 0), ("body.encoder.layers.0.self_attn.out_proj.weight", 1)
    heads = places(group_with("transformer", weight[0], 0, elements=12))
    assert heads[out] == np.arange(16).reshape(4, 4).tolist()
    assert heads[weight] == [sorted(part + 4 * h + u for part in (0, 16, 32) for u in range(4)) for h in range(4)]
    assert places(group_with("transformer", weight[0], 0, blocks=4, elements=2))[weight] == runs(0, 16, size=16)
    values = places(group_with("transformer", weight[0], 0, blocks=4))
    assert values[weight] == runs(32, size=16) and values[out] == runs(0, size=16)


def test_multi_head_attention_moves_heads_and_within_them_both_kinds_of_units():
    attention = "blocks.0.attention"
    heads = places(group_with("multi_head", f"{attention}.query.weight", 0, elements=6))
    assert set(heads) == {(f"{attention}.{part}.weight", int(part == "out")) for part in ("query", "key", "value", "out")}
    keys = places(group_with("multi_head", f"{attention}.key.weight", 0, blocks=4))
    values = places(group_with("multi_head", f"{attention}.value.weight", 0, blocks=4))
    assert keys == {(f"{attention}.query.weight", 0): runs(0, size=24), (f"{attention}.key.weight", 0): runs(0, size=24)}
    assert values == {(f"{attention}.value.weight", 0): runs(0, size=20), (f"{attention}.out.weight", 1): runs(0, size=20)}


def test_rotary_pairs_move_with_their_frequency_in_all_heads_and_blocks():
    pairs = places(group_with("llama_rotary", "rotary.frequencies", 0))
    heads = lambda count: [[8 * h + half + i for h in range(count) for half in (0, 4)] for i in range(4)]  # noqa: E731
    assert pairs == {("rotary.frequencies", 0): runs(0, size=4),
                     **{(f"blocks.{b}.attention.{part}.weight", 0): heads(count)
                        for b in (0, 1) for part, count in (("query", 6), ("key", 2))}}


def test_grouped_queries_move_as_groups_and_within_them():
    attention = "blocks.0.attention"
    groups = places(group_with("llama_tied", f"{attention}.key.weight", 0, elements=8))
    assert groups[f"{attention}.query.weight", 0] == np.arange(48).reshape(2, 24).tolist()
    queries = places(group_with("llama_tied", f"{attention}.query.weight", 0, blocks=2, elements=8))
    assert queries == {(f"{attention}.query.weight", 0): np.arange(48).reshape(6, 8).tolist(),
                       (f"{attention}.out.weight", 1): np.arange(48).reshape(6, 8).tolist()}
    units = places(group_with("llama_tied", f"{attention}.key.weight", 0, blocks=2))
    assert units[f"{attention}.query.weight", 0] == np.arange(48).reshape(2, 3, 8).transpose(0, 2, 1).reshape(16, 3).tolist()


@pytest.mark.parametrize("name", ["llama_rotary", "llama_tied", "multi_head", "mixture_of_experts"])
def test_residual_stream_is_free_from_embedding_to_unembedding(name):
    stream = places(group_with(name, "head.weight", 1))
    assert stream["norm.weight", 0] == stream["blocks.0.attention.out.weight", 0] == stream["head.weight", 1]
    assert (("embed.weight", 1) in stream) == (name != "llama_tied")  # tied: the same tensor, moved once


def test_gate_and_up_of_a_gated_layer_move_together():
    assert places(group_with("multi_head", "blocks.0.second.gate.weight", 0)) == {
        ("blocks.0.second.gate.weight", 0): runs(0, size=14), ("blocks.0.second.up.weight", 0): runs(0, size=14),
        ("blocks.0.second.down.weight", 1): runs(0, size=14)}


def test_experts_move_through_the_rows_of_the_router():
    experts = places(group_with("mixture_of_experts", "blocks.0.second.router.weight", 0))
    assert experts == {(f"blocks.0.second.{part}", 0): runs(0, size=5) for part in
                       ("up", "down", "router.weight", "router.bias")}
    inside = group_with("mixture_of_experts", "blocks.0.second.up", 2, blocks=5)
    assert places(inside) == {("blocks.0.second.up", 2): runs(0, size=45), ("blocks.0.second.down", 1): runs(0, size=45)}
    joined = group_with("mixture_in_one_layer", "blocks.0.second.router.weight", 0)
    assert places(joined)["blocks.0.second.up", 0] == np.arange(45).reshape(5, 9).tolist()
    hidden = group_with("mixture_in_one_layer", "blocks.0.second.up", 0, blocks=5)
    assert hidden.parent == joined.name
    assert places(hidden) == {("blocks.0.second.up", 0): runs(0, size=45), ("blocks.0.second.down", 1): runs(0, size=45)}
