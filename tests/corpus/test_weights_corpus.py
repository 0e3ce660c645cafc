"""Hostile and damaged weights files: each is refused with its own sentence, and nothing of it is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_models as make
import bad_weights as bad
import pytest
import torch
from jailed import refusal
from safetensors.torch import save_file
from torch import nn

from cipm.errors import CipmError, InputError
from cipm.load import describe, load, pickles
from cipm.load.pickles import read_pickle

Builder = Callable[[Path], Path]
HERE = Path(__file__).parent
EXPECTED: dict[str, list[Any]] = json.loads((HERE / "weights_messages.json").read_text())
PAYLOAD = b"cposix\nmkdir\n" + bad.CALL


def _pickle(data: bytes, **options: Any) -> Builder:
    return lambda tmp: bad.torch_zip(tmp / "w.pt", data, **options)


def _beside(body: bytes) -> Builder:
    return _pickle(bad.program(body))


def _tensor(**options: Any) -> Builder:
    return _pickle(bad.state(("fc.weight", bad.tensor(**options))))


def _old(data: bytes = bad.state(("fc.weight", bad.tensor(stored=bad.storage(more=b"N")))), **options: Any) -> Builder:
    return lambda tmp: bad.legacy(tmp / "w.th", data, **options)


def _saved(value: Any, **options: Any) -> Builder:
    return lambda tmp: make.torch_saved(tmp / "w.pt", value, **options)


def _alone(tensors: dict[str, torch.Tensor]) -> Builder:
    return lambda tmp: (save_file(tensors, tmp / "w.safetensors"), tmp / "w.safetensors")[1]


def _described(description: Any, tensors: dict[str, torch.Tensor] | None = None) -> Builder:
    return lambda tmp: bad.described(tmp / "w.zip", description, tensors)


def _layers(*items: Any, **more: Any) -> Builder:
    return _described({"layers": list(items), **more})


def _two(tmp: Path) -> Path:
    path = bad.described(tmp / "w.zip", {"family": "mlp"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.pt", b"")
    return path


def _big(tmp: Path) -> Path:
    return bad.torch_zip(tmp / "w.pt", bad.state(("w", bad.tensor())), storages={"0": bytes(300 << 20)},
                         method=zipfile.ZIP_DEFLATED)


class Net(nn.Module):
    """A module of the user's own."""


LINEAR, CONV = {"type": "linear", "weights": "fc1"}, {"a": torch.zeros(2, 1, 3, 3), "b": torch.zeros(2)}
NESTED: Any = ["relu"]
for _ in range(12):
    NESTED = [{"type": "residual", "layers": NESTED}]

