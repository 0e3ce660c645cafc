"""The Hugging Face reader: the graph computes what from_pretrained computes; keys are those of the file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sample_models import HUB, as_zip, hub_class, hub_input, save_hub

from cipm.errors import CorruptFile, ProbeError, UnsupportedModel
from cipm.load import Checkpoint, describe, load
from cipm.load.archive import open_source
from cipm.load.checkpoint import LazyTensors
from cipm.load.huggingface import read_upload
from cipm.load.huggingface_classes import class_names, config_class, config_types
from cipm.load.huggingface_config import parse_config
from cipm.load.huggingface_layout import keys_of_state
from cipm.load.huggingface_model import stand_in
from cipm.load.huggingface_values import bounded, largest
from cipm.load.safetensors_file import read_header, read_tensors, write
from cipm.options import parse_options
from cipm.pipeline import run_job
from cipm.pipeline.context import Context
from cipm.pipeline.lengths import read_with_probe
from cipm.symmetry import symmetry_from_json
from cipm.testing.transformers_zoo import build, by_name, save
from cipm.trace import run


def _pretrained(name: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hub_class(name).from_pretrained(folder).eval()


def _compare(name: str, folder: Path, checkpoint: Any, batches: tuple[int, ...] = (1, 3)) -> None:
    model = _pretrained(name, folder)
    for batch in batches:
        inputs = hub_input(name, batch)
        expected = [value for value in model(**inputs, return_dict=True).to_tuple() if isinstance(value, torch.Tensor)]
        got = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs)
        for a, b in zip(got, expected[:len(got)], strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HUB)
def test_graph_computes_the_model(name: str, tmp_path: Path) -> None:
    folder = save_hub(name, tmp_path / "model")
    checkpoint = load(folder)
    stored = load_file(folder / "model.safetensors")
    assert set(checkpoint.tensors) == set(stored) and not checkpoint.aliases
    assert all(torch.equal(checkpoint.tensors[key], value) for key, value in stored.items())
    assert set(checkpoint.graph.tensors.values()) == set(stored)
    assert checkpoint.graph.inputs[0].shape[0] == "batch"
    assert checkpoint.origin["notes"] == []
    _compare(name, folder, checkpoint)


def test_sequence_and_image_sizes_are_dynamic(tmp_path: Path) -> None:
    assert load(save_hub("GPT2Model", tmp_path / "g")).graph.inputs[0].shape == ("batch", "sequence")
    resnet = load(save_hub("ResNetForImageClassification", tmp_path / "r"))
    assert resnet.graph.inputs[0].shape == ("batch", 3, "height", "width")
    assert load(save_hub("ViTModel", tmp_path / "v")).graph.inputs[0].shape == ("batch", 3, 16, 16)


def test_attention_stays_whole(tmp_path: Path) -> None:
    for name in ("BertModel", "GPT2Model", "ViTModel"):
        ops = {node.op for node in load(save_hub(name, tmp_path / name)).graph.nodes}
        assert {"aten.scaled_dot_product_attention.default", "aten.layer_norm.default"} <= ops


def test_zip_and_folder_give_the_same(tmp_path: Path) -> None:
    folder = save_hub("ViTModel", tmp_path / "model")
    a, b = load(folder), load(as_zip(folder))
    assert a.graph == b.graph and all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)
    assert a.sha256 != b.sha256 and describe(folder) == describe(tmp_path / "model.zip") == "a Hugging Face model"


def test_shards_are_read(tmp_path: Path) -> None:
    folder = save_hub("GPT2LMHeadModel", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": keys[:9], "model-00002-of-00002.safetensors": keys[9:]}
    for file, names in parts.items():
        save_file({key: tensors[key] for key in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, names in parts.items() for key in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    checkpoint = load(folder)
    assert set(checkpoint.tensors) == set(tensors) and checkpoint.origin["files"] == list(parts)
    _compare("GPT2LMHeadModel", folder, checkpoint)


def test_a_tied_tensor_stored_twice_is_an_alias(tmp_path: Path) -> None:
    folder = save_hub("GPT2LMHeadModel", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load(folder)
    assert checkpoint.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert "lm_head.weight" not in checkpoint.tensors
    _compare("GPT2LMHeadModel", folder, checkpoint)


def test_tensors_without_a_place_are_kept_and_named(tmp_path: Path) -> None:
    folder = save_hub("BertModel", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.extra.weight"] = torch.randn(3)
    save_file(tensors, folder / "model.safetensors")
    checkpoint = load(folder)
    assert torch.equal(checkpoint.tensors["cls.extra.weight"], tensors["cls.extra.weight"])
    assert checkpoint.origin["notes"] == ["Stored tensors that are not part of BertModel are kept as they are (1): "
                                          "cls.extra.weight."]


def test_a_base_model_is_read_from_a_checkpoint_with_a_head(tmp_path: Path) -> None:
    folder = save_hub("BertForMaskedLM", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForPreTraining"]}))
    with pytest.raises(CorruptFile, match=r"The upload lacks tensors of BertForPreTraining \(4\): bert.pooler.dense.weight"):
        load(folder)


def test_scaled_rotary_embeddings_in_both_spellings(tmp_path: Path) -> None:
    folder = save_hub("LlamaForCausalLM", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": scaling}))
    new = load(folder)
    _compare("LlamaForCausalLM", folder, new)
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0,
                                                    "rope_scaling": {"type": "linear", "factor": 2.0}}))
    old = load(folder)
    assert old.graph == new.graph and all(torch.equal(old.constants[key], new.constants[key]) for key in new.constants)


def test_unknown_keys_are_left_out_and_named() -> None:
    payload = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 9, "mystery": 1, "use_kernels": True,
               "_name_or_path": "evil/repository", "hidden_dropout_prob": 0.1}
    found = parse_config(payload)
    assert (found.kind, found.architecture) == ("bert", "BertModel")
    assert not {"mystery", "use_kernels", "_name_or_path"} & set(found.values)
    assert found.notes == ("Keys of config.json that are not used: mystery, use_kernels.",)


def test_safetensors_file_is_rewritten_byte_for_byte(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2).bfloat16(), "a": torch.arange(5), "empty": torch.zeros(0, 3), "flag": torch.tensor(True)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "note": "ü"})
    source = open_source(tmp_path)
    header = read_header(source, "model.safetensors")
    read = read_tensors(source, "model.safetensors", header)
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    write(tmp_path / "copy.safetensors", header, lambda key: read[key])
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_tied_tensor_stored_with_other_values_is_untied(tmp_path: Path) -> None:
    folder = save_hub("GPT2LMHeadModel", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["transformer.wte.weight"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load(folder)
    assert not checkpoint.aliases and set(checkpoint.graph.tensors.values()) == set(tensors)
    _compare("GPT2LMHeadModel", folder, checkpoint)


def test_merged_experts_have_the_models_key_and_return_to_their_own(tmp_path: Path) -> None:
    entry = by_name("mixtral:MixtralForCausalLM")
    model = save(entry, tmp_path / "model")
    upload = read_upload(open_source(tmp_path / "model"))
    stored = load_file(tmp_path / "model" / "model.safetensors")
    state = model.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in upload.tensors
    assert not any("experts.0" in key for key in upload.tensors) and any("experts.0" in key for key in stored)
    assert all(torch.equal(upload.tensors[key], state[name]) for name, key in upload.layout.names.items())
    get = upload.layout.writer(upload.tensors)
    assert all(torch.equal(get(key), stored[key]) for key in sorted(stored, reverse=True))


def test_a_merge_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    entry = by_name("mixtral:MixtralForCausalLM")
    save(entry, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"] = \
        tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"].half()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"is stored as 4 tensors \(.*\), and they have different dtypes"):
        load(tmp_path / "model")


def test_tables_that_are_not_stored_are_computed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = save(by_name("marian:MarianMTModel"), folder)
    upload = read_upload(open_source(folder))
    keys = keys_of_state(upload.layout, upload.model)
    stand_in(upload.model, {name: upload.layout.metas[key] for name, key in keys.items()})
    for name in ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"):
        assert name not in keys and torch.equal(upload.model.get_buffer(name), model.get_parameter(name))


def test_weights_without_a_table_to_compute_are_missing(tmp_path: Path) -> None:
    folder = save_hub("BertModel", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"The upload lacks tensors of BertModel \(1\): encoder.layer.0.output.dense.bias"):
        load(folder)


def test_a_large_model_is_read_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cipm.load.checkpoint.HELD_BYTES", 0)
    folder = save_hub("ViTModel", tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    for path in (folder, as_zip(folder)):
        checkpoint = load(path)
        assert isinstance(checkpoint.tensors, LazyTensors)
        assert all(torch.equal(checkpoint.tensors[key], value) for key, value in stored.items())
    _compare("ViTModel", folder, checkpoint)


def test_every_type_has_a_class_and_a_schema() -> None:
    for kind in config_types():
        if class_names(kind) and not kind.startswith("timm"):
            assert bounded(config_class(kind), {"model_type": kind}) == ({}, [])


@pytest.mark.parametrize(("key", "bound"), [("vocab_size", 4_000_000), ("num_hidden_layers", 512), ("encoder_layers", 512),
                                            ("hidden_size", 262_144), ("num_attention_heads", 4096), ("n_routed_experts", 4096),
                                            ("max_position_embeddings", 16_777_216), ("image_size", 8192),
                                            ("bos_token_id", 2**31)])
def test_integers_have_bounds_by_what_they_count(key: str, bound: int) -> None:
    assert largest(key) == bound


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """Return a Mamba-2 that works in chunks of sixteen tokens."""
    folder = tmp_path_factory.mktemp("chunked")
    save(by_name("mamba2:Mamba2ForCausalLM"), folder)
    return folder, load(folder)


def test_lengths_of_a_model_that_works_in_chunks_are_fixed(chunked: tuple[Path, Checkpoint]) -> None:
    checkpoint = chunked[1]
    assert [item.shape for item in checkpoint.graph.inputs] == [("batch", 64)]
    assert checkpoint.origin["lengths"] == {"input_ids": {"1": ["sequence", 1, 2**20]}}
    note, = checkpoint.origin["notes"]
    assert note == ("The model is traced for fixed lengths (input_ids [batch, 64]): it works in chunks of them, which torch "
                    "cannot leave open. With a probe of other lengths it is traced and proved anew.")


def test_a_model_is_traced_for_the_lengths_of_its_probe(chunked: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    tokens = torch.randint(0, 99, (4, 32), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "probe.npz", input_ids=tokens.numpy())
    events: list[dict[str, Any]] = []
    request = {"kind": "prepare", "model": str(chunked[0]), "probe": str(tmp_path / "probe.npz"), "options": {"proof_draws": 1}}
    run_job(request, tmp_path, events.append)
    folders = {event["stage"]: tmp_path / event["folder"] for event in events if event.get("state") == "done"}
    later = Context(request, parse_options({}), folders, events.append)  # another process, which has the artefacts alone
    graph, symmetry = later.checkpoint.graph, later.symmetry
    assert graph.inputs[0].shape == ("batch", 32) and symmetry.certificate.passed
    assert "(input_ids [batch, 32])" in symmetry.notes[0]
    first = symmetry_from_json(later.read("discover", "symmetry.json"))
    assert [(g.name, g.size) for g in symmetry.groups] == [(g.name, g.size) for g in first.groups] and len(first.groups) > 4
    with torch.no_grad():
        expected = build(by_name("mamba2:Mamba2ForCausalLM"))(tokens).logits
    got = run(graph, later.checkpoint.tensors, later.checkpoint.constants, later.probe.inputs)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_model_without_its_file_is_not_traced_anew(chunked: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", np.zeros((4, 32), np.int64))
    with pytest.raises(ProbeError, match=r"for input_ids \[batch, 64\], and the probe's rows are input_ids \[32\]") as e:
        read_with_probe(chunked[1], None, tmp_path / "probe.npy", max_rows=9)
    assert e.value.fix == "Read it for them: cipm.load(path, rows={'input_ids': (32,)})."


def test_a_probe_longer_than_the_model_takes_is_refused(chunked: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", np.zeros((1, 2**20 + 1), np.int8))
    with pytest.raises(ProbeError, match=r"'input_ids' has 1,048,577 positions; the model takes 1 to 1,048,576") as e:
        read_with_probe(chunked[1], chunked[0], tmp_path / "probe.npy", max_rows=9)
    assert e.value.fix == "Save rows of another length."
