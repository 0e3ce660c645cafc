"""ONNX models become the graph that onnxruntime runs, and their groups are those of the same model's .pt2 file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import Recurrent, difference, distinct, encoder, ort, relative, rounded, save_onnx
from torch import nn

from cipm.errors import UnsupportedModel
from cipm.load import Checkpoint, describe, load
from cipm.load.onnx.module import OnnxModule
from cipm.load.onnx.plan import make_plan
from cipm.load.onnx.proto import open_upload, read_model
from cipm.load.onnx.sample import identifiers
from cipm.symmetry import discover_groups, prove
from cipm.testing.models import cnn_residual, mlp, save_pt2, seeded
from cipm.trace import run

DATA = Path(__file__).parents[3] / "shared" / "data" / "onnx"
node = helper.make_node
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real models (../shared/data/onnx) are not here")
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "mlp": (lambda: mlp((16, 24, 20, 5)), torch.randn(2, 16)),
    "residual network": (lambda: cnn_residual(1, 8), torch.randn(2, 1, 12, 12)),
    "transformer encoder": (encoder, torch.randn(2, 7, 6)),
}


def made(nodes: list[onnx.NodeProto], tensors: dict[str, Any], path: Path, *, inputs: dict[str, Any] | None = None,
         outputs: tuple[str, ...] = ("y",), opset: int = 17, kind: int = TensorProto.FLOAT) -> Path:
    """Write a model by hand."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (inputs or {"x": ["rows", 4]}).items()]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name=name) for name in outputs],
                              [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize("dynamo", [True, False], ids=["new exporter", "old exporter"])
@pytest.mark.parametrize("name", MODELS)
def test_exported_models_compute_the_same_and_have_the_same_groups(name: str, dynamo: bool, tmp_path: Path) -> None:
    make, example = MODELS[name]
    path = save_onnx(make(), example, tmp_path / "model.onnx", dynamo=dynamo)
    checkpoint = load(path)
    assert checkpoint.format == "onnx" and checkpoint.graph.inputs[0].shape[0] == "batch"
    assert max(difference(checkpoint, path), difference(checkpoint, path, rows=5)) <= 1e-5
    assert sizes(checkpoint) == sizes(load(save_pt2(make(), example, tmp_path / "model.pt2"))) != []


def sizes(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Return size and blocks of every group, all of them proved."""
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert symmetry.certificate.passed and all(group.proved for group in symmetry.groups)
    return sorted((group.size, group.blocks) for group in symmetry.groups)


class Averaged(nn.Module):
    """Tokens averaged by adaptive pooling over one axis, which torch's exporter writes as a gather by computed numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.pool, self.leave = nn.Linear(6, 8), nn.AdaptiveAvgPool1d(1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.pool(self.enter(x).tanh().transpose(1, 2)).flatten(1))


class Latent(nn.Module):
    """Attention whose keys are written in two parts: one made from a latent for every head, one that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.query, self.down = nn.Linear(6, 12), nn.Linear(12, 3 * 6), nn.Linear(12, 5 + 2)
        self.up, self.out, self.leave = nn.Linear(5, 3 * (4 + 4)), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x).tanh()
        query = self.query(x).unflatten(-1, (3, 6)).transpose(1, 2)
        latent, shared = self.down(x).split((5, 2), -1)
        own, value = self.up(latent).unflatten(-1, (3, 8)).transpose(1, 2).chunk(2, -1)
        key = own.new_empty(*own.shape[:-1], 6)
        key[..., :4] = own
        key[..., 4:] = shared[:, None].expand(-1, 3, -1, -1)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.leave(x + self.out(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(("make", "groups"), [
    (Averaged, [(8, 1)]), (Latent, [(2, 1), (3, 1), (5, 1), (12, 1), (12, 3), (12, 3)])])
def test_views_and_writes_that_are_written_by_numbers_pin_nothing(make: type, groups: list[Any], tmp_path: Path) -> None:
    model = distinct(seeded(make, 0))
    path = save_onnx(model, torch.randn(2, 5, 6), tmp_path / "model.onnx", dynamo=True)
    checkpoint = load(path)
    assert {node.op for node in checkpoint.graph.nodes}.isdisjoint({"aten.index.Tensor", "aten.index_put.default"})
    assert max(difference(checkpoint, path), difference(checkpoint, path, rows=5)) <= 1e-5
    assert sizes(checkpoint) == sizes(load(save_pt2(model, torch.randn(2, 5, 6), tmp_path / "model.pt2"))) == groups


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_models(kind: str, tmp_path: Path) -> None:
    path = save_onnx(distinct(seeded(lambda: Recurrent(kind), 0)), torch.randn(2, 7, 5), tmp_path / "m.onnx", dynamo=True)
    checkpoint = load(path)
    assert max(difference(checkpoint, path), difference(checkpoint, path, rows=5)) <= 1e-5
    assert [(g.size, g.blocks) for g in discover_groups(checkpoint).groups] == [(8, 1)]


# --- real files ---------------------------------------------------------------------------------------------------------

@needs_data
@pytest.mark.parametrize("name", ["basic_pitch_nmp", "facedet_version-slim-320_simplified", "light_densenet121",
                                  "light_inception_v2", "light_shufflenet", "light_vgg19", "mnist_cntk", "sisl_TestNetwork2"])
def test_real_files_compute_the_same(name: str) -> None:
    path = DATA / f"{name}.onnx"
    model = read_model(*open_upload(path))
    module = OnnxModule(make_plan(model), identifiers([item.name for item in model.inputs]))
    inputs = {item.name: np.random.default_rng(0).random([n if isinstance(n, int) else 2 for n in item.shape], np.float32)
              for item in model.inputs}
    with torch.no_grad():
        ours = module(*(torch.from_numpy(value) for value in inputs.values()))
    for a, b in zip(ours, ort(path, inputs), strict=True):
        assert relative(a.numpy(), b) <= 1e-5


@needs_data
@pytest.mark.parametrize(("name", "tensors", "groups"), [("facedet_version-slim-320_simplified", 84, 15), ("mnist_cntk", 6, 2),
                                                         ("sisl_TestNetwork2", 14, 6)])
def test_real_files_have_groups(name: str, tensors: int, groups: int) -> None:
    checkpoint = load(DATA / f"{name}.onnx")
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert difference(checkpoint, DATA / f"{name}.onnx") <= 1e-5 and symmetry.certificate.passed
    assert len(checkpoint.tensors) == tensors and sum(group.proved for group in symmetry.groups) >= groups


@needs_data
def test_a_branch_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Node '/model/decoder/If' is an If, which runs graphs of its own"):
        load(DATA / "silero_vad_16k_op15.onnx")


# --- what is stored, what is constant -----------------------------------------------------------------------------------

def test_floats_are_stored_and_numbers_and_shapes_are_constants(tmp_path: Path) -> None:
    nodes = [node("Constant", [], ["table"], value=numpy_helper.from_array(rounded(3))),
             node("MatMul", ["x", "/w:0"], ["a"]), node("Mul", ["a", "half"], ["b"]),
             node("Add", ["b", "table"], ["c"]), node("Reshape", ["c", "shape"], ["d"]),
             node("Resize", ["d", "", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric")]
    tensors = {"/w:0": rounded(4, 3), "half": np.float32(0.5), "shape": np.array([0, 3, 1]), "unused": rounded(2, 2),
               "scales": np.float32([1, 2, 1])}
    path = made(nodes, tensors, tmp_path / "m.onnx")
    checkpoint = load(path)
    assert set(checkpoint.tensors) == {"/w:0", "table", "unused"} and checkpoint.parameters == 19
    assert torch.equal(checkpoint.tensors["/w:0"], torch.from_numpy(rounded(4, 3)))
    assert difference(checkpoint, path, rows=5) <= 1e-6


def test_statistics_of_norms_are_no_parameters(tmp_path: Path) -> None:
    tensors = {name: rounded(4, seed=n, low=0.5) for n, name in enumerate(("scale", "shift", "mean", "variance"))}
    path = made([node("BatchNormalization", ["x", *tensors], ["y"])], tensors, tmp_path / "m.onnx")
    assert load(path).origin["buffers"] == ["mean", "variance"] and load(path).parameters == 8


def test_quantised_weights_are_stored_and_move(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["w8", "scale", "zero"], ["w"], axis=1), node("MatMul", ["x", "w"], ["h"]),
             node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    tensors = {"w8": np.arange(24, dtype=np.int8).reshape(4, 6), "scale": rounded(6, low=0.1),
               "zero": np.arange(6, dtype=np.int8), "v": rounded(6, 3)}
    path = made(nodes, tensors, tmp_path / "m.onnx")
    checkpoint = load(path)
    group, = discover_groups(checkpoint).groups
    assert {(p.tensor, p.axis) for p in group.places} == {("w8", 1), ("scale", 0), ("zero", 0), ("v", 0)}
    assert difference(checkpoint, path) <= 1e-6 and checkpoint.tensors["w8"].dtype is torch.int8


def test_a_tensor_of_one_value_that_exporters_store_once_ties_nothing(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("Mul", ["h", "ones"], ["i"]), node("Relu", ["i"], ["j"]),
             node("MatMul", ["j", "b"], ["k"]), node("Mul", ["k", "ones"], ["l"]), node("Relu", ["l"], ["m"]),
             node("MatMul", ["m", "c"], ["y"])]
    tensors = {"a": rounded(4, 6), "b": rounded(6, 6, seed=1), "c": rounded(6, 3), "ones": np.full(6, 2, np.float32)}
    checkpoint = load(made(nodes, tensors, tmp_path / "m.onnx"))
    assert set(checkpoint.tensors) == {"a", "b", "c"}
    assert [group.size for group in discover_groups(checkpoint).groups] == [6, 6]


def test_one_initialiser_read_twice_is_one_tensor(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], ["a"]), node("Tanh", ["a"], ["b"]),
             node("Gemm", ["b", "w"], ["y"], transB=1)]
    path = made(nodes, {"w": rounded(4, 6)}, tmp_path / "m.onnx")
    checkpoint = load(path)
    assert list(checkpoint.tensors) == ["w"] and difference(checkpoint, path) <= 1e-6
    assert [(group.size, {place.axis for place in group.places}) for group in discover_groups(checkpoint).groups] == [(6, {1})]


def test_initialisers_that_are_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    path = made([node("MatMul", ["x", "w"], ["y"])], {"w": rounded(4, 3)}, tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    onnx.save(model, path)
    assert [item.name for item in load(path).graph.inputs] == ["x"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions(kind: type, tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    path = made(nodes, {"w": rounded(4, 3).astype(kind)}, tmp_path / "m.onnx",
                kind=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    checkpoint = load(path)
    assert difference(checkpoint, path) <= (1e-15 if kind is np.float64 else 2e-3)


def test_detection_heads_of_several_scales_are_joined(tmp_path: Path) -> None:
    """Boxes [1, positions × anchors, 4] of four scales: the numbers of a box have labels of their own at every position."""
    nodes = [node("Conv", ["x", "stem"], ["s"]), node("Relu", ["s"], ["r"])]
    for i in range(4):
        nodes += [node("Conv", ["r", f"w{i}"], [f"c{i}"], strides=[i + 1, i + 1]),
                  node("Transpose", [f"c{i}"], [f"t{i}"], perm=[0, 2, 3, 1]), node("Reshape", [f"t{i}", "boxes"], [f"b{i}"])]
    nodes.append(node("Concat", [f"b{i}" for i in range(4)], ["y"], axis=1))
    tensors = {f"w{i}": rounded(12, 8, 1, 1, seed=i) for i in range(4)}
    tensors |= {"stem": rounded(8, 3, 1, 1), "boxes": np.int64([1, -1, 4])}
    path = made(nodes, tensors, tmp_path / "m.onnx", inputs={"x": [1, 3, 20, 20]})
    checkpoint = load(path)
    assert difference(checkpoint, path) <= 1e-5
    assert [(g.size, {p.tensor for p in g.places}) for g in discover_groups(checkpoint).groups] == [
        (8, {"stem", "w0", "w1", "w2", "w3"})]


# --- sizes --------------------------------------------------------------------------------------------------------------

def test_names_and_sizes_of_the_file_are_kept_where_they_can_be(tmp_path: Path) -> None:
    nodes, sizes = [node("Add", ["X:0", "input.2"], ["a"]), node("MatMul", ["a", "w"], ["y"])], ["rows", "time", 4]
    path = made(nodes, {"w": rounded(4, 3)}, tmp_path / "m.onnx", inputs={"X:0": sizes, "input.2": sizes})
    checkpoint = load(path)
    assert [(item.name, list(item.shape)) for item in checkpoint.graph.inputs] == [("x_0", sizes), ("input_2", sizes)]
    assert checkpoint.origin["inputs"] == {"x_0": "X:0", "input_2": "input.2"} and checkpoint.origin["notes"] == []


def test_shapes_worked_out_in_the_graph_follow_the_input(tmp_path: Path) -> None:
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "one"], ["time"]), node("Gather", ["s", "zero"], ["rows"]),
             node("Mul", ["rows", "time"], ["all"]), node("Unsqueeze", ["all", "axes"], ["flat"]),
             node("Concat", ["flat", "four"], ["to"], axis=0), node("Reshape", ["x", "to"], ["b"]),
             node("MatMul", ["b", "w"], ["c"]), node("Concat", ["rest", "flat"], ["back"], axis=0),
             node("Reshape", ["c", "back"], ["y"])]
    tensors = {"one": np.int64(1), "zero": np.int64(0), "axes": np.int64([0]), "four": np.int64([4]), "rest": np.int64([-1]),
               "w": rounded(4, 3)}
    path = made(nodes, tensors, tmp_path / "m.onnx", inputs={"x": ["rows", "time", 4]})
    checkpoint = load(path)
    x = torch.randn(3, 5, 4)
    a, = run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, {"x": x})
    assert relative(a.numpy(), ort(path, {"x": x.numpy()})[0]) <= 1e-6 and a.shape == (3, 15)


def test_a_size_that_the_graph_fixes_is_said_aloud(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "positions"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    tensors = {"w": rounded(4, 3), "positions": rounded(8, 4)}
    checkpoint = load(made(nodes, tensors, tmp_path / "m.onnx", inputs={"x": ["rows", "time", 4]}))
    assert checkpoint.graph.inputs[0].shape == ("rows", 8, 4)
    assert checkpoint.origin["notes"] == ["Axis 1 (time) of input 'x' is read as 8 positions: the graph could not be traced "
                                          "with another size."]


def test_images_of_unknown_size_get_one_that_fits(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], strides=[8, 8]), node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3])]
    path = made(nodes, {"w": rounded(4, 3, 5, 5)}, tmp_path / "m.onnx", inputs={"x": ["n", 3, "height", "width"]})
    checkpoint = load(path)
    assert checkpoint.origin["samples"]["x"]["shape"] == [2, 3, 32, 32] and difference(checkpoint, path) <= 1e-5


# --- packages -----------------------------------------------------------------------------------------------------------

def test_a_zip_with_data_files(tmp_path: Path) -> None:
    path = save_onnx(mlp((16, 24, 5)), torch.randn(2, 16), tmp_path / "model.onnx", dynamo=True, external=True)
    whole = load(save_onnx(mlp((16, 24, 5)), torch.randn(2, 16), tmp_path / "one.onnx", dynamo=True))
    data = tmp_path / "model.onnx.data"
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (path, data):
            archive.write(file, f"model/{file.name}")
    packed = load(tmp_path / "m.zip")
    assert data.stat().st_size > 0 and packed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(packed.tensors[key], whole.tensors[key]) for key in whole.tensors)
    assert describe(tmp_path / "m.zip") == describe(path) == "an ONNX model"


def test_two_initialisers_over_the_same_bytes_are_one_tensor(tmp_path: Path) -> None:
    path = made([node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])],
                {"a": rounded(4, 4), "b": rounded(4, 4)}, tmp_path / "m.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "folder").mkdir()
    onnx.save(model, tmp_path / "folder" / "m.onnx")
    (tmp_path / "folder" / "w.bin").write_bytes(rounded(4, 4).tobytes())
    checkpoint = load(tmp_path / "folder")
    assert list(checkpoint.tensors) == ["a"] and checkpoint.aliases == {"b": "a"}
    assert difference(checkpoint, tmp_path / "folder" / "m.onnx") <= 1e-6


class ChosenExpert(nn.Module):
    """Every row goes to the experts with the best scores: their matrices are picked by number."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.router(x).softmax(-1).topk(2)
        return (torch.einsum("ri,rkio->rko", x, self.experts[chosen]) * scores[..., None]).sum(1)


def test_experts_that_an_index_picks_stay_free(tmp_path: Path) -> None:
    path = save_onnx(seeded(ChosenExpert, 0), torch.randn(3, 6), tmp_path / "model.onnx", dynamo=True)
    checkpoint = load(path)
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert [group.size for group in symmetry.groups] == [4] and symmetry.certificate.passed
    assert difference(checkpoint, path) <= 1e-5


class RoutedLayers(nn.Module):
    """Each row goes through two layers of the expert that a router chose: both are picked by the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 5, 6))
        self.down = nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.router(x).argmax(-1)
        return (self.down[chosen] @ torch.relu(self.up[chosen] @ x[..., None])).squeeze(-1)


def test_units_of_routed_experts_are_ordered_in_each_by_itself(tmp_path: Path) -> None:
    checkpoint = load(save_onnx(seeded(RoutedLayers, 0), torch.randn(3, 6), tmp_path / "model.onnx", dynamo=True))
    symmetry = prove(checkpoint, discover_groups(checkpoint))
    assert sorted((group.kind, group.size, group.blocks) for group in symmetry.groups if group.proved) == [
        ("experts", 4, 1), ("units in experts", 20, 4)]
