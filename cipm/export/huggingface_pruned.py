"""Write a smaller Hugging Face model: new safetensors, and a config.json whose widths say the new shapes.

The classes of transformers have one width for all layers. Which keys of the configuration have to change is searched among
the known ones, until the class built from them has the very shapes of the tensors and, read back, computes the same.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from cipm.errors import CipmError, CorruptFile, UnsupportedModel
from cipm.export.package import copy_files, zip_folder
from cipm.export.pruned_check import OTHERS, difference
from cipm.export.record import NAME
from cipm.load.archive import Source, open_source
from cipm.load.checkpoint import Checkpoint, metas_of
from cipm.load.huggingface import INDEX, read_upload
from cipm.load.huggingface_config import Description, parse_config
from cipm.load.huggingface_layout import lay_out
from cipm.load.huggingface_model import skeleton
from cipm.load.safetensors_file import make_header
from cipm.load.safetensors_file import write as write_safetensors
from cipm.symmetry import TOLERANCE

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim",
          "moe_intermediate_size", "shared_expert_intermediate_size", "num_attention_heads", "n_head", "n_heads", "num_heads",
          "encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads", "num_kv_heads", "num_local_experts",
          "num_experts", "n_routed_experts")
"""Keys of configurations that pruning changes: widths inside layers, and numbers of heads and experts."""
HEAD = "head_dim"
MOST_TRIES = 400
Tensors = Mapping[str, torch.Tensor]


def write(checkpoint: Checkpoint, tensors: Tensors, source: Path, record: str | None, out: Path) -> None:
    """Write the model with its new configuration; a folder stays one unless `out` is called .zip. The weights become one
    file, and what transformers merges as it loads is stored merged.

    Raises UnsupportedModel where no configuration of the class has these widths, or the one that has computes something else.
    """
    upload = open_source(source)
    packed = out.suffix == ".zip" or not source.is_dir()
    apart: float | None = None
    for change in _fitting(checkpoint, upload):
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            base = Path(folder, "model", upload.root)
            _fill(base, upload, checkpoint, tensors, record, change)
            apart = difference(checkpoint, base)
            if apart <= TOLERANCE:
                zip_folder(Path(folder, "model"), out) if packed else Path(folder, "model").rename(out)
                return
    name = checkpoint.origin["architecture"]
    raise UnsupportedModel(
        f"The pruned model is no {name} of transformers: " + (
            f"{name} with these widths computes something else (its outputs differ by {apart:.1e})." if apart is not None
            else f"its config.json has one width for all layers, and {_misfit(checkpoint, upload)}"),
        where="config.json", fix=OTHERS)


def _fitting(checkpoint: Checkpoint, upload: Source) -> Iterator[dict[str, int]]:
    """Yield changes of the configuration with which the class has the shapes of the tensors, fewest keys first."""
    description, metas = parse_config(upload.json("config.json", 2**20)), _with_aliases(checkpoint)
    for change in itertools.islice(_changes(checkpoint, upload, description), MOST_TRIES):
        if _fits(description, change, metas):
            yield change


def _changes(checkpoint: Checkpoint, upload: Source, description: Description) -> Iterator[dict[str, int]]:
    """Yield changes by the shares that axes keep of their lengths."""
    before = read_upload(upload).layout.metas
    shares = {Fraction(new, old) for key, tensor in metas_of(checkpoint.tensors).items() if key in before
              for new, old in zip(tensor.shape, before[key].shape, strict=True) if new != old}
    config = description.config()
    options = {key: [int(value * share) for share in sorted(shares) if (value * share).denominator == 1 and value * share >= 1]
               for key in WIDTHS if (value := _value(config, key)) is not None}
    named = [key for key, found in options.items() if found]
    head = getattr(config, HEAD, None)
    fixed = {HEAD: head} if type(head) is int else {}
    for count in range(1, len(named) + 1):
        for keys in itertools.combinations(named, count):
            for values in itertools.product(*(options[key] for key in keys)):
                change = dict(zip(keys, values, strict=True))
                yield change | (fixed if any("head" in key for key in keys) else {})


def _value(config: Any, key: str) -> int | None:
    """Return a width of a configuration; GPT-2's n_inner is four times its width where it is not said."""
    value = getattr(config, key, None)
    if value is None and key == "n_inner" and hasattr(config, "n_embd"):
        return 4 * config.n_embd
    return value if type(value) is int else None


def _fits(description: Description, change: Mapping[str, int], metas: Tensors) -> bool:
    try:
        lay_out(skeleton(replace(description, values=description.values | change)), metas, description.architecture)
    except CipmError:
        return False
    return True


def _misfit(checkpoint: Checkpoint, upload: Source) -> str:
    """Return in words which tensors do not fit the configuration as it is."""
    description = parse_config(upload.json("config.json", 2**20))
    try:
        lay_out(skeleton(description), _with_aliases(checkpoint), description.architecture)
    except CorruptFile as error:
        return f"no change of it fits: {error.message}"
    return "it already fits."


def _with_aliases(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    metas = dict(metas_of(checkpoint.tensors))
    return metas | {alias: metas[key] for alias, key in checkpoint.aliases.items()}


def _fill(base: Path, upload: Source, checkpoint: Checkpoint, tensors: Tensors, record: str | None,
          change: Mapping[str, int]) -> None:
    base.mkdir(parents=True)
    get = lambda key: tensors[checkpoint.aliases.get(key, key)].contiguous()  # noqa: E731
    write_safetensors(base / "model.safetensors", make_header(_with_aliases(checkpoint), {"format": "pt"}), get)
    copy_files(upload, base, written={"config.json", INDEX})
    config = upload.json("config.json", 2**20)
    (base / "config.json").write_text(json.dumps(config | change, indent=2) + "\n")
    if record is not None:
        (base / NAME).write_text(record)
