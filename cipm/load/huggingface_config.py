"""What a Hugging Face config.json may say: a type and a class of the installed transformers, and bounded values.

Only what the schema of `huggingface_values` lets through reaches transformers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cipm.errors import CipmError, CorruptFile, LimitExceeded
from cipm.load.huggingface_classes import class_names, config_class, model_class
from cipm.load.huggingface_values import FIX, bounded

_FIELD = re.compile(r"[Ff]ield '([A-Za-z0-9_]+)'")
MAX_MODULES = 65_536


@dataclass(frozen=True)
class Description:
    """A model as config.json describes it: type, class, values for the configuration class, and what was left out."""

    kind: str
    architecture: str
    values: dict[str, Any]
    notes: tuple[str, ...]

    def config(self) -> Any:
        """Return a configuration of transformers; raises CorruptFile naming the key that it refuses."""
        try:
            config = config_class(self.kind)(**self.values)
        except CipmError:
            raise
        except Exception as error:  # the classes check what they like, and raise what they like
            raise _refused(error, self.architecture) from error
        _check_size(config)
        return config


def parse_config(payload: Any) -> Description:
    """Return the description in a parsed config.json.

    Raises UnsupportedModel for a type or class that the installed transformers does not have, RefusedFormat where it asks
    for code, CorruptFile naming the key whose value is out of bounds.
    """
    if not isinstance(payload, dict):
        raise CorruptFile("config.json is not a JSON object.", where="config.json")
    cls = config_class(payload.get("model_type")) if not payload.get("auto_map") else config_class("bert")
    values, dropped = bounded(cls, payload)
    kind = payload["model_type"]
    name, notes = _class_name(payload, kind)
    model_class(kind, name)
    if dropped:
        listed = ", ".join(str(key)[:60] for key in sorted(map(str, dropped))[:20])
        notes.append(f"Keys of config.json that are not used: {listed}.")
    return Description(kind, name, values, tuple(notes))


def _class_name(payload: dict[str, Any], kind: str) -> tuple[str, list[str]]:
    names = payload.get("architectures")
    if not names:
        first = next(iter(class_names(kind)), "")
        return first, [f"config.json names no architecture: {first} is used."]
    return names[0] if isinstance(names, list) else names, []


def _check_size(config: Any) -> None:
    """Raise LimitExceeded where layers × experts would make more modules than a model has."""
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    for part in filter(None, parts):
        layers = max((n for key, n in vars(part).items() if key.endswith(("layers", "n_layer")) and type(n) is int), default=1)
        experts = max((n for key, n in vars(part).items() if "experts" in key and type(n) is int), default=1)
        if max(1, layers) * max(1, experts) > MAX_MODULES:
            raise LimitExceeded(f"config.json asks for {layers:,} layers of {experts:,} experts; together at most "
                                f"{MAX_MODULES:,} are built.", where="config.json")


def _refused(error: Exception, name: str) -> CorruptFile:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    field = _FIELD.search(str(error))
    if field:
        key = field.group(1)
        return CorruptFile(f"Key {key!r} of config.json does not fit: {lines[-1][:200]}.", where=key, fix=FIX)
    return describes_no_model(lines, name)


def describes_no_model(lines: list[str], name: str) -> CorruptFile:
    """Return the error of values that fit no model of this class."""
    cause = next((line.split("Error: ", 1)[1] for line in lines if "Error: " in line), lines[0])
    return CorruptFile(f"config.json does not describe a {name}: {cause.rstrip('.')[:200]}.", where="config.json",
                       fix="Correct the values, or save the model again with save_pretrained.")
