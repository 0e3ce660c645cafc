"""The measured proof: reordered by random members in float64, the model must compute the same function.

First each group by itself, on its own part of the graph, with a negative control; a group that fails is split by bisection
until what remains is proved. Then all groups together, at the model's outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import Permutation, Plan, compose
from cipm.symmetry.groups import Certificate, GroupProof, Place, Symmetry, SymmetryGroup
from cipm.symmetry.sweep import Difference, Variant, sweep
from cipm.symmetry.walk import example_inputs

TOLERANCE = 1e-10
"""Largest relative difference that counts as the same function in float64: about 10⁵ roundings."""
EXAMPLES = ((3, 12), (2, 7))
"""The two example sizes (batch, other symbolic dimensions) on which functions are compared."""
CONTROLS = 4
"""How many parts of a group are moved alone, largest first, until one changes something."""
LEAST_PART = 1 / 64
"""Bisection of a failing group stops at parts of this share of its units."""

Inputs = dict[str, torch.Tensor]


def prove(checkpoint: Checkpoint, symmetry: Symmetry, *, draws: int = 2, seed: int = 0) -> Symmetry:
    """Prove every group by itself and all of them together.

    Returns: the symmetry with `proved` groups only, notes on what was left out, and its Certificate.
    Cost: two forward passes in float64, in each of them the parts of the graph that the groups stand on and half of the
    `draws` passes for all groups together. Memory: one tensor and the live values at a time.
    """
    start = time.perf_counter()
    proof = _Proof(checkpoint, symmetry, draws, seed)
    kept, notes, together = proof.separate(symmetry.groups)
    while kept and together.max_rel > TOLERANCE:  # each holds alone, not all at once: leave out what disturbs the others
        disturbing = proof.disturbing(kept)
        notes.append(f"{disturbing.name} holds alone but not together with the other groups and is left out")
        kept = tuple(group for group in kept if group is not disturbing)
        together = proof.together(kept)
    proofs = tuple(proof.proofs[group.name] for group in kept)
    heard = [p.negative_control for p in proofs if p.negative_control > TOLERANCE]
    passed = together.max_rel <= TOLERANCE and (bool(heard) or not kept)
    certificate = Certificate("float64", proof.inputs, draws, max([together.max_abs, *(p.max_abs for p in proofs)]),
                              max([together.max_rel, *(p.max_rel for p in proofs)]), TOLERANCE, passed,
                              min(heard, default=0.0), time.perf_counter() - start, proofs)
    notes += [f"moving one tensor of {p.name} alone changes nothing (its units are dead or identical)" for p in proofs
              if p.negative_control <= TOLERANCE]
    names = {group.name for group in kept}
    kept = tuple(group if group.parent in names else replace(group, parent=None) for group in kept)
    proved = names if passed else set()
    return replace(symmetry, groups=kept, notes=(*symmetry.notes, *notes)).with_proof(certificate, proved)


def random_member(symmetry: Symmetry, groups: Sequence[SymmetryGroup], generator: np.random.Generator) -> Plan:
    """Return the plan of one random member of every group; none leaves a whole block as it is."""
    return symmetry.plan({group.name: _moving(group, generator) for group in groups})


class _Proof:
    """One proof under way: what is compared with what, and what was measured of each group."""

    def __init__(self, checkpoint: Checkpoint, symmetry: Symmetry, draws: int, seed: int):
        self.checkpoint, self.symmetry, self.draws = checkpoint, symmetry, draws
        self.generator = np.random.default_rng(seed)
        self.examples = [example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed + number), sizes=sizes)
                         for number, sizes in enumerate(EXAMPLES)]
        self.proofs: dict[str, GroupProof] = {}

    @property
    def inputs(self) -> str:
        """Say on what the functions were compared."""
        return "random inputs " + "; ".join(", ".join(f"{n} {list(t.shape)}" for n, t in example.items())
                                            for example in self.examples)

    def separate(self, groups: Sequence[SymmetryGroup]) -> tuple[tuple[SymmetryGroup, ...], list[str], Difference]:
        """Return the groups (or parts of groups) that hold by themselves, notes on the others, and how all hold together."""
        together = self._measure(groups)
        kept: list[SymmetryGroup] = []
        notes: list[str] = []
        for group in groups:
            parts = [group] if self.proofs[group.name].passed else self._parts(group)
            kept += parts
            if parts != [group]:
                notes.append(_about_parts(group, parts))
        return tuple(kept), notes, self.together(kept) if notes else together

    def together(self, groups: Sequence[SymmetryGroup]) -> Difference:
        """Return how far random members of all groups at once are from the model, at its outputs."""
        found = [sweep(self.checkpoint, inputs, self._members(groups)) for inputs in self.examples] if groups else []
        return _worst([difference for differences in found for difference in differences])

    def disturbing(self, groups: Sequence[SymmetryGroup]) -> SymmetryGroup:
        """Return a group without which fewer or no others fail together, found by halving."""
        first, last = 0, len(groups)  # groups[:first] hold together, groups[:last] do not
        while last - first > 1:
            middle = (first + last) // 2
            if self.together(groups[:middle]).max_rel <= TOLERANCE:
                first = middle
            else:
                last = middle
        return groups[first]

    def _measure(self, groups: Sequence[SymmetryGroup]) -> Difference:
        """Measure every group by itself with a control; return how far all of them together are from the model."""
        alone: list[list[Difference]] = []
        joint: list[Difference] = []
        changes = [Difference() for _ in groups]
        for inputs in self.examples:
            controls = self._controls(groups, 0) if inputs is self.examples[-1] else {}
            members = self._members(groups)
            found = sweep(self.checkpoint, inputs, [*map(self._alone, groups), *controls.values(), *members])
            alone.append(found[:len(groups)])
            joint += found[len(found) - len(members):]
            for at, seen in zip(controls, found[len(groups):], strict=False):
                changes[at] = seen
        self._listen(groups, changes)
        for group, seen, change in zip(groups, map(_worst, zip(*alone, strict=True)), changes, strict=True):
            self.proofs[group.name] = GroupProof(group.name, seen.max_abs, seen.max_rel, change.max_rel,
                                                 seen.count > 0 and seen.max_rel <= TOLERANCE)
        return _worst(joint)

    def _alone(self, group: SymmetryGroup) -> Variant:
        return Variant(random_member(self._with([group]), [group], self.generator), self._carried(group))

    def _members(self, groups: Sequence[SymmetryGroup]) -> list[Variant]:
        """Return variants of random members of all groups at once, as many as one example takes of the draws."""
        return [Variant(random_member(self._with(groups), groups, self.generator), None)
                for _ in range(-(-self.draws // len(self.examples)))]

    def _controls(self, groups: Sequence[SymmetryGroup], number: int) -> dict[int, Variant]:
        """Return {place in the list: variant that moves part `number` of what is tied in that group}."""
        plans = {at: _part_alone(self.checkpoint, group, number) for at, group in enumerate(groups)}
        return {at: Variant(plan, self._carried(groups[at]), TOLERANCE) for at, plan in plans.items() if plan is not None}

    def _listen(self, groups: Sequence[SymmetryGroup], changes: list[Difference]) -> None:
        """Try further parts of the groups whose first one changed nothing."""
        for number in range(1, CONTROLS):
            silent = {at: v for at, v in self._controls(groups, number).items() if changes[at].max_rel <= TOLERANCE}
            if silent:
                seen = sweep(self.checkpoint, self.examples[-1], list(silent.values()))
                changes[:] = [dict(zip(silent, seen, strict=True)).get(at, change) for at, change in enumerate(changes)]

    def _carried(self, group: SymmetryGroup) -> frozenset[str]:
        name = group.name.split(PART)[0]
        return frozenset(value for value, names in self.symmetry.carried.items() if name in names)

    def _parts(self, group: SymmetryGroup) -> list[SymmetryGroup]:
        """Return the largest parts of a failing group that halving finds to hold by themselves.

        Units that do not move by themselves in every slice of a stack may still move alike in all of them.
        """
        if group.blocks > 1:
            parts = [alike(group)] if group.stacked else []
            if parts:
                self._measure(parts)
            return [part for part in parts if self.proofs[part.name].passed]
        least = max(2, int(group.size * LEAST_PART))
        found: list[np.ndarray] = []
        waiting = [np.arange(group.size)]
        while waiting:
            halves = [half for units in waiting for half in np.array_split(units, 2) if half.size >= least]
            holding = self._holding(group, halves)
            found += [half for half, holds in zip(halves, holding, strict=True) if holds]
            waiting = [half for half, holds in zip(halves, holding, strict=True) if not holds and half.size >= 2 * least]
        parts = [_part(group, units, f"{PART}{number}") for number, units in enumerate(self._joined(group, found), start=1)]
        self._measure(parts)
        return parts

    def _joined(self, group: SymmetryGroup, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Join parts that hold together, one after the other."""
        joined: list[np.ndarray] = []
        for units in sorted(parts, key=lambda units: -units.size):
            for number, other in enumerate(joined):
                both = np.sort(np.concatenate([other, units]))
                if self._holding(group, [both])[0]:
                    joined[number] = both
                    break
            else:
                joined.append(units)
        return joined

    def _holding(self, group: SymmetryGroup, parts: Sequence[np.ndarray]) -> list[bool]:
        if not parts:
            return []
        variants = [self._alone(_part(group, units, PART)) for units in parts]
        found = [sweep(self.checkpoint, inputs, variants) for inputs in self.examples]
        return [_worst(seen).max_rel <= TOLERANCE for seen in zip(*found, strict=True)]

    def _with(self, groups: Sequence[SymmetryGroup]) -> Symmetry:
        return replace(self.symmetry, groups=tuple(groups))


