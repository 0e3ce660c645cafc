"""The algebra of reordering: Permutation, its co-inverse, and the Plan over a checkpoint's tensors."""

from cipm.permutation.permutation import Permutation, Plan, compose

__all__ = ["Permutation", "Plan", "compose"]
