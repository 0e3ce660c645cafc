"""Orders of the units of a group, and their scores. Convention: order[i] is the old index at new place i."""

from cipm.ordering.canonical import Canonical, canonical_orders
from cipm.ordering.coordinate import Coordinated, Link, alignment, coordinate
from cipm.ordering.fingerprint import Fingerprint, fingerprint
from cipm.ordering.importance import Selectivity, by_class, by_elimination, by_importance, class_selectivity
from cipm.ordering.keys import lexicographic, nodesort, nodesort_overflow
from cipm.ordering.links import coordinate_groups, links
from cipm.ordering.matching import GroupMatch, Matching, match_units
from cipm.ordering.policy import Choice, policy
from cipm.ordering.portfolio import Portfolio, angle, average_linkage, fiedler, portfolio
from cipm.ordering.scores import Chance, Scores, chance, scores, within_blocks
from cipm.ordering.seriation import seriate, spectral
from cipm.ordering.simple import by_module
from cipm.ordering.warm import prepare

__all__ = ["Canonical", "Chance", "Choice", "Coordinated", "Fingerprint", "GroupMatch", "Link", "Matching", "Portfolio",
           "Scores", "Selectivity", "alignment", "angle", "average_linkage", "by_class", "by_elimination",
           "by_importance", "by_module", "canonical_orders", "chance", "class_selectivity", "coordinate",
           "coordinate_groups", "fiedler", "fingerprint", "lexicographic", "links", "match_units", "nodesort",
           "nodesort_overflow", "policy", "portfolio", "prepare", "scores", "seriate", "spectral", "within_blocks"]
