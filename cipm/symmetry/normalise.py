"""One form for all models that differ by scales, signs, rotations and maps: each kind on request, in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cipm.errors import OptionError
from cipm.load.checkpoint import Checkpoint, LazyTensors, metas_of
from cipm.symmetry.freedoms import INVERTIBLE, ORTHOGONAL, SCALE, SIGN, ContinuousSymmetry
from cipm.symmetry.groups import Symmetry
from cipm.symmetry.members import applied
from cipm.symmetry.normal_form import SCALED, SIGNED, NormalForm, canonical_scales, canonical_signs
from cipm.symmetry.normal_maps import Maps, absorptions, canonical_maps
from cipm.symmetry.rescaling import Rescaling

NORMAL_KINDS = (ORTHOGONAL, INVERTIBLE, SCALE, SIGN)
"""What can be asked for, in the order in which it is applied."""


@dataclass(frozen=True)
class Normalised:
    """The model in its normal form.

    `rescaling` is what was done, and can be undone bit for bit; where `rounded` names kinds, it cannot, and is empty.
    """

    checkpoint: Checkpoint
    rescaling: Rescaling
    rounded: tuple[str, ...]
    notes: tuple[str, ...]


def normalise(checkpoint: Checkpoint, symmetry: Symmetry, kinds: Sequence[str]) -> Normalised:
    """Return the model with these kinds of its proved freedoms in canonical form: "orthogonal", "invertible", "scale", "sign".

    What later steps would undo comes first: norms' weights are absorbed, units scaled, spaces balanced, streams turned, signs
    chosen. Scales and signs alone are exact; with rotations or maps everything is computed in float64 and rounded once.
    Raises OptionError for another kind. Cost: each tensor that is concerned is read a few times.
    """
    unknown = [kind for kind in kinds if kind not in NORMAL_KINDS]
    if unknown:
        raise OptionError(f"There is no normal form for {unknown[0]!r}; there is one for {', '.join(NORMAL_KINDS)}.")
    steps = _Steps(checkpoint, symmetry.continuous)
    if ORTHOGONAL in kinds:
        steps.map(absorptions(checkpoint.tensors, symmetry.continuous))
    if SCALE in kinds:
        steps.rescale(canonical_scales(steps.made, steps.left, [k for k in SCALED if k not in kinds or k == SCALE]))
    for kind in (INVERTIBLE, ORTHOGONAL):
        if kind in kinds:
            steps.map(canonical_maps(steps.made.tensors, symmetry.continuous, kind), kind)
    signed = SIGNED if SIGN in kinds else steps.rounded  # a canonical map is one up to signs
    if signed:
        steps.rescale(canonical_signs(steps.made, symmetry.continuous, signed))
    return steps.result()


class _Steps:
    """One normalisation under way: the model as it stands, and the freedoms whose scale is still free."""

    def __init__(self, checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry]):
        self.checkpoint, self.made, self.left = checkpoint, checkpoint, freedoms
        self.rescaling = Rescaling({}, {})
        self.rounded: list[str] = []
        self.notes: list[str] = []
        self.mapped = False

    def map(self, maps: Maps, kind: str | None = None) -> None:
        """Apply rotations or maps, or absorb weights, whose scales are then spoken for."""
        self.notes += maps.notes
        if maps.members:
            taken = [member.freedom for member in maps.members]
            self.left = [f for f in self.left if all(f is not other for other in taken)]
            self.made = self.made.with_tensors(applied(self.made.tensors, maps.members))
            self.mapped = True
            self.rounded += [kind] if kind else []

    def rescale(self, form: NormalForm) -> None:
        """Apply powers of two or signs."""
        self.notes += form.notes
        self.made = self.made.with_tensors(form.rescaling.apply(self.made.tensors))
        self.rescaling = self.rescaling.then(form.rescaling)

    def result(self) -> Normalised:
        if not self.mapped:
            return Normalised(self.made, self.rescaling, (), tuple(self.notes))
        made, metas = self.made.tensors, metas_of(self.checkpoint.tensors)
        rounded = LazyTensors(metas, lambda key: made[key].to(metas[key].dtype))
        return Normalised(self.checkpoint.with_tensors(rounded), Rescaling({}, {}), tuple(self.rounded) or (ORTHOGONAL,),
                          tuple(self.notes))
