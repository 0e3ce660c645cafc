"""Model types and classes of the installed transformers, found in its own tables: nothing of an upload is imported by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cipm.errors import UnsupportedModel

EXPORT = "Export the model with torch.export and upload the .pt2 file."


@cache
def config_types() -> Mapping[str, str]:
    """Return {model type: name of its configuration class} of the installed transformers."""
    return importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES


@cache
def class_names(kind: str) -> tuple[str, ...]:
    """Return the names of the model classes that the installed transformers lists for a type, the base model first."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    tables = [auto.MODEL_MAPPING_NAMES]
    tables += [vars(auto)[name] for name in sorted(vars(auto)) if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")]
    found = [table[kind] for table in tables if kind in table]
    return tuple(dict.fromkeys(name for names in found for name in ([names] if isinstance(names, str) else names)))


def config_class(kind: Any) -> Any:
    """Return the configuration class of a type, or raise UnsupportedModel."""
    if not isinstance(kind, str) or kind not in config_types() or kind.startswith("timm"):
        raise UnsupportedModel(f"config.json names the model type {str(kind)[:60]!r}, which the installed transformers "
                               f"({_version()}) does not have as a type of its own.", where="model_type", fix=EXPORT)
    return importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING[kind]


def model_class(kind: str, name: Any) -> Any:
    """Return a model class of a type: one that the tables list, or another of the same module with this configuration.

    Raises UnsupportedModel for all others.
    """
    config = config_class(kind)
    if name in class_names(kind):
        return getattr(importlib.import_module("transformers"), name)
    base = importlib.import_module("transformers.modeling_utils").PreTrainedModel
    if isinstance(name, str) and len(name) < 100 and name.isidentifier():
        for module in _modules(kind):
            found = vars(module).get(name)
            if isinstance(found, type) and issubclass(found, base) and found is not base and _fits(found, config):
                return found
    raise UnsupportedModel(f"config.json names the architecture {str(name)[:80]!r}; for {kind} these are read: "
                           f"{', '.join(class_names(kind)) or 'none'}.", where="architectures", fix=EXPORT)


def _modules(kind: str) -> list[Any]:
    """Return the modules of a type that hold model classes; both parts of their names come from transformers' tables."""
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    folder = auto.model_type_to_module_name(kind)
    package = importlib.import_module(f"transformers.models.{folder}")
    files = sorted(path.stem for path in Path(package.__file__).parent.glob("modeling_*.py"))
    return [importlib.import_module(f"transformers.models.{folder}.{name}") for name in files]


def _fits(cls: Any, config: Any) -> bool:
    given = cls.config_class
    return isinstance(given, type) and (issubclass(config, given) or issubclass(given, config))


def _version() -> str:
    return importlib.import_module("transformers").__version__
