"""The measured proof: reordered by random members in float64, the model must compute the same function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.permutation import Permutation, Plan, compose
from cipm.symmetry.groups import Certificate, Symmetry, SymmetryGroup
from cipm.symmetry.walk import example_inputs
from cipm.trace.interpret import run

TOLERANCE = 1e-10
"""Largest relative difference that counts as the same function in float64: about 10⁵ roundings."""
EXAMPLES = ((3, 12), (2, 7))
"""The two example sizes (batch, other symbolic dimensions) on which functions are compared."""
CONTROLS = 16
"""Most groups for which the negative control is run; beyond it they are spread evenly."""

Inputs = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]


def prove(checkpoint: Checkpoint, symmetry: Symmetry, *, draws: int = 2, seed: int = 0) -> Symmetry:
    """Prove all groups together by random members; where that fails, leave out the groups that fail, found by bisection.

    Returns: the symmetry with `proved` groups only, notes on what was left out, and its Certificate.
    """
    start = time.perf_counter()
    tensors = {key: t.double() if t.is_floating_point() else t for key, t in checkpoint.tensors.items()}
    exact = checkpoint.with_tensors(tensors)
    examples = _examples(checkpoint, seed)
    references = [_outputs(exact, inputs) for inputs in examples]
    generator = np.random.default_rng(seed)

    def error(groups: Sequence[SymmetryGroup]) -> tuple[float, float]:
        return _largest(exact, symmetry, groups, examples, references, draws, generator)

    failing = _failing(symmetry.groups, lambda groups: error(groups)[1] <= TOLERANCE)
    kept = tuple(group for group in symmetry.groups if group.name not in failing)
    max_abs, max_rel = error(kept) if kept else (0.0, 0.0)
    control, silent = _negative_control(exact, kept, examples[-1], references[-1])
    passed = max_rel <= TOLERANCE and (control > TOLERANCE or not kept)
    inputs = "; ".join(", ".join(f"{n} {list(t.shape)}" for n, t in example.items()) for example in examples)
    controlled = f"negative control on {min(CONTROLS, len(kept))} of {len(kept)} groups"
    certificate = Certificate("float64", f"random inputs {inputs}; {controlled}", draws, max_abs, max_rel, TOLERANCE, passed,
                              control, time.perf_counter() - start)
    notes = [f"{name} was found but failed the proof and is left out" for name in sorted(failing)]
    notes += [f"moving one tensor of {name} alone changes nothing (its units are dead or identical)" for name in silent]
    proved = {group.name for group in kept} if passed else set()
    pruned = replace(symmetry, groups=kept, notes=(*symmetry.notes, *notes))
    return pruned.with_proof(certificate, proved)


def compare(first: Sequence[torch.Tensor | None], second: Sequence[torch.Tensor | None]) -> tuple[float, float]:
    """Return (largest absolute, largest relative) difference; relative to the largest output of the same sample."""
    max_abs = max_rel = 0.0
    for a, b in zip(first, second, strict=True):
        if a is None or b is None or a.numel() == 0:
            continue
        rows_a, rows_b = (t.double().reshape(t.shape[0] if t.ndim else 1, -1) for t in (a, b))
        difference = (rows_a - rows_b).abs().amax(1)
        scale = torch.maximum(rows_a.abs().amax(1), rows_b.abs().amax(1)).clamp_min(torch.finfo(torch.float64).tiny)
        max_abs = max(max_abs, float(difference.max()))
        max_rel = max(max_rel, float((difference / scale).max()))
    return max_abs, max_rel


def random_member(symmetry: Symmetry, groups: Sequence[SymmetryGroup], generator: np.random.Generator) -> Plan:
    """Return the plan of one uniform member of every group."""
    return symmetry.plan({g.name: Permutation.random(g.size, generator=generator, blocks=g.blocks) for g in groups})


def _examples(checkpoint: Checkpoint, seed: int) -> list[Inputs]:
    found: list[Inputs] = []
    for number, sizes in enumerate(EXAMPLES):
        generator = torch.Generator().manual_seed(seed + number)
        found.append(example_inputs(checkpoint, generator=generator, sizes=sizes))
    return found


def _outputs(checkpoint: Checkpoint, inputs: Inputs) -> Outputs:
    return run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, dtype=torch.float64)


def _largest(exact: Checkpoint, symmetry: Symmetry, groups: Sequence[SymmetryGroup], examples: Sequence[Inputs],
             references: Sequence[Outputs], draws: int, generator: np.random.Generator) -> tuple[float, float]:
    max_abs = max_rel = 0.0
    for _ in range(draws):
        moved = exact.with_tensors(random_member(symmetry, groups, generator).apply(exact.tensors))
        for inputs, reference in zip(examples, references, strict=True):
            absolute, relative = compare(reference, _outputs(moved, inputs))
            max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative if relative == relative else np.inf)
    return max_abs, max_rel


def _failing(groups: Sequence[SymmetryGroup], holds: Callable[[Sequence[SymmetryGroup]], bool]) -> set[str]:
    """Return the names of the groups that fail, halving until single groups are left."""
    if not groups or holds(groups):
        return set()
    if len(groups) == 1:
        return {groups[0].name}
    half = len(groups) // 2
    return _failing(groups[:half], holds) | _failing(groups[half:], holds)


def _negative_control(exact: Checkpoint, groups: Sequence[SymmetryGroup], inputs: Inputs,
                      reference: Outputs) -> tuple[float, list[str]]:
    """Return the smallest change that moving one tied tensor alone makes, and the groups where none makes any."""
    spread = np.linspace(0, len(groups) - 1, min(CONTROLS, len(groups)), dtype=int)
    chosen = [groups[i] for i in spread]
    changes: Mapping[str, float] = {g.name: _change(exact, g, inputs, reference) for g in chosen}
    silent = [name for name, change in changes.items() if change <= TOLERANCE]
    heard = [change for change in changes.values() if change > TOLERANCE]
    return (min(heard) if heard else 0.0), silent


def _change(exact: Checkpoint, group: SymmetryGroup, inputs: Inputs, reference: Outputs) -> float:
    """Return how much it changes to move a part of what is tied: one tensor alone, or one element of each unit."""
    shift = Permutation(np.concatenate([np.roll(run, 1) for run in np.split(np.arange(group.size), group.blocks)]))
    parts = [replace(place, index=place.index[:, :1]) for place in group.places]
    parts += [place for place in group.places if place.index.shape[1] > 1 and len(group.places) > 1]
    change = 0.0
    for part in sorted(parts, key=lambda part: -exact.tensors[part.tensor].numel())[:4]:
        alone = Plan(compose([((part.tensor, part.axis), part.length, part.index, shift)]), {})
        _, change = compare(reference, _outputs(exact.with_tensors(alone.apply(exact.tensors)), inputs))
        if change > TOLERANCE:
            break
    return change
