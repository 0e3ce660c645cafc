"""The symmetries beside permutations: exactly those that mathematics allows, on blocks whose freedoms are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from discovered import trace
from sample_models import save_hub
from torch import nn

from cipm.errors import OptionError
from cipm.load import load
from cipm.symmetry import (
    compare,
    discover_continuous,
    discover_groups,
    example_inputs,
    normalise,
    prove_continuous,
    symmetry_from_json,
    with_continuous,
)
from cipm.symmetry.freedoms import KINDS
from cipm.symmetry.members import Member, applied, random_values
from cipm.trace import run


def found(checkpoint):
    """Return the symmetry with its continuous freedoms, all of them proved."""
    symmetry = with_continuous(checkpoint, discover_groups(checkpoint))
    assert all(f.proved for f in symmetry.continuous) and not [n for n in symmetry.notes if "left out" in n], symmetry.notes
    for freedom in symmetry.continuous:
        proof = freedom.certificate
        assert proof.max_rel <= proof.tolerance < proof.negative_control and proof.tolerance <= 4e-10
    return symmetry


def summary(symmetry, *kinds: str) -> list[tuple[str, str, int, int]]:
    return sorted((f.kind, f.name, f.units, f.dimension) for f in symmetry.continuous if not kinds or f.kind in kinds)


def places(symmetry, name: str, kind: str) -> set[tuple[str, int, int]]:
    freedom = next(f for f in symmetry.continuous if (f.name, f.kind) == (name, kind))
    return {(p.tensor, p.axis, p.power) for p in freedom.places}


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), activation, nn.Linear(16, 12), activation, nn.Linear(12, 3))


def outputs(checkpoint, tensors, dtype=torch.float64):
    inputs = example_inputs(checkpoint, generator=torch.Generator().manual_seed(5))
    return run(checkpoint.graph, tensors, checkpoint.constants, inputs, dtype=dtype)


@pytest.mark.parametrize(("activation", "kind"), [
    (nn.ReLU(), "scale"), (nn.LeakyReLU(0.2), "scale"), (nn.PReLU(), "scale"), (nn.Tanh(), "sign"), (nn.Hardtanh(), "sign"),
    (nn.Softsign(), "sign"), (nn.Softshrink(0.05), "sign"), (nn.Tanhshrink(), "sign"), (nn.GELU(), None), (nn.SiLU(), None),
    (nn.ReLU6(), None), (nn.Sigmoid(), None), (nn.Softplus(), None), (nn.ELU(), None)])
def test_activations_leave_hidden_layers_their_scale_or_sign(activation, kind):
    symmetry = found(trace(mlp(activation), torch.randn(4, 6)))
    assert summary(symmetry) == ([(kind, "0", 16, 16), (kind, "2", 12, 12)] if kind else [])
    for freedom in symmetry.continuous:
        assert freedom.group == freedom.name


def test_places_of_a_scale():
    symmetry = found(trace(mlp(nn.ReLU()), torch.randn(4, 6)))
    assert places(symmetry, "0", "scale") == {("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, -1)}


def test_without_activation_any_invertible_matrix_may_mix_the_units():
    symmetry = found(trace(mlp(nn.Identity()), torch.randn(4, 6)))
    assert summary(symmetry) == [("invertible", "0", 16, 256), ("invertible", "2", 12, 144)]


class Squared(nn.Module):
    """A squared ReLU: a unit scaled by s is read with s⁻²."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) ** 2)


def test_powers_are_exponents():
    symmetry = found(trace(Squared(), torch.randn(4, 5)))
    assert summary(symmetry) == [("scale", "up", 7, 7)]
    assert places(symmetry, "up", "scale") == {("up.weight", 0, 1), ("up.bias", 0, 1), ("down.weight", 1, -2)}


