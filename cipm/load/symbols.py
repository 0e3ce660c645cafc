"""Read the symbolic sizes that torch.export writes as sympy expressions, without sympy and without eval.

A size is an int, a symbol (`Symbol('s77', positive=True, integer=True)`) or integer arithmetic on them
(`Mul(Integer(2), Symbol('s0', …))`). Everything else is refused: through `sympify` such a string could run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cipm.errors import CorruptFile
from cipm.load.tensors import EXPORT_FIX

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
                    r"|'(?P<text>[A-Za-z0-9_.+-]*)'|(?P<mark>[(),=]))")
_SYMBOL = re.compile(r"[a-z]+\d{1,6}\Z")
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "FloorDiv", "Mod", "PythonMod", "ModularIndexing",
    "CleanDiv", "CeilToInt", "CeilDiv", "FloorToInt", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat",
    "IntTrueDiv", "FloatTrueDiv", "IntTruediv", "FloatPow", "PowByNatural", "Max", "Min", "Identity", "Where",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not",
    "Piecewise", "ExprCondPair", "OpaqueUnaryFn_sqrt", "Abs", "LShift", "RShift", "BitwiseFn_bitwise_and",
    "BitwiseFn_bitwise_or", "floor", "ceiling", "Tuple",
})
_CONSTANTS = frozenset({"true", "false", "Half", "Zero", "One", "NegativeOne", "int_oo", "oo"})
MAX_LENGTH, MAX_DEPTH = 20_000, 60


@dataclass(frozen=True)
class Expression:
    """A call in a size expression: function name and arguments (Expression, str or int)."""

    head: str
    args: tuple[Expression | str | int | float, ...]

    def symbols(self) -> Iterator[str]:
        """Yield the names of the symbols inside."""
        if self.head == "Symbol":
            yield str(self.args[0])
        for argument in self.args:
            if isinstance(argument, Expression):
                yield from argument.symbols()


def parse(text: str) -> Expression:
    """Return the parsed expression, or raise CorruptFile quoting what it cannot be."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise _refusal(str(text))
    tokens = list(_tokens(text))
    value, end = _value(tokens, 0, 0, text)
    if end != len(tokens) or not isinstance(value, Expression):
        raise _refusal(text)
    return value


def evaluate(expression: Expression | int, sizes: Mapping[str, int]) -> int | None:
    """Return the integer value of an expression for these symbol sizes, or None where it is not integer arithmetic."""
    if isinstance(expression, int):
        return expression
    if expression.head == "Symbol":
        return sizes[str(expression.args[0])]
    if expression.head == "Integer":
        return int(expression.args[0]) if isinstance(expression.args[0], int) else None
    values = [evaluate(a, sizes) if isinstance(a, Expression) else None for a in expression.args]
    if any(value is None for value in values):
        return None
    return _arithmetic(expression.head, [v for v in values if v is not None])


def _arithmetic(head: str, values: list[int]) -> int | None:
    if head == "Add":
        return sum(values)
    if head == "Mul":
        product = 1
        for value in values:
            product *= value
        return product
    if head == "FloorDiv" and len(values) == 2 and values[1]:
        return values[0] // values[1]
    if head in ("Mod", "PythonMod") and len(values) == 2 and values[1]:
        return values[0] % values[1]
    if head in ("Max", "Min") and values:
        return max(values) if head == "Max" else min(values)
    return None


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _refusal(text)
        yield match.lastgroup, match.group(match.lastgroup)
        position = match.end()


def _value(tokens: list[tuple[str, str]], at: int, depth: int, text: str) -> tuple[Expression | str | int | float, int]:
    if at >= len(tokens) or depth > MAX_DEPTH:
        raise _refusal(text)
    kind, word = tokens[at]
    if kind == "number":
        return (float(word) if "." in word or "e" in word else int(word)), at + 1
    if kind == "text":
        return word, at + 1
    if kind != "name":
        raise _refusal(text)
    if at + 1 < len(tokens) and tokens[at + 1] == ("mark", "("):
        return _call(word, tokens, at + 2, depth, text)
    if word not in _CONSTANTS:
        raise _refusal(text)
    return Expression(word, ()), at + 1


def _call(head: str, tokens: list[tuple[str, str]], at: int, depth: int, text: str) -> tuple[Expression, int]:
    if head not in _FUNCTIONS:
        raise _refusal(text)
    args: list[Expression | str | int | float] = []
    while at < len(tokens) and tokens[at] != ("mark", ")"):
        if at + 1 < len(tokens) and tokens[at][0] == "name" and tokens[at + 1] == ("mark", "="):
            if at + 2 >= len(tokens) or tokens[at + 2][1] not in ("True", "False") and tokens[at + 2][0] != "number":
                raise _refusal(text)
            at += 3  # an assumption such as positive=True, or a precision
        else:
            value, at = _value(tokens, at, depth + 1, text)
            args.append(value)
        if at < len(tokens) and tokens[at] == ("mark", ","):
            at += 1
        elif at >= len(tokens) or tokens[at] != ("mark", ")"):
            raise _refusal(text)
    if at >= len(tokens) or (head == "Symbol" and (len(args) != 1 or not _SYMBOL.match(str(args[0])))):
        raise _refusal(text)
    return Expression(head, tuple(args)), at + 1


def _refusal(text: str) -> CorruptFile:
    return CorruptFile(f"A symbolic size in the archive is not integer arithmetic: {text[:80]!r}. Nothing was evaluated.",
                       fix=EXPORT_FIX)