def _about_parts(group: SymmetryGroup, parts: Sequence[SymmetryGroup]) -> str:
    """Say what is left of a group that failed."""
    if not parts:
        return f"{group.name} was found but failed the proof and is left out"
    if group.blocks > 1:
        return f"{group.name} failed the proof where each slice has an order of its own; that all slices move alike is proved"
    left = sum(part.size for part in parts)
    return (f"{group.name} failed the proof as a whole; {left} of its {group.size} units are proved in "
            f"{len(parts)} part{'s' * (len(parts) > 1)}")


PART = ".part"


def _part(group: SymmetryGroup, units: np.ndarray, suffix: str) -> SymmetryGroup:
    """Return a group of some of the units of another."""
    places = tuple(replace(p, index=p.index[units]) for p in group.places)
    taps = tuple(replace(t, index=t.index[units]) for t in group.taps)
    return replace(group, name=group.name + suffix, size=units.size, places=places, taps=taps)


def alike(group: SymmetryGroup) -> SymmetryGroup:
    """Return the group of the units at equal places of all blocks."""
    width = group.size // group.blocks
    places = tuple(replace(p, index=p.index.reshape(group.blocks, width, -1).swapaxes(0, 1).reshape(width, -1))
                   for p in group.places)
    return replace(group, size=width, blocks=1, parent=None, places=places, taps=())


