"""What a Hugging Face config.json may say: a bounded schema of our own for every model type on the list.

Only the keys below reach transformers. Keys that would load code or other repositories are refused; keys that do not
change the function of the model in evaluation mode are left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cipm.errors import CorruptFile, RefusedFormat, UnsupportedModel

Width = Annotated[int, Field(ge=1, le=262_144)]
Count = Annotated[int, Field(ge=1, le=512)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Vocabulary = Annotated[int, Field(ge=1, le=4_000_000)]
Positions = Annotated[int, Field(ge=1, le=16_777_216)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Token = Annotated[int, Field(ge=-1, le=4_000_000)] | None
Positive = Annotated[float, Field(gt=0, le=1e12)]
Activation = Literal["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "quick_gelu", "relu", "relu2",
                     "relu6", "silu", "swish", "tanh", "sigmoid", "mish", "linear", "leaky_relu"]
NOT_CARRIED = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache",
               "initializer_range", "initializer_factor", "bos_token_id", "eos_token_id", "sep_token_id", "label2id",
               "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attn_pdrop", "embd_pdrop",
               "resid_pdrop", "attention_dropout", "gradient_checkpointing", "id2label", "problem_type", "pretraining_tp",
               "out_features", "out_indices", "stage_names", "task_specific_params", "encoder_stride", "use_bfloat16",
               "output_attentions", "output_hidden_states", "output_past", "directionality", "finetuning_task",
               "return_dict", "torchscript", "pruned_heads", "summary_activation", "summary_first_dropout",
               "summary_proj_to_labels", "summary_type", "summary_use_proj", "n_ctx", "_attn_implementation",
               "is_encoder_decoder", "chunk_size_feed_forward", "predict_special_tokens")


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=False, protected_namespaces=())

    num_labels: int = Field(2, ge=1, le=1_000_000)


class _Text(_Config):
    vocab_size: Vocabulary
    pad_token_id: Token = None
    tie_word_embeddings: bool = True
    add_cross_attention: Literal[False] = False
    is_decoder: Literal[False] = False


class Bert(_Text):
    hidden_size: Width = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    max_position_embeddings: Positions = 512
    type_vocab_size: Annotated[int, Field(ge=1, le=65_536)] = 2
    layer_norm_eps: Epsilon = 1e-12
    position_embedding_type: Literal["absolute", None] = "absolute"


class Gpt2(_Text):
    n_positions: Positions = 1024
    n_embd: Width = 768
    n_layer: Count = 12
    n_head: Heads = 12
    n_inner: Width | None = None
    activation_function: Activation = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: Literal[False] = False


class Rope(BaseModel):
    """The rotary embedding, with the scalings that are plain arithmetic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: Positive = 10_000.0
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None


class Llama(_Text):
    hidden_size: Width = 4096
    num_hidden_layers: Count = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = None
    head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    intermediate_size: Width = 11_008
    hidden_act: Activation = "silu"
    max_position_embeddings: Positions = 2048
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: Rope = Rope()


class Vit(_Config):
    hidden_size: Width = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    image_size: Pixels | tuple[Pixels, Pixels] = 224
    patch_size: Pixels | tuple[Pixels, Pixels] = 16
    num_channels: Annotated[int, Field(ge=1, le=4096)] = 3
    qkv_bias: bool = True
    pooler_output_size: Width | None = None
    pooler_act: Activation = "tanh"


class Resnet(_Config):
    num_channels: Annotated[int, Field(ge=1, le=4096)] = 3
    embedding_size: Width = 64
    hidden_sizes: Annotated[list[Width], Field(min_length=1, max_length=32)] = [256, 512, 1024, 2048]
    depths: Annotated[list[Count], Field(min_length=1, max_length=32)] = [3, 4, 6, 3]
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Activation = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


