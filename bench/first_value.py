"""Seconds from a slider at rest to the measured loss: a 784-512-512-512-10 network with 10,000 probe rows, analysed already.

    python bench/first_value.py [--data ../shared/data]

The server and its worker are those of `cipm serve`, and what is timed is what the page does: it waits REST (the constant of its
script), asks for the measurement, follows the job's events, and reads the result. Each time other sizes are asked for, so that
nothing is known, and before each a person looks at the page for some seconds; the very first is told apart. The peer in the
same run is one forward pass of the whole network over the rows that a what-if is measured on, in this process. The aim is 3 s.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from analysis import analyse, files
from peers.server import server

SHARES = (0.5, 0.8, 0.65, 0.35, 0.2)
AIM = 3.0
LOOKING = 6.0
"""Seconds between two what-ifs, in which the worker has its next process ready."""
SCRIPT = Path(__file__).parents[1] / "frontend" / "assets" / "49-whatif-work.js"


def rest() -> float:
    """Return the seconds that the page waits before it takes a slider to be at rest."""
    return int(re.search(r"REST = (\d+)", SCRIPT.read_text()).group(1)) / 1000


def measured(client: httpx.Client, address: str, keep: dict[str, int], wait: float) -> tuple[float, float, dict]:
    """Return the seconds until a what-if is measured, those of the worker's stage alone, and the result."""
    time.sleep(LOOKING)
    start = time.perf_counter()
    time.sleep(wait)
    job = client.post(f"{address}/measurements", json={"keep": keep}).raise_for_status().json()
    with client.stream("GET", f"{address}/events", params={"job": job["id"]}) as events:
        for _ in events.iter_lines():
            pass
    one = next(one for one in client.get(f"{address}/measurements").json() if one["id"] == job["id"])
    took = time.perf_counter() - start
    assert one["job"]["status"] == "done", one["job"]["error"]
    return took, next(stage["seconds"] for stage in one["job"]["stages"] if stage["name"] == "measure"), one["result"]


def forward(model: torch.nn.Module, x: np.ndarray, rows: int) -> float:
    """Return the seconds of a forward pass over so many rows, the best of five."""
    part, took = torch.from_numpy(x[:rows]), []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            model(part)
        took.append(time.perf_counter() - start)
    return min(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    wait = rest()
    with tempfile.TemporaryDirectory() as scratch:
        model, probe, network, x = files(parser.parse_args().data, Path(scratch))
        with server(Path(scratch) / "data") as client:
            job = analyse(client, model, probe)
            assert job["status"] == "done", job["error"]
            address = f"/api/analyses/{client.get('/api/analyses').json()[0]['id']}"
            groups = client.get(f"{address}/whatif").json()["groups"]
            found = [measured(client, address, {one["name"]: round(share * one["size"]) for one in groups}, wait)
                     for share in (0.9, *SHARES)]
    took, stages, results = zip(*found[1:], strict=True)
    rows = results[0]["rows"]
    print(f"slider at rest to measured loss, s: {', '.join(f'{one:.2f}' for one in took)}; "
          f"median {statistics.median(took):.2f}, largest {max(took):.2f} (aim {AIM:g}; {wait:g} of it is the page's wait); "
          f"the first of all {found[0][0]:.2f}")
    print(f"the worker's stage alone, s: median {statistics.median(stages):.2f}; "
          f"one forward pass of the whole network over the {rows:,} rows measured: {forward(network, x, rows):.3f}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores (mean of the last minute)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
