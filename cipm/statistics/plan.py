"""Which taps are collected in which forward pass, so that their accumulators fit into memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cipm.statistics.centring import chunk_rows
from cipm.statistics.profile import BINS
from cipm.statistics.triangle import triangle_words
from cipm.symmetry.taps import Tap

MIB = 2**20


@dataclass(frozen=True, eq=False)
class Pass:
    """The taps of one forward pass over the probe set, and the bytes of their accumulators."""

    taps: tuple[Tap, ...]
    bytes: int


@dataclass(frozen=True, eq=False)
class CollectionPlan:
    """The passes, within `memory` bytes each, and the taps (with their bytes) that do not fit alone."""

    memory: int
    passes: tuple[Pass, ...]
    left_out: tuple[tuple[Tap, int], ...]

    @property
    def words(self) -> str:
        """Return the plan in one sentence or two."""
        taps = sum(len(one.taps) for one in self.passes)
        largest = max((one.bytes for one in self.passes), default=0)
        times = {1: "one forward pass"}.get(len(self.passes), f"{len(self.passes)} forward passes")
        said = (f"{taps} activations are collected in {times}, within {_mib(largest)} of the {_mib(self.memory)} allowed."
                if taps else "No activation is collected.")
        left = [f"{tap.value} ({len(tap.index):,} units, {_mib(size)})" for tap, size in self.left_out]
        return said + (f" Not collected, because each alone needs more: {', '.join(left)}. Raise statistics_memory to "
                       "collect them." if left else "")


def plan_collection(taps: Sequence[Tap], *, memory: int, classes: int = 0, itemsize: int = 4,
                    by_class: Collection[str] = ()) -> CollectionPlan:
    """Return the fewest passes that first-fit by falling size finds; within a pass taps keep their order.

    `memory` is in bytes, `itemsize` the bytes of one activation value, `by_class` holds the keys of the taps whose covariances
    are gathered class by class as well. A tap that does not fit alone is left out.
    """
    sizes = {tap: tap_bytes(len(tap.index), classes=classes, itemsize=itemsize)
             + class_bytes(len(tap.index), classes) * (tap.key in by_class) for tap in taps}
    bins: list[list[Tap]] = []
    for tap in sorted((tap for tap in taps if sizes[tap] <= memory), key=lambda tap: -sizes[tap]):
        room = next((one for one in bins if sum(sizes[t] for t in one) + sizes[tap] <= memory), None)
        bins.append([tap]) if room is None else room.append(tap)
    place = {tap: number for number, tap in enumerate(taps)}
    passes = [tuple(sorted(one, key=place.__getitem__)) for one in bins]
    return CollectionPlan(memory, tuple(Pass(one, sum(sizes[t] for t in one)) for one in passes),
                          tuple((tap, sizes[tap]) for tap in taps if sizes[tap] > memory))


def tap_bytes(units: int, *, classes: int = 0, itemsize: int = 4) -> int:
    """Return the bytes that the accumulators of one tap take while samples come in: two covariances (a float64 triangle, one
    of products and a buffer each) and a profile."""
    half = (8 + itemsize) * triangle_words(units) + itemsize * chunk_rows(units) * units
    return 2 * half + 8 * units * (BINS + classes + 32)


def class_bytes(units: int, classes: int) -> int:
    """Return the bytes of the covariances of so many classes."""
    return 8 * classes * units**2


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.2g} MiB"
