"""The one shape of all accumulators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, Self, TypeVar


class Accumulator(Protocol):
    """Create (a classmethod of its own arguments), update, merge, finalise.

    `update` takes batches [samples, units] and returns the accumulator with them added; the receiver is not to be used
    again. `merge` returns the accumulator of both shards' samples and leaves both as they are. `finalise` reads the
    result and changes nothing. Samples count from 0 over the stream, and a value that is not finite is refused.
    """

    @property
    def samples(self) -> int: ...

    def update(self, *batch: Any) -> Self: ...

    def merge(self, other: Self) -> Self: ...

    def finalise(self) -> Any: ...


A = TypeVar("A", bound=Accumulator)


def accumulate(start: A, batches: Iterable[Any]) -> A:
    """Return the accumulator with all batches added; a batch that is a tuple gives several arguments."""
    for batch in batches:
        start = start.update(*batch) if isinstance(batch, tuple) else start.update(batch)
    return start
