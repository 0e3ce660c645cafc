"""Names, versions and content addresses of the stages. Free of torch, so that the parent of a jailed job can use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cipm.errors import OptionError
from cipm.options import parse_options

MODEL, PROBE = "model file", "probe file"


@dataclass(frozen=True)
class Stage:
    """One stage: its version (raise it when what it writes changes), what it reads, and the options and request
    fields that its result depends on."""

    version: int
    reads: tuple[str, ...]
    options: tuple[str, ...] = ()
    request: tuple[str, ...] = ()


COLLECTING = ("batch_rows", "positions", "max_width", "statistics_memory", "class_correlations", "shards", "device")
SEGMENT_ROWS, MOST_SEGMENTS = 2048, 64

STAGES: dict[str, Stage] = {
    "open": Stage(5, (MODEL,)),
    "discover": Stage(9, ("open",), ("seed", "proof_draws")),
    "probe": Stage(2, (PROBE, "open"), ("max_rows",)),
    "shard": Stage(5, ("open", "discover", "probe"), COLLECTING, ("shard",)),
    "collect": Stage(7, ("open", "discover", "probe"), COLLECTING),
    "organize": Stage(6, ("open", "discover", "probe", "collect"),
                      ("resolution", "module_method", "module_pairs", "module_count", "seed", "batch_rows", "positions",
                       "statistics_memory", "class_correlations", "device")),
    "whatif": Stage(12, ("open", "discover", "probe"),
                    ("measured_points", "measured_rows", "fisher", "batch_rows", "statistics_memory", "seed", "device")),
    "view": Stage(6, ("open", "discover", "probe", "collect", "organize", "whatif")),
    "measure": Stage(3, ("open", "discover", "probe", "whatif"), ("batch_rows", "seed", "device"), ("keep",)),
    "latency": Stage(1, (MODEL, "open", "discover", "probe", "whatif"), ("batch_rows", "seed"),
                     ("share", "locked", "sizes", "turned")),
    "prune": Stage(4, (MODEL, "open", "discover", "probe", "whatif"), ("batch_rows", "seed", "device"), ("keep", "form")),
    "export": Stage(1, (MODEL, "open", "discover", "organize"), (), ("order",)),
}

CHAINS: dict[str, tuple[str, ...]] = {
    "prepare": ("open", "discover", "probe"),
    "shard": ("open", "discover", "probe", "shard"),
    "inspect": ("open", "discover"),
    "analyze": ("open", "discover", "probe", "collect", "organize", "whatif", "view"),
    "measure": ("open", "discover", "probe", "whatif", "measure"),
    "latency": ("open", "discover", "probe", "whatif", "latency"),
    "prune": ("open", "discover", "probe", "whatif", "prune"),
    "export": ("open", "discover", "probe", "collect", "organize", "export"),
}


def stage_addresses(kind: str, model_sha256: str, probe_sha256: str | None, options: Mapping[str, Any] | None,
                    request: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return {stage: address} for a kind of job, in the order the stages run.

    An address is the sha256 of the stage's name and version, the addresses of what it reads, and the options and
    request fields it reads. Equal addresses ⇒ equal artefacts. Raises OptionError for bad options or an unknown kind.
    """
    if kind not in CHAINS:
        raise OptionError(f"There is no job {kind!r}; jobs are {', '.join(CHAINS)}.")
    values = parse_options(dict(options or {})).model_dump()
    known: dict[str, str] = {MODEL: model_sha256, PROBE: probe_sha256 or ""}
    for name in CHAINS[kind]:
        stage = STAGES[name]
        content = [name, stage.version, [known[part] for part in stage.reads], [values[o] for o in stage.options],
                   [(request or {}).get(field) for field in stage.request]]
        known[name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {name: known[name] for name in CHAINS[kind]}


def divided(kind: str, model_sha256: str, probe_sha256: str | None, options: Mapping[str, Any] | None) -> list[str]:
    """Return the address of what each shard of the probe set gives, where a job of this kind is divided; else none.

    As many as the option `shards` asks for; there may be too few rows for so many.
    """
    asked = parse_options(dict(options or {})).shards
    return [stage_addresses("shard", model_sha256, probe_sha256, options, {"shard": number})["shard"]
            for number in range(asked if kind == "analyze" and asked > 1 else 0)]


def segments(rows: int, batch_rows: int, most: int = MOST_SEGMENTS) -> tuple[int, ...]:
    """Return the rows (multiples of `batch_rows`) at which the sums of a stream are cut, 0 first.

    They depend on no number of shards, and shards begin at them: so any sharding gives the same statistics.
    """
    length = max(SEGMENT_ROWS, -(-rows // most))
    length = -(-length // batch_rows) * batch_rows
    return tuple(range(0, max(rows, 1), length))


def shard_rows(cuts: Sequence[int], rows: int, shards: int) -> tuple[tuple[int, int], ...]:
    """Return (first row, end row) of each shard: whole segments, as equal as they can be; no more shards than segments."""
    shards = min(shards, len(cuts))
    begins = [cuts[number * len(cuts) // shards] for number in range(shards)]
    return tuple(zip(begins, [*begins[1:], rows], strict=True))
