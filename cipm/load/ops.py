"""Which operators an uploaded graph may call: ATen without side effects, and integer arithmetic on sizes.

An operator outside this list is refused by name. Refused inside ATen: everything that reads files, touches devices or
other libraries' state, changes storage, draws random numbers, or computes gradients.
"""

from __future__ import annotations

import re
from functools import cache

import torch

from cipm.errors import UnsupportedModel

_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]{1,80})\.([A-Za-z0-9_]{1,80})\Z")
_PYTHON = frozenset(
    [f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "eq", "ne",
                                      "le", "ge", "lt", "gt", "and_", "or_", "getitem")]
    + ["math.trunc", "math.ceil", "math.floor", "torch.sym_max", "torch.sym_min", "torch.sym_float", "torch.sym_int",
       "torch.sym_not", "torch.sym_sqrt", "torch.sym_ite"])
_CHECKS = re.compile(r"(_assert_async|_assert_scalar|_assert_tensor_metadata|_functional_assert_\w+|sym_constrain_range"
                     r"(_for_size)?|_functional_sym_constrain_\w+|_check_is_size)\Z")
_DENIED = re.compile(
    r"(from_file|cudnn_|miopen_|mkldnn_|mps_|fbgemm_|sparse|quantize|quantized|dequantize|q_|int_repr|to_mkldnn|to_sparse|"
    r"to_dense|to_padded_tensor|set_|set\Z|set_data|resize|record_stream|retain_grad|retains_grad|requires_grad_|"
    r"pin_memory|is_pinned|get_gradients|rename|align_|refine_names|unflatten_dense|flatten_dense|nonzero_numpy|qscheme|"
    r"lstm_mps|output_nr|is_leaf|can_cast|promote_types|result_type|data\Z|hspmm|sspaddmm|copy_sparse)|.*_backward")
_PRIVATE = frozenset({
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "_addmm_activation", "_cdist_forward", "_conj", "_conj_physical", "_convolution", "_embedding_bag",
    "_embedding_bag_forward_only", "_euclidean_dist", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_fused_rms_norm",
    "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd", "_log_softmax",
    "_logcumsumexp", "_masked_softmax", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_neg_view",
    "_pdist_forward",
    "_prelu_kernel", "_reshape_alias", "_safe_softmax", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_stack", "_to_copy", "_trilinear", "_unsafe_index",
    "_unsafe_masked_index", "_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm",
    "_weight_norm_interface", "_shape_as_tensor", "_transform_bias_rescale_qkv", "_pad_circular", "_pad_enum",
    "_convolution_mode", "_batch_norm_no_update", "_dim_arange",
})
_SEEDED = frozenset({  # tagged as random, but not in evaluation mode
    "scaled_dot_product_attention", "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout",
    "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "native_dropout", "rrelu", "rrelu_", "lstm",
    "gru", "rnn_tanh", "rnn_relu", "_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
})
TRAINING_FLAGS = {"train", "training"}


@cache
def op_name(target: str) -> str | None:
    """Return the graph's name of a serialised target (`aten.linear.default`), or None for a mere assertion.

    Raises UnsupportedModel naming the operator where it is not on the list.
    """
    if target in _PYTHON:
        return "getitem" if target == "_operator.getitem" else target
    match = _TARGET.match(target)
    if match is None:
        raise refusal(target)
    name, overload = match.groups()
    if _CHECKS.match(name):
        return None
    if not _allowed(name, overload):
        raise refusal(target)
    return f"aten.{name}.{overload}"


def refusal(target: str) -> UnsupportedModel:
    """Return the error that names an operator we do not run."""
    label = target.removeprefix("torch.ops.")[:120]
    fix = "Rewrite that layer with standard PyTorch operators and export the model again."
    if label.startswith("transformers."):
        fix = "Call model.set_experts_implementation('batched_mm') and export again, or upload its Hugging Face folder."
    return UnsupportedModel(f"The model uses the operator {label!r}, which is not among the plain ATen operators that "
                            "CIPM runs.", where=label, fix=fix)


def _allowed(name: str, overload: str) -> bool:
    if _DENIED.match(name) or (name.startswith("_") and name not in _PRIVATE):
        return False
    qualified = f"aten::{name}" if overload == "default" else f"aten::{name}.{overload}"
    if qualified not in _dispatched():
        return False
    op = getattr(getattr(torch.ops.aten, name), overload)
    if op._schema.is_mutable and not _in_place(name, op):
        return False
    if torch.Tag.nondeterministic_seeded in op.tags and name not in _SEEDED:
        raise UnsupportedModel(f"The model draws random numbers ({name}), so its outputs cannot be compared.", where=name,
                               fix="Export it in evaluation mode: model.eval(), and without random operators.")
    return True


def _in_place(name: str, op: torch._ops.OpOverload) -> bool:
    written = [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return name.endswith("_") and written == ["self"] or name == "batch_norm"


@cache
def _dispatched() -> frozenset[str]:
    return frozenset(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
