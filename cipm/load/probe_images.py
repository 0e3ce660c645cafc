"""Probe rows from a zip of images: decoded with Pillow, brought to the model's size; folders are classes."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from cipm.errors import LimitExceeded, ProbeError
from cipm.load.probe_match import Column, describe_input
from cipm.trace.graph import Input

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MOST_PIXELS, MOST_BYTES = 50_000_000, 64 << 20
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Target:
    """How the model wants an image: sizes in pixels, number of channels, and whether they come first, last or flat."""

    height: int
    width: int
    channels: int
    layout: str  # "first", "last", "flat"


def open_images(path: Path, members: Sequence[zipfile.ZipInfo],
                inputs: Sequence[Input]) -> tuple[list[Column], list[str]]:
    """List the images as the one input that takes images, and their folders as labels where there are several.

    Raises ProbeError where no input, or more than one, takes images.
    """
    images = sorted((m for m in members if PurePosixPath(m.filename).suffix.lower() in IMAGE_SUFFIXES),
                    key=lambda info: info.filename)
    with zipfile.ZipFile(path) as archive:
        sizes = Counter(_decode(archive, info).size for info in images)
    spec, target = _choose_input(inputs, sizes)
    notes = _notes(sizes, target, len(members) - len(images))

    def read(rows: np.ndarray) -> np.ndarray:
        with zipfile.ZipFile(path) as archive:
            return np.stack([_pixels(_decode(archive, images[row]), target) for row in rows.tolist()])

    shape = (len(images), *_row_shape(target))
    columns = [Column(spec.name, shape, np.dtype(np.uint8), read, pixels=True)]
    folders = np.array([PurePosixPath(info.filename).parent.name for info in images])
    if len(set(folders.tolist())) > 1:
        numbers = all(folder.isdecimal() and len(folder) < 10 for folder in folders.tolist())
        labels = folders.astype(np.int64) if numbers else folders
        columns.append(Column("labels", labels.shape, labels.dtype, lambda rows: labels[rows]))
    return columns, notes


def target_of(spec: Input, sizes: Counter[tuple[int, int]]) -> Target | None:
    """Return how an input takes images, or None where it does not; a size it leaves open is the images' own."""
    if not (spec.dtype.is_floating_point or spec.dtype == torch.uint8):
        return None
    width, height = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    match spec.shape[1:]:
        case (int(c), h, w) if c in MODES:
            return _sized(h, w, height, width, c, "first")
        case (h, w, int(c)) if c in MODES:
            return _sized(h, w, height, width, c, "last")
        case (int(h), int(w)):
            return Target(h, w, 1, "first")
        case (int(length),) if (side := math.isqrt(length)) ** 2 == length and side > 1:
            return Target(side, side, 1, "flat")
    return None


def _sized(h: int | str, w: int | str, height: int | None, width: int | None, channels: int,
           layout: str) -> Target | None:
    h, w = (height if isinstance(h, str) else h), (width if isinstance(w, str) else w)
    return Target(h, w, channels, layout) if h and w else None


def _choose_input(inputs: Sequence[Input], sizes: Counter[tuple[int, int]]) -> tuple[Input, Target]:
    found = [(spec, target) for spec in inputs if (target := target_of(spec, sizes))]
    if len(found) != 1:
        why = "more than one of its inputs takes" if found else "none of its inputs takes"
        if len(sizes) > 1 and not found:
            why = f"the images have {len(sizes)} sizes and none of its inputs fixes one for"
        raise ProbeError(f"The probe is a zip of images, but {why} images: {', '.join(map(describe_input, inputs))}.",
                         fix="Save the rows for every input with numpy.savez.")
    return found[0]


def _notes(sizes: Counter[tuple[int, int]], target: Target, others: int) -> list[str]:
    notes = [f"Images are read as {MODES[target.channels]}; no mean or deviation is taken off beyond the scaling."]
    resized = [size for size in sizes if size != (target.width, target.height)]
    if resized:
        width, height = resized[0]
        more = f" and {len(resized) - 1} other sizes" if len(resized) > 1 else ""
        notes.append(f"{sum(sizes[s] for s in resized):,} images were resized (bilinear) from {width} × {height}{more} "
                     f"to {target.width} × {target.height} pixels.")
    return notes + ([f"{others:,} files of the zip are not images and were left out."] if others else [])


def _decode(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Image.Image:
    """Open an image lazily; raises ProbeError naming a file that is not one, LimitExceeded where it is too large."""
    if info.file_size > MOST_BYTES:
        raise LimitExceeded(f"The image {info.filename!r} has {info.file_size:,} bytes; at most {MOST_BYTES:,} are "
                            "read.", where=info.filename)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows, and is lower
            image = Image.open(io.BytesIO(archive.read(info)), formats=FORMATS)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, Image.DecompressionBombError, SyntaxError,
            ValueError) as error:
        raise ProbeError(f"{info.filename!r} in the probe is not a readable image ({type(error).__name__}).",
                         where=info.filename, fix="Remove it or save it as PNG.") from None
    if image.width * image.height > MOST_PIXELS:
        raise LimitExceeded(f"The image {info.filename!r} is {image.width} × {image.height} pixels; at most "
                            f"{MOST_PIXELS:,} are read.", where=info.filename)
    return image


def _pixels(image: Image.Image, target: Target) -> np.ndarray:
    """Return one row of uint8 values in the target's layout."""
    try:
        converted = image.convert(MODES[target.channels])
    except (OSError, SyntaxError, ValueError) as error:
        raise ProbeError(f"An image of the probe is damaged ({error}).", fix="Remove it or save it again.") from None
    if converted.size != (target.width, target.height):
        converted = converted.resize((target.width, target.height), Image.Resampling.BILINEAR)
    values = np.asarray(converted, np.uint8).reshape(target.height, target.width, target.channels)
    if target.layout == "first":
        values = np.moveaxis(values, 2, 0)
    return values.reshape(_row_shape(target))


def _row_shape(target: Target) -> tuple[int, ...]:
    sizes = (target.height, target.width)
    return {"first": (target.channels, *sizes), "last": (*sizes, target.channels),
            "flat": (math.prod(sizes) * target.channels,)}[target.layout]
