"""Which reorderings of its units leave a model the same function: found by rules, proved by measurement."""

from cipm.symmetry.certificate import TOLERANCE, prove, random_member
from cipm.symmetry.continuous import discover_continuous
from cipm.symmetry.continuous_proof import prove_continuous, with_continuous
from cipm.symmetry.discover import discover_groups
from cipm.symmetry.freedoms import ContinuousSymmetry
from cipm.symmetry.groups import Certificate, GroupProof, Pin, Place, Symmetry, SymmetryGroup, symmetry_from_json
from cipm.symmetry.lined_up import lined_up
from cipm.symmetry.normalise import NORMAL_KINDS, Normalised, normalise
from cipm.symmetry.rescaling import Rescaling, rescaling_from_json
from cipm.symmetry.sweep import compare
from cipm.symmetry.taps import CHOSEN_WORDS, Chosen, Tap, observers
from cipm.symmetry.walk import example_inputs, index_limits

__all__ = ["CHOSEN_WORDS", "NORMAL_KINDS", "TOLERANCE", "Certificate", "Chosen", "ContinuousSymmetry", "GroupProof",
           "Normalised", "Pin", "Place", "Rescaling", "Symmetry", "SymmetryGroup", "Tap", "compare", "discover_continuous",
           "discover_groups", "example_inputs", "index_limits", "lined_up", "normalise", "observers", "prove",
           "prove_continuous", "random_member", "rescaling_from_json", "symmetry_from_json", "with_continuous"]
