"""The algebra of reordering: Permutation, its co-inverse, and the Plan over a checkpoint's tensors."""

from cipm.permutation.permutation import Along, Move, Permutation, Plan, View, compose

__all__ = ["Along", "Move", "Permutation", "Plan", "View", "compose"]
