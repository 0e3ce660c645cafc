"""The record that travels inside an exported file as cipm.json: the plan, its certificate, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cipm import __version__
from cipm.errors import CipmError, Conflict, CorruptFile, UnknownFormat
from cipm.load import onnx, state_dict
from cipm.load.archive import is_zip, open_source
from cipm.permutation import Along, Plan, View
from cipm.symmetry import Rescaling, rescaling_from_json

NAME = "cipm.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Form:
    """What was done to the tensors before they were reordered: which forms, and how to undo them.

    `kinds` are the normal forms asked for; `rescaling` undoes scales and signs bit for bit. Where `rounded` names kinds
    (rotations, maps), nothing does.
    """

    kinds: tuple[str, ...]
    rescaling: Rescaling
    rounded: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the form as JSON-ready values."""
        return {"kinds": list(self.kinds), "rescaling": self.rescaling.to_json(), "rounded": list(self.rounded)}


def make_record(plan: Plan, certificate: Mapping[str, Any] | None, source_sha256: str, order: str | None,
                form: Form | None = None) -> dict[str, Any]:
    """Return the JSON-ready record of an export."""
    return {"schema_version": SCHEMA_VERSION, "plan": plan.to_json(), "certificate": certificate,
            "source_sha256": source_sha256, "order": order, "created_by": f"cipm {__version__}",
            **({"form": form.to_json()} if form else {})}


def pruned_record(keep: Mapping[str, Sequence[int]], notes: Sequence[str], certificate: Mapping[str, Any],
                  source_sha256: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON-ready record of a pruned model: the units kept of every group that lost some."""
    pruned = {"keep": {name: list(units) for name, units in keep.items()}, "notes": list(notes), **details}
    return make_record(Plan({}, {}), certificate, source_sha256, None) | {"pruned": pruned}


def undoing(record: Mapping[str, Any], metas: Mapping[str, torch.Tensor]) -> Rescaling | None:
    """Return what undoes the form of a record, for tensors of these shapes; None where it had none.

    Raises Conflict where the form cannot be undone or the model was pruned, CorruptFile where the record is damaged.
    """
    if record.get("pruned") is not None:
        raise Conflict("The model was pruned: what was removed is not in the file.", where=NAME,
                       fix="Keep the file it was made from.")
    form = record.get("form")
    if form is None:
        return None
    try:
        if form["rounded"]:
            kinds = " and ".join(map(str, form["rounded"]))
            raise Conflict(f"The model was brought into {kinds} canonical form, which rounds: its tensors cannot come back bit "
                           "for bit.", where=NAME, fix="Keep the file it was made from.")
        return rescaling_from_json(form["rescaling"], metas).inverse
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"The record {NAME} is damaged: {error}.", where=NAME) from error


def dump_record(record: Mapping[str, Any]) -> str:
    """Return the record as JSON text."""
    return json.dumps(record, separators=(",", ":"))


def read_plan(path: str | Path) -> tuple[Plan, dict[str, Any]]:
    """Return (plan, record) of an exported file or folder, read as any upload is: nothing of it is executed.

    Raises UnknownFormat where the file carries no plan, CorruptFile where the record is damaged.
    """
    path = Path(path)
    record = _packed_record(path) if path.is_dir() or is_zip(path) else None
    if record is None and state_dict.match(path):
        record = _trailing_record(path)
    elif record is None and onnx.match(path):
        record = _metadata_record(path)
    if record is None:
        raise UnknownFormat(f"{path.name!r} carries no plan: it was not reorganised by CIPM.", where=path.name,
                            fix="Give a file that cipm reorganize or Export has written.")
    try:
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']!r}")
        return _plan(record["plan"]), record
    except (KeyError, TypeError, ValueError, AttributeError, CipmError) as error:
        raise CorruptFile(f"The record {NAME} is damaged: {error}.", where=NAME) from error


def _packed_record(path: Path) -> Any:
    source = open_source(path)
    name = next((name for name in (NAME, f"extra/{NAME}") if name in source), None)
    return None if name is None else source.json(name)


def _trailing_record(path: Path) -> Any:
    """Return the record in a safetensors file's metadata or at the end of an old torch.save file, or None."""
    text = state_dict.read_weights(state_dict.find_weights(path).file).record
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"The record {NAME} is damaged: {error}.", where=NAME) from error


def _metadata_record(path: Path) -> Any:
    """Return the record in the metadata of an ONNX file, or None."""
    text = next((entry.value for entry in onnx.open_upload(path)[2].metadata_props if entry.key == NAME), None)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"The record {NAME} is damaged: it is not JSON.", where=NAME) from error


def check_plan(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CorruptFile where a plan names a tensor or axis that does not exist, or one of another length."""
    for (key, along), permutation in plan.axes.items():
        shape = tuple(tensors[key].shape) if key in tensors else None
        if shape is None or _length(shape, along) != len(permutation):
            where = f"axes {list(along.axes)} of {list(along.shape)}" if isinstance(along, View) else f"axis {along}"
            raise CorruptFile(f"The plan moves {len(permutation)} positions of {where} of {key!r}, which does not fit "
                              f"the model ({'no such tensor' if shape is None else list(shape)}).", where=key)


def _length(shape: tuple[int, ...], along: Along) -> int | None:
    """Return the positions along an axis or view of a tensor; None where it has no such."""
    if isinstance(along, View):
        return along.length if along.fits(shape) else None
    return shape[along] if 0 <= along < len(shape) else None


def _plan(payload: Mapping[str, Any]) -> Plan:
    for key, along, order in payload["axes"]:
        seen = _integers(along["shape"]) and _integers(along["axes"]) if isinstance(along, dict) else type(along) is int
        if not isinstance(key, str) or not seen or not _integers(order):
            raise ValueError("an entry of the plan is not a tensor, an axis and an order")
    if not all(_integers(order) for order in payload["orders"].values()):
        raise ValueError("an order is not a list of integers")
    return Plan.from_json(payload)


def _integers(order: Any) -> bool:
    return isinstance(order, list) and all(type(i) is int and 0 <= i < 2**31 for i in order)
