"""Say what a file is, by its content: for every format that is not opened, one sentence and the way to convert it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cipm.errors import CorruptFile, ModelError, RefusedFormat, UnknownFormat, UnsupportedModel
from cipm.load.archive import Source, open_source
from cipm.load.onnx import is_onnx, onnx_files
from cipm.load.torch_file import is_legacy

EXPORT = "torch.export.save(torch.export.export(model.eval(), (example_input,)), \"model.pt2\")"
PICKLE_FIX = f"Load it where you trust it and save it with {EXPORT}."
READ = ("a .pt2 file of torch.export.save, an .onnx file (with its data files as one zip), a zip or folder with config.json "
        "and model.safetensors (Hugging Face), or weights (.safetensors, torch.save) with an architecture.json as one zip")


@dataclass(frozen=True)
class Kind:
    """A kind of file: what to call it, and the error that refuses it as a model."""

    name: str
    error: type[ModelError]
    sentence: str
    fix: str

    def refusal(self) -> ModelError:
        """Return the error for a file of this kind."""
        return self.error(self.sentence, fix=self.fix)


def _unknown(name: str, fix: str = f"Upload a model: {READ}.") -> Kind:
    return Kind(name, UnknownFormat, f"The file is {name}, not a model.", fix)


EMPTY = Kind("an empty file", UnknownFormat, "The file is empty (0 bytes).",
             "Upload it again; the transfer may have stopped.")
BINARY = Kind("a file of unknown type", UnknownFormat, "The file is of no type that CIPM knows.", f"Upload {READ}.")
PICKLE = Kind("a Python pickle", RefusedFormat, "The file is a Python pickle, which can run code when it is opened: it was "
              "not opened.", PICKLE_FIX)
TORCHSCRIPT = Kind("a TorchScript archive", RefusedFormat, "The file is a TorchScript archive, which can read and write "
                   "files when it is loaded: it was not opened.", f"Save the original module with {EXPORT}.")
AOTINDUCTOR = Kind("an AOTInductor package", RefusedFormat, "The file is an AOTInductor package: it holds compiled machine "
                   "code, which is never run here.", f"Save the exported program instead: {EXPORT}.")
OLD_EXPORT = Kind("a torch.export archive of an old torch", UnsupportedModel, "The file is a torch.export archive in the "
                  "layout of torch 2.7 or earlier.", f"Save it again with torch 2.13: {EXPORT}.")
KERAS = Kind("a Keras model", RefusedFormat, "The file is a Keras model (HDF5 or .keras), which can carry code and "
             "which CIPM does not read.", f"Rebuild the model in PyTorch, copy the weights, and save it with {EXPORT}.")
GGUF = Kind("a GGUF file", RefusedFormat, "The file is a GGUF model (llama.cpp): its weights are quantised, and it holds "
            "no graph.", "Upload the original Hugging Face folder: config.json with model.safetensors.")
SAVED_MODEL = Kind("a TensorFlow SavedModel", RefusedFormat, "This is a TensorFlow SavedModel, which can carry code and "
                   "which CIPM does not read.",
                   f"Rebuild the model in PyTorch, copy the weights, and save it with {EXPORT}.")
SEVERAL_WEIGHTS = Kind("an archive with weights of several files", UnsupportedModel, "The upload holds files of weights, but "
                       "not the model that they belong to.", "Put one file of weights with an architecture.json into a zip "
                       f"(docs/weights.md), or save the model with {EXPORT}.")
NO_WEIGHTS = Kind("a Hugging Face folder without safetensors", UnsupportedModel, "There is a config.json, but no "
                  "model.safetensors beside it.", "Save the model with model.save_pretrained(folder) and upload the whole "
                  "folder as a zip.")
PICKLED_WEIGHTS = Kind("a Hugging Face folder with pickled weights", RefusedFormat, "The weights lie in pytorch_model.bin, "
                       "a Python pickle, which can run code: it was not opened.", "Save the model again with "
                       "model.save_pretrained(folder), which writes model.safetensors.")
PROBE = Kind("a NumPy file", UnknownFormat, "The file holds NumPy arrays: this is data, not a model.",
             f"Give it as the probe, and as the model {READ}.")
BROKEN_ZIP = Kind("a damaged zip archive", CorruptFile, "The file starts like a zip archive, but its end is missing: it "
                  "was cut short.", "Upload the file again.")
NO_MODEL_FOLDER = Kind("a folder without a model", UnknownFormat, "The folder holds no model.",
                       "Give a folder with config.json and model.safetensors, or a .pt2 file.")
NO_MODEL_ZIP = Kind("a zip archive without a model", UnknownFormat, "The zip archive holds no model.", f"Upload {READ}.")

_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG\r\n\x1a\n", _unknown("a PNG image")), (b"\xff\xd8\xff", _unknown("a JPEG image")),
    (b"GIF8", _unknown("a GIF image")), (b"%PDF", _unknown("a PDF document")), (b"BM", _unknown("a BMP image")),
    (b"\x1f\x8b", _unknown("a gzip archive", f"Unpack it and upload {READ}.")),
    (b"BZh", _unknown("a bzip2 archive", f"Unpack it and upload {READ}.")),
    (b"\xfd7zXZ", _unknown("an xz archive", f"Unpack it and upload {READ}.")),
    (b"7z\xbc\xaf", _unknown("a 7z archive", f"Unpack it and upload {READ}.")),
    (b"Rar!", _unknown("a RAR archive", f"Unpack it and upload {READ}.")), (b"\x7fELF", _unknown("a program (ELF)")),
    (b"MZ", _unknown("a program (Windows)")), (b"\x93NUMPY", PROBE), (b"\x89HDF\r\n\x1a\n", KERAS), (b"GGUF", GGUF),
    *((bytes([0x80, version]), PICKLE) for version in range(2, 6)), (b"PK\x03\x04", BROKEN_ZIP),
)


def describe(path: Path) -> str:
    """Return what the file or folder is, as a noun phrase."""
    kind = recognise(path)
    if kind is not None:
        return kind.name
    if not path.is_dir() and not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            head = stream.read(65_536)
        if is_onnx(head):
            return "an ONNX model"
        return "a torch.save file" if is_legacy(head) else "a safetensors file"
    source = open_source(path)
    if "archive_format" in source:
        return "a torch.export archive"
    if onnx_files(source) and not _has_safetensors(source):
        return "an ONNX model"
    return "a torch.save file" if "data.pkl" in source else "a Hugging Face model"


def refuse(path: Path) -> ModelError:
    """Return the error that says what this file is and what to do instead."""
    return (recognise(path) or BINARY).refusal()


def recognise(path: Path) -> Kind | None:
    """Return the kind of a file that is not opened as a model, or None for one that is.

    Raises CorruptFile or LimitExceeded where an archive's directory is dishonest.
    """
    if path.is_dir():
        return _folder_kind(open_source(path))
    if path.stat().st_size == 0:
        return EMPTY
    if zipfile.is_zipfile(path):
        return _kind(open_source(path))
    with path.open("rb") as stream:
        head = stream.read(65_536)
    if is_legacy(head) or _is_safetensors(head, path.stat().st_size):
        return None
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if len(head) > 262 and head[257:262] == b"ustar":
        return _unknown("a tar archive", f"Unpack it and upload {READ}.")
    return None if is_onnx(head) else _text_kind(head)


def _folder_kind(source: Source) -> Kind | None:
    kind = _kind(source)
    return NO_MODEL_FOLDER if kind is NO_MODEL_ZIP else kind


def _kind(source: Source) -> Kind | None:
    return next((kind for test, kind in _MEMBERS if test(source)), NO_MODEL_ZIP)


def _any(test: Callable[[str], bool]) -> Callable[[Source], bool]:
    return lambda source: any(test(name) for name in source.files)


_WEIGHTS = (".safetensors", ".pt", ".pth", ".th", ".ckpt")


def _has_safetensors(source: Source) -> bool:
    return any(name.endswith((".safetensors", ".safetensors.index.json")) and "/" not in name for name in source.files)


_MEMBERS: tuple[tuple[Callable[[Source], bool], Kind | None], ...] = (
    (_any(lambda n: n.startswith("data/aotinductor/")), AOTINDUCTOR),
    (lambda s: "archive_format" in s and any(n.startswith("models/") for n in s.files), None),
    (_any(lambda n: n in ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_state_dict.json")),
     OLD_EXPORT),
    (lambda s: "data.pkl" in s and ("constants.pkl" in s or any(n.startswith("code/") for n in s.files)), TORCHSCRIPT),
    (lambda s: "data.pkl" in s, None),
    (lambda s: "saved_model.pb" in s, SAVED_MODEL),
    (lambda s: "model.weights.h5" in s or ("config.json" in s and "metadata.json" in s and not _has_safetensors(s)), KERAS),
    (lambda s: "config.json" in s and _has_safetensors(s), None),
    (lambda s: bool(onnx_files(s)), None),
    (lambda s: "config.json" in s and any(n.startswith("pytorch_model") and n.endswith(".bin") for n in s.files),
     PICKLED_WEIGHTS),
    (lambda s: "config.json" in s, NO_WEIGHTS),
    (lambda s: any(name.endswith(_WEIGHTS) for name in s.files), SEVERAL_WEIGHTS),
    (lambda s: bool(s.files) and all(n.endswith(".npy") for n in s.files), PROBE),
)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def _text_kind(head: bytes) -> Kind:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return BINARY
        text = head[:error.start].decode("utf-8")
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return BINARY
    if text.startswith("version https://git-lfs"):
        return Kind("a Git LFS pointer", UnknownFormat, "The file is a Git LFS pointer: the model itself was not "
                    "downloaded.", "Run git lfs pull and upload the real file.")
    return _unknown("a JSON file") if text.lstrip()[:1] in ("{", "[") else _unknown("a text file")
