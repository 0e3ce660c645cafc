"""The sample models: trained on this machine, each with a probe file. `python -m cipm.testing.samples FOLDER`.

The folder then holds for every sample a model and `…_probe.npz` (the model's input by its name, `y` the classes,
`held_out` whether a row was kept from training), and `samples.json`, what there is to try:

    {file name: {kind: "model"|"probe", title, …}}      a model also has `accuracy` (on `held_out_rows` digits that it
                                                        was not trained on), `probe`, `seconds` and `show`

Files appear whole, and in `samples.json` only once they are there; what is there already is not trained again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cipm.testing.digits import PROBE_ROWS, Digits, Recipe, load, probe_rows, train
from cipm.testing.models import cnn_residual, huggingface, mlp, quiet, save_pt2

INDEX = "samples.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One sample model: how it is built, trained and written, and how it takes digits.

    `input` names its input; `shape` is one row of it. `show`: whether the demo analyses it, or offers it as files alone.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    recipe: Recipe
    write: Callable[[nn.Module, Path], object]
    suffix: str = ".pt2"
    input: str = "x"
    shape: tuple[int, ...] = (1, 8, 8)
    show: bool = True

    @property
    def model_file(self) -> str:
        """Return the name of the model's file."""
        return self.name + self.suffix

    @property
    def probe_file(self) -> str:
        """Return the name of the probe's file."""
        return f"{self.name}_probe.npz"

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits [rows, 10] of images [rows, 1, 8, 8]."""
        made = model(images.reshape(-1, *self.shape))
        return made if isinstance(made, Tensor) else made.logits


def _write_pt2(shape: tuple[int, ...]) -> Callable[[nn.Module, Path], object]:
    return lambda model, path: save_pt2(model, torch.zeros(2, *shape), path)


def _write_zip(model: Any, path: Path) -> None:
    """Write what `save_pretrained` makes, as one zip file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet():
        model.save_pretrained(folder)
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)


SAMPLES = (
    Sample("digits_mlp", "Digits MLP (64-128-96-10)", mlp, Recipe(30, 3e-3), _write_pt2((64,)), shape=(64,)),
    Sample("digits_cnn", "Digits CNN (batch norm, residual blocks)", cnn_residual, Recipe(12, 1e-2, shift=1),
           _write_pt2((1, 8, 8))),
    Sample("digits_vit", "Digits ViT (Hugging Face folder)", lambda: huggingface("vit"), Recipe(30, 3e-3),
           _write_zip, suffix=".zip", input="pixel_values", show=False),
)


def make(folder: Path, say: Say = lambda line: None) -> dict[str, dict[str, Any]]:
    """Train and write what the folder lacks; return its index. Cost: about 15 s on one core, less where some are there."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load()
    # One thread: as fast for models of this size, the same numbers on every machine, and no fight with a worker.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for sample in SAMPLES:
            if not {sample.model_file, sample.probe_file} <= read_index(folder).keys():
                _add(folder, sample, digits, say)
    finally:
        torch.set_num_threads(threads)
    return read_index(folder)


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what stands in the folder's index and is there."""
    index = folder / INDEX
    listed = json.loads(index.read_text()) if index.is_file() else {}
    return {name: about for name, about in listed.items() if (folder / name).is_file()}


def _add(folder: Path, sample: Sample, digits: Digits, say: Say) -> None:
    began = time.monotonic()
    model = sample.make()
    accuracy = train(model, digits, sample.recipe, sample.logits)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        sample.write(model, Path(part, sample.model_file))
        held_out = _write_probe(Path(part, sample.probe_file), sample, digits)
        about = _about(sample, accuracy, len(digits.test_y), held_out, time.monotonic() - began)
        Path(part, INDEX).write_text(json.dumps(read_index(folder) | about, indent=1))
        for name in (*about, INDEX):  # the index last: it speaks of whole files alone
            os.replace(Path(part, name), folder / name)
    say(f"{sample.model_file}: {accuracy:.1%} of {len(digits.test_y)} held-out digits right, {time.monotonic() - began:.1f} s")


def _write_probe(path: Path, sample: Sample, digits: Digits) -> int:
    images, classes, held_out = probe_rows(digits)
    np.savez_compressed(path, **{sample.input: images.reshape(-1, *sample.shape), "y": classes, "held_out": held_out})
    return int(held_out.sum())


def _about(sample: Sample, accuracy: float, tested: int, held_out: int, seconds: float) -> Mapping[str, dict[str, Any]]:
    shape = "×".join(map(str, sample.shape))
    model = {"kind": "model", "title": f"{sample.title}: {accuracy:.1%} on held-out digits", "name": sample.title,
             "accuracy": accuracy, "held_out_rows": tested, "probe": sample.probe_file, "seconds": round(seconds, 2),
             "show": sample.show}
    probe = {"kind": "probe", "model": sample.model_file, "title": f"{PROBE_ROWS} digits as rows of {shape} for "
             f"{sample.model_file}, {held_out} of them held out from training"}
    return {sample.model_file: model, sample.probe_file: probe}


def main(arguments: list[str]) -> int:
    """Write the samples into the one folder named; return the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m cipm.testing.samples FOLDER", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-written files are removed on the way out
    try:
        make(Path(arguments[0]), lambda line: print(line, flush=True))
    except OSError as error:
        print(f"The samples cannot be written: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
