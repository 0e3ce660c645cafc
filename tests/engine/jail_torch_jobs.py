"""Honest jobs for the jail's tests: what the engine's libraries do must work inside."""

from __future__ import annotations

import os
import threading

import numpy as np
import scipy.linalg
import threadpoolctl
import torch
from safetensors.torch import load_file, save_file

from cipm.compiled import compiled as compile_loop

PREPARED = []


@compile_loop
def total(values):
    result = 0.0
    for value in values:
        result += value
    return result


def prepare():
    """Compile before the lock, so that the job need not."""
    PREPARED.append(int(total(np.arange(3))))


def product(request, scratch, emit):
    """Multiply with several threads, in torch and in numpy, and through a thread of our own."""
    a = torch.arange(512 * 512, dtype=torch.float64).reshape(512, 512) / 1e5
    results = []
    threads = [threading.Thread(target=lambda: results.append(float((a @ a).sum()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {"torch": results, "numpy": float((a.numpy() @ a.numpy()).sum()), "threads": torch.get_num_threads(),
            "blas": blas, "alive": len(os.listdir("/proc/self/task"))}


def export(request, scratch, emit):
    """Trace a small module to the functional graph."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.zeros(3, 8),), dynamic_shapes=({0: batch},), strict=False)
    program = program.run_decompositions({})
    return {"ops": [str(node.target) for node in program.graph.nodes if node.op == "call_function"]}


def transformers(request, scratch, emit):
    """Import transformers in the jail, build a model and run it."""
    from transformers import BertConfig, BertModel  # noqa: PLC0415 (the point is to import it after the lock)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    output = BertModel(config).eval()(torch.tensor([[1, 2, 3]]))
    return {"shape": list(output.last_hidden_state.shape)}


def compiled(request, scratch, emit):
    """Use what was compiled before the lock, and compile for another type after it."""
    return {"total": [total(np.arange(10)), total(np.arange(10.0))], "prepared": PREPARED,
            "scratch": sorted(os.listdir(scratch))}


def libraries(request, scratch, emit):
    """Use scikit-learn, scipy and safetensors."""
    from sklearn.cluster import KMeans  # noqa: PLC0415 (the point is to import it after the lock)
    points = np.concatenate([np.zeros((5, 2)), np.ones((5, 2))])
    labels = KMeans(2, random_state=0, n_init=1).fit(points).labels_
    values = scipy.linalg.eigh(np.diag([3.0, 1.0]), eigvals_only=True)
    save_file({"x": torch.ones(3)}, scratch / "x.safetensors")
    return {"labels": labels.tolist(), "values": values.tolist(),
            "tensor": load_file(scratch / "x.safetensors")["x"].tolist()}
