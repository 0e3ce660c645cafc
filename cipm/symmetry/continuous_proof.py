"""The measured proof of the symmetries beside permutations: random members in float64 must compute the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry.certificate import EXAMPLES, TOLERANCE
from cipm.symmetry.continuous import discover_continuous
from cipm.symmetry.freedoms import (
    INVERTIBLE,
    ORTHOGONAL,
    ROTATION,
    SCALE,
    SIGN,
    ContinuousSymmetry,
    FreedomCertificate,
)
from cipm.symmetry.groups import Symmetry
from cipm.symmetry.members import CONDITION, Member, absorbing, applied, moved, random_values
from cipm.symmetry.sweep import compare
from cipm.symmetry.walk import example_inputs
from cipm.trace.interpret import run

CONTROLS = 2
"""Freedoms of each kind, spread evenly, for which one place alone is moved as a negative control."""
LARGEST_PROVED = 1 << 31
"""Parameters of the largest model that is measured."""
MEMBERS = {
    SCALE: "factors log-uniform in [1/4, 4]", SIGN: "random signs", ROTATION: "rotations by any angle, scaled by [1/4, 4]",
    ORTHOGONAL: "random rotations", INVERTIBLE: f"random invertible matrices of a condition up to {CONDITION:g}",
}
Freedoms = tuple[ContinuousSymmetry, ...]


def prove_continuous(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry], *,
                     seed: int = 0) -> tuple[Freedoms, tuple[str, ...]]:
    """Prove all freedoms of each kind together; leave out what fails, found by bisection.

    Returns: (the freedoms with their certificates, notes on what was left out or not measured).
    Factors and signs of all kinds are tried at once first. Cost: two forward passes in float64 for the model, two for those,
    two for each kind of matrices, and CONTROLS small ones for each kind.
    """
    if not freedoms:
        return (), ()
    if checkpoint.parameters > LARGEST_PROVED:
        return tuple(freedoms), (f"the {len(freedoms)} other symmetries are not measured: the model has more than "
                                 f"{LARGEST_PROVED:,} parameters",)
    proof = _Proof(checkpoint, freedoms, seed)
    proof.at_once((SCALE, ROTATION, SIGN))
    proof.kind(SCALE)
    proof.kind(ROTATION)
    proof.kind(SIGN)
    proof.kind(ORTHOGONAL)
    proof.kind(INVERTIBLE)
    order = {(f.name, f.kind == SIGN): number for number, f in enumerate(freedoms)}
    kept = sorted(proof.proved, key=lambda f: order[f.name, f.kind == SIGN])
    return tuple(kept), tuple(proof.notes)


def with_continuous(checkpoint: Checkpoint, symmetry: Symmetry, *, seed: int = 0) -> Symmetry:
    """Return the symmetry with the proved scale, sign, orthogonal and invertible symmetries beside its groups."""
    found = discover_continuous(checkpoint, symmetry.groups, seed=seed)
    continuous, notes = prove_continuous(checkpoint, found, seed=seed)
    return replace(symmetry, continuous=continuous, notes=(*symmetry.notes, *notes))


class _Proof:
    """One proof under way."""

    def __init__(self, checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry], seed: int):
        self.checkpoint, self.waiting = checkpoint, list(freedoms)
        self.generator = np.random.default_rng(seed)
        self.examples = [example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed + number), sizes=sizes)
                         for number, sizes in enumerate(EXAMPLES)]
        self.references = [self._outputs(checkpoint.tensors, number) for number in range(len(self.examples))]
        self.proved: list[ContinuousSymmetry] = []
        self.notes: list[str] = []
        self.measured: dict[str, tuple[float, float]] = {}
        self.last: tuple[list[ContinuousSymmetry], tuple[float, float]] = ([], (0.0, 0.0))

    def at_once(self, kinds: Sequence[str]) -> None:
        """Try the freedoms of several kinds together; where they hold, that is their measurement."""
        own = [f for f in self.waiting if f.kind in kinds]
        found = self._difference(own) if own else (0.0, 0.0)
        if found[1] <= TOLERANCE:
            self.measured = dict.fromkeys(kinds, found)

    def kind(self, kind: str) -> None:
        """Prove the freedoms of one kind; a pair that may not be turned may still be scaled."""
        own = [f for f in self.waiting if f.kind == kind]
        able = [f for f in own if self._absorbs(f)]
        holding = self._holding(able)
        failed = [f for f in able if f not in holding]
        if kind == ROTATION and failed:
            self.waiting += [replace(f, kind=SCALE) for f in failed]
            failed = []
            self.waiting = [f for f in self.waiting if f not in own]
            self.kind(SCALE)
        self.waiting = [f for f in self.waiting if f not in own]
        self.notes += [f"{f.name} ({f.kind}) was found but failed the proof and is left out" for f in failed]
        if holding:
            certificate = self._certificate(kind, holding)
            self.proved += [replace(f, certificate=certificate) for f in holding]

    def _absorbs(self, freedom: ContinuousSymmetry) -> bool:
        """Tell whether the weights that have to be absorbed can be."""
        scales = {f.name: f for f in self.proved if f.kind == SCALE}
        missing = [a.tensor for a in freedom.absorbs if a.by not in scales]
        if missing or absorbing(scales, self.checkpoint.tensors, freedom) is None:
            self.notes.append(f"{freedom.name} ({freedom.kind}) is left out: a weight that has to be absorbed is zero, not "
                              "finite, or not proved to scale")
            return False
        return True

    def _holding(self, freedoms: Sequence[ContinuousSymmetry]) -> list[ContinuousSymmetry]:
        if not freedoms or freedoms[0].kind in self.measured:
            return list(freedoms)
        found = self._difference(freedoms)
        if found[1] <= self._tolerance(freedoms[0].kind):
            self.last = (list(freedoms), found)
            return list(freedoms)
        if len(freedoms) == 1:
            return []
        half = len(freedoms) // 2
        return [*self._holding(freedoms[:half]), *self._holding(freedoms[half:])]

    def _certificate(self, kind: str, freedoms: Sequence[ContinuousSymmetry]) -> FreedomCertificate:
        max_abs, max_rel = self.measured.get(kind) or (self.last[1] if self.last[0] == list(freedoms) else
                                                       self._difference(freedoms))
        tolerance = self._tolerance(kind)
        chosen = [freedoms[i] for i in np.linspace(0, len(freedoms) - 1, min(CONTROLS, len(freedoms)), dtype=int)]
        changes = [self._change(freedom) for freedom in chosen]
        heard = [change for change in changes if change > tolerance]
        self.notes += [f"moving one tensor of {f.name} ({kind}) alone changes nothing (its units are dead or alike)"
                       for f, change in zip(chosen, changes, strict=True) if change <= tolerance]
        shapes = "; ".join(", ".join(f"{n} {list(t.shape)}" for n, t in example.items()) for example in self.examples)
        return FreedomCertificate("float64", f"random inputs {shapes}", MEMBERS[kind], max_abs, max_rel, tolerance,
                                  max_rel <= tolerance and bool(heard), min(heard, default=None))

    def _tolerance(self, kind: str) -> float:
        return TOLERANCE * (CONDITION if kind == INVERTIBLE else 1.0)

    def _members(self, freedoms: Sequence[ContinuousSymmetry]) -> list[Member]:
        scales = {f.name: f for f in self.proved if f.kind == SCALE}
        before: dict[str, Member] = {}
        for freedom in freedoms:
            before |= {m.freedom.name: m for m in absorbing(scales, self.checkpoint.tensors, freedom) or ()}
        return [*before.values(), *(random_values(freedom, self.generator) for freedom in freedoms)]

    def _difference(self, freedoms: Sequence[ContinuousSymmetry]) -> tuple[float, float]:
        made = applied(self.checkpoint.tensors, self._members(freedoms))
        found = [compare(reference, self._outputs(made, number)) for number, reference in enumerate(self.references)]
        relative = [b if b == b else float("inf") for _, b in found]
        return max(a for a, _ in found), max(relative)

    def _change(self, freedom: ContinuousSymmetry) -> float:
        """Return how much it changes to move one place alone, the largest tensors first; or the only one twice as far."""
        member = self._members([freedom])[-1]
        if len(freedom.places) == 1:
            member = replace(member, values=2 * member.values)
        change = 0.0
        for place in sorted(freedom.places, key=lambda p: -self.checkpoint.meta(p.tensor).numel())[:2]:
            made = moved(self.checkpoint.tensors, {place.tensor: [(member, place)]})
            change = compare(self.references[-1], self._outputs(made, -1))[1]
            if change > self._tolerance(freedom.kind):
                break
        return change

    def _outputs(self, tensors: Mapping[str, torch.Tensor], number: int) -> tuple[torch.Tensor | None, ...]:
        checkpoint = self.checkpoint
        return run(checkpoint.graph, tensors, checkpoint.constants, self.examples[number], dtype=torch.float64)
