"""Statistics of the two halves of a probe set, so that what one half shows can be judged on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cipm.statistics.covariance import Covariance


@dataclass(frozen=True, eq=False)
class HalfSplit:
    """The same statistics over the two halves of a probe set (even and odd rows), so that a result found on one half
    can be judged on the other.

    `rows` counts probe rows. A row of a convolution or sequence gives several samples, which are not independent:
    `samples` counts those.
    """

    even: Covariance
    odd: Covariance
    rows: int

    @cached_property
    def whole(self) -> Covariance:
        """Return the statistics over all rows."""
        return self.even.merge(self.odd)

    @property
    def halves(self) -> tuple[Covariance, Covariance]:
        return self.even, self.odd

    @property
    def samples(self) -> int:
        return self.even.samples + self.odd.samples

    def merge(self, other: HalfSplit) -> HalfSplit:
        """Return the statistics of both shards."""
        return HalfSplit(self.even.merge(other.even), self.odd.merge(other.odd), self.rows + other.rows)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for storage; `from_state` gives it back."""
        halves = {f"{name}/{key}": value for name in ("even", "odd") for key, value in getattr(self, name).state().items()}
        return {"rows": np.array(self.rows, dtype=np.int64), **halves}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> HalfSplit:
        """Rebuild both halves from `state`."""
        even, odd = (Covariance.from_state({key.removeprefix(half): value for key, value in state.items()
                                            if key.startswith(half)}) for half in ("even/", "odd/"))
        return cls(even, odd, int(state["rows"]))
