"""Pruning without retraining: what each number of kept units costs, and how the kept ones take over."""

from cipm.pruning.elimination import Curve, cost_of_order, default_ridge, elimination_curve, quick_curve
from cipm.pruning.merges import Merges, find_merges
from cipm.pruning.merging import Duplicate, near_duplicates
from cipm.pruning.refit import calibrate
from cipm.pruning.shrink import Shrunk, masked, shrink

__all__ = ["Curve", "Duplicate", "Merges", "Shrunk", "calibrate", "cost_of_order", "default_ridge", "elimination_curve",
           "find_merges", "masked", "near_duplicates", "quick_curve", "shrink"]
