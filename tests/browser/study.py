"""A small real study in the shape that the dashboard reads: a scikit-learn MLP trained on the digits, its matrices, its
correlations, modules and orders, written with `cipm.views`. It stands in for the engine's stages in tests of pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from cipm.views import AxisMeta, write_index, write_matrix, write_strip

WIDTHS = (320, 128)


def write_study(folder: Path) -> Path:
    """Train, analyse, write the view artefact into `folder`, and return it."""
    pixels, labels = load_digits(return_X_y=True)
    net = MLPClassifier(WIDTHS, max_iter=12, random_state=0, batch_size=64)
    net._no_improvement_count = 0
    with np.errstate(all="ignore"):
        for _ in range(12):
            net.partial_fit(pixels[:1200] / 16, labels[:1200], classes=range(10))
    rows, truth = pixels[1200:] / 16, labels[1200:]
    layers = activations(net, rows)
    groups = [group(folder, net, layers, truth, rows, at) for at in range(len(WIDTHS))]
    matrices = weights(folder, net, groups)
    for made, names in zip(groups, (["w0", "w1"], ["w1", "w2"]), strict=True):
        made["matrices"] = [made["correlation"], *names]
        matrices.append({"id": made["correlation"], "title": f"Correlation of {made['name']}", "tensor": None,
                         "kind": "correlation", "shape": [made["size"]] * 2,
                         "groups": {"rows": [made["name"]], "cols": [made["name"]]}})
    (folder / "orders.json").write_text(json.dumps(["original", "modules", "nodesort", "random"]))
    (folder / "report.json").write_text(json.dumps(report(net, groups, matrices, rows, truth)))
    return folder


def activations(net: MLPClassifier, rows: np.ndarray) -> list[np.ndarray]:
    """Return the hidden activations [row, unit] of every hidden layer."""
    found, value = [], rows
    for weight, bias in zip(net.coefs_[:-1], net.intercepts_[:-1], strict=True):
        value = np.maximum(value @ weight + bias, 0)
        found.append(value)
    return found


def correlation(values: np.ndarray) -> np.ndarray:
    """Return the correlation matrix; NaN for units that never vary."""
    with np.errstate(all="ignore"):
        return np.corrcoef(values.T)


def group(folder: Path, net: MLPClassifier, layers: list[np.ndarray], truth: np.ndarray, rows: np.ndarray,
          at: int) -> dict[str, Any]:
    """Return one hidden layer as a group of the report, and write its matrices, strips and orders."""
    name, values = f"hidden{at + 1}", layers[at]
    corr = correlation(values)
    dead = np.flatnonzero(~np.isfinite(np.diag(corr)))
    modules, tree = partition(np.nan_to_num(corr))
    modules[dead] = -1
    orders = {"modules": by_module(modules, tree), "nodesort": np.argsort(net.intercepts_[at], kind="stable"),
              "random": np.random.default_rng(0).permutation(len(modules))}
    write_matrix(folder, f"corr{at}", corr, title=f"Correlation of {name}", rows=AxisMeta(name), cols=AxisMeta(name))
    write_strip(folder, name, modules.tolist())
    for order, index in orders.items():
        write_index(folder, order, f"corr{at}", index, index)
    eigen = np.linalg.eigvalsh(np.nan_to_num(corr))[::-1]
    half = correlation(values[1::2])
    return {"name": name, "kind": "units", "size": values.shape[1], "blocks": 1, "parent": None, "proved": True,
            "places": [{"tensor": f"coefs.{at}", "axis": 1}, {"tensor": f"coefs.{at + 1}", "axis": 0}], "taps": [],
            "samples": len(rows), "dead": dead.tolist(), "correlation": f"corr{at}", "unavailable": None,
            "modules": [{"id": int(m), "units": np.flatnonzero(modules == m).tolist(), "size": int((modules == m).sum()),
                         "coherence": coherence(corr, modules == m), "stability": coherence(half, modules == m)}
                        for m in np.unique(modules[modules >= 0])],
            "orders": {"original": scores(corr, half, np.arange(len(modules))),
                       **{order: scores(corr, half, index) for order, index in orders.items()}},
            "index": {order: index.tolist() for order, index in orders.items()},
            "effective_dimension": {"participation_ratio": float(eigen.sum() ** 2 / (eigen**2).sum()),
                                    "spectral_edge": int((eigen > (1 + np.sqrt(len(eigen) / len(rows))) ** 2).sum()),
                                    "variance_95": int(np.searchsorted(np.cumsum(eigen) / eigen.sum(), 0.95) + 1)},
            "redundancy": {"share": float((np.sort(np.abs(np.nan_to_num(corr) - np.eye(len(corr))).max(0)) > 0.8).mean()),
                           "r2_median": float(np.median(np.abs(np.nan_to_num(corr) - np.eye(len(corr))).max(0) ** 2))},
            "whatif": whatif(net, values, truth, rows, at)}


def partition(corr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the module of every unit and the order of the leaves of an average-linkage tree."""
    gap = (1 - corr)[np.triu_indices(len(corr), 1)].clip(0)
    tree = linkage(gap, "average")
    return fcluster(tree, 9, "maxclust") - 1, leaves_list(tree)


