"""CIPM: find the permutation symmetries of a trained network, order its units, and prove that the function is the same.

The names of the facade are loaded when first used, so that importing `cipm` alone stays light (no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACADE = {
    "discover": "cipm.facade", "analyze": "cipm.facade", "correlation": "cipm.statistics",
    "partition": "cipm.facade", "seriate": "cipm.ordering", "elimination_curve": "cipm.facade",
}
__all__ = ["analyze", "correlation", "discover", "elimination_curve", "load", "partition", "seriate"]


def __getattr__(name: str) -> Any:
    if name == "load":  # the package itself, which can be called
        return import_module("cipm.load")
    if name not in _FACADE:
        raise AttributeError(f"module 'cipm' has no attribute {name!r}")
    return getattr(import_module(_FACADE[name]), name)
