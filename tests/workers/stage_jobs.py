"""A small honest pipeline for the workers' tests: three stages on real bytes, run in the real jail.

`count` counts the model's bytes by value, `mean` averages them (as long as the request says), `sum` reads both. Every
artefact carries a nonce, so that a stage that ran twice is seen. The request can make it die, fail or misbehave.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path

from cipm.errors import ProbeError

STAGES = ("count", "mean", "sum")


def stage_addresses(kind, model_sha256, probe_sha256, options, request):
    """Return each stage's address: the model, the options and the stages before it."""
    address, found = f"{kind}{model_sha256}{json.dumps(options, sort_keys=True)}", {}
    for stage in STAGES:
        address = hashlib.sha256(f"{stage} {address}".encode()).hexdigest()
        found[stage] = address
    return found


def run_job(request, scratch, emit):
    """Run the stages that are not done; return which ran and what they found."""
    folders, ran = {name: Path(folder) for name, folder in request["done"].items()}, []
    for stage in STAGES:
        if stage in folders:
            emit({"event": "stage", "stage": stage, "state": "cached"})
            continue
        emit({"event": "stage", "stage": stage, "state": "started"})
        folders[stage] = scratch / stage
        folders[stage].mkdir()
        _misbehave(request, stage, scratch, emit)
        _wait(request, stage, emit)
        value = WORK[stage](Path(request["model"]).read_bytes(), folders)
        (folders[stage] / "value.json").write_text(json.dumps({"value": value, "nonce": os.urandom(8).hex()}))
        ran.append(stage)
        emit({"event": "stage", "stage": stage, "state": "done", "folder": stage})
    return {"ran": ran, "value": _value(folders["sum"]), "pid": os.getpid()}


def _wait(request, stage, emit):
    steps = int(request.get("seconds", {}).get(stage, 0) * 20)
    for step in range(steps):
        time.sleep(0.05)
        emit({"event": "progress", "stage": stage, "done": step + 1, "total": steps, "unit": "steps"})


def _misbehave(request, stage, scratch, emit):
    trouble = request.get("trouble", {}).get(stage)
    if trouble == "refuse":
        raise ProbeError("The probe has no rows.", where="x.npy")
    if trouble == "bug":
        raise ValueError("a slip")
    if trouble == "stray":
        emit({"event": "stage", "stage": "view", "state": "done", "folder": str(scratch / stage)})
    if trouble == "elsewhere":
        emit({"event": "stage", "stage": stage, "state": "done", "folder": "/etc/ssl"})


def _value(folder):
    return json.loads((folder / "value.json").read_text())["value"]


WORK = {
    "count": lambda data, folders: dict(sorted(Counter(map(str, data)).items())),
    "mean": lambda data, folders: sum(data) / len(data),
    "sum": lambda data, folders: sum(int(byte) * times for byte, times in _value(folders["count"]).items()),
}
