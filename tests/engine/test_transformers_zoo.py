"""A spread of the transformers zoo: read, symmetry found and proved; reorganised, transformers computes the same."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from cipm.export import export, restore
from cipm.load import Checkpoint, load
from cipm.load import checkpoint as checkpoints
from cipm.load.checkpoint import LazyTensors
from cipm.load.huggingface_classes import model_class
from cipm.permutation import View
from cipm.pruning import shrink
from cipm.pruning.consumers import consumers
from cipm.statistics.collect import collect
from cipm.symmetry import Symmetry, discover_groups, prove, random_member
from cipm.testing.transformers_zoo import ZOO, build, by_name, save
from cipm.trace import run

SPREAD = (
    "albert:AlbertForMaskedLM", "bert:BertForSequenceClassification", "deberta:DebertaForMaskedLM",
    "distilbert:DistilBertForMaskedLM", "electra:ElectraForMaskedLM", "fnet:FNetForMaskedLM",
    "modernbert:ModernBertForMaskedLM", "mpnet:MPNetForMaskedLM",
    "bloom:BloomForCausalLM", "falcon:FalconForCausalLM", "gemma2:Gemma2ForCausalLM", "gpt2:GPT2LMHeadModel",
    "gpt_neox:GPTNeoXForCausalLM", "llama:LlamaForCausalLM", "olmo2:Olmo2ForCausalLM",
    "opt:OPTForCausalLM", "phi3:Phi3ForCausalLM", "qwen3:Qwen3ForCausalLM",
    "deepseek_v3:DeepseekV3ForCausalLM", "gpt_oss:GptOssForCausalLM", "mixtral:MixtralForCausalLM",
    "qwen2_moe:Qwen2MoeForCausalLM",
    "falcon_mamba:FalconMambaForCausalLM", "mamba:MambaForCausalLM",
    "bart:BartForConditionalGeneration", "t5:T5ForConditionalGeneration",
    "beit:BeitForImageClassification", "convnext:ConvNextForImageClassification", "dinov2:Dinov2ForImageClassification",
    "mobilenet_v2:MobileNetV2ForImageClassification", "poolformer:PoolFormerForImageClassification",
    "resnet:ResNetForImageClassification", "segformer:SegformerForImageClassification", "swin:SwinForImageClassification",
    "vit:ViTForImageClassification",
    "audio-spectrogram-transformer:ASTForAudioClassification", "wav2vec2:Wav2Vec2ForCTC",
    "whisper:WhisperForConditionalGeneration",
    "clip:CLIPModel", "siglip:SiglipModel", "patchtst:PatchTSTForPrediction",
)
WRITTEN = ("bert:BertForSequenceClassification", "gpt2:GPT2LMHeadModel", "llama:LlamaForCausalLM",
           "t5:T5ForConditionalGeneration", "resnet:ResNetForImageClassification", "wav2vec2:Wav2Vec2ForCTC")
STACKED = {"mixtral:MixtralForCausalLM": 48, "gpt_oss:GptOssForCausalLM": 48, "qwen2_moe:Qwen2MoeForCausalLM": 24}
"""Families whose experts lie in stacks, with the units of one expert."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function: label → (folder, checkpoint, its proved symmetry), each made once."""
    @cache
    def open_entry(label: str) -> tuple[Path, Checkpoint, Symmetry]:
        folder = tmp_path_factory.mktemp("zoo") / "model"
        save(by_name(label), folder)
        checkpoint = load(folder)
        return folder, checkpoint, prove(checkpoint, discover_groups(checkpoint), draws=1)
    return open_entry


def test_the_zoo_is_wide_and_its_labels_differ() -> None:
    assert len({entry.label for entry in ZOO}) == len(ZOO) > 200
    assert len({entry.type for entry in ZOO}) > 200 and len({entry.family for entry in ZOO}) == 9


@pytest.mark.parametrize("label", SPREAD)
def test_a_symmetry_is_found_and_proved(label: str, opened: Any) -> None:
    _, checkpoint, symmetry = opened(label)
    assert symmetry.certificate.passed and symmetry.certificate.max_rel <= 1e-10
    assert any(group.proved and group.size > 1 for group in symmetry.groups)
    assert 0 < symmetry.movable_share <= 1


