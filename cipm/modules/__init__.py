"""Modules of a group of units, what they consist of, and how redundant the group is."""

from cipm.modules.describe import Module, Redundancy, describe_modules, redundancy
from cipm.modules.partition import Partition, agreement, labels, partition
from cipm.statistics.spectrum import Dimension, effective_dimension

__all__ = ["Dimension", "Module", "Partition", "Redundancy", "agreement", "describe_modules", "effective_dimension",
           "labels", "partition", "redundancy"]