def by_module(modules: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """Return the units sorted by module, within a module as the tree has them, units in none last."""
    place = np.empty(len(leaves), int)
    place[leaves] = np.arange(len(leaves))
    return np.lexsort((place, np.where(modules < 0, len(modules), modules)))


def coherence(corr: np.ndarray, members: np.ndarray) -> float:
    """Return the mean correlation of different units of a module."""
    part = corr[np.ix_(members, members)]
    off = part[~np.eye(len(part), dtype=bool)]
    return float(np.nanmean(off)) if np.isfinite(off).any() else 0.0


def scores(corr: np.ndarray, half: np.ndarray, index: np.ndarray) -> dict[str, Any]:
    """Return the mean step between neighbours, on all rows and on half of them."""
    def path(matrix: np.ndarray) -> float:
        shown = matrix[np.ix_(index, index)]
        return float(np.nanmean(1 - np.diag(shown, 1)))
    return {"scores": {"path": path(corr)}, "held_out": {"path": path(half)}}


def whatif(net: MLPClassifier, values: np.ndarray, truth: np.ndarray, rows: np.ndarray, at: int) -> dict[str, Any]:
    """Return losses with the least varying units silenced, run on every row; `predicted` from every second row."""
    removal, size = np.argsort(values.std(0), kind="stable"), values.shape[1]
    keeps = sorted({max(1, round(size * share)) for share in np.linspace(0.05, 1, 20)})

    def loss(keep: int, step: int) -> tuple[float, float]:
        value = values[::step].copy()
        value[:, removal[: size - keep]] = 0
        for weight, bias in zip(net.coefs_[at + 1:-1], net.intercepts_[at + 1:-1], strict=True):
            value = np.maximum(value @ weight + bias, 0)
        logits = value @ net.coefs_[-1] + net.intercepts_[-1]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        return float(log_loss(truth[::step], odds, labels=range(10))), float((odds.argmax(1) == truth[::step]).mean())

    measured = [{"keep": keep, "loss": loss(keep, 1)[0], "accuracy": loss(keep, 1)[1], "agreement": None, "rows": len(rows)}
                for keep in keeps[4::5]]
    total, width = parameters(net), sum(net.coefs_[at].shape[:1]) + net.coefs_[at + 1].shape[1] + 1
    return {"keep": keeps, "predicted": [loss(keep, 2)[0] for keep in keeps], "predicted_cost": [], "unavailable": None,
            "removal_order": removal.tolist(), "measured": measured,
            "parameters": [total - (size - keep) * width for keep in keeps]}


def parameters(net: MLPClassifier) -> int:
    """Return the number of parameters."""
    return int(sum(part.size for part in [*net.coefs_, *net.intercepts_]))


def weights(folder: Path, net: MLPClassifier, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the weight matrices [out, in] in every order and return how the report lists them."""
    names = ["inputs", *(made["name"] for made in groups), "outputs"]
    listed = []
    for at, weight in enumerate(net.coefs_):
        ends = [names[at + 1], names[at]]
        axes = [AxisMeta(end if end.startswith("hidden") else f"coefs.{at}:{side}") for side, end in enumerate(ends)]
        write_matrix(folder, f"w{at}", weight.T, title=f"coefs.{at}", rows=axes[0], cols=axes[1])
        for order in ("modules", "nodesort", "random"):
            known = {made["name"]: np.array(made["index"][order]) for made in groups}
            index = [known.get(end, np.arange(weight.T.shape[side])) for side, end in enumerate(ends)]
            write_index(folder, order, f"w{at}", *index)
        listed.append({"id": f"w{at}", "title": f"coefs.{at}", "tensor": f"coefs.{at}", "kind": "weight",
                       "groups": {"rows": [ends[0]], "cols": [ends[1]]}, "shape": list(weight.T.shape)})
    return listed


def report(net: MLPClassifier, groups: list[dict[str, Any]], matrices: list[dict[str, Any]], rows: np.ndarray,
           truth: np.ndarray) -> dict[str, Any]:
    """Return report.json."""
    odds = net.predict_proba(rows)
    log10 = float(sum(np.log10(np.arange(1, made["size"] + 1)).sum() for made in groups))
    return {"schema_version": 1, "created": "2026-01-01T00:00:00Z", "versions": {"cipm": "0.1.0"}, "hashes": {},
            "model": {"format": "scikit-learn MLP", "sha256": "", "parameters": parameters(net), "tensors": 6,
                      "name": "digits"},
            "probe": {"rows": len(rows), "used_rows": len(rows), "inputs": [], "labels": True, "notes": []},
            "options": {}, "log10_equivalents": log10, "movable_share": 0.9, "certificate": certificate(net, groups, rows),
            "pins": [{"tensor": "coefs.0", "axis": 0, "op": "input", "node": "x",
                      "reason": "The order of the inputs is the user's."}],
            "notes": [], "timings": {"view": 0.4}, "matrices": matrices, "groups": groups,
            "baseline": {"loss": float(log_loss(truth, odds)), "loss_kind": "cross_entropy", "rows": len(rows),
                         "accuracy": float((odds.argmax(1) == truth).mean())}}


def certificate(net: MLPClassifier, groups: list[dict[str, Any]], rows: np.ndarray) -> dict[str, Any]:
    """Return what reordering the first hidden layer changes, with and without moving its consumer along."""
    order = np.array(groups[0]["index"]["random"])
    first, second = net.coefs_[0][:, order], net.coefs_[1][order]
    value = np.maximum(rows @ net.coefs_[0] + net.intercepts_[0], 0) @ net.coefs_[1]
    moved = np.maximum(rows @ first + net.intercepts_[0][order], 0)
    worst, control = (float(np.abs(moved @ weight - value).max()) for weight in (second, net.coefs_[1]))
    top = float(np.abs(value).max())
    return {"dtype": "float64", "inputs": f"{len(rows)} rows", "draws": 1, "max_abs": worst, "max_rel": worst / top,
            "tolerance": 1e-10, "passed": worst / top < 1e-10, "negative_control": control / top, "seconds": 0.0}