def test_batch_norm_has_a_scale_before_and_one_after():
    symmetry = found(trace(nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                                         nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5)),
                           torch.randn(4, 2, 8, 8)))
    assert summary(symmetry) == [("scale", "0", 8, 8), ("scale", "1", 8, 8), ("scale", "4", 6, 6), ("sign", "0", 8, 8)]
    assert places(symmetry, "0", "scale") == {("0.weight", 0, 1), ("0.bias", 0, 1), ("1.running_mean", 0, 1),
                                              ("1.weight", 0, -1)}
    assert places(symmetry, "1", "scale") == {("1.weight", 0, 1), ("1.bias", 0, 1), ("4.weight", 1, -1)}


def test_convolution_flattened_into_a_linear_layer_scales_all_positions_of_a_channel():
    symmetry = found(trace(nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5)),
                           torch.randn(4, 2, 5, 5)))
    freedom, = symmetry.continuous
    index = next(p.index for p in freedom.places if p.tensor == "3.weight")
    np.testing.assert_array_equal(index, np.arange(72).reshape(8, 9))


def test_grouped_and_depthwise_convolutions_scale_every_channel():
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(),
                          nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    symmetry = found(trace(model, torch.randn(4, 2, 5, 5)))
    assert [(f.kind, f.units, f.dimension) for f in symmetry.continuous] == [("scale", 8, 8)] * 3
    shared = next(p for p in symmetry.continuous[0].places if p.tensor == "2.weight")
    assert (shared.blocks, shared.axis, shared.power) == (4, 1, -1)


class SwiGlu(nn.Module):
    def __init__(self, gate=nn.functional.silu):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 3)
        self.function = gate

    def forward(self, x):
        return self.down(self.function(self.gate(x)) * self.up(x))


def test_a_gated_unit_may_be_scaled_where_its_gate_does_not_see_it():
    symmetry = found(trace(SwiGlu(), torch.randn(4, 6)))
    assert summary(symmetry) == [("scale", "up", 10, 10), ("sign", "up", 10, 10)]
    both = found(trace(SwiGlu(torch.relu), torch.randn(4, 6)))
    assert summary(both, "scale") == [("scale", "gate", 10, 10), ("scale", "up", 10, 10)]


class Rms(nn.Module):
    """A residual stream under RMS norms, written out as Hugging Face models do; `shift` as in Gemma."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.up, self.down, self.shift = nn.Linear(8, 9), nn.Linear(9, 8), shift
        self.inner, self.outer = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def norm(self, x, weight):
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.shift + weight) * scaled if self.shift else weight * scaled

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x, self.inner))))
        return self.head(self.norm(x, self.outer))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_residual_stream_under_rms_norm_may_be_rotated(shift):
    symmetry = found(trace(Rms(shift), torch.randn(4, 5)))
    assert summary(symmetry, "orthogonal") == [("orthogonal", "embed", 8, 28)]
    assert summary(symmetry, "scale") == [("scale", "inner", 8, 8), ("scale", "outer", 8, 8)]
    stream = next(f for f in symmetry.continuous if f.kind == "orthogonal")
    assert {a.tensor for a in stream.absorbs} == {"inner", "outer"} and "absorbed" in stream.conditions[0]
    assert {(p.tensor, p.axis) for p in stream.places} == {("embed.weight", 0), ("embed.bias", 0), ("up.weight", 1),
                                                           ("down.weight", 0), ("down.bias", 0), ("head.weight", 1)}


class Tied(nn.Module):
    """A head that reads with the embedding's own matrix."""

    def __init__(self, *, weighted: bool):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.RMSNorm(8, elementwise_affine=weighted)

    def forward(self, x):
        return nn.functional.linear(self.norm(self.embed(x)), self.embed.weight)


def test_a_tied_head_allows_rotations_only_where_no_weight_stands_between():
    ids = torch.randint(0, 11, (4, 6))
    assert summary(found(trace(Tied(weighted=False), ids))) == [("orthogonal", "embed", 8, 28)]
    assert summary(found(trace(Tied(weighted=True), ids)), "orthogonal") == []


