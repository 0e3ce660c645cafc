"""Rules by op name: a rule reads a Call, states facts in its label book, and returns the axes of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cipm.rules.labels import FREE, Axis, Coded, Fixed, Free, LabelBook, Value
from cipm.trace.graph import Node, map_refs
from cipm.trace.interpret import resolve

Made = Sequence[Axis] | Coded
Result = Made | list[Made]


@dataclass(frozen=True)
class Consumer:
    """A contraction of one value's axis with one operand's axis: where a group is read."""

    value: Value
    axis: int
    operand: Value
    operand_axis: int


@dataclass(frozen=True)
class Call:
    """One node with its arguments bound to the names of the op's schema."""

    node: Node
    book: LabelBook
    bound: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    consumers: list[Consumer]

    def __getitem__(self, name: str) -> Any:
        return self.bound.get(name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.shapes[0]

    def values(self) -> list[Value]:
        """Return every value among the arguments, in order."""
        found: list[Value] = []
        for argument in self.bound.values():
            found.extend(_values_in(argument))
        return found

    def fixed(self, reason: str) -> Fixed:
        """Return a Fixed axis that this node is the reason for."""
        return Fixed(self.node.op, self.node.name, reason)

    def pin(self, axis: Axis, reason: str) -> None:
        """Pin the labels of an axis, this node being the reason."""
        self.book.pin(axis, self.fixed(reason))

    def equation(self, terms: Sequence[tuple[Value, str]], out: str, *, contracted: str = "") -> list[Axis]:
        """State the op as one einsum-like equation over axis letters; return the axes of the result.

        A letter that several operands carry ties their axes; operands of size 1 broadcast. Letters in `contracted`
        are recorded as consumers (the first operand reads, the others are weights). Every letter counts as used,
        except in a plain broadcast, where the axes need not be told apart (`pointwise` calls `join` alone).
        """
        for value, letters in terms:
            for axis in range(len(letters)):
                self.book.touch(value, axis)
        for letter in contracted:
            (reader, read), *weights = [(value, letters.index(letter)) for value, letters in terms if letter in letters]
            self.consumers.extend(Consumer(reader, read, value, axis) for value, axis in weights)
        return self.join(terms, out)

    def join(self, terms: Sequence[tuple[Value, str]], out: str) -> list[Axis]:
        """Tie equal letters over operands; return the axes of `out`, in the space of its letters."""
        letters = "".join(dict.fromkeys("".join(letters for _, letters in terms)))
        joined = {letter: self._join_letter(terms, letter, letters) for letter in letters}
        return [_restrict(joined[letter], letters, out, self) if letter in joined else FREE for letter in out]

    def hold(self, value: Value, dim: int, reason: str) -> Fixed:
        """Keep the positions of one axis where they are; return the axis of the result. Units that carry such positions
        (the elements of each head, the pixels of each channel) may still move, whole."""
        fixed = self.fixed(reason)
        if isinstance(value.axes[dim], np.ndarray):
            self.book.touch(value, dim)
            self._meet_fixed(value.axes[dim], fixed, dim)
        return fixed

    def _meet_fixed(self, array: np.ndarray, fixed: Fixed, dim: int) -> None:
        """Pin labels that meet a fixed axis; where they also depend on other axes (heads), they keep their place within."""
        if array.size == array.shape[dim]:
            self.book.pin(array, fixed)
            return
        shape = [-1 if i == dim else 1 for i in range(array.ndim)]
        places = np.broadcast_to(np.arange(array.shape[dim]).reshape(shape), array.shape)
        self.book.roles.append((array.ravel(), places.ravel()))
        self.book.held.append((np.unique(array), fixed))

    def _join_letter(self, terms: Sequence[tuple[Value, str]], letter: str, letters: str) -> Axis:
        found = [_spread(value, names, letter, letters) for value, names in terms
                 if letter in names and not (value.shape[names.index(letter)] == 1 and _size(terms, letter) > 1)]
        arrays = [axis for axis in found if isinstance(axis, np.ndarray)]
        fixed = [axis for axis in found if isinstance(axis, Fixed)]
        if fixed:
            for value, names in terms:
                if letter in names:
                    self.book.touch(value, names.index(letter))
            for array in arrays:
                self._meet_fixed(array, fixed[0], letters.index(letter))
            arrays = [array for array in arrays if array.size > array.shape[letters.index(letter)]]
            if not arrays:
                return fixed[0]
        result: Axis = FREE
        for array in arrays:
            result = array if isinstance(result, Free) else self.book.tie(result, array)
        return result


Rule = Callable[[Call], Result]
_RULES: dict[str, Rule] = {}
_CODES: dict[Rule, str] = {}


def rule(*ops: str, codes: str = "pin") -> Callable[[Rule], Rule]:
    """Register a rule for ops by their ATen name without overload (`linear`) or with it (`mean.dim`).

    `codes` says what becomes of the units that an operand's integers name: "move" (the op moves numbers about and changes
    none: the result names the same units), "read" (the rule sees to them itself), or "pin".
    """
    def register(function: Rule) -> Rule:
        for op in ops:
            assert op not in _RULES, op
            _RULES[op] = function
        _CODES[function] = codes
        return function
    return register


def codes_of(function: Rule | None) -> str:
    """Return what a rule does with the units that integers name."""
    return _CODES.get(function, "pin") if function else "pin"


def moved_codes(call: Call) -> np.ndarray | None:
    """Return the units that the numbers of a moved value name; parts that name different units are pinned."""
    found = [value.codes for value in call.values() if value.codes is not None]
    if not found:
        return None
    if all(np.array_equal(one, found[0]) for one in found) and len(found) == len(call.values()):
        return found[0]
    pin_codes(call)
    return None


def pin_codes(call: Call) -> None:
    """Pin the units that integers name which an op computes with."""
    for value in call.values():
        if value.codes is not None:
            call.pin(value.codes, "their numbers enter an op that computes with them")


def find_rule(op: str) -> Rule | None:
    """Return the rule of a qualified op name, or None where there is none."""
    name = op.removeprefix("aten.")
    packet = name.split(".")[0]
    if name in _RULES or packet in _RULES:
        return _RULES.get(name) or _RULES[packet]
    if op.startswith("aten.") and torch.Tag.pointwise in resolve(op).tags:
        return _RULES["pointwise"]
    return None


def known_ops() -> dict[str, Rule]:
    """Return the rules by op name, for the reference page and its test."""
    return dict(_RULES)


def bind(node: Node, values: dict[str, Any]) -> dict[str, Any]:
    """Return the node's arguments by the names of its schema, references replaced by values, defaults filled in."""
    args = [map_refs(argument, lambda ref: values[ref.name]) for argument in node.args]
    kwargs = {key: map_refs(argument, lambda ref: values[ref.name]) for key, argument in node.kwargs.items()}
    function = resolve(node.op)
    if not isinstance(function, torch._ops.OpOverload):
        return {str(i): argument for i, argument in enumerate(args)} | kwargs
    names = [argument.name for argument in function._schema.arguments]
    defaults = {a.name: a.default_value for a in function._schema.arguments if a.has_default_value()}
    given = dict(zip(names, args, strict=False)) | kwargs
    return {name: _plain(given.get(name, defaults.get(name))) for name in names}


def _plain(argument: Any) -> Any:
    """Replace values that are known numbers (symbolic sizes) by the numbers."""
    if isinstance(argument, tuple | list):
        return tuple(_plain(item) for item in argument)
    if isinstance(argument, Value) and isinstance(argument.content, int | float | bool):
        return argument.content
    return argument


def _values_in(argument: Any) -> list[Value]:
    if isinstance(argument, Value):
        return [argument]
    if isinstance(argument, tuple | list):
        return [value for item in argument for value in _values_in(item)]
    return []


def _size(terms: Sequence[tuple[Value, str]], letter: str) -> int:
    return max(value.shape[names.index(letter)] for value, names in terms if letter in names)


def _spread(value: Value, names: str, letter: str, letters: str) -> Axis:
    """Return the axis of `letter` with its array laid out over all letters of the equation."""
    axis = value.axes[names.index(letter)]
    if not isinstance(axis, np.ndarray):
        return axis
    order = sorted(range(len(names)), key=lambda i: letters.index(names[i]))
    moved = axis.transpose(order)
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if other in names else 1 for other in letters])


def _restrict(axis: Axis, letters: str, out: str, call: Call) -> Axis:
    """Return an array over `letters` as one over the letters of `out`; pin it where it depends on a letter that is gone."""
    if not isinstance(axis, np.ndarray):
        return axis
    gone = tuple(i for i, letter in enumerate(letters) if letter not in out)
    if any(axis.shape[i] > 1 for i in gone):
        call.pin(axis, "its meaning depends on an axis that this op sums over")
        return call.fixed("it depends on an axis that was summed over")
    kept = [letter for letter in letters if letter in out]
    squeezed = axis.squeeze(gone)
    sizes = dict(zip(kept, squeezed.shape, strict=True))
    moved = squeezed.transpose([kept.index(letter) for letter in out if letter in kept])
    return moved.reshape([sizes.get(letter, 1) for letter in out])