def test_latent_attention_has_free_heads_units_values_and_latents(opened: Any) -> None:
    _, _, symmetry = opened("deepseek_v3:DeepseekV3ForCausalLM")
    assert not symmetry.notes
    for layer in ("model.layers.0.self_attn.", "model.layers.1.self_attn."):
        found = {group.name.removeprefix(layer): (group.size, group.blocks, {
            (place.tensor.removeprefix(layer), place.axis): place.index.shape[1] for place in group.places})
            for group in symmetry.groups if group.name.startswith(layer)}
        queries, pairs, keys, out = "q_b_proj.weight", "kv_b_proj.weight", "kv_a_proj_with_mqa.weight", "o_proj.weight"
        assert found == {
            "q_b_proj.heads": (4, 1, {(queries, 0): 16, (pairs, 0): 16, (out, 1): 8}),
            "q_b_proj.units": (32, 4, {(queries, 0): 1, (pairs, 0): 1}),  # the part of each head without positions
            "kv_b_proj.units": (32, 4, {(pairs, 0): 1, (out, 1): 1}),
            "q_a_proj": (16, 1, {("q_a_proj.weight", 0): 1, ("q_a_layernorm.weight", 0): 1, (queries, 1): 1}),
            "kv_a_proj_with_mqa": (16, 1, {(keys, 0): 1, ("kv_a_layernorm.weight", 0): 1, (pairs, 1): 1}),
        }
        assert any(pin.tensor == layer + queries and "constant of the graph" in pin.reason for pin in symmetry.pins)
        still, = [pin.reason for pin in symmetry.pins if (pin.tensor, pin.axis) == (layer + keys, 0)]  # all heads' rotary key
        assert still.startswith("8 of its 24 positions may not move: ") and "constant of the graph" in still


