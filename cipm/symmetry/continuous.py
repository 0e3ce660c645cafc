"""Graph × actions → the symmetries beside permutations: positive scale, sign, orthogonal and invertible maps, rotary pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from cipm.load.checkpoint import Checkpoint
from cipm.symmetry import carry_maps, carry_shapes
from cipm.symmetry.blocks import Block, Resolved, resolve
from cipm.symmetry.carry import carry
from cipm.symmetry.charges import Charges
from cipm.symmetry.freedoms import (
    INVERTIBLE,
    ORTHOGONAL,
    ROTATION,
    SCALE,
    SIGN,
    Absorption,
    ContinuousSymmetry,
    FreedomPlace,
)
from cipm.symmetry.groups import SymmetryGroup
from cipm.symmetry.shapes import Observed, observe
from cipm.symmetry.solve import LARGEST_BASIS, Generator, solve
from cipm.symmetry.spaces import Spaces
from cipm.symmetry.unknowns import Source, Unknowns, number_unknowns
from cipm.symmetry.walk import example_inputs

FAMILIES = (carry_maps, carry_shapes)


@dataclass(frozen=True)
class _Finder:
    """What the parts of one discovery share."""

    checkpoint: Checkpoint
    unknowns: Unknowns
    groups: tuple[SymmetryGroup, ...]


def discover_continuous(checkpoint: Checkpoint, groups: Sequence[SymmetryGroup] = (), *, seed: int = 0,
                        observed: Observed | None = None) -> tuple[ContinuousSymmetry, ...]:
    """Find every scale, sign, orthogonal and invertible symmetry that the actions of the ops leave, not yet proved.

    Returns: freedoms in the order of the tensors that the graph reads first. A freedom that a larger one contains (the signs
    of a space that any invertible matrix may mix) is not listed beside it.
    Source: positive scale as in Neyshabur, Salakhutdinov, Srebro, "Path-SGD" (NeurIPS 2015); rotations under RMS norm as in
    Ashkboos et al., "SliceGPT" (ICLR 2024).
    """
    if observed is None:
        observed = observe(checkpoint, example_inputs(checkpoint, generator=torch.Generator().manual_seed(seed)))
    unknowns = number_unknowns(checkpoint)
    if not unknowns.sources:
        return ()
    finder = _Finder(checkpoint, unknowns, tuple(groups))
    found = {}
    for kind, sign in ((SCALE, False), (SIGN, True)):
        charges = Charges(sign)
        carry(checkpoint.graph, observed, unknowns, charges)
        found[kind] = [g for g in solve(charges.equations, unknowns, modulo=2 if sign else None) if _reaches(g, finder)]
    scales = _named(_freedom(finder, SCALE, generator) for generator in found[SCALE])
    spaces = Spaces(unknowns.count, _absorbable(finder, found[SCALE], scales))
    carry(checkpoint.graph, observed, unknowns, spaces)
    resolved = resolve(spaces, unknowns)
    matrices = _named(_matrices(finder, resolved.blocks, scales))
    mixed = _mixed(resolved, unknowns)
    pairs = [_is_pair(generator, freedom, resolved) for generator, freedom in zip(found[SCALE], scales, strict=True)]
    kept = [replace(f, kind=ROTATION) if pair else f
            for g, f, pair in zip(found[SCALE], scales, pairs, strict=True) if not _contained(g, mixed[INVERTIBLE])]
    rotated = [g for g, pair in zip(found[SCALE], pairs, strict=True) if pair]
    turned = {int(i) for g in rotated for i in g.ids.ravel()}
    signs = _named(_freedom(finder, SIGN, g) for g in _without_streams(found[SIGN], mixed[ORTHOGONAL])
                   if not _contained(g, mixed[INVERTIBLE] | turned))
    starts = {(s.tensor, s.axis): s.start for s in unknowns.sources}
    return tuple(sorted((*matrices, *kept, *signs), key=lambda f: starts[f.places[0].tensor, f.places[0].axis]
                        + int(f.places[0].index.min())))


# --- factors and signs -------------------------------------------------------------------------------------------------


def _reaches(generator: Generator, finder: _Finder) -> bool:
    """Tell whether a generator ties several stored axes; one that moves a single axis only says that it does not matter."""
    return np.unique(finder.unknowns.source_of(generator.ids[0])).size > 1


def _freedom(finder: _Finder, kind: str, generator: Generator) -> ContinuousSymmetry:
    source = finder.unknowns.source_of(generator.ids[0])
    places = []
    for number in np.unique(source).tolist():
        for power in dict.fromkeys(p for s, p in zip(source.tolist(), generator.exponents, strict=True) if s == number):
            columns = [k for k, p in enumerate(generator.exponents) if source[k] == number and p == power]
            places.append(_place(finder, finder.unknowns.sources[number], power, generator.ids[:, columns]))
    return _describe(finder, ContinuousSymmetry("", kind, None, len(generator.ids), 1, tuple(places)))


def _place(finder: _Finder, source: Source, power: int, ids: np.ndarray) -> FreedomPlace:
    length = finder.checkpoint.meta(source.tensor).shape[source.axis]
    return FreedomPlace(source.tensor, source.axis, length, power, ids - source.start, source.blocks, source.offset)


def _absorbable(finder: _Finder, generators: Sequence[Generator], scales: Sequence[ContinuousSymmetry]) -> dict[int, int]:
    """Return {unknown of a weight: number of the freedom} where readers alone can take a weight over, with a bias beside it."""
    found: dict[int, int] = {}
    for number, (generator, freedom) in enumerate(zip(generators, scales, strict=True)):
        weight, *others = freedom.places
        meta = {p.tensor: finder.checkpoint.meta(p.tensor) for p in freedom.places}
        readers = [p for p in others if p.power == -1 and meta[p.tensor].ndim > 1]
        biases = [p for p in others if p.power == 1 and meta[p.tensor].ndim == 1]
        if (weight.power == 1 and meta[weight.tensor].ndim == 1 and readers and len(biases) < 2
                and len(readers) + len(biases) == len(others)):
            own = finder.unknowns.source_of(generator.ids[0]) == finder.unknowns.source_of(generator.ids[0, 0])
            found.update(dict.fromkeys(generator.ids[:, own].ravel().tolist(), number))
    return found


def _is_pair(generator: Generator, freedom: ContinuousSymmetry, resolved: Resolved) -> bool:
    """Tell whether the two elements of each unit are a plane that rotations leave in place: a rotary pair.

    They are tied, on matrices and their biases, through nothing but products with values that no unknown acts on.
    """
    powers = {p.power for p in freedom.places}
    return (powers == {1, -1} and all(p.index.shape[1] % 2 == 0 for p in freedom.places)
            and not resolved.stopped[resolved.class_of[generator.ids]].any())


def _mixed(resolved: Resolved, unknowns: Unknowns) -> dict[str, set[int]]:
    """Return the unknowns of the blocks, by kind."""
    found: dict[str, set[int]] = {INVERTIBLE: set(), ORTHOGONAL: set()}
    for block in resolved.blocks:
        kind = ORTHOGONAL if block.orthogonal else INVERTIBLE
        if not block.ones:
            found[kind] |= {int(i) for p in block.places for i in (p.index + p.source.start).ravel()}
    return found


def _without_streams(signs: Sequence[Generator], streams: set[int]) -> list[Generator]:
    """Return generators that, with the signs of the streams that may be rotated, still generate all.

    The signs of a stream are the sum of some generators of its family; the longest of those can be spared.
    """
    families: dict[int, list[Generator]] = {}
    for generator in signs:
        families.setdefault(generator.family, []).append(generator)
    spared: list[Generator] = []
    for own in families.values():
        every = {i for g in own for i in g.ids[0].tolist()}
        subsets = (c for n in range(1, len(own) + 1) for c in combinations(own, n)) if len(own) <= LARGEST_BASIS else ()
        for chosen in subsets:
            total: set[int] = set()
            for generator in chosen:
                total ^= set(generator.ids[0].tolist())
            if total == every & streams:
                spared.append(max(chosen, key=lambda g: g.ids.shape[1]))
                break
    return [g for g in signs if all(g is not other for other in spared)]


def _contained(generator: Generator, mixed: set[int]) -> bool:
    return all(i in mixed for i in generator.ids[0].tolist())


# --- matrices ----------------------------------------------------------------------------------------------------------


def _matrices(finder: _Finder, blocks: Iterable[Block], scales: Sequence[ContinuousSymmetry]) -> list[ContinuousSymmetry]:
    """Return the freedoms of alike blocks (the heads of a layer) as one each."""
    alike: dict[tuple[object, ...], list[Block]] = {}
    for block in blocks:
        axes = tuple((p.source.start, p.power, p.index.shape[1]) for p in block.places)
        alike.setdefault((block.size, block.orthogonal, block.ones, axes, block.absorbed), []).append(block)
    found = []
    for same in alike.values():
        first = same[0]
        places = tuple(_place(finder, p.source, p.power, np.concatenate([b.places[k].index for b in same]) + p.source.start)
                       for k, p in enumerate(first.places))
        absorbs = tuple(Absorption(scales[n].places[0].tensor, scales[n].name) for n in sorted(first.absorbed))
        kind = ORTHOGONAL if first.orthogonal else INVERTIBLE
        made = ContinuousSymmetry("", kind, None, first.size * len(same), len(same), places, first.ones, absorbs)
        found.append(_describe(finder, made))
    return found


# --- names and words ---------------------------------------------------------------------------------------------------


def _describe(finder: _Finder, freedom: ContinuousSymmetry) -> ContinuousSymmetry:
    """Name a freedom after the tensor that it changes first, and find the permutation group of the same units."""
    first = freedom.places[0]
    group = next((g.name for g in finder.groups for p in g.places if (p.tensor, p.along) == (first.tensor, first.axis)
                  and first.blocks == 1 and g.size == freedom.units and _same_positions(p.index, first.index)), None)
    base = re.sub(r"[^A-Za-z0-9._-]", "_", first.tensor).removesuffix(".weight").removesuffix(".bias")
    return replace(freedom, name=base, group=group, conditions=tuple(_conditions(freedom)))


def _same_positions(one: np.ndarray, two: np.ndarray) -> bool:
    return np.array_equal(np.sort(one.ravel()), np.sort(two.ravel()))


def _conditions(freedom: ContinuousSymmetry) -> Iterable[str]:
    if freedom.absorbs:
        tensors = list(dict.fromkeys(a.tensor for a in freedom.absorbs))
        shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        yield f"after {shown} {'is' if len(tensors) == 1 else 'are'} absorbed into the weights that read the normalised values"
    if freedom.fixes_ones:
        yield "maps that keep the vector of ones, because a mean over the units is taken off"
    if any(p.offset for p in freedom.places):
        yield "the model adds a number to a stored weight, and the sum is scaled"


def _named(freedoms: Iterable[ContinuousSymmetry]) -> tuple[ContinuousSymmetry, ...]:
    """Give each freedom of a kind a name of its own."""
    taken: dict[tuple[str, str], int] = {}
    named = []
    for freedom in freedoms:
        taken[freedom.kind, freedom.name] = count = taken.get((freedom.kind, freedom.name), 0) + 1
        named.append(freedom if count == 1 else replace(freedom, name=f"{freedom.name}.{count}"))
    return tuple(named)
