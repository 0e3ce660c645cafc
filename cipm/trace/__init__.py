"""Checkpoint → Graph: one functional ATen graph for every format, and its interpreter."""

from cipm.trace.graph import Graph, Input, Node, Ref, from_json, to_json

__all__ = ["Graph", "Input", "Node", "Ref", "from_json", "to_json"]
