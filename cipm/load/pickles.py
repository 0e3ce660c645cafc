"""The pickle of a torch.save file, read by an interpreter of our own: plain containers, plain values and tensors, nothing else.

A pickle is a program. This reader knows the opcodes that torch.save writes for a state dict and the few names that it
uses for tensors, and it calls none of them: a name becomes a marker, and a call of a marker a description. So nothing in
a file can be executed, whatever it says, and no list of bad names has to be complete. `torch.load(weights_only=True)` is
not used: it runs more of torch's code on more kinds of objects than a state dict needs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cipm.errors import CorruptFile, LimitExceeded, RefusedFormat

MAX_PICKLE, MAX_STEPS = 64 * 2**20, 4_000_000
FIX = "Save the weights alone: torch.save(model.state_dict(), \"weights.pt\")."
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}
_DTYPES = {name: getattr(torch, name) for name in (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")}


@dataclass(frozen=True)
class Storage:
    """A run of bytes that tensors lie in: its name in the file, the dtype it is counted in, and how many of these."""

    name: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Return its bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: where it lies in its storage. Its shape is the file's claim until it is checked."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parameter: bool = False


@dataclass(frozen=True)
class _Name:
    """A marker for a name of the file: nothing is looked up or imported."""

    module: str
    name: str

    @property
    def label(self) -> str:
        return f"{self.module}.{self.name}"[:120]


def read_pickle(data: bytes | bytearray, start: int = 0) -> tuple[Any, int, dict[str, Storage]]:
    """Return (the value of a pickle, where it ends, the storages it refers to by name).

    Dicts of any kind become dict, tensors become Stored. Raises RefusedFormat naming what is not plain weights,
    CorruptFile where the pickle is damaged, LimitExceeded where it is too long.
    """
    machine = _Machine(data, start)
    try:
        return machine.run(), machine.at, machine.storages
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(f"The list of tensors in the file is damaged near byte {machine.at:,}.", where="data.pkl",
                          fix="Save or upload the file again.") from error


class _Mark:
    """Where a run of items on the stack begins."""


_MARK = _Mark()


class _Machine:
    """The stack, the memo and the place in the data. Cost: one step an opcode, of which MAX_STEPS are taken."""

    def __init__(self, data: bytes | bytearray, start: int):
        if len(data) - start > MAX_PICKLE:
            raise LimitExceeded(f"The list of tensors in the file has {len(data) - start:,} bytes; at most {MAX_PICKLE:,} "
                                "are read.", where="data.pkl")
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                value, = self.stack
                return value
            step = _STEPS.get(code)
            if step is None:
                raise RefusedFormat(f"The file is a pickle with the instruction {chr(code)!a}, which plain weights do not "
                                    "need: it was not opened.", where="data.pkl", fix=FIX)
            step(self)
        raise LimitExceeded(f"The list of tensors in the file has more than {MAX_STEPS:,} entries.", where="data.pkl")

    def take(self, count: int) -> bytes:
        found = bytes(self.data[self.at:self.at + count])
        if len(found) < count:
            raise IndexError
        self.at += count
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 1000)
        text = self.take(end - self.at).decode("utf-8")
        self.at += 1
        return text

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError
        return value

    def items(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError
        found = self.stack[place + 1:]
        del self.stack[place:]
        return found

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]


# --- the opcodes that torch.save writes (pickle protocol 2) -----------------------------------------------------------

def _proto(machine: _Machine) -> None:
    version = machine.take(1)[0]
    if version != 2:
        raise RefusedFormat(f"The file was saved with pickle protocol {version}; torch.save's own, 2, is read.",
                            where="data.pkl", fix="Save it again with torch.save and without pickle_protocol.")


def _push(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(read(machine))


def _name(machine: _Machine) -> Any:
    found = _Name(machine.line(), machine.line())
    if found.module == "torch" and found.name in _STORAGES:
        return found
    if found.module == "torch" and found.name in _DTYPES:
        return _DTYPES[found.name]
    if (found.module, found.name) in _CALLS or found.label == "torch.storage.UntypedStorage":
        return found
    raise RefusedFormat(f"Besides tensors and plain values, the file holds a Python object, {found.label!r}, which could run "
                        "code when it is opened: it was not opened.", where=found.label, fix=FIX)


def _call(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    build = _CALLS.get((function.module, function.name)) if isinstance(function, _Name) else None
    if build is None or not isinstance(arguments, tuple):
        raise RefusedFormat("The file calls something that is not a tensor's description: it was not opened.",
                            where="data.pkl", fix=FIX)
    machine.stack.append(build(*arguments))


def _build(machine: _Machine) -> None:
    state = machine.pop()  # the versions of a state dict's modules, or a container's attributes: nothing that is needed
    machine.top(dict)
    if type(state) is not dict:
        raise RefusedFormat("The file sets attributes of an object: it was not opened.", where="data.pkl", fix=FIX)


def _persistent(machine: _Machine) -> None:
    reference = machine.pop()
    kind, storage, name, _, count, *view = reference
    if kind != "storage" or not isinstance(storage, _Name) or not isinstance(name, str) or view not in ([], [None]):
        raise RefusedFormat("The file refers to something that is not the bytes of a tensor: it was not opened.",
                            where="data.pkl", fix=FIX)
    dtype = torch.uint8 if storage.name == "UntypedStorage" else _STORAGES[storage.name]
    found = Storage(name[:200], dtype, _size(count))
    if machine.storages.setdefault(found.name, found) != found:
        raise CorruptFile(f"The file describes its storage {found.name!r} in two ways.", where="data.pkl",
                          fix="Save or upload the file again.")
    machine.stack.append(found)


def _set_items(machine: _Machine) -> None:
    found = machine.items()
    target = machine.top(dict)
    if len(found) % 2:
        raise ValueError
    for key, value in zip(found[::2], found[1::2], strict=True):
        target[_key(key)] = value


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[_key(key)] = value


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine) -> None:
    found = machine.items()
    machine.top(list).extend(found)


def _tuple(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(tuple(reversed([machine.pop() for _ in range(count)])))


def _put(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.memo.__setitem__(machine.number(form), machine.stack[-1])


def _long(machine: _Machine) -> int:
    return int.from_bytes(machine.take(machine.take(1)[0]), "little", signed=True)


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _proto, ord("c"): _push(_name), ord("R"): _call, ord("b"): _build, ord("Q"): _persistent,
    ord("("): _push(lambda m: _MARK), ord(")"): _push(lambda m: ()),
    ord("}"): _push(lambda m: {}), ord("]"): _push(lambda m: []),
    ord("t"): lambda m: m.stack.append(tuple(m.items())), 0x85: _tuple(1), 0x86: _tuple(2), 0x87: _tuple(3),
    ord("u"): _set_items, ord("s"): _set_item, ord("a"): _append, ord("e"): _appends,
    ord("N"): _push(lambda m: None), 0x88: _push(lambda m: True), 0x89: _push(lambda m: False),
    ord("K"): _push(lambda m: m.number("<B")), ord("M"): _push(lambda m: m.number("<H")),
    ord("J"): _push(lambda m: m.number("<i")), 0x8A: _push(_long), ord("G"): _push(lambda m: m.number(">d")),
    ord("X"): _push(lambda m: m.take(m.number("<I")).decode("utf-8")),
    ord("q"): _put("<B"), ord("r"): _put("<I"),
    ord("h"): _push(lambda m: m.memo[m.number("<B")]), ord("j"): _push(lambda m: m.memo[m.number("<I")]),
}


# --- the names that torch.save uses -----------------------------------------------------------------------------------

def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, *metadata: Any) -> Stored:
    if not isinstance(storage, Storage) or hooks or any(metadata):
        raise RefusedFormat("A tensor of the file carries hooks or other objects: it was not opened.", where="data.pkl",
                            fix=FIX)
    return Stored(storage, storage.dtype, _size(offset), _sizes(shape), _sizes(strides))


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
                  *metadata: Any) -> Stored:
    if not isinstance(dtype, torch.dtype):
        raise TypeError
    return replace(_tensor(storage, offset, shape, strides, requires_grad, hooks, *metadata), dtype=dtype)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> Stored:
    if not isinstance(tensor, Stored) or hooks:
        raise RefusedFormat("A parameter of the file carries hooks or other objects: it was not opened.", where="data.pkl",
                            fix=FIX)
    return replace(tensor, parameter=True)


def _plain_dict(items: Any = ()) -> dict[Any, Any]:
    """OrderedDict(), as protocol 2 writes it: empty, or with a list of pairs."""
    return {_key(key): value for key, value in items}


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _plain_dict,
    ("torch._utils", "_rebuild_tensor"): lambda *place: _tensor(*place, False, None),  # until torch 0.3
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): lambda items: _sizes(tuple(items)),
}


def _key(key: Any) -> Any:
    if key is not None and type(key) not in (str, int, float, bool):
        raise TypeError
    return key


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise CorruptFile(f"A tensor of the file has the impossible size or place {str(value)[:40]}.", where="data.pkl",
                          fix="Save or upload the file again.")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > 64:
        raise TypeError
    return tuple(_size(value) for value in values)
