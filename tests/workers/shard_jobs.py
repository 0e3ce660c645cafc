"""A small honest pipeline whose stage `collect` can be divided: each shard sums its part of the model's bytes.

Options: `shards`, how many; `seconds`, {shard: how long}; `bad`, a shard that refuses its rows. Every shard's artefact
carries a nonce, so that one that ran twice is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from cipm.errors import ProbeError

CHAINS = {"prepare": ("open",), "shard": ("open", "shard"), "analyze": ("open", "collect")}


def stage_addresses(kind, model_sha256, probe_sha256, options, request):
    asked = {"open": None, "collect": options, "shard": [options, request.get("shard")]}
    return {stage: hashlib.sha256(f"{stage} {model_sha256} {json.dumps(asked[stage])}".encode()).hexdigest()
            for stage in CHAINS[kind]}


def divided(kind, model_sha256, probe_sha256, options):
    shards = options.get("shards", 1) if kind == "analyze" else 0
    return [stage_addresses("shard", model_sha256, probe_sha256, options, {"shard": n})["shard"]
            for n in range(shards if shards > 1 else 0)]


def run_job(request, scratch, emit):
    kind, options, total = request["kind"], request["options"], request["options"].get("shards", 1)
    data, made = Path(request["model"]).read_bytes(), {}

    def shard(number):
        size = -(-len(data) // total)
        return {"value": sum(data[number * size:(number + 1) * size]), "nonce": os.urandom(8).hex()}

    for stage in CHAINS[kind]:
        if stage in request["done"]:
            emit({"event": "stage", "stage": stage, "state": "cached"})
            continue
        emit({"event": "stage", "stage": stage, "state": "started"})
        (scratch / stage).mkdir()
        if stage == "shard":
            _wait(options, request["shard"], emit)
            made = shard(request["shard"])
        if stage == "collect":
            there = request.get("shards", {})
            parts = [json.loads((Path(there[str(n)]) / "value.json").read_text()) if str(n) in there else shard(n)
                     for n in range(total)]
            made = {"value": sum(part["value"] for part in parts), "nonces": [part["nonce"] for part in parts],
                    "read": sorted(there)}
        (scratch / stage / "value.json").write_text(json.dumps(made))
        emit({"event": "stage", "stage": stage, "state": "done", "folder": stage})
    return {"shards": total} if kind == "prepare" else made


def _wait(options, number, emit):
    if options.get("bad") == number:
        raise ProbeError("For probe row 7 the activation v is nan.", where="row 7")
    steps = int(options.get("seconds", {}).get(str(number), 0) * 20)
    for step in range(steps):
        time.sleep(0.05)
        emit({"event": "progress", "stage": "shard", "done": step + 1, "total": steps, "unit": "rows"})
