"""Pruning without retraining: what each number of kept units costs, and how the kept ones take over."""

from cipm.pruning.elimination import Curve, default_ridge, elimination_curve
from cipm.pruning.refit import calibrate, reconstruction

__all__ = ["Curve", "calibrate", "default_ridge", "elimination_curve", "reconstruction"]
