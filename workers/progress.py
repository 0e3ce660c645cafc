"""How far a job is: the states of its stages, a share between 0 and 1, and the time left where that can be said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Stage = dict[str, Any]
WRITE_SECONDS = 0.5


@dataclass
class Progress:
    """The stages of one running job. `write(values)` is called at every change of state, else twice a second at most."""

    stages: list[Stage]
    typical: Mapping[str, float]
    write: Callable[[dict[str, Any]], None]
    clock: Callable[[], float] = time.monotonic
    current: str | None = None
    fraction: float = 0.0
    since: float = 0.0
    written: float = field(default=-1e9)

    def started(self, name: str) -> None:
        """Say that a stage runs."""
        self.current, self.fraction, self.since = name, 0.0, self.clock()
        self._set(name, state="running")

    def elapsed(self) -> float:
        """Return how long the present stage has run, seconds."""
        return self.clock() - self.since if self.current else 0.0

    def ended(self, name: str, state: str, seconds: float | None = None) -> None:
        """Say that a stage is `done` after so many seconds, or was found `cached`."""
        self.current, self.fraction = None, 0.0
        self._set(name, state=state, seconds=seconds and round(seconds, 3))

    def moved(self, done: float, total: float) -> None:
        """Say how much of the present stage is done."""
        self.fraction = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        if self.clock() - self.written >= WRITE_SECONDS:
            self._write()

    def _set(self, name: str, **values: Any) -> None:
        self.stages = [stage | values if stage["name"] == name else stage for stage in self.stages]
        self._write()

    def _write(self) -> None:
        self.written = self.clock()
        left = seconds_left(self.stages, self.typical, self.elapsed(), self.fraction)
        self.write({"stages": self.stages, "stage": self.current, "progress": share(self.stages, self.fraction),
                    "eta_seconds": left})


def share(stages: list[Stage], fraction: float) -> float:
    """Return the share of stages that are over, counting the present one by its fraction."""
    over = sum(stage["state"] in ("done", "cached") for stage in stages)
    running = any(stage["state"] == "running" for stage in stages)
    return (over + (fraction if running else 0.0)) / max(1, len(stages))


def seconds_left(stages: list[Stage], typical: Mapping[str, float], elapsed: float, fraction: float) -> float | None:
    """Return the seconds left, or None where nothing is known.

    The present stage is extrapolated from its own fraction, else from what it typically takes; stages to come are taken
    from what they typically took, scaled by how this job compares so far. One unknown stage to come: None.
    """
    pace = _pace(stages, typical, elapsed, fraction)
    left = 0.0
    for stage in stages:
        name, state = stage["name"], stage["state"]
        if state == "running" and fraction > 0:
            left += elapsed * (1 - fraction) / fraction
        elif state in ("running", "waiting"):
            if name not in typical:
                return None
            left += max(0.0, typical[name] * pace - (elapsed if state == "running" else 0.0))
    return round(left, 1)


def _pace(stages: list[Stage], typical: Mapping[str, float], elapsed: float, fraction: float) -> float:
    """Return how slow this job is against typical ones (1 is as usual), from the stages it has computed itself."""
    took = usual = 0.0
    for stage in stages:
        if stage["name"] not in typical:
            continue
        if stage["state"] == "done":
            took, usual = took + (stage["seconds"] or 0.0), usual + typical[stage["name"]]
        elif stage["state"] == "running" and fraction > 0:
            took, usual = took + elapsed, usual + typical[stage["name"]] * fraction
    return took / usual if usual > 0.1 else 1.0
