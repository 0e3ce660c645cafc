"""Every file that is not a model that CIPM reads gets its own sentence, and nothing of it is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_models as make
import pytest
import torch
from jailed import refusal
from safetensors.torch import load_file, save_file
from torch import nn

from cipm.errors import CipmError
from cipm.load import load
from cipm.testing.transformers_zoo import by_name, save
from cipm.trace import run

Builder = Callable[[Path], Path]
HERE = Path(__file__).parent
EXPECTED: dict[str, list[Any]] = json.loads((HERE / "model_messages.json").read_text())


def _raw(name: str, data: bytes) -> Builder:
    return lambda tmp: (tmp / name, (tmp / name).write_bytes(data))[0]


def _folder(name: str, **files: str) -> Builder:
    def build(tmp: Path) -> Path:
        (tmp / name).mkdir()
        for file, text in files.items():
            (tmp / name / file.replace("__", ".")).write_text(text)
        return tmp / name
    return build


def _cut(tmp: Path) -> Path:
    data = make.tiny_export(tmp / "good.pt2").read_bytes()
    (tmp / "cut.pt2").write_bytes(data[:len(data) // 2])
    return tmp / "cut.pt2"


def _hub(config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Builder:
    return lambda tmp: make.hub_folder(tmp / "model", {**make.CONFIG, **config}, tensors if tensors is not None else {})


def _target(name: str) -> Builder:
    def change(payload: dict[str, Any]) -> None:
        payload["graph_module"]["graph"]["nodes"][0]["target"] = name
    return lambda tmp: make.edit_model(tmp, change)


def _size(text: str) -> Builder:
    def change(payload: dict[str, Any]) -> None:
        payload["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text
    return lambda tmp: make.edit_model(tmp, change)


def _symbol_value(tmp: Path) -> Path:
    def change(payload: dict[str, Any]) -> None:
        expression = {"expr_str": make.CODE, "hint": None}
        payload["graph_module"]["graph"]["sym_int_values"]["size"] = {"as_expr": expression}
    return make.edit_model(tmp, change)


def _renamed(old: str, new: str) -> Builder:
    def change(payload: dict[str, Any]) -> None:
        text = json.dumps(payload).replace(json.dumps(old), json.dumps(new))
        payload.clear()
        payload.update(json.loads(text))
    return lambda tmp: make.edit_model(tmp, change)


def _weight(**changes: Any) -> Builder:
    def change(config: dict[str, Any]) -> None:
        config["first.weight"].update(changes)
    return lambda tmp: make.edit_weights(tmp, change, **{"data/weights/weight_0": make.pickled()}
                                         if changes.get("use_pickle") else {})


def _meta(**changes: Any) -> Builder:
    return lambda tmp: make.edit_weights(tmp, lambda config: config["first.weight"]["tensor_meta"].update(changes))


def _key(new: str) -> Builder:
    def change(config: dict[str, Any]) -> None:
        config[new] = config.pop("first.weight")
    return lambda tmp: make.edit_weights(tmp, change)


def _opaque(tmp: Path) -> Path:
    item = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return make.rewrite(make.tiny_export(tmp / "good.pt2"), tmp / "bad.pt2", {
        "data/constants/model_constants_config.json": lambda p: p["config"].update(thing=item),
        "data/constants/opaque_obj_0": make.pickled()})


def _script_object(tmp: Path) -> Path:
    def change(payload: dict[str, Any]) -> None:
        payload["graph_module"]["graph"]["custom_obj_values"]["obj"] = {"name": "obj", "class_fqn": "a.B"}
    return make.edit_model(tmp, change)


def _version(tmp: Path) -> Path:
    return make.edit_model(tmp, lambda payload: payload["schema_version"].update(major=5))


def _deep(tmp: Path) -> Path:
    return make.rewrite(make.tiny_export(tmp / "good.pt2"), tmp / "bad.pt2", {"models/model.json": b"[" * 200_000})


def _member(name: str, change: Any) -> Builder:
    return lambda tmp: make.rewrite(make.tiny_export(tmp / "good.pt2"), tmp / "bad.pt2", {name: change})


def _training(module: Callable[[], nn.Module]) -> Builder:
    return lambda tmp: make.save_export(module().train(), tmp / "train.pt2", torch.randn(3, 4))


def _llama(**config: Any) -> Builder:
    return _hub({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config})


def _llava(text: dict[str, Any]) -> Builder:
    return _hub({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text})


def _nested(depth: int) -> dict[str, Any]:
    return {"factor": _nested(depth - 1)} if depth else {}


def _config(data: bytes) -> Builder:
    def build(tmp: Path) -> Path:
        folder = make.hub_folder(tmp / "model", {}, {"a": torch.zeros(2)})
        (folder / "config.json").write_bytes(data)
        return folder
    return build


def _shards(index: Any) -> Builder:
    def build(tmp: Path) -> Path:
        folder = make.hub_folder(tmp / "model", make.CONFIG)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder
    return build


def _twice(tmp: Path) -> Path:
    folder = _shards({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})(tmp)
    for file in ("one", "two"):
        save_file({"same": torch.zeros(2)}, folder / f"{file}.safetensors")
    return folder


def _whole_and_parts(tmp: Path) -> Path:
    entry = by_name("mixtral:MixtralForCausalLM")
    save(entry, tmp / "model")
    tensors = load_file(tmp / "model" / "model.safetensors")
    shape = entry.values["num_local_experts"], entry.values["hidden_size"], entry.values["intermediate_size"]
    tensors["model.layers.0.mlp.experts.down_proj"] = torch.zeros(shape)
    save_file(tensors, tmp / "model" / "model.safetensors")
    return tmp / "model"


def _entries(**places: tuple[int, int]) -> bytes:
    return json.dumps({key: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
                       for key, (start, end) in places.items()}).encode()


def _header(tmp: Path, header: bytes, data: bytes = b"") -> Path:
    folder = make.hub_folder(tmp / "model", make.CONFIG)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def _tensor(**item: Any) -> Builder:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **item}
    return lambda tmp: _header(tmp, json.dumps({"a": entry}).encode(), bytes(8))


CASES: dict[str, Builder] = {
    "empty file": _raw("model.pt2", b""),
    "text file": _raw("model.pt2", b"This is a text, not a model.\n"),
    "JSON file": _raw("config.json", b'{"model_type": "bert"}'),
    "csv file": _raw("data.csv", b"a,b\n1,2\n"),
    "binary noise": _raw("model.pt2", bytes(range(128, 256)) * 8),
    "PNG": lambda tmp: make.image(tmp / "model.pt2", "PNG"),
    "JPEG": lambda tmp: make.image(tmp / "model.pt2", "JPEG"),
    "truncated zip": _cut,
    "pickle": _raw("model.pkl", make.pickled()),
    "TorchScript": lambda tmp: make.scripted(tmp / "model.pt"),
    "Keras HDF5": _raw("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(88)),
    "Keras zip": lambda tmp: make.zipped(tmp / "model.keras", {"config.json": b"{}", "metadata.json": b"{}",
                                                               "model.weights.h5": b"\x89HDF\r\n\x1a\n"}),
    "GGUF": _raw("model.gguf", b"GGUF\x03\x00\x00\x00" + bytes(16)),
    "SavedModel": _folder("saved", saved_model__pb="\x08\x01"),
    "NumPy archive": lambda tmp: make.npz(tmp / "data.npz"),
    "torch.export of torch 2.7": lambda tmp: make.zipped(tmp / "old.pt2", {"serialized_exported_program.json": b"{}",
                                                                           "serialized_state_dict.pt": b"", "version": b"8"}),
    "AOTInductor": lambda tmp: make.compiled(tmp / "model.pt2"),
    "Git LFS pointer": _raw("model.pt2", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
    "zip bomb": lambda tmp: make.zip_bomb(tmp / "bomb.zip"),
    "overlapping zip": lambda tmp: make.overlapping_zip(tmp / "bomb.zip"),
    "zip with a link": lambda tmp: make.zip_with_link(tmp / "model.zip"),
    "zip with twins": lambda tmp: make.zip_with_twins(tmp / "model.zip"),
    "zip that leaves itself": lambda tmp: make.zipped(tmp / "model.zip", {"../../evil": b"x"}),
    "zip without a model": lambda tmp: make.zipped(tmp / "photos.zip", {"a.txt": b"x"}),
    "folder without a model": _folder("folder", notes__txt="hello"),
    "pickled hub weights": _folder("hub", config__json='{"model_type": "bert"}', pytorch_model__bin="x"),
    "config alone": _folder("hub", config__json='{"model_type": "bert"}'),
    "custom operator": lambda tmp: make.custom_op_export(tmp / "custom.pt2"),
    "higher-order operator": lambda tmp: make.branching_export(tmp / "branch.pt2"),
    "random numbers": lambda tmp: make.random_export(tmp / "random.pt2"),
    "operator that reads files": _target("torch.ops.aten.from_file.default"),
    "operator that writes": _target("torch.ops.aten.save.default"),
    "python function": _target("torch.os.system"),
    "operator with setitem": _target("_operator.setitem"),
    "pickled weight": _weight(use_pickle=True),
    "opaque constant": _opaque,
    "script object": _script_object,
    "size that runs code": _size(make.CODE),
    "size with an attribute": _size("Symbol('s0').__class__"),
    "size as a lambda": _size("(lambda: 1)()"),
    "symbolic value that runs code": _symbol_value,
    "value name that is code": _renamed("linear", "x); import os; (y"),
    "input name that is code": _renamed("x", "x=__import__('os').getcwd()"),
    "tensor key that is code": _key("first.weight\"), __import__('os'"),
    "tensor key of a method": _key("forward.weight"),
    "tensor beyond its bytes": _meta(sizes=[{"as_int": 600}, {"as_int": 4}]),
    "tensor that unfolds": _meta(sizes=[{"as_int": 10**9}, {"as_int": 10**9}], strides=[{"as_int": 0}, {"as_int": 0}]),
    "unknown dtype": _meta(dtype=99),
    "weight missing": _key("other.weight"),
    "weights file missing": _member("data/weights/weight_0", None),
    "model JSON damaged": _member("models/model.json", b'{"graph_module": '),
    "model JSON too deep": _deep,
    "model JSON empty": _member("models/model.json", b'{"schema_version": {"major": 8}}'),
    "other schema version": _version,
    "two models": _member("models/other.json", b"{}"),
    "big endian": _member("byteorder", b"big"),
    "batch norm in training mode": _training(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
    "dropout in training mode": _training(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))),
    "hub type off the list": _hub({"model_type": "mystery"}),
    "hub class off the list": _hub({"architectures": ["BertModel"]}),
    "hub code": _hub({"auto_map": {"AutoModel": "evil--repo.Model"}}),
    "hub quantised": _hub({"quantization_config": {"quant_method": "gptq"}}),
    "hub million layers": _hub({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 10**6,
                                "vocab_size": 10}),
    "hub heads do not divide": _hub({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 10, "vocab_size": 10,
                                     "num_attention_heads": 3}),
    "hub code in a part": _llava({"auto_map": {"AutoModel": "evil--repo.Model"}}),
    "hub backbone from a hub": _hub({"model_type": "detr", "architectures": ["DetrModel"], "use_timm_backbone": True,
                                     "backbone": "evil/repository"}),
    "hub pretrained backbone": _hub({"model_type": "dpt", "architectures": ["DPTModel"], "use_pretrained_backbone": True}),
    "hub backbone of timm": _hub({"model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"],
                                  "backbone_config": {"model_type": "timm_backbone", "backbone": "evil/repository"}}),
    "hub part off the list": _llava({"model_type": "os.path"}),
    "hub index of passages": _hub({"model_type": "rag", "architectures": ["RagModel"], "index_path": "/etc/passwd"}),
    "hub type is a path": _hub({"model_type": "../../evil"}),
    "hub class is a module": _hub({"architectures": ["os.system"]}),
    "hub class is no model": _hub({"architectures": ["nn"]}),
    "hub vocabulary of 10^12": _llama(vocab_size=10**12),
    "hub width below nought": _llama(hidden_size=-(10**9)),
    "hub number as text": _llama(hidden_size="64"),
    "hub number as a list": _llama(num_hidden_layers=[2] * 5000),
    "hub not a number": _llama(rms_norm_eps=float("nan")),
    "hub activation is a path": _llama(hidden_act="../../etc/passwd"),
    "hub activation is a mapping": _llama(hidden_act={"a": 1}),
    "hub nested bomb": _llama(rope_parameters=_nested(40)),
    "hub many labels": _llama(num_labels=10**9),
    "hub layer kinds bomb": _llama(layer_types=["full_attention"] * 10**5),
    "hub key is code": _llama(rope_parameters={"__class__": 1}),
    "hub layers times experts": _hub({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
                                      "num_hidden_layers": 512, "num_local_experts": 4096}),
    "hub too many parameters": _llama(hidden_size=262_144, intermediate_size=262_144, num_hidden_layers=512,
                                      num_attention_heads=1024, num_key_value_heads=1024),
    "hub tables too large": _hub({"model_type": "gpt_neo", "architectures": ["GPTNeoModel"], "max_position_embeddings": 10**6}),
    "hub settings of one layer": _llama(per_layer_config={"0": {"hidden_size": 9}}),
    "hub config is a list": _config(b"[]"),
    "hub config too deep": _config(b"[" * 200_000),
    "hub config too long": _config(b'{"a": "' + b"x" * 2**20 + b'"}'),
    "hub tensors missing": _hub({}, {"other": torch.zeros(2)}),
    "hub tensor misshapen": _hub({}, {"embedder.embedder.convolution.weight": torch.zeros(4, 1, 3, 3)}),
    "hub shard outside": _shards({"weight_map": {"a": "../../etc/passwd"}}),
    "hub shard by its full path": _shards({"weight_map": {"a": "/etc/model.safetensors"}}),
    "hub shard in a folder": _shards({"weight_map": {"a": "sub/model.safetensors"}}),
    "hub shard of another kind": _shards({"weight_map": {"a": "config.json"}}),
    "hub index empty": _shards({"weight_map": {}}),
    "hub index is a list": _shards([1]),
    "hub tensor in two shards": _twice,
    "hub whole and in parts": _whole_and_parts,
    "safetensors overlap": lambda tmp: _header(tmp, _entries(a=(0, 8), b=(4, 12)), bytes(12)),
    "safetensors huge tensor": _tensor(shape=[2**31, 2**31], data_offsets=[0, 2**64]),
    "safetensors many axes": _tensor(shape=[1] * 60 + [2]),
    "safetensors long key": lambda tmp: _header(tmp, _entries(**{"k" * 600: (0, 8)}), bytes(8)),
    "safetensors header is a list": lambda tmp: _header(tmp, b"[1, 2]"),
    "safetensors header too deep": lambda tmp: _header(tmp, b"[" * 100_000),
    "safetensors header not text": lambda tmp: _header(tmp, b"\xff\xfe{}"),
    "safetensors header of 17 MB": lambda tmp: _header(tmp, b"{" + b" " * 17 * 2**20 + b"}"),
    "safetensors entry is a number": lambda tmp: _header(tmp, b'{"a": 3}'),
    "safetensors cut short": lambda tmp: _header(tmp, _entries(a=(0, 8)), bytes(5)),
    "safetensors header too long": lambda tmp: _short(tmp),
    "safetensors gap": _tensor(data_offsets=[8, 16]),
    "safetensors wrong size": _tensor(shape=[3]),
    "safetensors dtype": _tensor(dtype="F4"),
    "safetensors negative": _tensor(shape=[-2]),
    "safetensors twice": lambda tmp: _header(tmp, b'{"a": {}, "a": {}}'),
}


def _short(tmp: Path) -> Path:
    folder = make.hub_folder(tmp / "model", make.CONFIG)
    (folder / "model.safetensors").write_bytes((10**9).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a payload would leave its marker


@pytest.mark.parametrize("name", CASES)
def test_refusal_says_what_it_is_and_what_to_do(name: str, tmp_path: Path) -> None:
    error = refusal(CASES[name](tmp_path), tmp_path / "scratch")
    assert [error.code, error.message, error.fix] == EXPECTED[name]
    assert not list(tmp_path.rglob(make.MARKER))


def test_every_expected_message_has_its_file() -> None:
    assert set(EXPECTED) == set(CASES)


def test_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    pickle.loads(make.pickled())
    assert (tmp_path / make.MARKER).exists()


SLOTS = {
    "sample inputs": {"data/sample_inputs/model.pt": make.in_memory(make.Payload())},
    "sample inputs as a plain pickle": {"data/sample_inputs/model.pt": make.pickled()},
    "extra pickle": {"extra/state.pkl": make.pickled()},
    "unlisted opaque object": {"data/constants/opaque_obj_0": make.pickled()},
    "guards": {"models/model.json": lambda p: p.update(guards_code=[make.CODE])},
    "metadata": {"models/model.json": lambda p: p["graph_module"]["graph"]["nodes"][0]["metadata"].update(
        nn_module_stack=make.CODE, torch_fn="os.mkdir;builtin")},
}


@pytest.mark.parametrize("slot", SLOTS)
def test_slots_that_are_not_read_are_not_executed(slot: str, tmp_path: Path) -> None:
    good = make.tiny_export(tmp_path / "good.pt2")
    bad = make.rewrite(good, tmp_path / "bad.pt2", SLOTS[slot])
    original, loaded = load(good), load(bad)
    assert not (tmp_path / make.MARKER).exists()
    x = {"x": torch.randn(5, 4)}
    for a, b in zip(run(original.graph, original.tensors, original.constants, x),
                    run(loaded.graph, loaded.tensors, loaded.constants, x), strict=True):
        assert torch.equal(a, b)


def test_a_changed_byte_in_a_weight_is_found(tmp_path: Path) -> None:
    good = make.tiny_export(tmp_path / "good.pt2")
    with zipfile.ZipFile(good) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
    data = bytearray(good.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + int.from_bytes(data[info.header_offset + 28:][:2], "little")
    data[start + 5] ^= 1
    good.write_bytes(data)
    with pytest.raises(CipmError, match="'data/weights/weight_0' is damaged: Bad CRC-32"):
        load(good)


def test_nothing_that_unpickles_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.tiny_export(tmp_path / "good.pt2")

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("an upload must not reach this function")

    for module, name in ((torch, "load"), (torch.export, "load"), (torch.jit, "load"), (pickle, "load"), (pickle, "loads"),
                         (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, forbidden)
    assert len(load(path).tensors) == 10
