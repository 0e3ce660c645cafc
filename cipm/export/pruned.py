"""Write a pruned model: the smaller graph exported anew (.pt2, ONNX), smaller tensors with a smaller configuration beside
them (Hugging Face), or smaller tensors alone (state dict), each with the plan inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cipm.errors import UnsupportedModel
from cipm.export import huggingface_pruned, onnx_graph, pt2, state_dict_pruned
from cipm.export.record import dump_record, pruned_record
from cipm.export.write import Writer, export, whole
from cipm.load.checkpoint import Checkpoint
from cipm.permutation import Plan
from cipm.pruning import Shrunk
from cipm.symmetry.walk import SYMBOL_SIZES, symbol_sizes

Tensors = Mapping[str, torch.Tensor]


def export_pruned(shrunk: Shrunk, source_path: str | Path, out_path: str | Path, *, form: str | None = None,
                  details: Mapping[str, Any] | None = None) -> Path:
    """Write a pruned model as "pt2", "onnx", "huggingface" or "state_dict" (`form`; default: the uploaded one).

    The format's own tools load it without CIPM. Its record holds the units kept, how far the model is from the masked one,
    and `details` (JSON-ready: measured losses, sizes, options). The file appears whole or not at all. A model that lost
    nothing is written as it was uploaded, tensor for tensor, where `form` is the uploaded format.

    Raises UnsupportedModel where the format cannot hold these widths, with the reason and the formats that can.
    """
    checkpoint, out = shrunk.checkpoint, Path(out_path)
    form = checkpoint.format if form is None else form
    if not shrunk.keep and form == checkpoint.format:
        return export(checkpoint, source_path, Plan({}, {}), None, out)
    if form not in _WRITERS or form in ("huggingface", "state_dict") and form != checkpoint.format:
        raise UnsupportedModel(f"A model uploaded as {checkpoint.format} cannot be written as {form}.", where=form,
                               fix=f"Choose {', '.join(forms(checkpoint))}.")
    record = pruned_record(shrunk.keep, shrunk.notes, {"dtype": "float64", "rows": shrunk.rows, "max_abs": shrunk.max_abs,
                                                       "max_rel": shrunk.max_rel}, checkpoint.sha256, details or {})
    with whole(out) as temporary:
        _WRITERS[form](checkpoint, checkpoint.tensors, Path(source_path), dump_record(record), temporary)
    return out


def forms(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the formats that a pruned model can be written in, the uploaded one first."""
    return tuple(dict.fromkeys((checkpoint.format, "pt2", "onnx")))


def _write_pt2(checkpoint: Checkpoint, tensors: Tensors, source: Path, record: str | None, out: Path) -> None:
    pt2.write(as_pt2(checkpoint), tensors, source, record, out)


def as_pt2(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with all that a .pt2 file needs to know: its inputs by name, its outputs as a tuple."""
    if checkpoint.format == "pt2":
        return checkpoint
    results = len(checkpoint.graph.outputs)
    origin = {"args": [i.name for i in checkpoint.graph.inputs], "kwargs": [], "trainable": list(checkpoint.parameter_keys),
              "outputs": "*" if results == 1 else {"tuple": ["*"] * results}, "samples": _samples(checkpoint)}
    return replace(checkpoint, format="pt2", origin={**checkpoint.origin, **origin})


def _samples(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the sizes to export with; weights without a model have sizes of our own choice."""
    if "samples" in checkpoint.origin:
        return checkpoint.origin["samples"]
    shapes = symbol_sizes(checkpoint, SYMBOL_SIZES)
    return {i.name: {"shape": [shapes[d] if isinstance(d, str) else d for d in i.shape],
                     "dynamic": {str(axis): [d, 1, None] for axis, d in enumerate(i.shape) if isinstance(d, str)}}
            for i in checkpoint.graph.inputs}


def _write_onnx(checkpoint: Checkpoint, tensors: Tensors, _: Path, record: str | None, out: Path) -> None:
    own = checkpoint.format == "onnx"
    onnx_graph.write(as_pt2(checkpoint), tensors, record, out, inputs=checkpoint.origin["inputs"] if own else {},
                     outputs=checkpoint.origin["outputs"] if own else None)


_WRITERS: dict[str, Writer] = {"pt2": _write_pt2, "onnx": _write_onnx, "huggingface": huggingface_pruned.write,
                               "state_dict": state_dict_pruned.write}
