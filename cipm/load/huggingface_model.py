"""A transformers model without its weights: built on the meta device, its own tables computed, its weights stood in for.

Parameters and stored buffers become fake tensors (shape and dtype, no memory), so that a model of any size can be traced.
Buffers that are not stored (rotary frequencies, masks) are constants of the graph and are computed as from_pretrained does.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from cipm.errors import CipmError, CorruptFile, LimitExceeded
from cipm.load.huggingface_classes import model_class
from cipm.load.huggingface_config import Description, describes_no_model

MAX_PARAMETERS = 2**42
MAX_TABLES = 2**30
"""Most bytes of buffers that are not stored."""
_EXPERTS = ("batched_mm", "eager")


def skeleton(description: Description) -> Any:
    """Return the model on the meta device, tied, in evaluation mode.

    Raises CorruptFile where the values describe no such model, LimitExceeded where it is larger than any that is read.
    """
    config = description.config()
    config.return_dict = True
    cls = model_class(description.kind, description.architecture)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    initialization = importlib.import_module("transformers.initialization")
    _choose_attention(config, cls, "sdpa")
    try:
        with warnings.catch_warnings(), initialization.no_init_weights(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = cls(config).eval()
            model.tie_weights()
    except CipmError:
        raise
    except Exception as error:  # constructors raise what they like where values do not fit each other
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise describes_no_model(lines, description.architecture) from error
    _without_cache(model)
    _check_sizes(model, description.architecture)
    return model


def use_attention(model: Any, name: str) -> bool:
    """Let every part of the model use this attention; return whether that changed anything."""
    changed = False
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "_attn_implementation_internal", None) not in (None, name):
            config._attn_implementation_internal, changed = name, True
    return changed


def stand_in(model: Any, metas: Mapping[str, torch.Tensor]) -> Any:
    """Replace what is stored by fake tensors of the stored dtypes (`metas`, by the model's names); compute the rest.

    What has no entry in `metas` is not stored: sinusoids, rotary frequencies, masks. Raises CorruptFile where it would be
    drawn at random.
    """
    _compute_tables(model, set(metas))
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    made: dict[int, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                key = f"{prefix}.{name}" if prefix else name
                if tensor is not None and tensor.device.type == "meta":
                    table[name] = made.setdefault(id(tensor), _fake(mode, tensor, metas.get(key, tensor).dtype))
                    made[id(table[name])] = table[name]
    return model


def _fake(mode: FakeTensorMode, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with mode:
        fake = torch.empty(tensor.shape, dtype=dtype)
    return torch.nn.Parameter(fake, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else fake


def _choose_attention(config: Any, cls: Any, name: str) -> None:
    config._attn_implementation = name if cls._supports_sdpa else "eager"
    config._experts_implementation = _EXPERTS[0] if cls._can_set_experts_implementation() else None


def _without_cache(model: Any) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config.use_cache = False
            config.return_dict = True


def _check_sizes(model: Any, name: str) -> None:
    count = sum(p.numel() for p in model.parameters())
    if count > MAX_PARAMETERS:
        raise LimitExceeded(f"config.json describes a {name} of {count:,} parameters; at most {MAX_PARAMETERS:,} are read.",
                            where="config.json")
    _check_tables([b for _, b in model.named_non_persistent_buffers()], name)


def _check_tables(tables: Sequence[torch.Tensor], name: str) -> None:
    size = sum(table.numel() * table.itemsize for table in tables)
    if size > MAX_TABLES:
        raise LimitExceeded(f"config.json describes a {name} with {size:,} bytes of tables that are not stored; at most "
                            f"{MAX_TABLES:,} are computed.", where="config.json")


def _compute_tables(model: Any, stored: set[str]) -> None:
    """Compute what is not stored by the model's own initialisation, which leaves everything else alone.

    It is done twice from different seeds: what differs is no table.
    """
    own = [(key, tensor) for tensors in (model.named_parameters, model.named_buffers)
           for key, tensor in tensors(remove_duplicate=False) if key not in stored]
    _check_tables([tensor for _, tensor in own], type(model).__name__)
    first, second = (_initialised(model, own, seed) for seed in (0, 1))
    for key, tensor in first.items():
        if not torch.equal(tensor.nan_to_num(), second[key].nan_to_num()):
            raise CorruptFile(f"The upload lacks tensors of {type(model).__name__} (1): {key}.", where="model.safetensors",
                              fix="Save the model again with save_pretrained.")


def _initialised(model: Any, own: Sequence[tuple[str, torch.Tensor]], seed: int) -> dict[str, torch.Tensor]:
    for module in model.modules():
        module._is_hf_initialized = False
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    made: dict[int, torch.Tensor] = {}
    for key, tensor in own:
        path, _, name = key.rpartition(".")
        owner = model.get_submodule(path)
        table = made.setdefault(id(tensor), torch.zeros(tensor.shape, dtype=tensor.dtype))
        owner._parameters.pop(name, None)
        owner.register_buffer(name, table, persistent=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.initialize_weights()
    return {key: model.get_buffer(key) for key, _ in own}