def test_layer_norm_leaves_the_rotations_that_keep_ones():
    block = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True, activation="gelu")
    model = nn.Sequential(nn.Linear(5, 12), block, nn.LayerNorm(12), nn.Linear(12, 2))
    symmetry = found(trace(model, torch.randn(4, 6, 5)))
    stream, = [f for f in symmetry.continuous if f.kind == "orthogonal"]
    assert stream.fixes_ones and stream.dimension == 11 * 10 // 2
    assert any("vector of ones" in condition for condition in stream.conditions)
    mixed = [(f.units, f.blocks, f.dimension) for f in symmetry.continuous if f.kind == "invertible"]
    assert mixed == [(12, 3, 3 * 16)] * 2  # queries with keys, values with outputs: 4 directions in each of 3 heads


class Unfoldable(nn.Module):
    """Norms whose weights cannot be absorbed: the normalised stream goes on."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8)

    def forward(self, x):
        x = self.norm(self.embed(x))
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_a_norm_inside_the_stream_pins_its_rotations():
    symmetry = found(trace(Unfoldable(), torch.randn(4, 5)))
    assert summary(symmetry, "orthogonal", "invertible") == []
    assert ("scale", "up", 9, 9) in summary(symmetry)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    checkpoint = load(save_hub("LlamaForCausalLM", tmp_path_factory.mktemp("hub") / "llama"))
    return checkpoint, found(checkpoint)


def test_llama_has_every_freedom_of_its_blocks(llama):
    _, symmetry = llama
    by_kind = {kind: [(f.units, f.blocks, f.dimension) for f in symmetry.continuous if f.kind == kind] for kind in KINDS}
    assert by_kind["orthogonal"] == [(32, 1, 32 * 31 // 2)]
    assert by_kind["invertible"] == [(16, 2, 2 * 64)] * 2  # values and outputs, per key–value head of 8
    assert by_kind["rotation+scale per pair"] == [(8, 1, 16)] * 2  # queries and keys: 4 rotary pairs per key–value head
    assert sorted(by_kind["scale"]) == [(32, 1, 32)] * 5 + [(48, 1, 48)] * 2  # norms' weights, gated units
    assert sorted(by_kind["sign"]) == [(32, 1, 32)] * 5 + [(48, 1, 48)] * 2
    stream = next(f for f in symmetry.continuous if f.kind == "orthogonal")
    assert len(stream.absorbs) == 5 and not stream.fixes_ones


def test_members_of_everything_at_once_preserve_the_function(llama):
    checkpoint, symmetry = llama
    generator = np.random.default_rng(3)
    members = [random_values(f, generator) for f in symmetry.continuous if f.kind != "orthogonal"]
    for tensors in (applied(checkpoint.tensors, members), applied(applied(checkpoint.tensors, members), members)):
        assert compare(outputs(checkpoint, checkpoint.tensors), outputs(checkpoint, tensors))[1] < 1e-9


def test_gpt2_mixes_inside_its_fused_projection(tmp_path):
    symmetry = found(load(save_hub("GPT2LMHeadModel", tmp_path / "gpt2")))
    mixed = [f for f in symmetry.continuous if f.kind == "invertible"]
    assert [(f.units, f.blocks, f.dimension) for f in mixed] == [(32, 4, 4 * 64)] * 4
    queries = next(f for f in mixed if all(".c_attn." in p.tensor for p in f.places))
    assert {p.power for p in queries.places} == {1, -1}
    assert not [f for f in symmetry.continuous if f.kind == "orthogonal"]  # the head is tied, and a weight stands between


def test_vision_transformer_stream_keeps_ones(tmp_path):
    symmetry = found(load(save_hub("ViTForImageClassification", tmp_path / "vit")))
    stream, = [f for f in symmetry.continuous if f.kind == "orthogonal"]
    assert stream.dimension == 31 * 30 // 2
    assert ("vit.embeddings.cls_token", 2, 1) in places(symmetry, stream.name, "orthogonal")


def test_residual_channels_scale_through_the_whole_network(tmp_path):
    symmetry = found(load(save_hub("ResNetForImageClassification", tmp_path / "resnet")))
    stream = max((f for f in symmetry.continuous if f.kind == "scale"), key=lambda f: len(f.places))
    assert stream.units == 16 and len(stream.places) == 8
    assert {f.kind for f in symmetry.continuous} == {"scale", "sign"}


def test_an_op_without_an_action_stops_everything():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(torch.cumprod(self.one(x), -1))

    assert found(trace(Odd(), torch.randn(4, 5))).continuous == ()


def test_proof_leaves_out_what_is_wrong_and_says_so():
    checkpoint = trace(mlp(nn.Tanh()), torch.randn(4, 6))
    wrong = discover_continuous(trace(mlp(nn.ReLU()), torch.randn(4, 6)))
    kept, notes = prove_continuous(checkpoint, wrong)
    assert kept == () and len(notes) == 2 and all("failed the proof" in note for note in notes)


def test_freedoms_survive_json(llama):
    _, symmetry = llama
    payload = symmetry.to_json()
    assert symmetry_from_json(json.loads(json.dumps(payload))).to_json() == payload


# --- normal forms --------------------------------------------------------------------------------------------------------


def power_of_two_copy(checkpoint, symmetry, seed: int):
    """Return a copy of the model with random powers of two and signs on all that may bear them."""
    generator = np.random.default_rng(seed)
    members = [Member(f, 2.0 ** generator.integers(-3, 4, f.units)) for f in symmetry.continuous if f.kind == "scale"]
    members += [random_values(f, generator) for f in symmetry.continuous if f.kind == "sign"]
    made = applied(checkpoint.tensors, members)
    return checkpoint.with_tensors({key: made[key].to(t.dtype) for key, t in checkpoint.tensors.items()})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one, two) -> bool:
    return all(bits(one[key]) == bits(two[key]) for key in one)


@pytest.mark.parametrize("model", [mlp(nn.ReLU()), mlp(nn.Tanh()), SwiGlu()])
def test_canonical_scales_and_signs_are_the_same_bits_for_every_copy(model):
    checkpoint = trace(model, torch.randn(4, 6))
    symmetry = found(checkpoint)
    form = normalise(checkpoint, symmetry, ("scale", "sign"))
    assert same_bits(normalise(form.checkpoint, symmetry, ("scale", "sign")).checkpoint.tensors, form.checkpoint.tensors)
    for seed in range(3):
        copy = power_of_two_copy(checkpoint, symmetry, seed)
        assert not same_bits(copy.tensors, checkpoint.tensors)
        assert same_bits(normalise(copy, symmetry, ("scale", "sign")).checkpoint.tensors, form.checkpoint.tensors)
    assert same_bits(form.rescaling.inverse.apply(form.checkpoint.tensors), checkpoint.tensors)
    assert compare(outputs(checkpoint, checkpoint.tensors), outputs(checkpoint, form.checkpoint.tensors))[1] < 1e-12


def test_canonical_scale_brings_norms_into_one_binade_and_leaves_dead_units():
    checkpoint = trace(mlp(nn.ReLU()), torch.randn(4, 6))
    symmetry = found(checkpoint)
    tensors = {key: t.detach().clone() for key, t in checkpoint.tensors.items()}
    tensors["0.weight"][3], tensors["0.bias"][3] = 0, 0
    form = normalise(checkpoint.with_tensors(tensors), symmetry, ("scale",)).checkpoint.tensors
    norms = torch.cat([form["0.weight"], form["0.bias"][:, None]], 1).norm(dim=1)
    assert ((norms >= 1) & (norms < 2) | (torch.arange(16) == 3)).all() and norms[3] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scales_come_back_bit_for_bit_also_at_the_ends_of_the_range(dtype):
    checkpoint = trace(mlp(nn.ReLU()), torch.randn(4, 6))
    symmetry = found(checkpoint)
    tensors = {key: t.detach().clone().to(dtype) for key, t in checkpoint.tensors.items()}
    smallest = torch.finfo(dtype).tiny * (2 - torch.finfo(dtype).eps)  # with every bit of its fraction set
    tensors["0.weight"] = tensors["0.weight"] * 64  # unit 0 has to become smaller, and holds a number that must not
    tensors["0.weight"][0, 0] = smallest
    tensors["2.weight"][:, 1] = torch.finfo(dtype).max  # unit 1 has to become smaller, its readers larger: overflow
    tensors["0.weight"][2] *= 0.001  # unit 2 has to become larger
    narrow = checkpoint.with_tensors(tensors)
    form = normalise(narrow, symmetry, ("scale",))
    assert any("range of its number format" in note for note in form.notes)
    assert bits(form.checkpoint.tensors["0.weight"][:2]) == bits(tensors["0.weight"][:2])
    assert not torch.equal(form.checkpoint.tensors["0.weight"][2:], tensors["0.weight"][2:])
    assert same_bits(form.rescaling.inverse.apply(form.checkpoint.tensors), tensors)


def test_rotations_and_maps_have_one_form_for_every_copy(llama):
    checkpoint, symmetry = llama
    exact = checkpoint.with_tensors({key: t.double() if t.is_floating_point() else t for key, t in checkpoint.tensors.items()})
    kinds = ("invertible", "orthogonal")
    form = normalise(exact, symmetry, kinds)
    assert form.rounded == kinds and not form.notes
    reference = outputs(checkpoint, exact.tensors)
    assert compare(reference, outputs(checkpoint, form.checkpoint.tensors))[1] < 1e-9
    again = normalise(form.checkpoint, symmetry, kinds).checkpoint.tensors
    generator = np.random.default_rng(0)
    plain = normalise(exact, symmetry, ("orthogonal",)).checkpoint  # norms' weights are ones, so the stream may be turned
    members = [random_values(f, generator) for f in symmetry.continuous if f.kind in kinds]
    copy = normalise(plain.with_tensors(dict(applied(plain.tensors, members))), symmetry, kinds).checkpoint.tensors
    for key in exact.tensors:
        torch.testing.assert_close(again[key], form.checkpoint.tensors[key], rtol=0, atol=1e-8)
        torch.testing.assert_close(copy[key], form.checkpoint.tensors[key], rtol=0, atol=1e-8)


def test_maps_that_keep_ones_have_one_form_too():
    block = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True, activation="gelu")
    checkpoint = trace(nn.Sequential(nn.Linear(5, 12), block, nn.LayerNorm(12), nn.Linear(12, 2)), torch.randn(4, 6, 5))
    symmetry = found(checkpoint)
    exact = checkpoint.with_tensors({key: t.double() for key, t in checkpoint.tensors.items()})
    form = normalise(exact, symmetry, ("orthogonal",))
    assert compare(outputs(checkpoint, exact.tensors), outputs(checkpoint, form.checkpoint.tensors))[1] < 1e-9
    stream = [f for f in symmetry.continuous if f.kind == "orthogonal"]
    members = [random_values(f, np.random.default_rng(1)) for f in stream]
    turned = form.checkpoint.with_tensors(dict(applied(form.checkpoint.tensors, members)))
    copy = normalise(turned, symmetry, ("orthogonal",)).checkpoint.tensors
    for key in exact.tensors:
        torch.testing.assert_close(copy[key], form.checkpoint.tensors[key], rtol=0, atol=1e-8)


def test_an_unknown_normal_form_is_refused():
    checkpoint = trace(mlp(nn.ReLU()), torch.randn(4, 6))
    with pytest.raises(OptionError, match="There is no normal form for 'rotation'; there is one for orthogonal, invertible"):
        normalise(checkpoint, found(checkpoint), ("rotation",))
