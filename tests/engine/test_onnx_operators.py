"""Every operator of the list computes what onnxruntime does, in the forms that exporters write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_files import Stored, names, ort, relative, rounded, single, whole

from cipm.load.archive import Source
from cipm.load.onnx.module import OnnxModule
from cipm.load.onnx.plan import make_plan
from cipm.load.onnx.proto import parse, read_model
from cipm.load.onnx.sample import identifiers
from cipm.load.onnx.values import OPERATORS

X, POSITIVE, SMALL = rounded(2, 3, 4), rounded(2, 3, 4, low=0.1), rounded(2, 3, 4, low=-0.9, high=0.9)
PAIRS = rounded(2, 3, 4, 2)
INTEGERS = np.random.default_rng(1).integers(-7, 8, (2, 3, 4))
BOOLS = INTEGERS > 0
IMAGE, VOLUME, SIGNAL = rounded(2, 4, 7, 6), rounded(1, 2, 5, 4, 6), rounded(2, 4, 9)
CHANNEL = [Stored(rounded(4, seed=n, low=0.5)) for n in range(4)]
SIXTEEN = Stored(rounded(16, seed=1)), Stored(rounded(16, seed=2))
RNN = [rounded(5, 2, 3)]


def cell(gates: int, directions: int = 1, bias: bool = True) -> list[Any]:
    """Return time-first inputs of a recurrent node of 4 hidden units."""
    shapes = [(directions, gates * 4, 3), (directions, gates * 4, 4)] + [(directions, 2 * gates * 4)] * bias
    return [rounded(5, 2, 3), *(Stored(rounded(*shape, seed=n)) for n, shape in enumerate(shapes))]


def one(op: str, *operands: Any, **attributes: Any) -> tuple[Any, ...]:
    return op, operands, attributes


PLAIN = ["Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "IsNaN", "Mish", "Neg", "Relu", "Round", "Sigmoid",
         "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Identity", "Cosh", "Sinh", "Tan", "Asinh", "HardSigmoid", "Elu",
        "Celu",
         "Selu", "LeakyRelu", "ThresholdedRelu", "Shrink", "Dropout"]
UNARY = [one(op, X, opset=18 if op == "Mish" else 17) for op in PLAIN] + [
    *(one(op, SMALL) for op in ("Acos", "Asin", "Atanh")), *(one(op, POSITIVE) for op in ("Log", "Reciprocal", "Sqrt")),
    one("Acosh", POSITIVE + 1), one("Not", BOOLS), one("BitwiseNot", INTEGERS, opset=18),
    one("IsInf", np.float32([1, np.inf, -np.inf])),
    one("IsInf", np.float32([1, np.inf, -np.inf]), detect_negative=0),
    one("IsInf", np.float32([np.inf, -np.inf]), detect_positive=0),
    one("Gelu", X, opset=20), one("Gelu", X, opset=20, approximate="tanh"), one("Elu", X, alpha=0.5), one("Celu", X, alpha=2.0),
    one("LeakyRelu", X, alpha=0.3), one("HardSigmoid", X, alpha=0.3, beta=0.4), one("Shrink", X, lambd=0.5, bias=0.25),
    one("Selu", X, alpha=1.2, gamma=0.7), one("Cast", X, to=7), one("Cast", INTEGERS, to=1), one("Cast", X, to=9),
    one("CastLike", X, np.int64([0])), one("PRelu", X, Stored(rounded(3, 1))), one("Clip", X, Stored(np.float32(-1)), None),
    one("Clip", X, Stored(np.float32(-1)), Stored(np.float32(0.5))), one("Clip", X, opset=10, min=-0.5, max=1.0),
    one("Clip", X),
    one("Clip", X, np.float32(-1), Stored(np.float32(0.5))),
]
BINARY = [one(op, X, rounded(3, 1, seed=5)) for op in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "Less", "GreaterOrEqual",
                                                        "LessOrEqual", "Max", "Min", "Sum", "Mean")] + [
    *(one(op, Stored(np.float32(2)), X) for op in ("Add", "Sub", "Mul", "Div", "Max")),
    *(one(op, X, Stored(np.float32([[3.0]]))) for op in ("Add", "Sub", "Mul", "Div", "Less")),
    *(one(op, BOOLS, BOOLS[:, ::-1].copy()) for op in ("And", "Or", "Xor")),
    *(one(op, INTEGERS, INTEGERS[::-1].copy(), opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    one("BitShift", np.uint8([1, 2, 200]), np.uint8([1, 3, 2]), direction="LEFT"),
    one("BitShift", np.uint8([1, 2, 200]), np.uint8([1, 3, 2]), direction="RIGHT"),
    one("Pow", POSITIVE, Stored(np.float32(1.5))), one("Pow", X, Stored(np.float32(2))),
    one("Pow", INTEGERS, Stored(np.float32(2))),
    one("Div", INTEGERS, Stored(np.int64(3))), one("Mod", INTEGERS, Stored(np.int64(3))),
    one("Mod", X, np.float32([1.5]), fmod=1),
    one("Mod", INTEGERS, Stored(np.int64(3)), fmod=1), one("Max", X, X * 2, X + 1), one("Mean", X, X * 2, X + 1),
    one("Where", BOOLS, X, Stored(np.float32(0))), one("Where", BOOLS, X, rounded(4)),
]
REDUCE = [one(op, POSITIVE, axes=[1]) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                                                  "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")] + [
    *(one(op, X, whole(-1, 0), opset=18, keepdims=0) for op in ("ReduceMean", "ReduceMax", "ReduceProd", "ReduceL2")),
    one("ReduceSum", X, whole(1)), one("ReduceSum", X), one("ReduceSum", INTEGERS, whole(0)), one("ReduceMean", X, keepdims=0),
    one("ArgMax", INTEGERS, axis=2), one("ArgMin", INTEGERS, axis=1, keepdims=0),
    one("ArgMax", INTEGERS, axis=2, select_last_index=1),
    *(one("CumSum", X, Stored(np.int64(1)), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    one("DFT", X[..., None]), one("DFT", PAIRS, axis=2), one("DFT", PAIRS, axis=1, inverse=1),
    one("DFT", X[..., None], onesided=1), one("DFT", PAIRS, None, Stored(np.int64(1)), opset=20),
    one("DFT", X[..., None], Stored(np.int64(6)), opset=20),
    one("TopK", X, whole(2), axis=2, outputs=2), one("TopK", X, whole(2), axis=1, largest=0, outputs=2),
    *(one(op, X, axis=a, opset=o) for op in ("Softmax", "LogSoftmax") for a, o in ((-1, 17), (1, 17), (1, 11), (2, 11))),
    one("Hardmax", X, axis=1), one("Hardmax", X, axis=1, opset=11), one("LpNormalization", X, axis=1),
    one("LpNormalization", X, p=1),
    one("GlobalAveragePool", IMAGE), one("GlobalMaxPool", SIGNAL), one("GlobalLpPool", IMAGE), one("Det", rounded(3, 4, 4)),
]
SHAPE = [
    one("Reshape", X, whole(0, -1)), one("Reshape", X, whole(4, 6)), one("Flatten", X), one("Flatten", X, axis=0),
    one("Flatten", X, axis=-1),
    one("Transpose", X), one("Transpose", X, perm=[0, 2, 1]), one("Squeeze", X[:1], whole(0)), one("Squeeze", X[:1]),
    one("Squeeze", X[:1], axes=[0], opset=11), one("Unsqueeze", X, whole(0, -1)), one("Unsqueeze", X, axes=[1], opset=11),
    one("Concat", X, X * 2, axis=1), one("Split", X, whole(1, 3), axis=2, outputs=2), one("Split", X, axis=2, outputs=2),
    one("Split", X, axis=1, outputs=2, opset=18, num_outputs=2), one("Split", X, axis=2, outputs=2, opset=11, split=[1, 3]),
    one("Slice", X, whole(1), whole(2**62), whole(1)),
    one("Slice", X, whole(-1, 0), whole(-(2**62), 3), whole(2, 1), whole(-1, 2)),
    one("Slice", X, starts=[0, 1], ends=[1, 3], opset=9), one("Slice", X, starts=[-2], ends=[10**9], axes=[2], opset=9),
    one("Shape", X), one("Shape", X, start=1, end=-1), one("Size", X), one("Expand", X, whole(2, 1, 1, 4)),
    one("Expand", X[:, :1], whole(3, 1)), one("Tile", X, whole(1, 2, 3)), one("ConstantOfShape", whole(2, 30)),
    one("Range", Stored(np.float32(0)), Stored(np.float32(2)), Stored(np.float32(0.5))), one("EyeLike", X[0], k=1),
    one("Trilu", X),
    one("Trilu", X, Stored(np.int64(-1)), upper=0), one("DepthToSpace", IMAGE, blocksize=2),
    one("DepthToSpace", IMAGE, blocksize=2, mode="CRD"),
    one("Col2Im", rounded(2, 12, 4), whole(4, 6), whole(2, 3), strides=[2, 3], opset=18),
    one("Col2Im", rounded(2, 8, 8), whole(4, 5), whole(2, 2), strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 1], opset=18),
    one("SpaceToDepth", IMAGE[:, :, :6], blocksize=2), one("Pad", X, whole(0, 1, 2, 0, 0, 1)),
    one("Pad", X, whole(0, 1, 2, 0, 0, 1), Stored(np.float32(3))), one("Pad", X, pads=[0, 0, 1, 0, 2, 0], value=1.5, opset=10),
    one("Pad", X, whole(0, 1, 2, 0, 2, 3), mode="reflect"), one("Pad", X, whole(0, 1, 2, 0, 4, 6), mode="edge"),
    one("Pad", X, whole(0, 1, 2, 0, 2, 6), mode="wrap", opset=19), one("Pad", X, whole(1, 2), None, whole(-1), opset=18),
    one("Pad", X, whole(0, 0, -1, 0, 0, 0)), one("ReverseSequence", X, whole(3, 3), time_axis=1, batch_axis=0),
]
INDEX = [
    one("Gather", X, Stored(np.int64(-1)), axis=1), one("Gather", X, whole(2, 0, -1), axis=2),
    one("Gather", X, Stored(np.int64([[0, 1], [2, 0]])), axis=1),
    one("Gather", X[0], np.int64([[0, 2], [1, 1]])), one("Gather", X, np.int64([0, 2]), axis=1),
    one("Gather", X[0, 0], np.int64([3, 1])),
    one("GatherElements", X, np.int64([[[0, 1, -1, 2]], [[2, 1, 0, 0]]]), axis=1),
    one("GatherND", X, np.int64([[0, 1], [1, 2]])),
    one("GatherND", X, np.int64([[1], [2]]), batch_dims=1), one("GatherND", X, np.int64([[0, 1, 2], [1, 2, -1]])),
    *(one("ScatterElements", X, np.int64([[[0, 1, 2, 0]], [[2, 1, 0, 0]]]), rounded(2, 1, 4, seed=3), axis=1, opset=18, **extra)
      for extra in ({}, {"reduction": "add"}, {"reduction": "mul"}, {"reduction": "max"}, {"reduction": "min"})),
    one("Scatter", X, np.int64([[[0, 1, 2, 0]], [[2, 1, 0, 0]]]), rounded(2, 1, 4, seed=3), axis=1, opset=9),
    one("ScatterND", X, np.int64([[0, 1], [1, 2]]), rounded(2, 4, seed=3)),
    one("ScatterND", X, np.int64([[0, 1], [0, 1]]), rounded(2, 4, seed=3), reduction="add"),
    one("ScatterND", X, whole([0], [1]), rounded(2, 3, 4, seed=3)), one("ScatterND", X, whole([1]), rounded(1, 3, 4, seed=3)),
    one("ScatterND", X, whole([1], [0]), rounded(2, 3, 4, seed=3)), one("ScatterND", X, whole([-1]), rounded(1, 3, 4, seed=3)),
    one("OneHot", np.int64([0, 2, -1]), Stored(np.int64(4)), np.float32([0, 3])),
    one("OneHot", np.int64([0, 2]), whole(4), np.float32([1, 3]), axis=0),
    one("NonZero", Stored(BOOLS)), one("Compress", X, Stored(np.array([True, False, True])), axis=1),
    one("Compress", X, Stored(np.array([False, True, True]))),
]
LINEAR = [
    one("MatMul", X, rounded(4, 5)), one("MatMul", X, rounded(2, 4, 5)), one("Gemm", X[0], rounded(4, 5), rounded(5)),
    one("Gemm", X[0], rounded(4, 5)),
    one("Gemm", X[0], rounded(5, 4), rounded(5), transB=1),
    one("Gemm", X[0].T.copy(), rounded(5, 4), rounded(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    one("Einsum", X, rounded(2, 4, 3), equation="bij,bjk->bik"), one("Conv", SIGNAL, rounded(6, 4, 3), rounded(6), pads=[1, 2]),
    one("Conv", IMAGE, rounded(6, 4, 3, 3), rounded(6), pads=[1, 1, 1, 1], strides=[2, 1]),
    one("Conv", IMAGE, rounded(6, 2, 3, 3), group=2, dilations=[2, 1]),
    one("Conv", VOLUME, rounded(3, 2, 2, 2, 3)), *(one("Conv", IMAGE, rounded(6, 4, 3, 2), auto_pad=auto, strides=[2, 2])
                                                   for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    one("ConvTranspose", IMAGE, rounded(4, 3, 3, 3), rounded(3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
    one("ConvTranspose", IMAGE, rounded(4, 3, 3, 3), strides=[2, 1], pads=[0, 1, 1, 0]),
    one("ConvTranspose", SIGNAL, rounded(4, 1, 3), group=2, dilations=[2]),
    one("ConvTranspose", IMAGE, rounded(4, 3, 3, 3), strides=[2, 2], output_shape=[14, 13]),
    one("ConvTranspose", IMAGE, rounded(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    one("Attention", rounded(2, 3, 8), rounded(2, 5, 8, seed=1), rounded(2, 5, 8, seed=2), opset=23, q_num_heads=2,
        kv_num_heads=2),
    one("Attention", rounded(2, 4, 3, 8), rounded(2, 2, 5, 8, seed=1), rounded(2, 2, 5, 8, seed=2), rounded(3, 5), opset=23,
        scale=0.3),
    one("Attention", rounded(2, 2, 3, 8), rounded(2, 2, 3, 8, seed=1), rounded(2, 2, 3, 8, seed=2), opset=23, is_causal=1),
    *(one("RotaryEmbedding", rounded(2, 3, 4, 8), rounded(9, size, seed=1), rounded(9, size, seed=2), np.int64([[0, 1, 2, 3],
        [3, 4, 5, 8]]), opset=23, **extra)
      for size, extra in ((4, {}), (4, {"interleaved": 1}), (2, {"rotary_embedding_dim": 4}))),
    one("RotaryEmbedding", rounded(2, 4, 24), rounded(2, 4, 4, seed=1), rounded(2, 4, 4, seed=2), opset=23, num_heads=3),
]
NORM = [
    one("BatchNormalization", IMAGE, *CHANNEL), one("BatchNormalization", SIGNAL, *CHANNEL, epsilon=1e-2),
    one("InstanceNormalization", IMAGE, *CHANNEL[:2]),
    one("LayerNormalization", IMAGE, Stored(rounded(6)), Stored(rounded(6, seed=1))),
    one("LayerNormalization", IMAGE, Stored(rounded(7, 6)), axis=-2, epsilon=1e-3),
    one("LayerNormalization", IMAGE, Stored(rounded(1)), Stored(rounded(6, seed=1))),
    one("GroupNormalization", IMAGE, *CHANNEL[:2], num_groups=2, opset=21),
    one("RMSNormalization", X, Stored(rounded(4)), opset=23),
    one("RMSNormalization", X, Stored(rounded(1)), axis=1, opset=23), one("LRN", IMAGE, size=3, alpha=0.1),
    one("MeanVarianceNormalization", IMAGE),
    one("QuantizeLinear", X, Stored(np.float32(0.02)), Stored(np.uint8(100))),
    one("QuantizeLinear", X, Stored(np.float32([0.02, 0.03, 0.05])), Stored(np.int8([0, 3, -5])), axis=1),
    one("DequantizeLinear", np.int8([[1, -3], [5, 7]]), Stored(np.float32([0.5, 2])), Stored(np.int8([1, 0])), axis=0),
    one("DequantizeLinear", np.uint8([1, 9]), Stored(np.float32(0.5))),
]
SPATIAL = [
    one("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    one("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    one("MaxPool", SIGNAL, kernel_shape=[3], dilations=[2]), one("MaxPool", VOLUME, kernel_shape=[2, 2, 2]),
    one("MaxPool", IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    one("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 1]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    one("AveragePool", SIGNAL, kernel_shape=[4], auto_pad="SAME_LOWER"),
    one("LpPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]), one("LpPool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    one("Upsample", IMAGE, Stored(np.float32([1, 1, 2, 3])), opset=9),
    one("Upsample", IMAGE, Stored(np.float32([1, 1, 2, 2])), mode="linear", opset=9),
    one("Upsample", IMAGE, opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
    one("Resize", IMAGE, Stored(np.float32([1, 1, 2, 2])), opset=10),
    one("GridSample", IMAGE, rounded(2, 3, 3, 2, low=-1.2, high=1.2), mode="bilinear", opset=16),
    one("GridSample", IMAGE, rounded(2, 3, 3, 2, low=-1.2, high=1.2), mode="nearest", padding_mode="border", align_corners=1,
        opset=16),
    *(one("Resize", IMAGE, None, Stored(np.float32([1, 1, *scales])), mode=mode, coordinate_transformation_mode=where, **extra)
      for scales in ((2, 3), (0.6, 1.7)) for mode in ("nearest", "linear", "cubic")
      for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
      for extra in (({"nearest_mode": r} for r in ("floor", "ceil", "round_prefer_floor",
        "round_prefer_ceil")) if mode == "nearest" else ({},))),
    one("Resize", IMAGE, None, None, whole(2, 4, 5, 11), mode="linear"),
    one("Resize", IMAGE, None, None, whole(5, 11), mode="nearest", axes=[2, 3], opset=18),
    one("Resize", SIGNAL, None, None, whole(2, 4, 20), mode="linear", coordinate_transformation_mode="align_corners"),
]
RECURRENT = [
    *(one("LSTM", *cell(4), outputs=3, hidden_size=4, direction=d) for d in ("forward", "reverse")),
    one("LSTM", *cell(4, 2), outputs=3, hidden_size=4, direction="bidirectional"),
    one("LSTM", *cell(4), None, Stored(rounded(1, 2, 4)), Stored(rounded(1, 2, 4, seed=9)), outputs=3, hidden_size=4),
    one("LSTM", *cell(4, bias=False), hidden_size=4),
    *(one("GRU", *cell(3), outputs=2, hidden_size=4, linear_before_reset=1, direction=d) for d in ("forward", "reverse")),
    one("GRU", *cell(3, 2), outputs=2, hidden_size=4, linear_before_reset=1, direction="bidirectional"),
    one("RNN", *cell(1), outputs=2, hidden_size=4),
    one("RNN", *cell(1), outputs=2, hidden_size=4, activations=["Relu"]),
    one("LSTM", *cell(4), Stored(np.int32([5, 5])), hidden_size=4),
]
CASES = [*UNARY, *BINARY, *REDUCE, *SHAPE, *INDEX, *LINEAR, *NORM, *SPATIAL, *RECURRENT]
ELSEWHERE = {"GroupNormalization": 18, "Swish": 24}
"""Operators, or versions of them, that onnxruntime does not have: compared with their definition below."""


def ours(data: bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = read_model(Source(Path("model.onnx"), "", {}), "model.onnx", parse(data, "model.onnx"))
    module = OnnxModule(make_plan(model), identifiers([item.name for item in model.inputs]))
    with torch.no_grad():
        return [value.numpy() for value in module(**{name: torch.from_numpy(value.copy()) for name, value in inputs.items()})]


@pytest.mark.parametrize(("op", "operands", "attributes"), CASES, ids=names(CASES))
def test_operator_is_that_of_onnxruntime(op: str, operands: Any, attributes: Any) -> None:
    data, inputs = single(op, *operands, **attributes)
    for a, b in zip(ours(data, inputs), ort(data, inputs), strict=True):
        assert a.dtype == b.dtype and relative(a, b) <= 1e-5


def test_group_norm_with_a_scale_for_every_group() -> None:
    data, inputs = single("GroupNormalization", IMAGE, Stored(np.float32([2, 3])), Stored(np.float32([1, -1])), num_groups=2,
        opset=18)
    expected = torch.nn.functional.group_norm(torch.from_numpy(IMAGE), 2, torch.tensor([2.0, 2, 3, 3]), torch.tensor([1.0, 1,
        -1, -1]))
    assert relative(ours(data, inputs)[0], expected.numpy()) <= 1e-6


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish(alpha: float) -> None:
    data, inputs = single("Swish", X, alpha=alpha, opset=24)
    assert relative(ours(data, inputs)[0], X / (1 + np.exp(-alpha * X))) <= 1e-6


def test_every_listed_operator_is_compared() -> None:
    assert set(OPERATORS) == {case[0] for case in CASES} | set(ELSEWHERE)
