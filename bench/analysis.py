"""Seconds from upload to view: a 784-512-512-512-10 network with 10,000 probe rows, on the server as `cipm serve` starts it.

    python bench/analysis.py [--data ../shared/data]

Uses the trained MNIST network and test images where they are, else a seeded network and normal rows. The peer in the same run
is the arithmetic that cannot be avoided: one float32 forward pass of all rows and `numpy.corrcoef` of the three hidden layers,
in this process, without proof, modules, orders, what-ifs, sandbox or server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from peers.server import server, upload

from cipm.testing.models import mlp, save_pt2

ROWS, WIDTHS = 10_000, (784, 512, 512, 512, 10)


def files(data: Path, folder: Path) -> tuple[Path, Path, torch.nn.Module, np.ndarray]:
    """Write the model and the probe; return their paths, the model and the rows."""
    model = mlp(WIDTHS)
    weights, images = data / "mnist_zoo" / "mlp_784-512x3-10_seed0.safetensors", data / "datasets" / "mnist.npz"
    if weights.exists() and images.exists():
        from safetensors.torch import load_file  # noqa: PLC0415 - only where the data is

        state = load_file(weights)
        model.load_state_dict({f"layers.{i}.{part}": state[f"fc{i + 1}.{part}"].float()
                               for i in range(4) for part in ("weight", "bias")})
        with np.load(images) as file:
            x, y = (file["x_test"].reshape(ROWS, 784) / 255 - 0.1307) / 0.3081, file["y_test"]
        print("trained MNIST network, MNIST test images")
    else:
        generator = np.random.default_rng(0)
        x, y = generator.normal(size=(ROWS, 784)), generator.integers(0, 10, ROWS)
        print("untrained network, normal rows (the data is not here)")
    np.savez(folder / "probe.npz", x=x.astype(np.float32), y=y)
    return save_pt2(model, torch.zeros(2, 784), folder / "mlp.pt2"), folder / "probe.npz", model, x.astype(np.float32)


def analyse(client: httpx.Client, model: Path, probe: Path) -> dict:
    """Upload both files, wait for the analysis, read its report and one tile of its first matrix; return the job."""
    ids = {"model": upload(client, model, "model"), "probe": upload(client, probe, "probe")}
    made = client.post("/api/analyses", json=ids).raise_for_status().json()
    address = f"/api/analyses/{made['id']}"
    while (job := client.get(address).json()["job"])["status"] in ("queued", "running"):
        time.sleep(0.05)
    matrix = client.get(f"{address}/report").raise_for_status().json()["matrices"][0]["id"]
    view = client.get(f"{address}/matrices/{matrix}", params={"order": "modules"}).raise_for_status().json()
    client.get(f"{address}/matrices/{matrix}/tiles", params={"order": "modules", "level": view["levels"] - 1, "stat": "mean",
                                                             "at": "0.0", "rev": view["revision"]}).raise_for_status()
    return job


def peer(model: torch.nn.Module, x: np.ndarray) -> float:
    """Return the seconds of one forward pass with numpy's correlation of every hidden layer."""
    start = time.perf_counter()
    with torch.no_grad():
        h = torch.from_numpy(x)
        for layer in model.layers[:-1]:
            h = torch.relu(layer(h))
            with np.errstate(invalid="ignore", divide="ignore"):  # dead units, which numpy turns into NaN
                np.corrcoef(h.numpy().T)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    with tempfile.TemporaryDirectory() as scratch:
        model, probe, network, x = files(parser.parse_args().data, Path(scratch))
        with server(Path(scratch) / "data") as client:
            start = time.perf_counter()
            job = analyse(client, model, probe)
            took = time.perf_counter() - start
    assert job["status"] == "done", job["error"]
    print("stages, s: " + ", ".join(f"{stage['name']} {stage['seconds']:.2f}" for stage in job["stages"]))
    bare = peer(network, x)
    print(f"upload to view {took:.1f} s; forward pass and numpy.corrcoef alone {bare:.1f} s; ratio {took / bare:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
