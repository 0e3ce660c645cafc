"""Orders of the units of a group, and their scores. Convention: order[i] is the old index at new place i."""

from cipm.ordering.canonical import Canonical, canonical_orders
from cipm.ordering.fingerprint import Fingerprint, fingerprint
from cipm.ordering.keys import lexicographic, nodesort, nodesort_overflow
from cipm.ordering.scores import Scores, scores, within_blocks
from cipm.ordering.seriation import seriate, spectral
from cipm.ordering.simple import by_module
from cipm.ordering.warm import prepare

__all__ = ["Canonical", "Fingerprint", "Scores", "by_module", "canonical_orders", "fingerprint", "lexicographic", "nodesort",
           "nodesort_overflow", "prepare", "scores", "seriate", "spectral", "within_blocks"]