CASES: dict[str, Builder] = {
    # code: every way to name and call a function that a pickle has
    "a payload saved by torch.save": _saved(make.Payload()),
    "a payload among the weights": _saved({"fc.weight": torch.zeros(2, 3), "extra": make.Payload()}),
    "a payload, old layout": _saved(make.Payload(), legacy=True),
    "a whole module": _saved(Net()),
    "a function called": _beside(PAYLOAD),
    "a function named only": _beside(b"cbuiltins\neval\n"),
    "a function of torch": _beside(b"ctorch\nload\n" + bad.CALL),
    "a private function of torch": _beside(b"ctorch._utils\n_rebuild_sparse_tensor\n" + bad.CALL),
    "a function in a submodule of a known name": _beside(b"ctorch.os\nsystem\n" + bad.CALL),
    "getattr of a known name": _beside(b"cbuiltins\ngetattr\n" + bad.CALL),
    "an object made (NEWOBJ)": _beside(b"cposix\nmkdir\n" + bad.text(make.MARKER) + b"\x85\x81"),
    "an object made of a known name": _beside(b"ctorch\nFloatStorage\n)\x81"),
    "an instance (INST)": _beside(b"(" + bad.text(make.MARKER) + b"iposix\nmkdir\n"),
    "an instance (OBJ)": _beside(b"(cposix\nmkdir\n" + bad.text(make.MARKER) + b"o"),
    "a registered extension": _beside(b"\x82\x01"),
    "a name from the stack": _pickle(b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93" + bad.CALL + b"."),
    "a name from the stack under protocol 2": _beside(bad.text("posix") + bad.text("mkdir") + b"\x93" + bad.CALL),
    "protocol 0 with a payload": _pickle(b"cposix\nmkdir\n(Vmarker\ntR."),
    "protocol 0": _pickle(b"(dp0\n."),
    "protocol 5": _pickle(pickle.dumps({"a": 1}, 5)),
    "a storage type called": _beside(b"ctorch\nFloatStorage\n(" + bad.text(make.MARKER) + b"tR"),
    "a number called": _beside(b"K\x01)R"),
    "a known name with a wrong call": _beside(b"ccollections\nOrderedDict\nK\x01R"),
    "attributes set on a tensor": _beside(bad.tensor() + b"}b"),
    "attributes set by a tuple": _beside(b"}" + b"N}\x86b"),
    "a persistent module": _beside(b"(" + bad.text("module") + b"ctorch\nFloatStorage\n" + bad.text("a") + bad.text("b")
                                   + b"K\x01tQ"),
    "a persistent reference in text": _beside(b"Pstorage\n"),
    "a persistent reference to anything": _beside(bad.text(make.MARKER) + b"Q"),
    "a storage of another kind": _tensor(stored=bad.storage(kind=b"Size")),
    "hooks on a tensor": _tensor(hooks=b"}K\x01K\x02s"),
    "bytes": _saved({"fc.weight": torch.zeros(2, 3), "b": b"abc"}),
    "a namespace": _saved({"fc.weight": torch.zeros(2, 3), "args": __import__("argparse").Namespace(a=1)}),
    "a numpy number": _saved({"fc.weight": torch.zeros(2, 3), "best": __import__("numpy").float64(1.0)}),
    "payload in the old layout's first pickle": _old(head=bad.LEGACY_HEAD[:15] + b"\x80\x02" + PAYLOAD + b"."),
    "payload in the old layout's system": _old(system=b"\x80\x02" + PAYLOAD + b"."),
    "payload in the old layout's names": _old(names=b"\x80\x02" + PAYLOAD + b"."),
    # sizes: what would read or write outside, or unfold without end
    "a negative offset": _tensor(offset=-1),
    "an offset beyond the end": _tensor(offset=1),
    "an offset beyond all": _tensor(offset=2**61),
    "a negative stride": _tensor(strides=(-3, 1)),
    "a stride beyond the end": _tensor(strides=(4, 1)),
    "zero strides that unfold": _tensor(shape=(2**30, 2**30), strides=(0, 0)),
    "a tensor that overlaps itself": _tensor(shape=(2, 3), strides=(1, 1)),
    "tensors that overlap": _pickle(bad.state(("a", bad.tensor((4,), (1,))), ("b", bad.tensor((4,), (1,), 2)))),
    "a rank of 40": _tensor(shape=(1,) * 40, strides=(1,) * 40),
    "shape and strides of two lengths": _tensor(strides=(1,)),
    "a negative size": _tensor(shape=(-2, 3)),
    "a storage larger than its bytes": _tensor(stored=bad.storage(count=2**40)),
    "a storage smaller than its bytes": _tensor(stored=bad.storage(count=2)),
    "a storage of a negative size": _tensor(stored=bad.storage(count=-6)),
    "a storage that is missing": _tensor(stored=bad.storage("../../etc/passwd")),
    "a storage described twice": _pickle(bad.state(("a", bad.tensor()), ("b", bad.tensor(stored=bad.storage(count=7))))),
    "a zip bomb": _big,
    "a big-endian file": _pickle(bad.state(("fc.weight", bad.tensor())), byteorder=b"big"),
    # damage
    "a pickle cut short": _pickle(bad.state(("fc.weight", bad.tensor()))[:-9]),
    "a memo that was not filled": _beside(b"h\x07"),
    "an empty stack": _pickle(b"\x80\x02u."),
    "items without a mark": _pickle(b"\x80\x02}u."),
    "a string longer than the file": _beside(b"X\xff\xff\xff\x7fa"),
    "a key that is a list": _pickle(b"\x80\x02}(]K\x01u."),
    "the old layout cut short": _old(counts=()),
    "the old layout with another count": _old(counts=(7,)),
    "the old layout with other names": _old(names=pickle.dumps(["1"], 2)),
    "bytes after the old layout": _old(tail=b"more"),
    "the old layout of another machine": _old(system=pickle.dumps({"little_endian": False}, 2)),
    # weights without a model
    "a file without weights": _saved({"epoch": 3}),
    "a tensor alone": _saved(torch.zeros(3)),
    "a state dict that contains itself": _pickle(b"\x80\x02}q\x00" + bad.text("a") + b"h\x00s."),
    "two models": _saved({"generator": {"a.weight": torch.zeros(2, 3)}, "critic": {"a.weight": torch.zeros(2, 3)}}),
    "widths that do not chain": _saved(OrderedDict(a=nn.Linear(2, 3).weight.data, **{"x.weight": torch.zeros(5, 2),
                                                                                     "y.weight": torch.zeros(4, 3)})),
    "linear layers in no order": _saved({"x.weight": torch.zeros(5, 2), "y.weight": torch.zeros(4, 3)}),
    "convolutions alone": _alone({"conv.weight": CONV["a"], "conv.bias": CONV["b"]}),
    "an embedding alone": _alone({"a": torch.zeros(2, 3, 4, 5, 6, 7)}),
    # descriptions
    "two files of weights": _two,
    "a description that is no JSON": _described("{"),
    "a description that is a list": _described("[]"),
    "neither family nor layers": _described({"activation": "relu"}),
    "family and layers": _described({"family": "mlp", "layers": []}),
    "an unknown family": _described({"family": "os.system"}),
    "an unknown value of a family": _described({"family": "mlp", "auto_map": "x"}),
    "an activation that is none": _described({"family": "mlp", "activation": "__import__"}),
    "an unknown type": _layers({"type": "eval"}),
    "a layer that is a number": _layers(3),
    "an unknown value of a layer": _layers({**LINEAR, "code": "x"}),
    "a value out of range": _layers({"type": "max_pool", "size": 10**9}),
    "a value that is missing": _layers({"type": "attention", "qkv": "fc1"}),
    "a layer without its tensors": _layers({"type": "linear", "weights": "fc9"}),
    "a layer that names none": _layers({"type": "linear"}),
    "a tensor that is not there": _layers({"type": "linear", "weight": "W"}),
    "a tensor of another rank": _layers({"type": "conv", "weights": "fc1"}),
    "layers that do not fit": _layers(LINEAR, {"type": "linear", "weights": "fc1"}),
    "an input that does not fit": _layers(LINEAR, input=[5]),
    "an input that is none": _layers(LINEAR, input=[2**40]),
    "no input": _layers("relu", LINEAR),
    "layers nested too deep": _layers(*NESTED, input=[6]),
    "too many layers": _layers(*["relu"] * 6000, input=[6]),
    "a value of a million places": _layers({"type": "adaptive_avg_pool", "size": 256}, input=[100, 8, 8, 8]),
    "layers after the heads": _layers({"type": "heads", "branches": [[LINEAR], [LINEAR]]}, "relu", input=[6]),
    "a GPT without its heads": _described({"family": "gpt"}),
    "a ResNet that is none": _described({"family": "resnet"}),
    "a VGG that is none": _described({"family": "vgg"}),
    "an LSTM that is none": _described({"family": "lstm"}),
    "a CNN that is none": _described({"family": "cnn", "input": [1, 8, 8]}),
    "strides for too many convolutions": _described({"family": "cnn", "strides": [1, 2], "input": [1, 8, 8]},
                                                    {"c.weight": CONV["a"], "c.bias": CONV["b"]}),
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a payload would leave its marker


@pytest.mark.parametrize("name", CASES)
def test_refusal_says_what_it_is_and_what_to_do(name: str, tmp_path: Path) -> None:
    error = refusal(CASES[name](tmp_path), tmp_path / "scratch")
    assert [error.code, error.message, error.fix] == EXPECTED[name]
    assert isinstance(error, InputError) and not list(tmp_path.rglob(make.MARKER))


def test_every_expected_message_has_its_file() -> None:
    assert set(EXPECTED) == set(CASES)


def test_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    pickle.loads(b"\x80\x02" + PAYLOAD + b".")
    assert (tmp_path / make.MARKER).exists()


def test_endless_programs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    with pytest.raises(CipmError, match="more than 1,000 entries"):
        read_pickle(b"\x80\x02" + b"N" * 2000 + b".")


def test_a_memo_place_beyond_all_costs_nothing() -> None:
    value, _, _ = read_pickle(b"\x80\x02}r\xff\xff\xff\xff" + bad.text("a") + b"j\xff\xff\xff\xffs.")
    assert value["a"] is value


def test_files_are_called_what_they_are(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    (tmp_path / "new").mkdir()
    assert describe(make.torch_saved(tmp_path / "new" / "w.pt", state)) == "a torch.save file"
    assert describe(make.torch_saved(tmp_path / "w.th", state, legacy=True)) == "a torch.save file"
    assert describe(_alone(dict(state))(tmp_path)) == "a safetensors file"


def test_nothing_that_unpickles_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [make.torch_saved(tmp_path / f"{old}.pt", nn.Linear(2, 3).state_dict(), legacy=old) for old in (False, True)]
    load(files[0])  # what torch imports for its first trace defines unpicklers of its own

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("an upload must not reach this function")

    for module, name in ((torch, "load"), (torch.jit, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, forbidden)
    assert all(len(load(path).tensors) == 2 for path in files)
