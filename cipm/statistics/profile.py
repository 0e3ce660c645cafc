"""What each unit does by itself: the distribution of its activation, whether it idles, and which classes move it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np

from cipm.statistics.activity import ActivationRange, Activity, Idle
from cipm.statistics.classes import ClassMeans
from cipm.statistics.histogram import Histogram

BINS = 64
OPEN = ActivationRange()


@final
@dataclass(frozen=True, eq=False)
class Profile:
    """An accumulator of what each unit does by itself: create, update, merge, finalise.

    `histogram` and `activity` count one sample of every row, at a position that turns with the row; `classes`, where
    rows have labels, takes the mean of all kept samples of a row as one sample; where positions have, every kept sample.

    Error: that of `Histogram`, `Activity` (none in the counts) and `ClassMeans` (1e-12). Cost: rows · units; memory
    units · (64 + 3 + classes) float64.
    """

    histogram: Histogram
    activity: Activity
    classes: ClassMeans | None

    @classmethod
    def create(cls, units: int, *, range: ActivationRange = OPEN, classes: int = 0) -> Profile:
        """Return the accumulator of no samples; without `classes` it keeps no class means."""
        return cls(Histogram.create(units, bins=BINS), Activity.create(units, range),
                   ClassMeans.create(units, classes) if classes else None)

    @property
    def samples(self) -> int:
        return self.histogram.samples

    def update(self, single: Any, means: Any = None, labels: Any = None) -> Profile:
        """Return the accumulator with one sample of each row [rows, units] added and, where there are labels [n], with the
        means of rows, or samples, [n, units] by class; those of a negative label belong to no class."""
        classes = self.classes
        if classes is not None and labels is not None:
            known = labels >= 0
            classes = classes.update(means, labels) if known.all() else classes.update(np.asarray(means)[known], labels[known])
        return Profile(self.histogram.update(single), self.activity.update(single), classes)

    def merge(self, other: Profile) -> Profile:
        """Return the accumulator of both shards' rows."""
        assert (self.classes is None) == (other.classes is None)
        return Profile(self.histogram.merge(other.histogram), self.activity.merge(other.activity),
                       None if self.classes is None else self.classes.merge(other.classes))

    def finalise(self) -> Idle:
        """Return which units do nothing, and how."""
        return self.activity.finalise()

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, for storage; `from_state` gives it back."""
        ends = [np.nan if end is None else end for end in (self.activity.range.lower, self.activity.range.upper)]
        parts = {"histogram": self.histogram, "activity": self.activity, "classes": self.classes}
        arrays = {f"{name}/{field.name}": np.asarray(getattr(part, field.name)) for name, part in parts.items()
                  if part is not None for field in fields(part) if field.name != "range"}
        return arrays | {"range": np.array(ends)}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Profile:
        """Rebuild the accumulator from `state`."""
        def part(name: str) -> dict[str, Any]:
            found = {key.partition("/")[2]: value for key, value in state.items() if key.startswith(f"{name}/")}
            return {key: int(value) if key == "samples" else value for key, value in found.items()}

        lower, upper = (None if np.isnan(end) else float(end) for end in state["range"])
        classes = part("classes")
        return cls(Histogram(**part("histogram")), Activity(range=ActivationRange(lower, upper), **part("activity")),
                   ClassMeans(**classes) if classes else None)
