"""Which reorderings of its units leave a model the same function: found by rules, proved by measurement."""

from cipm.symmetry.certificate import TOLERANCE, compare, prove, random_member
from cipm.symmetry.discover import discover_groups
from cipm.symmetry.groups import Certificate, Pin, Place, Symmetry, SymmetryGroup, Tap, symmetry_from_json
from cipm.symmetry.walk import example_inputs, index_limits

__all__ = ["TOLERANCE", "Certificate", "Pin", "Place", "Symmetry", "SymmetryGroup", "Tap", "compare", "discover_groups",
           "example_inputs", "index_limits", "prove", "random_member", "symmetry_from_json"]
