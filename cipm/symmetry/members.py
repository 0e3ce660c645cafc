"""Members of the symmetries beside permutations: values for every unit, and what they make of the tensors (in float64)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipm.load.checkpoint import LazyTensors, metas_of
from cipm.symmetry.freedoms import INVERTIBLE, ORTHOGONAL, ROTATION, SCALE, SIGN, ContinuousSymmetry, FreedomPlace

LARGEST_QR = 1024
"""Directions up to which a random rotation is uniform (by QR); beyond it, it is a product of reflections."""
REFLECTIONS = 32
CONDITION = 4.0
"""Largest ratio of the singular values of a random invertible map."""


@dataclass(frozen=True, eq=False)
class Member:
    """One member of a freedom: factors or signs [units], complex numbers [units] for pairs, or matrices [blocks, n, n]."""

    freedom: ContinuousSymmetry
    values: np.ndarray


def random_values(freedom: ContinuousSymmetry, generator: np.random.Generator) -> Member:
    """Return a random member: factors log-uniform in [1/4, 4], fair signs, rotations, maps of a condition up to CONDITION."""
    n, width = freedom.units, freedom.width
    if freedom.kind == SIGN:
        signs = generator.choice([-1.0, 1.0], size=n)
        signs[generator.integers(n)] = -1.0
        return Member(freedom, signs)
    if freedom.kind == SCALE:
        return Member(freedom, 4.0 ** generator.uniform(-1, 1, size=n))
    if freedom.kind == ROTATION:
        return Member(freedom, 4.0 ** generator.uniform(-1, 1, size=n) * np.exp(2j * np.pi * generator.random(n)))
    return Member(freedom, np.stack([_random_matrix(freedom, width, generator) for _ in range(freedom.blocks)]))


def _random_matrix(freedom: ContinuousSymmetry, n: int, generator: np.random.Generator) -> np.ndarray:
    if freedom.kind == INVERTIBLE:
        singular = CONDITION ** generator.uniform(-0.5, 0.5, size=n)
        return _rotation(n, generator) @ (singular[:, None] * _rotation(n, generator))
    if not freedom.fixes_ones:
        return _rotation(n, generator)
    basis = complement_of_ones(n)
    return np.full((n, n), 1 / n) + basis @ _rotation(n - 1, generator) @ basis.T


def _rotation(n: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random orthogonal matrix. Source: Mezzadri, "How to generate random matrices from the classical compact
    groups" (2007), for the signs after QR."""
    if n <= LARGEST_QR:
        q, r = np.linalg.qr(generator.standard_normal((n, n)))
        return q * np.where(np.diag(r) < 0, -1.0, 1.0)
    made = np.eye(n)
    for _ in range(REFLECTIONS):
        v = generator.standard_normal(n)
        v /= np.linalg.norm(v)
        made -= 2 * np.outer(v, v @ made)
    return made


def complement_of_ones(n: int) -> np.ndarray:
    """Return an orthonormal basis [n, n − 1] of what is orthogonal to the vector of ones (Helmert's)."""
    k = np.arange(1, n)
    basis = np.where(np.arange(n)[:, None] < k, 1.0, 0.0)
    basis[k, k - 1] = -k
    return basis / np.sqrt(k * (k + 1.0))


def absorbing(freedoms: Mapping[str, ContinuousSymmetry], tensors: Mapping[str, torch.Tensor],
              freedom: ContinuousSymmetry) -> list[Member] | None:
    """Return the members that make the absorbed weights of a freedom ones; None where one of them is zero or not finite."""
    found = []
    for absorption in freedom.absorbs:
        by = freedoms[absorption.by]
        place = by.places[0]
        weight = tensors[place.tensor].detach().double().numpy()[place.index[:, 0]] + place.offset
        if not np.isfinite(weight).all() or (weight == 0).any():
            return None
        found.append(Member(by, 1 / weight))
    return found


def applied(tensors: Mapping[str, torch.Tensor], members: Sequence[Member]) -> LazyTensors:
    """Return the tensors with members applied one after the other, those that change in float64, each when it is asked for."""
    moves: dict[str, list[tuple[Member, FreedomPlace]]] = {}
    for member in members:
        for place in member.freedom.places:
            moves.setdefault(place.tensor, []).append((member, place))
    return moved(tensors, moves)


def moved(tensors: Mapping[str, torch.Tensor], moves: Mapping[str, Sequence[tuple[Member, FreedomPlace]]]) -> LazyTensors:
    """Return the tensors with some places moved."""
    def read(key: str) -> torch.Tensor:
        tensor = tensors[key]
        for member, place in moves.get(key, ()):
            tensor = transform(tensor.detach().double(), member, place)
        return tensor
    return LazyTensors(metas_of(tensors), read)


def transform(tensor: torch.Tensor, member: Member, place: FreedomPlace) -> torch.Tensor:
    """Return a float64 tensor with a member applied at one place."""
    kind = member.freedom.kind
    if kind in (SCALE, SIGN):
        return _scaled(tensor, member.values ** place.power if kind == SCALE else member.values ** abs(place.power), place)
    if kind == ROTATION:
        return _turned(tensor, member.values if place.power > 0 else 1 / member.values.conj(), place)
    assert kind in (ORTHOGONAL, INVERTIBLE)
    matrices = member.values if place.power > 0 else np.linalg.inv(member.values).transpose(0, 2, 1)
    return _mixed(tensor, matrices, place)


def _scaled(tensor: torch.Tensor, factors: np.ndarray, place: FreedomPlace) -> torch.Tensor:
    whole = np.ones(place.blocks * place.length)
    whole[place.index] = factors[:, None]
    if place.blocks > 1:
        shape = tensor.shape
        parts = tensor.reshape(place.blocks, -1, *shape[1:])
        scaled = parts * torch.from_numpy(whole).reshape(place.blocks, 1, place.length, *[1] * (len(shape) - 2))
        return scaled.reshape(shape)
    along = torch.from_numpy(whole).reshape([-1 if axis == place.axis else 1 for axis in range(tensor.ndim)])
    return (tensor + place.offset) * along - place.offset if place.offset else tensor * along


def _turned(tensor: torch.Tensor, numbers: np.ndarray, place: FreedomPlace) -> torch.Tensor:
    pairs = place.index.reshape(len(numbers), -1, 2)
    rows = tensor.movedim(place.axis, 0).clone()
    along = torch.from_numpy(numbers).reshape(-1, 1, *[1] * (tensor.ndim - 1))
    first, second = (rows[torch.from_numpy(pairs[..., side].copy())] for side in (0, 1))
    rows[torch.from_numpy(pairs[..., 0].copy())] = along.real * first - along.imag * second
    rows[torch.from_numpy(pairs[..., 1].copy())] = along.imag * first + along.real * second
    return rows.movedim(0, place.axis)


def _mixed(tensor: torch.Tensor, matrices: np.ndarray, place: FreedomPlace) -> torch.Tensor:
    rows = tensor.movedim(place.axis, 0).clone()
    width = matrices.shape[1]
    for block, matrix in enumerate(torch.from_numpy(matrices)):
        for copy in range(place.index.shape[1]):
            own = torch.from_numpy(place.index[block * width:(block + 1) * width, copy].copy())
            rows[own] = torch.tensordot(matrix, rows[own], dims=1)
    return rows.movedim(0, place.axis)
