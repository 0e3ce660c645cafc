"""Statistics of activations: mergeable accumulators, and their streaming collection at the taps of a model."""

from cipm.statistics.accumulator import Accumulator, accumulate
from cipm.statistics.activity import RANGES, ActivationRange, Activity
from cipm.statistics.classes import ClassConditional
from cipm.statistics.coactivation import CoActivation
from cipm.statistics.covariance import Covariance, correlation, correlation_from_covariance
from cipm.statistics.cross import CrossCovariance
from cipm.statistics.halves import HalfSplit
from cipm.statistics.histogram import Histogram
from cipm.statistics.means import Means
from cipm.statistics.quantiles import Quantiles, Spearman
from cipm.statistics.rv import rv_coefficient

__all__ = ["RANGES", "Accumulator", "ActivationRange", "Activity", "ClassConditional", "CoActivation", "Covariance",
           "CrossCovariance", "HalfSplit", "Histogram", "Means", "Quantiles", "Spearman", "accumulate", "correlation",
           "correlation_from_covariance", "rv_coefficient"]
