"""Canonical scales and signs: of all models that differ by powers of two and signs alone, one that is the same for all.

Unit by unit in the order of the graph: the norm of what comes in lies in [1, 2), and its largest entry is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry.freedoms import INVERTIBLE, ORTHOGONAL, ROTATION, SCALE, SIGN, ContinuousSymmetry, FreedomPlace
from cipm.symmetry.rescaling import Rescaling

SCALED = (SCALE, ROTATION, INVERTIBLE)
"""Kinds whose units may each be scaled."""
SIGNED = (SIGN, ROTATION, INVERTIBLE, ORTHOGONAL)
"""Kinds whose units may each change sign."""
Choose = Callable[[torch.Tensor], np.ndarray]
Decide = Callable[[Checkpoint, Sequence[ContinuousSymmetry], ContinuousSymmetry], list[FreedomPlace]]


@dataclass(frozen=True)
class NormalForm:
    """The rescaling, how many units it covers, and why others were left as they are."""

    rescaling: Rescaling
    units: int
    notes: tuple[str, ...]


def canonical_scales(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry],
                     kinds: Sequence[str] = SCALED) -> NormalForm:
    """Return the powers of two that bring the norm of every unit's incoming weights into [1, 2).

    Dead units stay, and so do units of which an entry would overflow or underflow: everything can be undone bit for bit.
    Models that differ by powers of two become equal.
    """
    able = [f for f in freedoms if f.proved and f.kind in kinds]
    return _exact(checkpoint, able, _anchors, _scale, lambda exponents: Rescaling(exponents, {}))


def canonical_signs(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry],
                    kinds: Sequence[str] = SIGNED) -> NormalForm:
    """Return the signs that make the largest incoming weight of every unit positive."""
    able = [f for f in freedoms if f.proved and f.kind in kinds and not f.fixes_ones]
    return _exact(checkpoint, able, _first_anchor, _sign,
                  lambda flips: Rescaling({}, {p: f % 2 == 1 for p, f in flips.items()}))


def _exact(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry], decide: Decide, choose: Choose,
           make: Callable[[dict[tuple[str, int, int], np.ndarray]], Rescaling]) -> NormalForm:
    """Choose for all units; leave out, and choose again, as long as an entry would not come back bit for bit."""
    anchored = [(f, anchors) for f in freedoms for anchors in [decide(checkpoint, freedoms, f)] if anchors]
    blocked = [np.zeros(f.units, bool) for f, _ in anchored]
    notes = [f"{f.name} ({f.kind}) stays as it is: what comes in is changed by others, or is not stored as it is read"
             for f in freedoms if all(f is not other for other, _ in anchored)]
    while True:
        numbers: dict[tuple[str, int, int], np.ndarray] = {}
        for (freedom, anchors), stay in zip(anchored, blocked, strict=True):
            chosen = np.where(stay, 0, choose(_incoming(checkpoint, make(numbers), anchors)))
            for place in freedom.places:
                key = (place.tensor, place.axis, place.blocks)
                total = numbers.setdefault(key, np.zeros(place.blocks * place.length, np.int64))
                power = 1 if freedom.kind == ORTHOGONAL else place.power
                total[place.index] += power * chosen[:, None]
        rescaling = make(numbers)
        if not _block(checkpoint, rescaling, [f for f, _ in anchored], blocked):
            break
    left = sum(int(stay.sum()) for stay in blocked)
    if left:
        notes.append(f"{left} units stay as they are: an entry would leave the range of its number format")
    return NormalForm(rescaling, sum(f.units for f, _ in anchored) - left, tuple(notes))


def _anchors(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry], own: ContinuousSymmetry) -> list[FreedomPlace]:
    """Return the places that decide: incoming weights that neither a later freedom nor this one changes elsewhere."""
    if any(place.offset for place in own.places):
        return []
    at = next(number for number, f in enumerate(freedoms) if f is own)
    later = {place.tensor for f in freedoms[at + 1:] for place in f.places}
    often = [place.tensor for place in own.places]
    parameters = set(checkpoint.parameter_keys)
    return [p for p in own.places if p.power == 1 and p.tensor in parameters and p.tensor not in later
            and often.count(p.tensor) == 1]


def _first_anchor(checkpoint: Checkpoint, freedoms: Sequence[ContinuousSymmetry],
                  own: ContinuousSymmetry) -> list[FreedomPlace]:
    """Return the place that decides on signs, which do not tell what comes in from what goes out: the first one read."""
    return _anchors(checkpoint, freedoms, own)[:1]


def _incoming(checkpoint: Checkpoint, rescaling: Rescaling, anchors: Sequence[FreedomPlace]) -> torch.Tensor:
    """Return [units, entries]: all that the anchors hold of each unit, as it stands after what has been chosen."""
    parts = []
    for place in anchors:
        tensor = rescaling.move(place.tensor, checkpoint.tensors[place.tensor]).detach().double()
        if place.blocks > 1:
            tensor = tensor.reshape(place.blocks, -1, *tensor.shape[1:]).movedim(2, 1).flatten(0, 1)
        else:
            tensor = tensor.movedim(place.axis, 0)
        parts.append(tensor.reshape(len(tensor), -1)[torch.from_numpy(place.index.copy())].flatten(1))
    return torch.cat(parts, 1)


def _scale(incoming: torch.Tensor) -> np.ndarray:
    """Return for every unit the exponent that brings its norm into [1, 2); 0 for dead units."""
    largest = incoming.abs().amax(1)
    _, exponent = torch.frexp(largest)
    norm = torch.linalg.vector_norm(torch.ldexp(incoming, -exponent[:, None]), dim=1)  # cannot over- or underflow
    _, above = torch.frexp(norm)
    alive = (largest > 0) & torch.isfinite(largest)
    return torch.where(alive, 1 - above - exponent, 0).numpy().astype(np.int64)


def _sign(incoming: torch.Tensor) -> np.ndarray:
    """Return 1 for every unit whose largest entry is negative."""
    at = incoming.abs().argmax(1, keepdim=True)
    return (incoming.gather(1, at)[:, 0] < 0).numpy().astype(np.int64)


def _block(checkpoint: Checkpoint, rescaling: Rescaling, freedoms: Sequence[ContinuousSymmetry],
           blocked: Sequence[np.ndarray]) -> bool:
    """Block every unit that changes an entry which does not come back; tell whether one was found."""
    found = False
    for key in rescaling.keys:
        lost = rescaling.lost(key, checkpoint.tensors[key])
        if not lost.any():
            continue
        for freedom, stay in zip(freedoms, blocked, strict=True):
            for place in freedom.places:
                if place.tensor == key:
                    bad = _along(lost, place)[place.index].any(1) & ~stay
                    stay |= bad
                    found = found or bool(bad.any())
        assert found, f"{key} does not come back, and nothing changes it"
    return found


def _along(lost: torch.Tensor, place: FreedomPlace) -> np.ndarray:
    """Return which positions of a place's axis hold a lost entry."""
    if place.blocks > 1:
        parts = lost.reshape(place.blocks, -1, *lost.shape[1:]).movedim(2, 1)
        return parts.flatten(2).any(2).flatten().numpy()
    return lost.movedim(place.axis, 0).reshape(lost.shape[place.axis], -1).any(1).numpy()
