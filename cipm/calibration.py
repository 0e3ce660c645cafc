"""What is predicted of whole networks, from what their groups lose together and from those that were measured. Numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

LEAST_RISE = 1e-9
"""Below this a rise counts as none; its logarithm is still a number."""
FAR = float(np.log(2))
"""A network that loses twice what the front does at as many parameters is predicted by networks off the front alone."""
NEAR = float(np.log(1.1))
"""One that was measured counts as along the front where it loses at most a tenth more."""
Line = Sequence[Sequence[float]]
"""Networks as (what their groups lose together, measured rise)."""
Lines = Mapping[str, Line]
"""Those along the "front", and those "off" it."""


def excess(frontier: Line, count: float, total: float) -> float:
    """Return the logarithm of how many times more than the front at this count a network's groups lose together, at least 0.

    `frontier` [[count, total]] is the front by rising counts, between which logarithms are straight lines; without one nothing
    is off it.
    """
    if not frontier:
        return 0.0
    counts, totals = np.array(frontier, dtype=float).T
    least = np.interp(count, counts, np.log(np.maximum(totals, LEAST_RISE)))
    return float(max(np.log(max(total, LEAST_RISE)) - least, 0.0))


def lines(measured: Iterable[tuple[float, float, float]]) -> dict[str, list[list[float]]]:
    """Return the lines through networks measured, each (total, rise, excess).

    Where there are none on one side, those of the other stand for them.
    """
    known = list(measured)
    front = rising((total, rise) for total, rise, far in known if far <= NEAR)
    off = rising((total, rise) for total, rise, far in known if far > NEAR)
    return {"front": front or off, "off": off or front}


def predicted_rise(through: Lines, total: float, far: float) -> float:
    """Return the rise of a network whose groups lose `total` together and that is so `far` off the front: between both lines,
    in the logarithm. Choices of a front were picked for what they are predicted to lose, so they lose more than others do."""
    if total <= 0:
        return total
    share = min(far / FAR, 1.0)
    return joined(through.get("front", ()), total) ** (1 - share) * joined(through.get("off", ()), total) ** share


def joined(line: Line, total: float) -> float:
    """Return the rise at `total` on the line through networks measured: straight in the logarithms of both, outside them in
    proportion; without any, the total itself. The points are made to rise first (`rising`)."""
    points = rising(line)
    if not points or total <= 0:
        return total
    x, y = np.log(np.array(points)).T
    at = np.log(total)
    return float(np.exp(np.interp(at, x, y) + min(at - x[0], 0) + max(at - x[-1], 0)))


def rising(line: Iterable[Sequence[float]]) -> list[list[float]]:
    """Return the points that predictions go through: by rising totals, their rises positive and never falling.

    What does not rise is left out, unless nothing does. Where rises fall from one total to the next, both get their geometric
    mean, and so on (pool adjacent violators: Ayer et al. 1955, "An empirical distribution function for sampling with incomplete
    information").
    """
    points = sorted((s, r) for s, r in line if s > 0)
    points = [(s, r) for s, r in points if r > LEAST_RISE] or [(s, LEAST_RISE) for s, _ in points]
    pools: list[tuple[float, int]] = []
    for _, rise in points:
        level, count = np.log(rise), 1
        while pools and pools[-1][0] >= level:
            before, more = pools.pop()
            level, count = (level * count + before * more) / (count + more), count + more
        pools.append((level, count))
    levels = [float(np.exp(level)) for level, count in pools for _ in range(count)]
    return [[float(s), level] for (s, _), level in zip(points, levels, strict=True)]
