"""The bounded schema of a Hugging Face configuration, derived from the installed configuration class.

What a config.json may say is what the fields of that class (and of its nested configurations) declare. Numbers have bounds
by the word in their name, strings come from a list of words, and whatever names code, files or other models is refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from cipm.errors import CorruptFile, LimitExceeded, RefusedFormat, UnsupportedModel
from cipm.load.huggingface_classes import EXPORT, config_types

FIX = "Correct the value, or export the model with torch.export and upload the .pt2 file."
MAX_DEPTH, MAX_ITEMS, MAX_KEY, MAX_LABELS = 6, 4096, 64, 1_000_000
MAX_FLOAT = 1e12

BOUNDS: tuple[tuple[re.Pattern[str], int], ...] = tuple((re.compile(pattern), bound) for pattern, bound in (
    (r"theta|base|factor|scal|beta|penalty|_eps", 10**12),
    (r"token_id|token_index|_idx$|_ids?$", 2**31),
    (r"vocab|num_labels|codebook_size|num_embeddings|bucket|n_words|n_langs", 4_000_000),
    (r"position|_len(gth)?$|n_ctx|seq|samples|frames|window|max_.*tokens|chunk|sampling_rate|hop|_fmax", 16_777_216),
    (r"layers?$|depths?$|blocks?$|stages?$|_layers_", 512),
    (r"heads?$|experts?", 4096),
    (r"image_size|input_size|resolution|patch|kernel|stride|dilation|num_channels", 8192),
))
"""The first pattern found in a key says how large its integers may be; WIDTH is for all others."""
WIDTH = 262_144

WORDS = frozenset((
    # activations
    "gelu gelu_10 gelu_fast gelu_new gelu_python gelu_python_tanh gelu_pytorch_tanh gelu_accurate laplace leaky_relu linear "
    "mish quick_gelu relu relu2 relu6 relu_squared sigmoid silu swish tanh prelu xielu hardswish softplus identity swiglu "
    "geglu glu gated-gelu gated-relu gated-silu "
    # kinds of layers
    "full_attention sliding_attention chunked_attention linear_attention window_attention indexed_attention "
    "compressed_sparse_attention heavily_compressed_attention minimax_m3_sparse deepseek_sparse_attention "
    "qwen_sparse_attention reference_sliding_attention conv moe mamba attention hybrid hybrid_sliding sparse dense hash_moe "
    "recurrent local lsh global self cross main compress shared bottleneck basic preactivation x y transient-global "
    # attention and positions
    "absolute relative relative_key relative_key_query relative_shift rotary rope alibi sine sincos learned random "
    "learnable block_sparse original_full divided_space_time joint_space_time space_only factorized prob vanilla bi uni kv "
    "q c2p p2c p2p c2c horizontal vertical all vision multi-head per-head default linear dynamic yarn longrope llama3 su "
    "mrope proportional axial "
    # norms, pooling, merging and the like
    "GN BN LN layer group batchnorm layer_norm layernorm LayerNorm low_precision_layernorm time_group_norm weight_norm "
    "no_norm rms_norm rmsnorm none cls mean max min sum average avg avg_pool max_pool use_last first last cls_index attn "
    "late bos eos add ignore project interpolate scaled_add dw_bn same valid constant reflect replicate zeros border "
    "bilinear nearest bicubic pixelshuffle pixelshuffle_aux pixelshuffledirect nearest+conv 1conv 3conv large small lite "
    "full default auto common_channel mix_channel channel_map mse nll mae std ratio softmax sigmoid sqrtsoftplus softplus "
    "gumbel_argmax st_argmax greedy group_limited_greedy noaux_tc olmo qwen3 single fused float vector ones normal gaussian "
    "student_t negative_binomial forecast cosine dot log chmv2_mixlog hybrid2 normed metric relative forward patch float32 "
    "float16 bfloat16 train train_with_padding inference native native_sequence__native stem chunkwise--native_autograd "
    "parallel--native_autograd MLP_GELU linear_identity mlp sampling 4x 16x torch multihead_attention "
).split())
"""Words that a string of a configuration may be. None of them is a path or the name of a repository."""
_LANGUAGES = {"langs", "languages", "default_language"}
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(_[A-Za-z0-9]{2,4}){0,2}\Z")
_STAGES = {"out_features", "_out_features", "stage_names"}
_STAGE = re.compile(r"(stem|layer|stage|hidden_states_|block)_?\d{0,3}\Z")

SKIPPED = frozenset((
    "architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path use_cache output_attentions "
    "output_hidden_states return_dict id2label label2id num_labels problem_type gradient_checkpointing pruned_heads prefix "
    "attn_implementation _attn_implementation _attn_implementation_autoset _experts_implementation experts_implementation "
    "chunk_size_feed_forward vocab_list vocabulary_map initializer_range initializer_factor init_std _commit_hash "
    "stage_names transformers_weights "
).split())
"""Keys that do not change what the model computes in evaluation mode, or that are read elsewhere: left out in silence."""
_OLDER = frozenset((
    "output_past torchscript task_specific_params finetuning_task directionality use_bfloat16 is_composition tokenizer_class "
    "processor_class predict_special_tokens pretraining_tp loss_type bad_words_ids max_length min_length do_sample num_beams "
    "num_return_sequences early_stopping temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size num_beam_groups diversity_penalty forced_bos_token_id "
    "forced_eos_token_id suppress_tokens begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values "
    "return_dict_in_generate output_scores tf_legacy_loss cross_attention_hidden_size tie_encoder_decoder n_ctx "
    "forced_decoder_ids sep_token_id decoder_start_token_id bos_token_id eos_token_id summary_activation "
    "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj gradient_checkpointing "
    "is_decoder add_cross_attention "
).split())
"""The same, for classes that do not declare them: generation and training of earlier releases."""
_CODE = {"auto_map": "code of its own (auto_map)", "custom_pipelines": "code of its own (custom_pipelines)"}
_OTHER_MODELS = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs", "text_encoder",
                 "vision_model_name", "pretrained_backbone", "index_path", "passages_path", "dataset", "model_args",
                 "architecture")


def bounded(cls: Any, payload: Mapping[str, Any], where: str = "", depth: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Return (values that the configuration class may be given, keys that are left out) of a parsed config.json.

    Raises RefusedFormat where it asks for code, UnsupportedModel where it builds on another model or quantised weights,
    CorruptFile naming the key whose value is out of bounds, LimitExceeded where it is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise LimitExceeded(f"config.json is nested more than {MAX_DEPTH} deep.", where=where)
    _refuse(cls, payload, where)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    known = set(fields) | set(cls.attribute_map) | older_names(cls) | derived_names(cls)
    nested = getattr(cls, "sub_configs_defaults", {})
    values: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in payload.items():
        name = f"{where}.{key}" if where else key
        if not _key_is_plain(key) or key not in known:
            dropped += [] if key in SKIPPED | _OLDER else [name]
        elif key in SKIPPED:
            continue
        elif key in nested and isinstance(value, Mapping):
            values[key], more = nested_values(nested[key], value, name, depth)
            dropped += more
        elif value is not None or key in fields:
            field = fields.get(key)
            own = _is_default(field, value)
            values[key] = value if own else _value(key, value, name, depth, str(field.type if field else ""))
    labels = _labels(payload, where)
    if labels is not None:
        values["num_labels"] = labels
    return values, dropped


def nested_values(spec: Any, payload: Mapping[str, Any], where: str, depth: int) -> tuple[dict[str, Any], list[str]]:
    """Return (values, left out) of a nested configuration; its class is fixed, or one of the installed types by name."""
    cls, given = spec.config_class, payload.get("model_type") or spec.model_type
    if not dataclasses.is_dataclass(cls) or where.endswith("backbone_config"):
        if not isinstance(given, str) or given not in config_types() or given.startswith("timm"):
            raise UnsupportedModel(f"{where!r} of config.json names the model type {str(given)[:60]!r}, which is not read "
                                   "here.", where=where, fix=EXPORT)
        cls = spec.get_config_class(given)
    values, dropped = bounded(cls, payload, where, depth + 1)
    return {**values, "model_type": given} if "model_type" in payload else values, dropped


def older_names(cls: Any) -> set[str]:
    """Return the names of earlier releases that the class and its parents read themselves."""
    found: set[str] = {"rope_theta", "rope_scaling", "partial_rotary_factor"} if "rope_parameters" in _names(cls) else set()
    for base in cls.__mro__:
        function = base.__dict__.get("__post_init__")
        if function is None or base.__name__ == "PreTrainedConfig":
            continue
        code = getattr(function, "__wrapped__", function).__code__
        found |= {word for word in code.co_consts if isinstance(word, str) and word.isidentifier()}
    return found - set(WORDS)


@cache
def derived_names(cls: Any) -> frozenset[str]:
    """Return what the class computes beside its fields (a head's width, a count of layers), which its files repeat."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return frozenset(key for key in vars(cls()) if not key.startswith("_"))
    except Exception:  # some classes cannot be made from their defaults alone
        return frozenset()


def largest(key: str) -> int:
    """Return the largest integer that a key of this name may have."""
    return next((bound for pattern, bound in BOUNDS if pattern.search(key)), WIDTH)


def _refuse(cls: Any, payload: Mapping[str, Any], where: str) -> None:
    for key, what in _CODE.items():
        if payload.get(key):
            raise RefusedFormat(f"config.json asks for {what}, which is never run here.", where=key,
                                fix="Upload a model of a standard type, or a .pt2 file of torch.export.save.")
    if payload.get("quantization_config"):
        raise UnsupportedModel("config.json describes quantised weights, which are not read here.",
                               where="quantization_config", fix="Upload the model before quantisation.")
    if payload.get("per_layer_config"):
        raise UnsupportedModel("Key 'per_layer_config' of config.json gives single layers sizes of their own, which is not "
                               "read here.", where="per_layer_config", fix=EXPORT)
    for key in _OTHER_MODELS:
        value = payload.get(key)
        if value and not (key == "dataset" and "dataset" not in _names(cls)):
            raise UnsupportedModel(f"Key {key!r} of config.json builds on another model or file ({str(value)[:60]}), which is "
                                   "not fetched here.", where=f"{where}.{key}" if where else key, fix=EXPORT)


def _value(key: str, value: Any, name: str, depth: int, annotation: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        limit = max(largest(key), 10**12 if "float" in annotation else 0)
        if abs(value) > limit:
            raise _wrong(name, value, f"input should be less than or equal to {limit}" if value > 0 else
                         f"input should be greater than or equal to {-limit}")
        return value
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > MAX_FLOAT:
            raise _wrong(name, value, f"input should be a finite number up to {MAX_FLOAT:g}")
        return value
    if isinstance(value, str):
        return _word(key, value, name)
    if depth >= MAX_DEPTH:
        raise LimitExceeded(f"config.json is nested more than {MAX_DEPTH} deep.", where=name)
    if len(value) > MAX_ITEMS:
        raise LimitExceeded(f"Key {name!r} of config.json has {len(value):,} items; at most {MAX_ITEMS:,} are read.",
                            where=name)
    if value == {"__float__": "Infinity"}:  # how transformers writes an open bound
        return math.inf
    if isinstance(value, list):
        return [_value(key, item, f"{name}.{i}", depth + 1, annotation) for i, item in enumerate(value)]
    return _mapping(value, name, depth)


def _mapping(value: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    bad = next((key for key in value if not _key_is_plain(key)), None)
    if bad is not None:
        raise _wrong(name, bad, "its keys should be plain words")
    _refuse(None, value, name)
    return {key: _value(key, item, f"{name}.{key}", depth + 1, "") for key, item in value.items() if key not in SKIPPED}


def _word(key: str, value: str, name: str) -> str:
    known = (value in WORDS or key in _LANGUAGES and _LANGUAGE.match(value) or key in _STAGES and _STAGE.match(value)
             or key.endswith("pattern") and re.fullmatch(r"[A-Z*EM\-|]{1,512}", value))
    if not known:
        raise _wrong(name, repr(value)[:60], "it is not a word that is known here")
    return value


def _labels(payload: Mapping[str, Any], where: str) -> int | None:
    labels = payload.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) and labels else payload.get("num_labels")
    if count is None:
        return None
    if type(count) is not int or not 1 <= count <= MAX_LABELS:
        raise _wrong(f"{where}.num_labels" if where else "num_labels", count, f"it should be from 1 to {MAX_LABELS}")
    return count


def _key_is_plain(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= MAX_KEY and key.isidentifier() and not key.startswith("__")


def _is_default(field: Any, value: Any) -> bool:
    """Tell whether a string is what the installed class itself has for this key, as its default or among its literals."""
    if field is None or not isinstance(value, str):
        return False
    literals = " ".join(re.findall(r"Literal\[([^\]]*)\]", str(field.type)))
    return value == field.default or value in re.findall(r"'([^']*)'", literals)


def _names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)} if cls is not None else set()


def _wrong(name: str, value: Any, why: str) -> CorruptFile:
    return CorruptFile(f"Key {name!r} of config.json cannot be {str(value)[:60]}: {why}.", where=name, fix=FIX)
