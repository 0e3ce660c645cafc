"""How an exported model is called and what it returns: torch's saved tree structures → plain JSON values.

Only tuples, lists and dicts are rebuilt; other containers of the uploader's become one of these, and are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cipm.errors import LimitExceeded

MAX_NESTING = 20


def call_names(spec: str, names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return (inputs by position, inputs by keyword, notes) of a saved input structure."""
    positional, by_name = json.loads(spec)[1]["children_spec"]
    children = [*positional["children_spec"], *by_name["children_spec"]]
    if any(child["type"] is not None for child in children) or len(children) != len(names):
        note = "Nested or constant inputs of the model are passed one tensor after the other in the exported file."
        return names, (), (note,)
    count = len(positional["children_spec"])
    return names[:count], names[count:], ()


def output_structure(spec: str, leaves: int) -> tuple[Any, tuple[str, ...]]:
    """Return (structure of the outputs, notes): "*" for a value, {"tuple": […]}, {"list": […]}, {"dict": [[key, …], …]}."""
    notes: set[str] = set()
    structure = _shape_of(json.loads(spec)[1], notes, 0)
    if _count(structure) != leaves:
        return {"tuple": ["*"] * leaves}, ("The outputs of the model are returned as a flat tuple in the exported file.",)
    return structure, tuple(sorted(notes))


def _shape_of(spec: Mapping[str, Any], notes: set[str], depth: int) -> Any:
    if depth > MAX_NESTING:
        raise LimitExceeded("The model's outputs are nested too deeply.")
    kind, children = spec["type"], [_shape_of(child, notes, depth + 1) for child in spec["children_spec"]]
    if kind is None:
        return "*"
    if kind in ("builtins.tuple", "builtins.list"):
        return {kind.removeprefix("builtins."): children}
    keys = _keys(spec["context"])
    if kind not in ("builtins.dict", "collections.OrderedDict"):
        notes.add(f"Outputs of type {str(kind)[:80]} are returned as a {'dict' if keys else 'tuple'} in the exported file.")
    if keys is not None and len(keys) == len(children):
        return {"dict": [list(pair) for pair in zip(keys, children, strict=True)]}
    return {"tuple": children}


def _keys(context: Any) -> list[str | int] | None:
    try:
        keys = json.loads(context) if isinstance(context, str) else context
    except ValueError:
        return None
    return keys if isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys) else None


def _count(structure: Any) -> int:
    if structure == "*":
        return 1
    (kind, items), = structure.items()
    return sum(_count(item[1] if kind == "dict" else item) for item in items)
