"""Seconds to collect statistics over a probe set that is divided into shards, with one worker process and with two.

    python bench/sharding.py [rows]     (default 4000)

The published ResNet-20 on CIFAR-10 images (../shared/data), on the server as `cipm serve` starts it; a worker has one thread.
The time goes from the end of the stages before to the end of `collect`: shards, their artefacts, and the merge. The peer in the
same run is the same job undivided, on one worker.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from peers.server import server, spent, upload

from cipm.testing.models import save_pt2
from cipm.testing.networks_residual import CifarResnet20

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
SHARDS = 2


def files(folder: Path, rows: int) -> tuple[Path, Path]:
    """Write the model and the probe set."""
    with np.load(DATA / "datasets" / "cifar10_lossless_4k_1k.npz") as images:
        x = images["x_train"][:rows].transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, deviation = (np.float32(v).reshape(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    np.savez(folder / "probe.npz", x=(x - mean) / deviation)
    model = CifarResnet20.read(DATA / "cifar10_resnet" / "resnet20-12fca82f.th")
    return save_pt2(model, torch.zeros(2, 3, 32, 32), folder / "resnet20.pt2"), folder / "probe.npz"


def collecting(client: httpx.Client, model: Path, probe: Path, shards: int) -> tuple[float, float]:
    """Return the seconds that the stage `collect` takes with its shards, on the clock and of the processor (server and workers
    together), and stop the job then."""
    ids = {"model": upload(client, model, "model"), "probe": upload(client, probe, "probe")}
    made = client.post("/api/analyses", json={**ids, "options": {"shards": shards}}).raise_for_status().json()
    address, began = f"/api/analyses/{made['id']}", None
    while True:
        job = client.get(address).json()["job"]
        states = {stage["name"]: stage["state"] for stage in job["stages"]}
        if job["error"]:
            raise SystemExit(str(job["error"]))
        if began is None and states.get("probe") in ("done", "cached"):
            began, before = time.perf_counter(), spent()
        if began is not None and states.get("collect") == "done":
            took = time.perf_counter() - began, spent() - before
            client.post(f"{address}/cancel")
            return took
        time.sleep(0.1)  # an answer takes the server milliseconds of the processor too


def main(rows: int = 4000) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rows} rows")
    if not DATA.is_dir():
        print("the published weights and images (../shared/data) are not here")
        return
    whole = None
    with tempfile.TemporaryDirectory() as scratch:
        model, probe = files(Path(scratch), rows)
        for workers, shards in ((1, 1), (1, SHARDS), (2, SHARDS)):
            with server(Path(scratch) / f"{workers}-{shards}", workers) as client:
                seconds, processor = collecting(client, model, probe, shards)
            whole = whole or seconds
            print(f"{workers} worker{'s' * (workers > 1)}, {shards} shard{'s' * (shards > 1)}: {seconds:.1f} s, "
                  f"{whole / seconds:.2f} × as fast as one worker undivided; {processor:.1f} s of the processor", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