@pytest.mark.parametrize("label", WRITTEN)
def test_reorganised_transformers_computes_the_same(label: str, opened: Any, tmp_path: Path) -> None:
    folder, checkpoint, symmetry = opened(label)
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(1))
    out = export(checkpoint, folder, plan, None, tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    inputs = {i.name: _input(i, checkpoint) for i in checkpoint.graph.inputs}
    for a, b in zip(_outputs(label, folder, inputs), _outputs(label, out, inputs), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max())
    back = restore(out, tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("label", STACKED)
def test_shards_with_experts_ordered_by_themselves_stream_out_and_back(label: str, opened: Any, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Mixtral and Qwen 2 each expert is stored by itself, of gpt-oss all of a layer are one tensor."""
    _, _, symmetry = opened(label)
    stacked = [group for group in symmetry.groups if group.stacked]
    assert len(stacked) == 2 and not symmetry.notes  # one in each layer
    assert all(group.blocks == symmetry.group(group.parent).size == 4 and group.kind == "units in experts" for group in stacked)
    assert all(group.size == 4 * STACKED[label] and group.proved for group in stacked)
    monkeypatch.setattr(checkpoints, "HELD_BYTES", 0)
    folder = tmp_path / "model"
    build(by_name(label)).save_pretrained(folder, max_shard_size="40KB")
    checkpoint = load(folder)
    assert isinstance(checkpoint.tensors, LazyTensors) and len(list(folder.glob("*.safetensors"))) > 3
    plan = random_member(symmetry, symmetry.groups, np.random.default_rng(1))
    assert sum(isinstance(along, View) for _, along in plan.axes) >= 2 * len(stacked)
    out = export(checkpoint, folder, plan, None, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted([*(path.name for path in folder.iterdir()), "cipm.json"])
    before, after = ({key: t for path in where.glob("*.safetensors") for key, t in load_file(path).items()}
                     for where in (folder, out))
    assert not any(torch.equal(before[key], after[key]) for key in before if ".experts." in key)
    inputs = {i.name: _input(i, checkpoint) for i in checkpoint.graph.inputs}
    for a, b in zip(_outputs(label, folder, inputs), _outputs(label, out, inputs), strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max())
    back = restore(out, tmp_path / "back")
    assert sorted(path.name for path in back.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert all((back / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("label", STACKED)
def test_hidden_units_of_experts_are_seen_as_in_the_dense_layer(label: str, opened: Any) -> None:
    """What is collected equals each chosen expert's hidden activation, computed from what the real module is called with."""
    folder, checkpoint, symmetry = opened(label)
    taps = [group.taps[-1] for group in symmetry.groups if group.stacked]
    inputs = {i.name: _input(i, checkpoint) for i in checkpoint.graph.inputs}
    wide = {key: tensor.double() for key, tensor in checkpoint.tensors.items()}
    found = collect(lambda batch, observe: run(checkpoint.graph, wide, checkpoint.constants, batch, dtype=torch.float64,
                                               observe=observe), taps, [inputs], positions=0)
    calls = _calls_of_experts(label, folder, inputs)
    assert len(calls) == len(taps) == 2
    for tap, (experts, x, index) in zip(taps, calls, strict=True):
        seen = _hidden_of_experts(experts, x, index).flatten(1)[:, torch.from_numpy(tap.index[:, 0])].numpy()
        half = found[tap].half
        assert half.samples == len(seen) == 14 and half.rows == 2 and tap.chosen.slices == 4
        assert float(np.abs(half.whole.mean - seen.mean(0)).max()) <= 1e-10 * float(np.abs(seen).max())
        assert float(np.abs(half.whole.covariance() - np.cov(seen.T)).max()) <= 1e-10 * float(np.abs(np.cov(seen.T)).max())
        assert np.array_equal(half.whole.dead, (seen == seen[0]).all(0))


@pytest.mark.parametrize("label", STACKED)
def test_hidden_units_of_experts_have_one_reader_and_can_go(label: str, opened: Any) -> None:
    _, checkpoint, symmetry = opened(label)
    inner = [group for group in symmetry.groups if group.stacked]
    found = [one for one in consumers(checkpoint, symmetry) if one.routed]
    assert [list(one.units) for one in found] == [[group.name] for group in inner] and all(one.routed.gate for one in found)
    rng = np.random.default_rng(1)
    half = STACKED[label] // 2  # of each expert others
    keep = {group.name: np.concatenate([np.sort(rng.permutation(STACKED[label])[:half]) + STACKED[label] * expert
                                        for expert in range(4)]) for group in inner}
    made = shrink(checkpoint, symmetry, keep)
    assert made.max_rel <= 1e-10 and made.checkpoint.parameters < checkpoint.parameters


def _calls_of_experts(label: str, folder: Path, inputs: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    """Return (module, its input [tokens, in], chosen experts [tokens, chosen]) of every call in transformers' own model."""
    model, calls = _model(label, folder), []
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(lambda module, args: calls.append((module, *args[:2])))
    with torch.no_grad(), _Wide():
        model(**inputs)
    return calls


def _hidden_of_experts(experts: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return what the hidden units of each expert give [tokens, experts, units], 0 where it was not chosen."""
    made = None
    for token, chosen in enumerate(index.tolist()):
        for expert in chosen:
            weight = experts.gate_up_proj[expert].T if not experts.is_transposed else experts.gate_up_proj[expert]
            inner = x[token] @ weight + (experts.gate_up_proj_bias[expert] if experts.has_bias else 0)
            hidden = experts._apply_gate(inner[None])[0].detach()
            made = x.new_zeros(len(x), len(experts.gate_up_proj), len(hidden)) if made is None else made
            made[token, expert] = hidden
    return made


def _input(item: Any, checkpoint: Checkpoint) -> torch.Tensor:
    sizes = {"samples": 600, "height": 40, "width": 40}
    shape = [d if isinstance(d, int) else sizes.get(d, 7 if d != "batch" else 2) for d in item.shape]
    generator = torch.Generator().manual_seed(3)
    if item.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.randint(0, 30, shape, generator=generator)


class _Wide(TorchFunctionMode):
    """Every cast to float32, which norms and routers of transformers do inside, is one to float64: the comparison is exact."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = [wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        return function(*args, **{k: wide.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()})


def _model(label: str, folder: Path) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        cls = model_class(by_name(label).type, by_name(label).name)
        return cls.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()


def _outputs(label: str, folder: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model = _model(label, folder)
    with warnings.catch_warnings(), torch.no_grad(), _Wide():
        warnings.simplefilter("ignore")
        found = model(**inputs, return_dict=True)
    return [value for name, value in found.items() if isinstance(value, torch.Tensor) and name != "encoder_last_hidden_state"]
