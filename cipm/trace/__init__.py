"""Checkpoint → Graph: one functional ATen graph for every format, its interpreter, and the way back to torch."""

from cipm.trace.exported import from_exported, to_module
from cipm.trace.graph import Graph, Input, Node, Ref, from_json, to_json
from cipm.trace.interpret import run

__all__ = ["Graph", "Input", "Node", "Ref", "from_exported", "from_json", "run", "to_json", "to_module"]