def _worst(differences: Sequence[Difference]) -> Difference:
    return Difference(max((d.max_abs for d in differences), default=0.0), max((d.max_rel for d in differences), default=0.0),
                      sum(d.count for d in differences))


def _moving(group: SymmetryGroup, generator: np.random.Generator) -> Permutation:
    """Return a random member that moves something in every block."""
    order = Permutation.random(group.size, generator=generator, blocks=group.blocks).order.copy()
    for run in np.split(np.arange(group.size), group.blocks):
        if np.array_equal(order[run], run):
            order[run] = np.roll(run, 1)
    return Permutation(order)


def _part_alone(checkpoint: Checkpoint, group: SymmetryGroup, number: int) -> Plan | None:
    """Return a plan that moves a part of what is tied: one tensor alone, or one element of each unit."""
    shift = Permutation(np.concatenate([np.roll(run, 1) for run in np.split(np.arange(group.size), group.blocks)]))
    plans = (Plan(compose([part.move(shift)]), {}) for part in _tied_parts(checkpoint, group))
    return next((plan for i, plan in enumerate(plans) if i == number), None)


def _tied_parts(checkpoint: Checkpoint, group: SymmetryGroup) -> Iterator[Place]:
    """Yield places that may not move alone: whole ones where there are others, largest first, and one element of each unit."""
    whole = [place for place in group.places if len(group.places) > 1]
    yield from sorted(whole, key=lambda place: -checkpoint.meta(place.tensor).numel())
    yield from (replace(place, index=place.index[:, :1]) for place in group.places if place.index.shape[1] > 1)
