"""The import graph of the project's own modules, read from their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cipm", "workers", "backend", "frontend")


@dataclass(frozen=True)
class Import:
    """One name imported: by which module, in which line, inside a function or not."""

    module: str
    line: int
    target: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Return every module of the project by its dotted name."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {name_of(path): path for path in paths}


def name_of(path: Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports() -> tuple[Import, ...]:
    """Return every import of every module. What a file imports only where it is run as a program does not count."""
    return tuple(found for name, path in modules().items() for found in _of_module(name, ast.parse(path.read_text())))


def own(found: Import) -> bool:
    """Tell whether an import is of one of our packages."""
    return found.target.split(".")[0] in PACKAGES


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach one another. Cost: nodes × edges, which for some hundred modules is nothing."""
    reach = {node: _reached(node, edges) for node in edges}
    rings = {frozenset({node, *(other for other in reach[node] if node in reach.get(other, ()))})
             for node in edges if node in reach[node]}
    return sorted(sorted(ring) for ring in rings)


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    pending = list(edges[start])
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(edges.get(node, ()))
    return seen


def _of_module(name: str, tree: ast.Module) -> Iterator[Import]:
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, inside = pending.pop()
        for target in _targets(node):
            yield Import(name, node.lineno, target, inside)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"):
            pending.extend((child, inside) for child in ast.iter_child_nodes(node))


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno} imports relatively"
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        return [full if full in modules() else node.module for full in whole]
    return []
