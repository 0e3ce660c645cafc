"""Every bad probe file is told what it is, in one pinned line."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cipm.errors import CipmError, InputError
from cipm.load.probe import open_probe
from cipm.trace.graph import Input

INPUTS = [Input("x", ("batch", 4), torch.float32)]
HOW = "A probe is an npz, npy or safetensors file, a csv table, or a zip of images."


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def npz(**arrays: object) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def bomb() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 25, 4)})
            for _ in range(512):
                member.write(bytes(1 << 20))
    return data.getvalue()


def lying_header() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 4)})
        member.write(bytes(16))
    return data.getvalue()


def image(size: tuple[int, int] = (4, 4)) -> bytes:
    data = io.BytesIO()
    Image.new("L", size).save(data, "PNG")
    return data.getvalue()


def huge_image() -> bytes:
    data = bytearray(image())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", __import__("zlib").crc32(bytes(data[12:29])))
    return bytes(data)


def zipped(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return data.getvalue()


def with_nan() -> np.ndarray:
    x = np.zeros((20, 4), np.float32)
    x[17, 3] = np.nan
    return x


zeros = np.zeros((10, 4), np.float32)
ARRAYS = "Save it as an array of numbers, and leave other objects out."

CORPUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", f"The probe file is empty. {HOW}"),
    "text": (lambda: b"Dear all,\nplease find the data attached.\n",
             f"The probe is a text file, not a table of rows. {HOW}"),
    "binary": (lambda: bytes(range(256)), f"The probe is a file of unknown kind, not a table of rows. {HOW}"),
    "png": (image, "The probe is a PNG image, not a table of rows. Put the images into a zip, one folder per class."),
    "truncated zip": (lambda: npz(x=zeros)[:200],
                      "The probe is a zip file that is damaged or cut short (File is not a zip file). Save or upload it "
                      "again."),
    "flipped bytes": (lambda: npz(x=zeros).replace(bytes(160), b"\x01" * 160, 1),
                      "The probe is a zip file that is damaged or cut short (Bad CRC-32 for file 'x.npy'). Save or upload "
                      "it again."),
    "pickle": (lambda: pickle.dumps({"x": zeros}),
               "The probe is a Python pickle, which can run code when it is opened, so it was not opened. Save the arrays "
               "with numpy.savez."),
    "object array": (lambda: npz(x=zeros, meta=np.array([{"a": 1}], dtype=object)),
                     "The probe's 'meta' holds Python objects, which can run code when they are read, so it was not read. "
                     f"[meta] {ARRAYS}"),
    "zip bomb": (bomb, "The probe is {size:,} bytes and would unpack to 536,871,040, as a zip bomb does, so it was not "
                       "unpacked. Save it with numpy.savez, which does not compress."),
    "lying header": (lying_header, "The probe's 'x' says it is [1000000000, 4] float32, but holds 16 bytes. [x] Save or "
                                   "upload it again."),
    "model": (lambda: zipped(config__json=b"{}", model__safetensors=b""),
              f"The probe is a packed model, not a table of rows. Upload it as the model. {HOW}"),
    "zip of nothing": (lambda: zipped(), f"The probe is a zip without arrays or images; it holds nothing. {HOW}"),
    "huge image": (lambda: zipped(a__png=huge_image()),
                   "'a.png' in the probe is not a readable image (DecompressionBombError). [a.png] Remove it or save it as "
                   "PNG."),
    "no image": (lambda: zipped(a__png=b"hello"),
                 "'a.png' in the probe is not a readable image (UnidentifiedImageError). [a.png] Remove it or save it as "
                 "PNG."),
    "images for no input": (lambda: zipped(a__png=image(), b__png=image((5, 5))),
                            "The probe is a zip of images, but the images have 2 sizes and none of its inputs fixes one "
                            "for images: 'tokens' [rows, 7] int64. Save the rows for every input with numpy.savez."),
    "ragged csv": (lambda: b"a,b,c,d\n1,2,3,4\n1,2,3\n",
                   "Line 3 of the probe has 3 cells; line 1 has 4. [line 3] Give every row the same number of cells."),
    "words in csv": (lambda: b"a,b,c,d\n1,2,3,4\n1,2,blue,4\n",
                     "Line 3, 'c' of the probe is 'blue', not a number. [line 3, c] Keep the columns that the model takes, "
                     "and name a column of classes 'label'."),
    "gap in csv": (lambda: b"1,2,3,4\n1,,3,4\n",
                   "Line 2, 'column 1' of the probe is empty, not a number. [line 2, column 1] Keep the columns that the "
                   "model takes, and name a column of classes 'label'."),
    "header alone": (lambda: b"1,2,3,label\n",
                     "No column of the probe fits the model's input 'x'. The model takes 'x' [rows, 4] float32; the probe "
                     "has 'columns' [0, 3] float64, 'label' [0] float64. [x] Name the arrays after the model's inputs and "
                     "give them these shapes."),
    "no match": (lambda: npz(a=np.zeros((10, 5)), b=np.zeros((10, 2, 3), np.int64)),
                 "No column of the probe fits the model's input 'x'. The model takes 'x' [rows, 4] float32; the probe has "
                 "'a' [10, 5] float64, 'b' [10, 2, 3] int64. [x] Name the arrays after the model's inputs and give them "
                 "these shapes."),
    "named but another shape": (lambda: npz(x=np.zeros((10, 5))),
                                "The probe's 'x' [10, 5] float64 does not fit the model's input 'x' [rows, 4] float32. "
                                "[x] Save it in the shape the model takes."),
    "text array": (lambda: npz(x=np.full((10, 4), "a")),
                   "The probe's 'x' holds text (<U1), not numbers a model takes. [x] Save it as float32, or as int64 for "
                   "token ids."),
    "complex array": (lambda: npz(x=zeros.astype(np.complex64)),
                      "The probe's 'x' holds complex numbers (complex64), not numbers a model takes. [x] Save it as "
                      "float32, or as int64 for token ids."),
    "nan": (lambda: npz(x=with_nan()),
            "The probe's 'x' is nan in row 17, column 3 (counted from 0); 1 of its values are not finite. "
            "[x, row 17, column 3] Remove these rows or fill in the values."),
    "infinite": (lambda: npz(x=np.full((3, 4), np.inf)),
                 "The probe's 'x' is inf in row 0, column 0 (counted from 0); 12 of its values are not finite. "
                 "[x, row 0, column 0] Remove these rows or fill in the values."),
    "zero rows": (lambda: npz(x=zeros[:0]), "The probe has no rows. [x] Save at least two rows."),
    "labels of another length": (lambda: npz(x=zeros, y=np.zeros(9, int)),
                                 "The probe has 9 labels in 'y' for 10 rows in 'x'. [y] Save one label per row, or leave "
                                 "the labels out."),
    "a number alone": (lambda: npz(x=np.float32(3)),
                       "The probe's 'x' [] float32 does not fit the model's input 'x' [rows, 4] float32. [x] Save it in "
                       "the shape the model takes."),
}


@pytest.mark.parametrize("name", CORPUS)
def test_bad_probe_is_named(tmp_path, name):
    make, message = CORPUS[name]
    path = tmp_path / "upload"
    path.write_bytes(data := make())
    inputs = [Input("tokens", ("batch", 7), torch.int64)] if name == "images for no input" else INPUTS
    with pytest.raises(InputError) as caught:
        open_probe(path, inputs, max_rows=1000)
    assert caught.value.line() == message.replace("{size:,}", f"{len(data):,}")  # the packed size depends on zlib


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_nothing_in_a_pickle_is_executed(tmp_path, kind):
    executed, path = tmp_path / "executed", tmp_path / "upload"
    payload = np.array([Payload(executed)], dtype=object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(executed)))
    elif kind == "npz":
        path.write_bytes(npz(x=payload))
    else:
        with path.open("wb") as file:
            np.save(file, payload)
    with pytest.raises(InputError, match="can run code"):
        open_probe(path, INPUTS, max_rows=9)
    assert not executed.exists()
    with path.open("rb") as file:  # the payload is real: opened carelessly, it runs
        if kind == "pickle":
            pickle.load(file)
        else:
            loaded = np.load(file, allow_pickle=True)
            loaded["x"] if kind == "npz" else loaded
    assert executed.exists()


@pytest.mark.parametrize("name", ["nan", "labels of another length", "words in csv", "no image"])
def test_any_cut_of_a_file_is_refused_or_read_but_never_crashes(tmp_path, name):
    whole = CORPUS[name][0]()
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut").write_bytes(whole[:end])
        try:
            assert open_probe(tmp_path / "cut", INPUTS, max_rows=9).used_rows > 0
        except CipmError as error:
            assert error.exit_code == 2
