"""Statistics of activations: mergeable accumulators, and their streaming collection at the taps of a model."""

from cipm.statistics.covariance import Covariance, correlation, correlation_from_covariance
from cipm.statistics.halves import HalfSplit

__all__ = ["Covariance", "HalfSplit", "correlation", "correlation_from_covariance"]
