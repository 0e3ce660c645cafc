"""Modules of a group of units, what they consist of, and how redundant the group is."""

from cipm.modules.describe import Module, Redundancy, describe_modules, redundancy
from cipm.modules.dimension import Dimension, NeighbourDimension, effective_dimension, neighbour_dimension
from cipm.modules.interactions import Interactions, interactions, unit_weights
from cipm.modules.levels import Level, hierarchy
from cipm.modules.partition import Clustering, Partition, agreement, labels, partition, partition_factors
from cipm.modules.samples import TopSample, TopSamples

__all__ = ["Clustering", "Dimension", "Interactions", "Level", "Module", "NeighbourDimension", "Partition", "Redundancy",
           "TopSample", "TopSamples", "agreement", "describe_modules", "effective_dimension", "hierarchy", "interactions",
           "labels", "neighbour_dimension", "partition", "partition_factors", "redundancy", "unit_weights"]
