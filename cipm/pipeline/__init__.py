"""The stages composed. `run_job` is the jail's entry: each stage a pure function of (artefacts, options) into a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cipm.options import parse_options
from cipm.pipeline.collecting import collect_shard, collect_statistics, shard_ranges
from cipm.pipeline.context import Context, Emit
from cipm.pipeline.discovery import discover, open_model, read_probe_file
from cipm.pipeline.exporting import export_order
from cipm.pipeline.organizing import organize
from cipm.pipeline.prepare import prepare
from cipm.pipeline.smaller import prune
from cipm.pipeline.timing import fit_latency
from cipm.pipeline.view import view
from cipm.pipeline.whatif import measure, whatif
from cipm.stages import CHAINS

__all__ = ["RUN", "prepare", "run_job"]

RUN: dict[str, Callable[[Context, Path], None]] = {
    "open": open_model, "discover": discover, "probe": read_probe_file, "shard": collect_shard,
    "collect": collect_statistics,
    "organize": organize, "whatif": whatif, "view": view, "measure": measure, "latency": fit_latency,
    "prune": prune, "export": export_order,
}


def run_job(request: Mapping[str, Any], scratch: Path, emit: Emit) -> dict[str, Any]:
    """Run the stages of one job that are not done yet, each into its folder below `scratch`; return the job's result.

    `request` is described in docs/design.md ("The jail"). Raises what the stages raise, as cipm.errors.
    """
    folders = {stage: Path(folder) for stage, folder in request.get("done", {}).items()}
    context = Context(request, parse_options(request.get("options")), folders, emit)
    timings: dict[str, float] = context.kept.setdefault("timings", {})
    for stage in CHAINS[request["kind"]]:
        if stage in folders:
            emit({"event": "stage", "stage": stage, "state": "cached"})
            continue
        emit({"event": "stage", "stage": stage, "state": "started"})
        folder = scratch / stage
        folder.mkdir()
        start = time.perf_counter()
        RUN[stage](context, folder)
        timings[stage] = round(time.perf_counter() - start, 3)
        folders[stage] = folder
        emit({"event": "stage", "stage": stage, "state": "done", "folder": folder.name})
    return _result(context)


def _result(context: Context) -> dict[str, Any]:
    kind = context.request["kind"]
    if kind == "prepare":
        return {"shards": len(shard_ranges(context))}
    if kind == "shard":
        return {}
    if kind in ("measure", "latency", "prune", "export"):
        return context.read(kind, f"{kind}.json")
    return {"groups": len(context.symmetry.groups), "passed": context.symmetry.certificate.passed,
            "timings": json.loads(json.dumps(context.kept["timings"]))}
