"""Modules of a group of units, what they consist of, and how redundant the group is."""

from cipm.modules.describe import Module, Redundancy, describe_modules, redundancy
from cipm.modules.dimension import Dimension, NeighbourDimension, effective_dimension, neighbour_dimension
from cipm.modules.partition import Clustering, Partition, agreement, labels, partition, partition_factors

__all__ = ["Clustering", "Dimension", "Module", "NeighbourDimension", "Partition", "Redundancy", "agreement",
           "describe_modules", "effective_dimension", "labels", "neighbour_dimension", "partition", "partition_factors",
           "redundancy"]
