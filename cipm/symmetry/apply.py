"""Let the rule of one node state its facts; a node without a fitting rule is probed, or pins what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cipm.rules import Axis, Call, Coded, Consumer, LabelBook, Value, bind, codes_of, find_rule, moved_codes, pin_codes
from cipm.symmetry.probing import probe
from cipm.trace.graph import Node


def apply_rule(node: Node, values: Mapping[str, Any], book: LabelBook, metas: Any, consumers: list[Consumer]) -> Any:
    """Return the value of a node (a tuple where it has several results), given those it reads.

    `metas` are its results without bytes: their shapes and dtypes.
    """
    results = list(metas) if isinstance(metas, list | tuple) else [metas]
    call = Call(node, book, bind(node, dict(values)), tuple(tuple(getattr(m, "shape", ())) for m in results), consumers)
    several, rule = isinstance(metas, list | tuple), find_rule(node.op)
    dtypes = [getattr(m, "dtype", None) for m in results]
    try:
        if rule is not None:
            return _result(call, several, rule(call), dtypes, codes_of(rule))
        why = "without a rule"
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        # A form of the op that its rule does not foresee. What the rule has said so far only takes freedom away.
        why = "in a form that its rule does not cover"
    made = probe(call, why)
    return _result(call, several, made if several else made[0], dtypes)


def _result(call: Call, several: bool, made: Any, dtypes: list[torch.dtype | None], codes: str = "pin") -> Any:
    """Return the value (or values) of a node; raises AssertionError where the axes do not fit the shapes."""
    name = call.node.name
    if codes == "move":
        _remember_source(call, dtypes[0])
    if codes == "pin":
        pin_codes(call)
    named = moved_codes(call) if codes == "move" else None
    if not several:
        return _value(name, call.shape, made[0] if _nested(made) else made, named, dtypes[0])
    return tuple(_value(f"{name}:{i}", shape, own, named, dtype)
                 for i, (own, shape, dtype) in enumerate(zip(made, call.shapes, dtypes, strict=True)))


def _remember_source(call: Call, dtype: torch.dtype | None) -> None:
    """Remember of which integers a result is the copy, in another shape: they choose the same."""
    values = call.values()
    if dtype is not None and not dtype.is_floating_point and len(values) == 1 and call.node.op.split(".")[1] in _SAME_NUMBERS:
        sources = call.book.sources
        sources[call.node.name] = sources.get(values[0].name, values[0].name)


_SAME_NUMBERS = frozenset(("view", "view_copy", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
                           "expand", "clone", "_to_copy", "to", "contiguous", "alias", "detach"))


def _value(name: str, shape: tuple[int, ...], made: Any, codes: np.ndarray | None, dtype: torch.dtype | None) -> Value:
    axes, codes = (made.axes, made.codes) if isinstance(made, Coded) else (made, codes)
    return Value(name, shape, _checked(axes, shape), codes=codes, dtype=dtype)


def _nested(made: Any) -> bool:
    return not isinstance(made, Coded) and len(made) == 1 and isinstance(made[0], list | tuple | Coded)


def _checked(axes: Any, shape: tuple[int, ...]) -> tuple[Axis, ...]:
    assert len(axes) == len(shape), (axes, shape)
    for i, axis in enumerate(axes):
        if isinstance(axis, np.ndarray):
            assert axis.shape[i] == shape[i] and all(n in (1, s) for n, s in zip(axis.shape, shape, strict=True))
    return tuple(axes)
