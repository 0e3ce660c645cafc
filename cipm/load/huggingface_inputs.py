"""The inputs a transformers model is traced with, found from its forward's names and the sizes in its configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cipm.load.retrace import Sample

BATCH = ("batch", 1, None)
TOKENS = 8
"""Length of the example sequences; other lengths are allowed for where torch can."""
Samples = dict[str, Sample]
_IMAGE_SIZES = ("image_size", "img_size", "input_size", "crop_size", "image_input_size")
_CHANNELS = ("num_channels", "in_channels", "in_chans", "num_input_channels", "input_channels")
_MELS = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "feature_size", "input_dim")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions")


def candidates(model: Any, dtype: torch.dtype) -> Iterator[Samples]:
    """Yield sets of inputs to try, the fullest first; float inputs have the dtype of the weights."""
    names = list(inspect.signature(model.forward).parameters)
    makers = [(name, maker) for name, maker in _MAKERS.items() if name in names]
    found = {name: maker(model, dtype) for name, maker in makers}
    text = {name: s for name, s in found.items() if name in ("input_ids", "decoder_input_ids")}
    other = {name: s for name, s in found.items() if name not in text}
    if model.config.is_encoder_decoder is False and not _is_seq2seq(model):
        text.pop("decoder_input_ids", None)
    required = {name: s for name, s in other.items() if _required(model, name)}
    main = {name: s for name, s in other.items() if name == model.main_input_name}
    target = {name: s for name, s in text.items() if name == "decoder_input_ids"}
    mask = {"attention_mask": text["input_ids"]} if "input_ids" in text and "attention_mask" in names else {}
    seen: list[Samples] = []
    for samples in (_series(model, dtype, names), main and main | target, text | required, text | other, other,
                    mask and text | required | mask):
        if samples and samples not in seen:
            seen.append(samples)
            yield samples


def fewer_sizes(samples: Samples) -> Iterator[Samples]:
    """Yield the samples with all sizes free that may vary, then the batch alone, then none, then one row."""
    yield samples
    batch = {name: replace(s, dynamic={0: s.dynamic[0]} if 0 in s.dynamic else {}) for name, s in samples.items()}
    if batch != samples:
        yield batch
    yield {name: replace(s, dynamic={}) for name, s in samples.items()}
    yield {name: replace(s, shape=(1, *s.shape[1:]), dynamic={}) for name, s in samples.items()}


def longer(samples: Samples, whole: Samples, length: int) -> Samples:
    """Return the samples with every axis that may vary in `whole` at least this long, where the model takes so much."""
    def size(name: str, axis: int, now: int) -> int:
        most = whole[name].dynamic.get(axis, (None, 0, now))[2] if axis else now
        return max(now, length if most is None else min(length, most))

    return {name: replace(s, shape=tuple(size(name, *at) for at in enumerate(s.shape))) for name, s in samples.items()}


def of_rows(samples: Samples, rows: Mapping[str, Sequence[int]]) -> Samples:
    """Return the samples with rows of these shapes, of which only the batch may vary."""
    return {name: replace(s, shape=(s.shape[0], *rows[name]), dynamic={axis: b for axis, b in s.dynamic.items() if not axis})
            for name, s in samples.items()}


def _required(model: Any, name: str) -> bool:
    return inspect.signature(model.forward).parameters[name].default is inspect.Parameter.empty


def _is_seq2seq(model: Any) -> bool:
    return "decoder_input_ids" in inspect.signature(model.forward).parameters and _required(model, "decoder_input_ids")


# --- one input ------------------------------------------------------------------------------------------------------

def find(config: Any, names: Sequence[str], default: Any = None, *, first: Sequence[str] = ()) -> Any:
    """Return the first of these values that a configuration or one of its parts has; parts named in `first` come first."""
    parts = [getattr(config, key, None) for key in first]
    parts += [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    for part in filter(None, parts):
        for name in names:
            if (value := getattr(part, name, None)) is not None:
                return value
    return default


def _text(model: Any, dtype: torch.dtype) -> Sample:
    return _tokens(model, "sequence")


def _target(model: Any, dtype: torch.dtype) -> Sample:
    return _tokens(model, "target")


def _tokens(model: Any, name: str) -> Sample:
    longest = find(model.config, _LENGTHS, 2**20, first=("text_config", "decoder", "encoder"))
    longest = longest if isinstance(longest, int) and longest > 0 else 2**20
    length = min(TOKENS, longest)
    return Sample((2, length), torch.int64, {0: BATCH, 1: (name, 1, longest)} if longest > TOKENS else {0: BATCH})


def _image(model: Any, dtype: torch.dtype) -> Sample:
    config, vision = model.config, ("vision_config", "backbone_config", "image_config", "encoder")
    size = find(config, _IMAGE_SIZES, None, first=vision)
    channels = find(config, _CHANNELS, 3, first=vision)
    channels = channels if isinstance(channels, int) else 3
    free = size is None or not _has_positions(model, size)
    size = size if size is not None else 64
    height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    height, width = (n if isinstance(n, int) else n[0] for n in (height, width))
    frames = find(config, ("num_frames", "n_frames"), None, first=vision)
    if frames is not None and "Video" in type(model).__name__ + type(config).__name__ or model.config.model_type in _VIDEO:
        return Sample((2, frames or 8, channels, height, width), dtype, {0: BATCH})
    sizes = {2: ("height", 32, None), 3: ("width", 32, None)} if free else {}
    return Sample((2, channels, height, width), dtype, {0: BATCH, **sizes})


_VIDEO = ("videomae", "vivit", "timesformer", "vjepa2")


def _has_positions(model: Any, size: Any) -> bool:
    """Tell whether the model has a table of positions, so that one image size is the only one."""
    return not any(word in type(model).__name__ for word in ("ResNet", "RegNet", "ConvNext"))


def _wave(model: Any, dtype: torch.dtype) -> Sample:
    config = model.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if kernels and strides:
        length = TOKENS
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            length = (length - 1) * stride + kernel
        return Sample((2, length + 16), dtype, {0: BATCH, 1: ("samples", length // 2, None)})
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return Sample((2, config.max_length, config.num_mel_bins), dtype, {0: BATCH})
    ratios = find(config, ("upsampling_ratios", "upsampling_rates", "downsampling_ratios"), None)
    if ratios is None:
        return Sample((2, 4096), dtype, {0: BATCH})
    return Sample((2, find(config, ("audio_channels",), 1), math.prod(ratios) * TOKENS), dtype, {0: BATCH})


def _features(model: Any, dtype: torch.dtype) -> Sample:
    config, audio = model.config, ("audio_config",)
    mels = find(config, _MELS, 80, first=audio)
    positions = find(config, ("max_source_positions",), None, first=audio)
    spec = find(config, ("spec_size",), None, first=audio)
    if spec is not None:
        return Sample((2, 1, spec * (spec // mels), mels), dtype, {0: BATCH})
    if positions is not None and not hasattr(config, "input_feat_per_channel"):
        return Sample((2, mels, 2 * positions), dtype, {0: BATCH})
    return Sample((2, 4 * TOKENS, mels), dtype, {0: BATCH, 1: ("frames", 16, None)})


def _series(model: Any, dtype: torch.dtype, names: Sequence[str]) -> Samples:
    """Return the inputs of a time-series model."""
    config = model.config
    if "past_values" not in names or not hasattr(config, "context_length"):
        return {}
    past = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
    size = getattr(config, "num_input_channels", None) or getattr(config, "input_size", 1)
    tail = () if getattr(config, "input_size", None) == 1 else (size,)
    values = Sample((2, past, *tail), dtype, {0: BATCH})
    found = {"past_values": values}
    if "past_time_features" in names:
        features = getattr(config, "num_time_features", 0)
        found["past_time_features"] = Sample((2, past, features), dtype, {0: BATCH})
        found["past_observed_mask"] = values
        if "future_time_features" in names:
            length = config.prediction_length
            found["future_values"] = Sample((2, length, *tail), dtype, {0: BATCH})
            found["future_time_features"] = Sample((2, length, features), dtype, {0: BATCH})
    return found


_MAKERS: Mapping[str, Any] = {"input_ids": _text, "decoder_input_ids": _target, "pixel_values": _image, "input_values": _wave,
                              "input_features": _features}