SCHEMAS: dict[str, type[_Config]] = {"bert": Bert, "gpt2": Gpt2, "llama": Llama, "vit": Vit, "resnet": Resnet}
CLASSES: dict[str, tuple[str, ...]] = {
    "bert": ("BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForTokenClassification",
             "BertForQuestionAnswering", "BertForPreTraining", "BertForNextSentencePrediction"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel", "GPT2ForTokenClassification", "GPT2ForSequenceClassification"),
    "llama": ("LlamaModel", "LlamaForCausalLM", "LlamaForTokenClassification", "LlamaForSequenceClassification"),
    "vit": ("ViTModel", "ViTForImageClassification"),
    "resnet": ("ResNetModel", "ResNetForImageClassification"),
}


def parse_config(payload: Any) -> tuple[str, str, dict[str, Any], list[str]]:
    """Return (model type, class name, values for the transformers config, notes) of a parsed config.json.

    Raises UnsupportedModel for a type or class off the list, RefusedFormat where it asks for code or quantised
    weights, CorruptFile naming the key whose value is out of bounds.
    """
    if not isinstance(payload, dict):
        raise CorruptFile("config.json is not a JSON object.", where="config.json")
    kind = _model_type(payload)
    name, notes = _class_name(payload, kind)
    values = dict(payload)
    if isinstance(values.get("id2label"), dict):
        values["num_labels"] = len(values["id2label"])
    if kind == "llama":
        values["rope_parameters"] = _rope(values)
    try:
        config = SCHEMAS[kind](**{key: value for key, value in values.items() if key in SCHEMAS[kind].model_fields})
    except (ValidationError, TypeError) as error:
        raise _out_of_bounds(error) from error
    dropped = sorted(set(payload) - set(SCHEMAS[kind].model_fields) - set(NOT_CARRIED) - {"rope_theta", "rope_scaling"})
    if dropped:
        notes.append(f"Keys of config.json that are not used: {', '.join(key[:60] for key in dropped[:20])}.")
    return kind, name, config.model_dump(exclude_none=True), notes


def _model_type(payload: dict[str, Any]) -> str:
    kind = payload.get("model_type")
    if payload.get("auto_map"):
        raise RefusedFormat("config.json asks for code of its own (auto_map), which is never run here.", where="auto_map",
                            fix="Upload a model of a standard type, or a .pt2 file of torch.export.save.")
    if not isinstance(kind, str) or kind not in SCHEMAS:
        raise UnsupportedModel(f"config.json names the model type {str(kind)[:60]!r}; the types read here are "
                               f"{', '.join(SCHEMAS)}.", where="model_type",
                               fix="Export the model with torch.export and upload the .pt2 file.")
    if payload.get("quantization_config"):
        raise UnsupportedModel("config.json describes quantised weights, which are not read here.",
                               where="quantization_config", fix="Upload the model before quantisation.")
    return kind


def _class_name(payload: dict[str, Any], kind: str) -> tuple[str, list[str]]:
    names = payload.get("architectures")
    if not names:
        return CLASSES[kind][0], [f"config.json names no architecture: {CLASSES[kind][0]} is used."]
    name = names[0] if isinstance(names, list) else names
    if name not in CLASSES[kind]:
        raise UnsupportedModel(f"config.json names the architecture {str(name)[:80]!r}; for {kind} these are read: "
                               f"{', '.join(CLASSES[kind])}.", where="architectures",
                               fix="Export the model with torch.export and upload the .pt2 file.")
    return str(name), []


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters from the present form (rope_parameters) or the older (rope_theta, rope_scaling)."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise CorruptFile("Key 'rope_parameters' of config.json is not an object.", where="rope_parameters")
    rope = {("rope_type" if key == "type" else key): value for key, value in given.items()}
    if "rope_theta" not in rope and "rope_theta" in values:
        rope["rope_theta"] = values["rope_theta"]
    return rope


def _out_of_bounds(error: ValidationError | TypeError) -> CorruptFile:
    if isinstance(error, TypeError):
        return CorruptFile("config.json has a key that is not text.", where="config.json")
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return CorruptFile(f"config.json lacks the key {name!r}.", where=name, fix="Save it again with save_pretrained.")
    return CorruptFile(f"Key {name!r} of config.json cannot be {str(first['input'])[:60]}: {first['msg'].lower()}.",
                       where=name, fix="Correct the value, or export the model with torch.export and upload the .pt2 file.")
