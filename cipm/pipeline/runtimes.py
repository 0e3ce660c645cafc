"""A smaller file run by the format's own tools, as whoever takes it home runs it, beside the network that was measured.

In the jail alone: the files are written here, but names and shapes in them come from an upload.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cipm.errors import UnsupportedModel
from cipm.export.pruned import as_pt2
from cipm.load.archive import open_source
from cipm.load.checkpoint import Checkpoint
from cipm.load.huggingface_classes import model_class
from cipm.load.huggingface_trace import output_tensors
from cipm.load.state_dict import find_weights, looks_like_safetensors
from cipm.pipeline.latency import Inputs, onnx_call, runtime_is_there
from cipm.pruning.shrink import Intervene
from cipm.symmetry import compare
from cipm.trace import run, to_module

ROUNDING = 1e-4
"""Most that outputs may differ, relative to the largest, where two runtimes sum in other orders: in float32 and wider."""
ROUNDINGS = 16
"""The same of narrower types, in units of their own rounding."""
OWN_ROUNDINGS, MOST_OWN = 4, 1e-2
"""The same where that is more, and at most: in units of how far the network that was measured is off from itself in float64."""
ANOTHER_WAY = "Choose another format or other sizes."
Outputs = list[torch.Tensor]


def in_runtime(file: Path, form: str, small: Checkpoint, whatif: Checkpoint, intervene: Intervene,
               inputs: Inputs) -> dict[str, Any] | None:
    """Return how far what a written file gives in its own runtime is from what was measured, on some rows.

    `small` is the model that was written, `whatif` the one with zeros (and `intervene`) whose loss was measured. Returns
    {runtime, max_abs, max_rel, rows, tolerance, passed}; relative to the largest output of the same row. None where the runtime
    is not installed. Raises UnsupportedModel, naming the runtime, where it does not run the file, gives outputs of other shapes
    or other numbers than rounding explains: such a file is not to be given to anybody.
    Cost: the file is read, and both models run, once; the masked one once more in float64 where the difference is large.
    """
    if form == "onnx" and not runtime_is_there():
        return None
    name = RUNTIMES[form][0]
    wanted, made = _masked(whatif, intervene, inputs), _given(file, form, small, inputs)
    if [tuple(output.shape) for output in made] != [tuple(output.shape) for output in wanted]:
        raise UnsupportedModel(f"{name} gives outputs {[list(output.shape) for output in made]} of the smaller file, where the "
                               f"model gives {[list(output.shape) for output in wanted]}.", where=file.name, fix=ANOTHER_WAY)
    absolute, relative = compare(wanted, made)
    tolerance = rounding(small)
    if not relative <= tolerance:
        own = compare(_masked(whatif, intervene, inputs, torch.float64), wanted)[1]
        tolerance = max(tolerance, min(OWN_ROUNDINGS * own, MOST_OWN))
    if not relative <= tolerance:
        raise UnsupportedModel(f"The smaller file was written, but {name} gives other outputs of it than the network that "
                               f"was measured: the largest relative difference is {relative:.1e}, rounding explains "
                               f"{tolerance:.1e}. The file is discarded.", where=file.name, fix=ANOTHER_WAY)
    return {"runtime": name, "max_abs": absolute, "max_rel": relative, "rows": len(next(iter(inputs.values()))),
            "tolerance": tolerance, "passed": True}


def _masked(whatif: Checkpoint, intervene: Intervene, inputs: Inputs, dtype: torch.dtype | None = None) -> Outputs:
    made = run(whatif.graph, whatif.tensors, whatif.constants, inputs, dtype=dtype, intervene=intervene)
    return [output for output in made if output is not None]


def _given(file: Path, form: str, small: Checkpoint, inputs: Inputs) -> Outputs:
    """Return what a file gives in its own runtime. Raises UnsupportedModel where it does not run."""
    name, call = RUNTIMES[form]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of these tools about their own internals
        try:
            return call(file, small, inputs)
        except Exception as error:  # each of these tools raises what it likes
            said = str(error).strip().splitlines() or [""]
            raise UnsupportedModel(f"The smaller file was written, but {name} does not run it: {type(error).__name__}: "
                                   f"{said[0][:200]} The file is discarded.", where=file.name, fix=ANOTHER_WAY) from error


def rounding(checkpoint: Checkpoint) -> float:
    """Return the most that outputs of two runtimes may differ, relative to the largest, by the narrowest stored type."""
    types = {checkpoint.meta(key).dtype for key in checkpoint.tensors if checkpoint.meta(key).is_floating_point()}
    return max([ROUNDING, *(ROUNDINGS * torch.finfo(kind).eps for kind in types if torch.finfo(kind).bits < 32)])


def _pt2(file: Path, small: Checkpoint, inputs: Inputs) -> Outputs:
    module, first = torch.export.load(file).module(), as_pt2(small).origin["args"]
    output = module(*(inputs[name] for name in first), **{name: x for name, x in inputs.items() if name not in first})
    return _tensors(torch.utils._pytree.tree_leaves(output))


def _onnx(file: Path, _: Checkpoint, inputs: Inputs) -> Outputs:
    return [torch.from_numpy(output) for output in onnx_call(file, inputs)()]


def _huggingface(file: Path, small: Checkpoint, inputs: Inputs) -> Outputs:
    """Run what `from_pretrained` gives, with whichever attention is transformers' own choice."""
    cls = model_class(small.origin["model_type"], small.origin["architecture"])
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        model = cls.from_pretrained(_unpacked(file, Path(folder)), local_files_only=True, use_safetensors=True).eval()
    model.config.return_dict, model.config.use_cache = True, False
    return list(output_tensors(model(**inputs)))


def _unpacked(file: Path, folder: Path) -> Path:
    """Return a folder with the files of a model, which we have written; a zip's members are copied into `folder`."""
    source = open_source(file)
    if file.is_dir():
        return file / source.root
    for name in source.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with source.open(name) as stream:
            (folder / name).write_bytes(stream.read())
    return folder


def _state_dict(file: Path, small: Checkpoint, inputs: Inputs) -> Outputs:
    """Load the weights strictly into the smaller graph as a module, and run that."""
    held = find_weights(file).file
    data = bytes(held.read(0, held.size))
    weights = (safetensors.torch.load(data) if looks_like_safetensors(data[:64], len(data))
               else torch.load(io.BytesIO(data), weights_only=True))
    if weights.keys() != {*small.tensors, *small.aliases}:
        raise ValueError(f"it has other keys than the model: {sorted(weights.keys() ^ {*small.tensors, *small.aliases})[:5]}")
    module = to_module(small.graph, {key: torch.zeros_like(small.tensors[key]) for key in small.tensors}, small.constants,
                       buffers=set(small.origin["buffers"]))
    module.load_state_dict({key: weights[key] for key in module.state_dict()}, strict=True)
    return _tensors(torch.utils._pytree.tree_leaves(module(**inputs)))


def _tensors(leaves: list[Any]) -> Outputs:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


RUNTIMES: Mapping[str, tuple[str, Callable[[Path, Checkpoint, Inputs], Outputs]]] = {
    "pt2": ("torch.export.load", _pt2), "onnx": ("onnxruntime", _onnx),
    "huggingface": ("from_pretrained", _huggingface), "state_dict": ("load_state_dict", _state_dict)}
