"""The files of one view artefact: `matrices/{id}.npy` and `.json`, `index/{ORDER}/{id}.npz`, `strips/{group}.json`.

One place writes and reads them, so the pipeline and the server cannot disagree about the layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cipm.errors import NotFound

ORIGINAL = "original"
_STRIP_ROWS = 1 << 22


@dataclass(frozen=True)
class AxisMeta:
    """One axis of a matrix: its name (a group's, or `tensor:axis`), the unit at each position (None: one unit per
    position, in order) and the number of equal runs within which units move."""

    axis: str
    ids: Sequence[int] | None = None
    blocks: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the axis as JSON-ready values; positions that are their own unit are not spelled out."""
        ids = None if self.ids is None else [int(i) for i in self.ids]
        return {"axis": self.axis, "blocks": self.blocks, "ids": ids}


def write_matrix(folder: Path, name: str, matrix: np.ndarray, *, title: str, rows: AxisMeta,
                 cols: AxisMeta, index: str | None = None) -> dict[str, Any]:
    """Write a 2-D array [r, c] as float32 with its summary, and return the summary.

    `index` names another matrix with the same axes, whose index vectors this one is shown by too (default: its own).
    """
    array = np.ascontiguousarray(matrix, dtype=np.float32)
    assert array.ndim == 2 and array.size
    target = folder / "matrices"
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / f"{name}.npy", array)
    meta = {"id": name, "title": title, "shape": list(array.shape), **summary(array),
            "rows": rows.to_json(), "cols": cols.to_json(), **({"index": index} if index else {})}
    (target / f"{name}.json").write_text(json.dumps(meta))
    return meta


def summary(array: np.ndarray) -> dict[str, Any]:
    """Return vmin, vmax, absmax and q99 (0.99 quantile of |x|) over finite entries, and how many are not finite.

    An array without one finite entry has zeros. q99 of more than 2²² entries is taken on an even grid of them.
    """
    finite = np.isfinite(array)
    values = array[finite] if not finite.all() else array.ravel()
    if not values.size:
        return {"vmin": 0.0, "vmax": 0.0, "absmax": 0.0, "q99": 0.0, "nan": int(array.size)}
    low, high = float(values.min()), float(values.max())
    sample = np.abs(values[:: max(1, values.size // _STRIP_ROWS)])
    return {"vmin": low, "vmax": high, "absmax": max(abs(low), abs(high)),
            "q99": float(np.quantile(sample, 0.99)), "nan": int(array.size - values.size)}


def write_index(folder: Path, order: str, name: str, rows: np.ndarray, cols: np.ndarray) -> None:
    """Write the index vectors that show matrix `name` in `order`: shown[i, j] = matrix[rows[i], cols[j]]."""
    target = folder / "index" / order
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / f"{name}.npz", rows=np.asarray(rows, np.int32), cols=np.asarray(cols, np.int32))


def write_strip(folder: Path, group: str, modules: Sequence[int]) -> None:
    """Write the module id of every unit of a group (−1: in none)."""
    target = folder / "strips"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{group}.json").write_text(json.dumps({"modules": [int(m) for m in modules]}))


@dataclass(frozen=True)
class MatrixFiles:
    """One matrix of a view artefact, as files. Names come from a person: they are looked up, never joined blindly."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        if not _plain(self.name) or not (self.folder / "matrices" / f"{self.name}.json").is_file():
            raise NotFound(f"This analysis has no matrix {self.name!r}.", fix="The report lists its matrices.")

    def meta(self) -> dict[str, Any]:
        """Return the summary written beside the matrix."""
        return json.loads((self.folder / "matrices" / f"{self.name}.json").read_text())

    def array(self) -> np.ndarray:
        """Return the matrix [r, c] in its original order, as a read-only memory map."""
        return np.load(self.folder / "matrices" / f"{self.name}.npy", mmap_mode="r", allow_pickle=False)

    def index(self, order: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and column index vectors of an order; raises NotFound where the matrix has none."""
        if order == ORIGINAL:
            rows, cols = self.array().shape
            return np.arange(rows, dtype=np.int32), np.arange(cols, dtype=np.int32)
        path = self.folder / "index" / order / f"{self._index}.npz"
        if not _plain(order) or not path.is_file():
            raise NotFound(f"Matrix {self.name} has no order {order!r}; it has {', '.join(self.orders())}.",
                           where="order")
        with np.load(path, allow_pickle=False) as file:
            return file["rows"], file["cols"]

    def orders(self) -> list[str]:
        """Return the names of the orders in which this matrix can be shown."""
        found = sorted(path.parent.name for path in (self.folder / "index").glob(f"*/{self._index}.npz"))
        return [ORIGINAL, *(name for name in found if name != ORIGINAL)]

    @property
    def _index(self) -> str:
        """Return the name of the matrix by whose index vectors this one is shown."""
        return self.meta().get("index", self.name)

    def axes(self, order: str) -> dict[str, dict[str, Any]]:
        """Return, for rows and cols as shown in `order`: axis, blocks, ids (unit per position) and modules or None."""
        meta = self.meta()
        return {side: self._axis(meta[side], index)
                for side, index in zip(("rows", "cols"), self.index(order), strict=True)}

    def _axis(self, written: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
        units = np.arange(index.size) if written.get("ids") is None else np.asarray(written["ids"])
        ids = units[index]
        strip = self._strip(written["axis"])
        fits = strip is not None and ids.size and 0 <= ids.min() and ids.max() < strip.size
        return {"axis": written["axis"], "blocks": written.get("blocks", 1), "ids": ids.tolist(),
                "modules": strip[ids].tolist() if fits else None}

    def _strip(self, axis: str) -> np.ndarray | None:
        path = self.folder / "strips" / f"{axis}.json"
        if not _plain(axis) or not path.is_file():
            return None
        return np.asarray(json.loads(path.read_text())["modules"])


def _plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name and "\0" not in name and not name.startswith(".")
