"""Statistics of activations: mergeable accumulators, and their streaming collection at the taps of a model."""

from cipm.statistics.accumulator import Accumulator, accumulate
from cipm.statistics.activity import RANGES, ActivationRange, Activity
from cipm.statistics.classes import ClassConditional, ClassMeans
from cipm.statistics.coactivation import CoActivation
from cipm.statistics.covariance import Covariance, correlation, correlation_from_covariance
from cipm.statistics.cross import CrossCovariance
from cipm.statistics.halves import HalfSplit
from cipm.statistics.histogram import Histogram
from cipm.statistics.means import Means
from cipm.statistics.neighbours import Neighbours, exact_neighbours
from cipm.statistics.pairs import (
    PairCorrelations,
    SignificantPairs,
    measured_recall,
    significant_of,
    significant_pairs,
    top_neighbours,
)
from cipm.statistics.profile import Profile
from cipm.statistics.projection import Projection
from cipm.statistics.quantiles import Quantiles, Spearman
from cipm.statistics.running import Interpolated, Running
from cipm.statistics.rv import rv_coefficient

__all__ = ["RANGES", "Accumulator", "ActivationRange", "Activity", "ClassConditional", "ClassMeans", "CoActivation",
           "Covariance", "CrossCovariance", "HalfSplit", "Histogram", "Interpolated", "Means", "Neighbours", "PairCorrelations",
           "Profile", "Projection", "Quantiles", "Running", "SignificantPairs", "Spearman", "accumulate", "correlation",
           "correlation_from_covariance", "exact_neighbours", "measured_recall", "rv_coefficient", "significant_of",
           "significant_pairs", "top_neighbours"]
